"""`lmlite.start`: a server as a child of this program."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import lmlite
from lmlite.child import arguments_of
from tests import REPOSITORY
from tests.conftest import DEFAULT_MODEL
from tests.pyz import one_file
from tests.served.test_faults import until
from tests.support.documents import Block, blocks
from tests.support.process_figures import children

# Starts a server, prints its address and process id, and waits for the end of its input.
PROGRAM = """
import sys, lmlite
server = lmlite.start(log_level="error")
print(server.url, server.process.pid, flush=True)
sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    """Whether the process is there; one that ended but was not waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_answers_in_the_block_and_has_ended_after_it() -> None:
    log = io.StringIO()
    with lmlite.start(DEFAULT_MODEL, ctx=512, alias=["small", "other"], log=log) as server:
        (worker,) = children(server.process.pid)
        body = json.dumps({"messages": [{"role": "user", "content": "Say hello world"}]}).encode()
        head = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{server.url}/v1/chat/completions", body, head)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            answer = json.load(reply)
    assert answer["model"] == "small"
    assert answer["choices"][0]["message"]["content"] == "hello world"
    assert (server.process.returncode, is_running(worker)) == (0, False)
    assert log.getvalue().splitlines()[-1].endswith("INFO    stopped")
    server.stop()  # once more


def test_variables_of_flags_are_not_for_the_server_of_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LMLITE_HOST", "0.0.0.0")
    monkeypatch.setenv("LMLITE_CONFIG", "/no/such/file.toml")
    with lmlite.start(DEFAULT_MODEL, log=io.StringIO()) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_the_log_goes_to_standard_error_and_may_have_no_reader(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = io.StringIO()
    log.close()
    for given in (None, log):
        with lmlite.start(log=given) as server:
            assert server.url.startswith("http://127.0.0.1:")
    assert capsys.readouterr().err.count("is ready at") == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"port": 99999}, "argument --port: must be from 0 to 65535"),
        ({"no_such_flag": 1}, "unrecognized arguments"),
        ({"model": "/no/such.gguf"}, "^such.gguf cannot be loaded: it does not exist$"),
        ({"lib": "/no/such"}, "/no/such"),
    ],
)
def test_a_server_that_cannot_start_says_why(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(lmlite.CannotStart, match=sentence) as caught:
        lmlite.start(log=io.StringIO(), **flags)  # type: ignore[arg-type]
    assert not str(caught.value).startswith("lmlite")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_the_program(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        url, pid = program.stdout.readline().split()
        with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
            assert reply.status == 200
        (worker,) = children(int(pid))
        program.send_signal(number)
    until(lambda: not is_running(int(pid)) and not is_running(worker))


def test_a_server_that_does_not_end_is_killed() -> None:
    server = lmlite.start(log=io.StringIO())
    os.kill(server.process.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.1)
    assert server.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("block", blocks("run: tests/test_child.py"), ids=str)
def test_an_example_of_the_manual_works(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {})


def test_a_server_is_started_from_one_file_on_the_search_path(tmp_path: Path) -> None:
    path = one_file.make_whole(tmp_path / "lmlite.pyz")
    program = PROGRAM.replace("sys.stdin.read()", "server.stop()")
    done = one_file.run(
        sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); {program.lstrip()}",
        XDG_CACHE_HOME=tmp_path,
    )  # fmt: skip
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr


def test_flags_become_a_command_line() -> None:
    flags = {"ctx": 8, "strict": True, "allow_host": ["a", "b"], "lib": Path("x"), "queue": None}
    assert arguments_of({**flags, "allow_grammar": False}) == [
        "--ctx=8", "--strict", "--allow-host=a", "--allow-host=b", "--lib=x",
    ]  # fmt: skip


def test_nothing_else_is_exported() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'stop'"):
        lmlite.stop  # noqa: B018
