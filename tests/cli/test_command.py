"""The `lmlite` command as a shell uses it."""

import os
import subprocess
import sys

import pytest

from lmlite.cli import command
from tests import REPOSITORY


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lmlite", "help", "flags"],
        cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("name", command.FILES)
def test_a_command_is_the_same_alone_and_among_all(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for parser in (command.parser(name), command.parser()):
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].startswith(f"usage: lmlite {name} ")


@pytest.mark.parametrize("value", ["nan", "inf", "x"])
def test_a_number_is_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["chat", "-p", "hi", "--temperature", value])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("--temperature: must be a number\n")
