"""Wheels: their content, and what pip does with them and with a clone."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import lmlite
from tests import REPOSITORY
from tests.support.server_process import RunningServer

PLATFORM = "manylinux_2_28_aarch64"
NAME = f"lmlite-{lmlite.__version__}"
MACHINE = os.uname().machine


def made(folder: Path) -> Path:
    """A wheel whose library is a file of four bytes."""
    libraries, licence = folder / "libraries", folder / "libwebp" / "COPYING"
    for path, text in ((libraries / "liblmlite.so", "code"), (licence, "be kind")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    command = [sys.executable, "-m", "native.wheels", "--platform", PLATFORM, "--notice",
               str(licence), "--libraries", str(libraries), "--output", str(folder)]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return folder / f"{NAME}-py3-none-{PLATFORM}.whl"


def test_a_wheel_holds_the_libraries_the_licences_and_the_command(tmp_path: Path) -> None:
    with zipfile.ZipFile(made(tmp_path)) as wheel:
        assert wheel.read("lmlite/lib/liblmlite.so") == b"code"
        about = f"{NAME}.dist-info"
        assert wheel.read(f"{about}/licenses/libwebp/COPYING") == b"be kind"
        assert wheel.read(f"{about}/licenses/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
        assert b"\nlmlite = lmlite.__main__:main\n" in wheel.read(f"{about}/entry_points.txt")
        assert f"\nTag: py3-none-{PLATFORM}\n".encode() in wheel.read(f"{about}/WHEEL")


def test_the_same_files_make_the_same_wheel_in_any_folder(tmp_path: Path) -> None:
    assert made(tmp_path / "one").read_bytes() == made(tmp_path / "two").read_bytes()


def test_pip_says_in_one_sentence_what_a_clone_lacks(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "lmlite", clone / "lmlite", ignore=shutil.ignore_patterns("lib"))
    for name in ("native/pack.py", "native/wheels.py", "pyproject.toml", "README.md", "LICENSE"):
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, clone / name)
    done = pip(sys.executable, "install", "--target", str(tmp_path / "installed"), str(clone))
    sentence = "lmlite: the libraries are not built yet: run `make native` in this folder first"
    assert done.returncode == 1 and sentence in [line.strip() for line in done.stderr.splitlines()]


@pytest.mark.long
def test_auditwheel_finds_nothing_newer_than_the_name_of_a_wheel_says() -> None:
    auditwheel = os.environ.get("AUDITWHEEL")
    wheels = list((REPOSITORY / "dist").glob(f"{NAME}-*-manylinux_*.whl"))
    if auditwheel is None or not wheels:
        pytest.skip("needs auditwheel and a wheel in dist/, as `make wheel` has")
    for wheel in wheels:
        done = subprocess.run(
            [auditwheel, "show", wheel], capture_output=True, text=True, check=True
        )
        said = re.findall(r'"manylinux_2_(\d+)_(\w+)"', done.stdout)
        (named,) = re.findall(r"manylinux_2_(\d+)_(\w+)\.whl", wheel.name)
        assert said[0][1] == named[1] and int(said[0][0]) <= int(named[0]), done.stdout


@pytest.mark.long
def test_a_wheel_gives_the_command_in_an_empty_environment_without_a_compiler(
    tmp_path: Path,
) -> None:
    wheels = list((REPOSITORY / "dist").glob(f"{NAME}-*_{MACHINE}.whl"))
    if not wheels:
        pytest.skip("needs a wheel in dist/, which `make wheel` makes")
    venv.create(tmp_path / "empty", with_pip=True)
    programs = tmp_path / "empty" / "bin"
    done = pip(str(programs / "python"), "install", str(wheels[0]))
    assert done.returncode == 0, done.stderr
    command = ["env", "-i", f"PATH={programs}", f"HOME={tmp_path}", str(programs / "lmlite")]
    with RunningServer(program=command, folder=tmp_path) as server:
        (choice,) = server.chat("Hello!")["choices"]
        assert choice["message"]["content"] == "Hello! How can I help you?"


def pip(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs pip without any index of packages, and without programs besides Python's."""
    return subprocess.run(
        [python, "-m", "pip", "--no-input", *arguments, "--no-index", "--quiet"],
        capture_output=True, text=True, check=False,
        env={"PATH": str(Path(python).parent), "HOME": os.environ["HOME"]},
    )  # fmt: skip
