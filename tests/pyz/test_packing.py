"""`native/pack.py`: the one file and what is in it."""

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lmlite
from lmlite import one_file
from native import pack
from tests import REPOSITORY

NAME = f"lmlite-{lmlite.__version__}-linux-x86_64.pyz"


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A folder with two small libraries, and a file that is none."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for name in ("liblmlite.so", "libggml-cpu.so", "notes.txt"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def packed(libraries: Path, output: Path, *flags: str, **environment: str) -> Path:
    """Runs the program, from a folder of its own."""
    output.mkdir()
    command = [sys.executable, str(REPOSITORY / "native" / "pack.py"), *flags]
    command += ["--libraries", str(libraries), "--platform", "linux-x86_64", "--output", "dist"]
    subprocess.run(command, cwd=output, check=True, env={**os.environ, **environment})
    return output / "dist" / NAME


def test_two_runs_make_the_same_bytes(libraries: Path, tmp_path: Path) -> None:
    first = packed(libraries, tmp_path / "a")
    for path in libraries.iterdir():
        os.utime(path, (0, 0))
        path.chmod(0o600)
    second = packed(libraries, tmp_path / "b", TZ="Asia/Tokyo")
    assert first.read_bytes() == second.read_bytes()


def test_the_file_is_a_program_with_checksums_beside_it(libraries: Path, tmp_path: Path) -> None:
    path = packed(libraries, tmp_path / "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (path.parent / "SHA256SUMS").read_text() == f"{digest}  {NAME}\n"
    assert sorted(os.listdir(path.parent)) == ["SHA256SUMS", NAME]


def test_entries_have_the_time_of_the_source(libraries: Path, tmp_path: Path) -> None:
    path = packed(libraries, tmp_path / "a", SOURCE_DATE_EPOCH="1764460800")
    times = {entry.date_time for entry in zipfile.ZipFile(path).infolist()}
    assert times == {(2025, 11, 30, 0, 0, 0)}


def test_it_holds_the_package_the_libraries_and_notices(libraries: Path, tmp_path: Path) -> None:
    licence = libraries / "notes.txt"
    path = packed(libraries, tmp_path / "a", "--notice", str(licence))
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    package = {"lmlite/__main__.py", "lmlite/manual/api.md", "lmlite/manual/fleet/alerts.yml",
               "lmlite/manual/fleet/dashboard.json", "lmlite/models/tiny.gguf"}  # fmt: skip
    assert package <= set(names)
    assert [name for name in names if "README" in name or "__pycache__" in name] == []
    assert [name for name in names if name.endswith(".so")] == []  # they are in one stream
    assert archive.read("notices/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
    assert archive.read("notices/libraries/notes.txt") == licence.read_bytes()
    held = one_file.read_manifest(archive.read(one_file.MANIFEST).decode())
    assert [file.path for file in held.files if file.entry == pack.LIBRARIES] == [
        "lmlite/lib/libggml-cpu.so",
        "lmlite/lib/liblmlite.so",
    ]
    assert {file.entry for file in held.files} <= set(names)


def test_models_can_be_left_out(libraries: Path, tmp_path: Path) -> None:
    path = packed(libraries, tmp_path / "a", "--no-model")
    assert [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".gguf")] == []


def test_the_name_of_the_folder_depends_on_every_byte() -> None:
    package, libraries = {"lmlite/a.py": b"a", "lmlite/b.py": b"b"}, {"lmlite/lib/c.so": b"c"}
    names = [
        pack.manifest_of(package, libraries).name,
        pack.manifest_of({**package, "lmlite/a.py": b"A"}, libraries).name,
        pack.manifest_of({**package, "lmlite/d.py": b""}, libraries).name,
        pack.manifest_of(package, {"lmlite/lib/c.so": b"C"}).name,
    ]
    assert len(set(names)) == len(names)


def test_the_manifest_is_read_as_it_was_written() -> None:
    held = pack.manifest_of({"lmlite/a.py": b"a"}, {"lmlite/lib/c.so": b""})
    assert one_file.read_manifest(one_file.write_manifest(held)) == held
