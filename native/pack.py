"""Packs lmlite into one file that Python runs: `make pyz`.

The same content makes the same bytes: entries are sorted, and their times are SOURCE_DATE_EPOCH's
(https://reproducible-builds.org/specs/source-date-epoch/).
"""

import argparse
import hashlib
import io
import lzma
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import lmlite  # noqa: E402
from lmlite import one_file  # noqa: E402
from lmlite.one_file import File, Manifest  # noqa: E402

INTERPRETER = b"#!/usr/bin/env python3\n"
EARLIEST_S = 315532800  # 1980-01-01: a zip archive knows no earlier time
LIBRARIES = "lmlite/lib.xz"  # one entry for all libraries: the CPU variants resemble each other
# Filters that make the addresses in machine code compressible (xz's BCJ).
BRANCHES = {"x86_64": lzma.FILTER_X86, "armv7l": lzma.FILTER_ARMTHUMB}
PRESET = 9 | lzma.PRESET_EXTREME
WINDOW = 1 << 24  # bytes: several CPU variants; unpacking takes as much memory


def main() -> int:
    """Writes the file and SHA256SUMS."""
    given = parsed()
    output = Path(given.output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"lmlite-{lmlite.__version__}-{given.platform}.pyz"
    data = packed(
        dict(package_files(with_models=not given.no_model)),
        {
            f"lmlite/lib/{path.name}": path.read_bytes()
            for path in Path(given.libraries).glob("*.so")
        },
        notices(map(Path, given.notice)),
        given.platform.split("-")[1],  # as in linux-x86_64-musl
    )
    aside = path.with_suffix(".new")
    aside.write_bytes(data)
    aside.chmod(0o755)
    aside.replace(path)
    sums = output / "SHA256SUMS"
    sums.write_text("".join(checksums(output)))
    print(f"{path}: {len(data) / 1e6:.2f} MB")
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pack lmlite into one file.")
    parser.add_argument("--libraries", metavar="FOLDER", required=True, help="stripped libraries")
    parser.add_argument("--platform", required=True, help="such as linux-x86_64")
    parser.add_argument("--no-model", action="store_true", help="leave out the embedded model")
    parser.add_argument("--notice", metavar="FILE", action="append", default=[],
                        help="a licence to include; may be repeated")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", default="dist")
    return parser.parse_args()


def package_files(*, with_models: bool) -> Iterator[tuple[str, bytes]]:
    """The package's files without the libraries: path and content."""
    kinds = [".py", ".md", ".json", ".yml", *([".gguf"] if with_models else [])]
    for path in (REPOSITORY / "lmlite").rglob("*"):
        if path.suffix in kinds and path.name != "README.md":
            yield str(path.relative_to(REPOSITORY)), path.read_bytes()


def notices(paths: Iterable[Path]) -> dict[str, bytes]:
    """lmlite's licence, and those of others, each under the name of its folder."""
    others = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}
    return {"LICENSE": (REPOSITORY / "LICENSE").read_bytes(), **others}


def packed(
    package: Mapping[str, bytes],
    libraries: Mapping[str, bytes],
    notices: Mapping[str, bytes],
    machine: str,
) -> bytes:
    """The bytes of the one file. Arguments map paths to contents."""
    libraries, package = dict(sorted(libraries.items())), dict(sorted(package.items()))
    manifest = manifest_of(package, libraries)
    archive = io.BytesIO()
    archive.write(INTERPRETER)
    with zipfile.ZipFile(archive, "a") as entries:
        add(entries, "__main__.py", (REPOSITORY / "native/start.py").read_bytes())
        for path, content in package.items():
            add(entries, path, content)
        add(entries, LIBRARIES, compressed(b"".join(libraries.values()), machine))
        add(entries, one_file.MANIFEST, one_file.write_manifest(manifest).encode())
        for name, content in sorted(notices.items()):
            add(entries, f"notices/{name}", content)
    return archive.getvalue()


def manifest_of(package: Mapping[str, bytes], libraries: Mapping[str, bytes]) -> Manifest:
    """What is unpacked, under a name that depends on every byte of it."""
    digest = hashlib.sha256()
    files = []
    for path, content in {**package, **libraries}.items():
        entry = LIBRARIES if path in libraries else path
        files.append(File(path, len(content), zlib.crc32(content), entry))
        digest.update(f"{path} {len(content)}\n".encode() + content)
    return Manifest(digest.hexdigest()[:16], tuple(files))


def compressed(libraries: bytes, machine: str) -> bytes:
    """An .xz stream."""
    filters: list[dict[str, int]] = [
        {"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": WINDOW}
    ]
    if machine in BRANCHES:
        filters.insert(0, {"id": BRANCHES[machine]})
    return lzma.compress(libraries, filters=filters)


def add(archive: zipfile.ZipFile, path: str, content: bytes) -> None:
    """Adds a file to an archive."""
    at_s = max(EARLIEST_S, int(os.environ.get("SOURCE_DATE_EPOCH", EARLIEST_S)))
    entry = zipfile.ZipInfo(path, time.gmtime(at_s)[:6])
    entry.create_system = 3  # Unix
    entry.external_attr = 0o100644 << 16
    kind = zipfile.ZIP_STORED if path.endswith(".xz") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content, kind, compresslevel=9)


def checksums(folder: Path) -> Iterator[str]:
    """The lines of SHA256SUMS for a folder."""
    for path in sorted(folder.iterdir()):
        if path.name != "SHA256SUMS" and path.suffix in (".pyz", ".whl", ".gz"):
            yield f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


if __name__ == "__main__":
    sys.exit(main())
