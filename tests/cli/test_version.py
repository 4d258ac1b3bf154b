"""`lmlite version` and `/health` say what runs here."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import lmlite
from lmlite.cli import command
from lmlite.library import library_folder
from tests.support.server_process import RunningServer


def test_it_names_the_parts_and_the_processor(lib: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["version"]) == 0
    python = ".".join(map(str, sys.version_info[:3]))
    assert capsys.readouterr().out.splitlines() == [
        f"lmlite     {lmlite.__version__}",
        f"llama.cpp  {lib.llama_version().decode()}",
        f"processor  {lib.cpu_variant} ({os.uname().machine})",
        f"Python     {python} ({sys.executable})",
        f"libc       {os.confstr('CS_GNU_LIBC_VERSION')}",
        f"libraries  {library_folder(None)}",
    ]


def test_its_json_has_the_version_as_lms_gives_it(
    lib: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == lmlite.__version__
    assert found["llama.cpp"] == lib.llama_version().decode()


def test_without_a_library_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMLITE_LIB", str(tmp_path))
    assert command.main(["version"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:3] == [
        "llama.cpp  unknown",
        f"processor  unknown ({os.uname().machine})",
    ]
    assert printed.err.startswith(f"lmlite: no liblmlite.so in {tmp_path}: ")


def test_health_names_the_processor(lib: Any) -> None:
    with RunningServer() as server:
        assert server.get("/health").json["cpu"] == lib.cpu_variant
