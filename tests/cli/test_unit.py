"""Service files: each service manager's own parser gets the words that were given."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPOSITORY

SYSTEMD = Path("/lib/systemd/systemd")
NOBODY = 65534
ODD = """it's "50%" of  $HOME, a\\b and *; é"""
PROGRAM = [sys.executable, "-P", "-m", "lmlite", "serve"]
GIVEN = ["a model.gguf", "--alias", ODD, "--alias=-x", "--ctx", "512", "--stri", "--lib", "."]
# Whole names, absolute paths, in the order of --help; a value like a flag is joined to its name.
KEPT = [
    "/tmp/a model.gguf", "--alias", ODD, "--alias=-x", "--ctx", "512", "--strict", "--lib", "/tmp",
]  # fmt: skip


def unit(*arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command prints in /tmp, and its standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "lmlite", "unit", *arguments],
        cwd="/tmp", env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def words_of_systemd(folder: Path, text: str) -> list[str]:
    """The command line as systemd reads the unit; skips the test where there is no systemd."""
    if not SYSTEMD.exists() or shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd, whose own parser reads the unit")
    (folder / "lmlite.service").write_text(text)
    subprocess.run(["systemd-analyze", "verify", folder / "lmlite.service"], check=True)
    (folder / "run").mkdir()
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        os.chown(folder / "run", NOBODY, NOBODY)
    done = subprocess.run(
        [SYSTEMD, "--test", "--user", "--unit=lmlite.service"],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "XDG_RUNTIME_DIR": f"{folder}/run",
             "HOME": f"{folder}/run", "SYSTEMD_LOG_LEVEL": "debug", "LC_ALL": "C.UTF-8"},
        capture_output=True, text=True, **user,  # type: ignore[call-overload]
    )  # fmt: skip
    shown: str = done.stdout + done.stderr
    (line,) = re.findall(r"-> Unit lmlite\.service:.*?Command Line: (.*?)\n", shown, re.DOTALL)
    return shlex.split(line.replace("\\$", "$"))


def test_systemd_runs_the_words_that_were_given(folder: Path) -> None:
    text, _ = unit("systemd", *GIVEN)
    assert words_of_systemd(folder, text) == [*PROGRAM, *KEPT]


def run_by_a_shell(text: str, end: str) -> list[str]:
    """Checks the script's syntax, runs it with `end` after it; returns the words that it shows."""
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    done = subprocess.run(["sh", "-eu", "-c", text + end], capture_output=True, cwd=REPOSITORY)
    assert done.stderr == b""
    return os.fsdecode(done.stdout).split("\0")[:-1]


def test_openrc_runs_the_words_that_were_given() -> None:
    text, _ = unit("openrc", *GIVEN)
    # supervise-daemon.sh of OpenRC, without the options before the command
    end = 'daemon() { printf "%s\\0" "$@"; }\neval daemon $command $command_args'
    assert run_by_a_shell(text, end) == [*PROGRAM, *KEPT]


def test_procd_runs_the_words_that_were_given() -> None:
    text, _ = unit("procd", *GIVEN)
    stubs = "procd_open_instance() { :; }\nprocd_close_instance() { :; }\nmkdir() { :; }\n"
    show = 'procd_set_param() { test "$1" != command || { shift; printf "%s\\0" "$@"; }; }\n'
    end = f"{stubs}chown() {{ :; }}\n{show}start_service\n"
    assert run_by_a_shell(text, end) == [*PROGRAM, *KEPT]


def test_a_file_that_is_run_is_named_by_its_path(tmp_path: Path) -> None:
    script = tmp_path / "my lmlite"
    script.write_text("from lmlite.__main__ import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, "my lmlite", "unit", "procd"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"command {sys.executable} '{script}' serve\n" in done.stdout


def test_systemd_reads_the_keys_and_makes_the_folders(folder: Path) -> None:
    (folder / "keys").write_text("secret")
    (folder / "keys").chmod(0o600)
    text, errors = unit("systemd", "--api-key-file", f"{folder}/keys", "--cache-dir",
                        "/var/cache/prompts")  # fmt: skip
    lines = text.splitlines()
    assert f"LoadCredential=keys:{folder}/keys" in lines
    assert "CacheDirectory=prompts" in lines
    assert words_of_systemd(folder, text)[-4:] == [
        "--api-key-file", f"{folder}/run/credentials/lmlite.service/keys",
        "--cache-dir", "/var/cache/prompts",
    ]  # fmt: skip
    assert str(folder) not in errors


def test_a_path_that_the_service_cannot_use_is_named(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    model = folder / "closed" / "model.gguf"
    _, errors = unit("systemd", str(model), "--cache-dir", str(folder), "--mmproj", "/no/such")
    assert errors.splitlines()[-3:] == [
        f"lmlite: the service's user cannot read {model}: {folder}/closed is closed to others",
        "lmlite: /no: No such file or directory",
        f"lmlite: the service's user cannot write to {folder}: {folder} is closed to others",
    ]


@pytest.mark.parametrize("manager", ["systemd", "openrc", "procd"])
def test_a_wrong_flag_is_refused(manager: str) -> None:
    text, errors = unit(manager, "--port", "99999", code=2)
    assert text == ""
    assert errors.splitlines()[-1] == (
        f"lmlite unit {manager}: error: argument --port: must be from 0 to 65535"
    )
