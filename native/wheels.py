"""Wheels: `make wheel` for other machines, and for this one what pip asks for (PEP 517, PEP 660).

Formats: https://packaging.python.org/en/latest/specifications/binary-distribution-format/ and
https://packaging.python.org/en/latest/specifications/core-metadata/. As with the one file, the
same content makes the same bytes.
"""

import argparse
import base64
import hashlib
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lmlite
from native import pack
from native.pack import REPOSITORY

BUILT = REPOSITORY / "lmlite" / "lib"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# The licences of what the libraries of `make native` contain.
NOTICES = [REPOSITORY / "native/build" / name for name in ("llama.cpp/LICENSE", "libwebp/COPYING")]
NAME = f"{PROJECT['name']}-{lmlite.__version__}"


def main() -> int:
    """Writes the wheel for another machine, and SHA256SUMS."""
    parser = argparse.ArgumentParser(description="Pack lmlite into a wheel.")
    parser.add_argument("--libraries", metavar="FOLDER", required=True, help="stripped libraries")
    parser.add_argument("--platform", required=True, help="such as manylinux_2_28_x86_64")
    parser.add_argument("--notice", metavar="FILE", action="append", default=[],
                        help="a licence to include; may be repeated")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", default="dist")
    given = parser.parse_args()
    output = Path(given.output)
    output.mkdir(parents=True, exist_ok=True)
    files, notices = package_with(Path(given.libraries)), pack.notices(map(Path, given.notice))
    path = write(output, given.platform, files, notices)
    (output / "SHA256SUMS").write_text("".join(pack.checksums(output)))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


# ---- what pip calls ------------------------------------------------------------------------


def build_wheel(wheel_directory: str, *_: Any) -> str:
    """The name of a wheel with the libraries that `make native` has built."""
    if not any(BUILT.glob("*.so")):
        sys.exit("lmlite: the libraries are not built yet: run `make native` in this folder first")
    notices = pack.notices(path for path in NOTICES if path.is_file())
    return write(Path(wheel_directory), this_platform(), package_with(BUILT), notices).name


def build_editable(wheel_directory: str, *_: Any) -> str:
    """The name of a wheel that only names this folder."""
    files = {f"{PROJECT['name']}.pth": str(REPOSITORY).encode()}
    return write(Path(wheel_directory), this_platform(), files, pack.notices([])).name


def this_platform() -> str:
    """How a wheel names a machine like this one."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


# ---- the wheel -----------------------------------------------------------------------------


def package_with(libraries: Path) -> dict[str, bytes]:
    """The package's files, with the libraries of a folder."""
    return {
        **dict(pack.package_files(with_models=True)),
        **{f"lmlite/lib/{path.name}": path.read_bytes() for path in libraries.glob("*.so")},
    }


def write(
    folder: Path, platform: str, files: Mapping[str, bytes], notices: Mapping[str, bytes]
) -> Path:
    """Writes a wheel: `files` by their paths, `notices` by their names."""
    tag = f"py3-none-{platform}"
    path = folder / f"{NAME}-{tag}.whl"
    scripts = "".join(f"{name} = {call}\n" for name, call in PROJECT["scripts"].items())
    about = {
        "METADATA": metadata(sorted(notices)),
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: false\nTag: {tag}\n",
        "entry_points.txt": f"[console_scripts]\n{scripts}",
    }
    inside = {name: text.encode() for name, text in about.items()}
    inside |= {f"licenses/{name}": text for name, text in notices.items()}
    whole = {**files, **{f"{NAME}.dist-info/{name}": inside[name] for name in inside}}
    record = f"{NAME}.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(whole.items()):
            pack.add(archive, name, content)
        lines = [recorded(name, content) for name, content in sorted(whole.items())]
        pack.add(archive, record, "".join([*lines, f"{record},,\n"]).encode())
    return path


def metadata(notices: Iterable[str]) -> str:
    """The file METADATA: pyproject.toml's table [project], and the README."""
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {PROJECT['name']}",
        f"Version: {lmlite.__version__}",
        f"Summary: {PROJECT['description']}",
        f"License-Expression: {PROJECT['license']}",
        *(f"License-File: {name}" for name in notices),
        f"Requires-Python: {PROJECT['requires-python']}",
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join([*lines, "", (REPOSITORY / PROJECT["readme"]).read_text()])


def recorded(name: str, content: bytes) -> str:
    """A file's line in RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"{name},sha256={digest.decode()},{len(content)}\n"


if __name__ == "__main__":
    sys.exit(main())
