"""Each command in the README and the manual works as written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.support.documents import Block, blocks
from tests.support.server_process import RunningServer

RUN = ("run: sh", "run: make", "run: openai", "run: anthropic")
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as server:
        yield server


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """An environment in which `lmlite` and `python` are this test's."""
    for name, command in (("python", ""), ("lmlite", " -m lmlite")):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable}{command} "$@"\n')
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}


def test_each_block_is_run_or_held_by_a_test_or_is_called_an_example() -> None:
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("*.py"))
    unknown = [
        f"{block}: {block.mark or 'no mark'}"
        for block in blocks()
        if block.mark not in (*RUN, "example")
        and not (REPOSITORY / block.mark.removeprefix("run: ")).is_file()
        and not (block.mark and f"<!-- {block.mark.split()[0]}" in tests)
    ]
    assert unknown == []


@pytest.mark.parametrize("block", blocks("run: sh"), ids=str)
def test_a_command_of_the_manual_works(
    block: Block, server: RunningServer, commands: dict[str, str]
) -> None:
    done = subprocess.run(
        ["sh", "-eu", "-c", block.at(server.url)],
        cwd=REPOSITORY, env=commands, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("block", blocks("run: make"), ids=str)
def test_a_target_of_make_is_there(block: Block) -> None:
    done = subprocess.run([*block.text.split(), "--dry-run"], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=str)
def test_an_example_in_python_is_python(block: Block) -> None:
    compile(block.text, str(block), "exec")
