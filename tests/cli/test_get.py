"""`lmlite get` as its users see it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import command
from lmlite.cli.get import bar, numbers
from lmlite.downloads import web
from tests import REPOSITORY
from tests.downloads.conftest import model
from tests.support.fake_hub import FakeHub, Fault, opened_hub
from tests.support.house import until

NAME = "m-Q4_K_M.gguf"
HELD = 1 << 18  # bytes that arrive before the server falls silent
EVENT = {
    "event": "progress",
    "total_size_bytes": 98_362_432,
    "downloaded_bytes": 50_000_000,
    "bytes_per_second": 1_200_000,
    "seconds_left": 4000,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with opened_hub() as hub:
        hub.files["a/b"] = {NAME: model()}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b" / NAME


def start(folder: Path, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """`lmlite get a/b` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lmlite", "get", "a/b", "--models", str(folder), *arguments],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, **{"stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def started_and_held(hub: FakeHub, path: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A download of which a part is on disk, and which receives nothing more."""
    hub.faults = [("store", Fault(hold_after=HELD + 5))]
    process = start(path.parents[2], *arguments)
    part = path.with_name(f".{NAME}.part")
    until(lambda: part.exists() and part.stat().st_size == HELD)
    return process


def test_it_prints_the_path_and_its_progress(
    hub: FakeHub, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hub
    assert command.main(["get", "a/b", "--models", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}\n"
    assert printed.err.startswith("lmlite: 100 % of 4")
    assert path.read_bytes() == model()


def test_quiet_prints_only_the_path(
    hub: FakeHub, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSES_S", (0.0,))
    hub.faults = [("store", Fault(cut_after=HELD))]
    assert command.main(["get", "a/b", "--models", str(path.parents[2]), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{path}\n", "")


def test_json_is_one_object_on_each_line(
    hub: FakeHub, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hub
    assert command.main(["get", "a/b", "--models", str(tmp_path), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    n_total = len(model())
    assert events[0] == {"event": "start", "total_size_bytes": n_total, "downloaded_bytes": 0}
    assert events[-2].keys() == EVENT.keys()
    assert events[-2]["downloaded_bytes"] == n_total
    assert events[-1] == {"event": "done", "paths": [str(path)]}


def test_an_error_is_one_sentence(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "a/b has no Q8_0; it has Q4_K_M"
    assert hub
    assert command.main(["get", "a/b:Q8_0", "--models", str(tmp_path)]) == 1
    assert capsys.readouterr() == ("", f"lmlite: {message}\n")
    assert command.main(["get", "a/b:Q8_0", "--models", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"event": "error", "message": message}


def test_the_token_of_the_environment_is_sent(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    assert command.main(["get", "a/b", "--models", str(tmp_path)]) == 0
    assert hub.asked[0].headers["Authorization"] == "Bearer hf_secret"


def test_the_flag_overrides_the_endpoint_of_the_environment(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert command.main(["get", "a/b", "--models", str(tmp_path), "--endpoint", hub.url]) == 0


def test_a_killed_download_is_continued(hub: FakeHub, tmp_path: Path, path: Path) -> None:
    process = started_and_held(hub, path)
    process.kill()
    process.communicate()
    assert not path.exists()
    assert command.main(["get", "a/b", "--models", str(tmp_path)]) == 0
    assert hub.asked[-1].headers["Range"] == f"bytes={HELD}-"
    assert path.read_bytes() == model()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_part_and_says_so(
    hub: FakeHub, path: Path, number: signal.Signals
) -> None:
    process = started_and_held(hub, path)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == "lmlite: stopped; the same command continues where it ended\n"
    assert path.with_name(f".{NAME}.part").stat().st_size == HELD


def test_without_a_reader_it_ends(hub: FakeHub, path: Path) -> None:
    """So the downloads of a server that was killed end, too."""
    process = started_and_held(hub, path, "--json")
    assert process.stdout is not None
    process.stdout.close()
    hub.release()
    assert process.wait(30) == 1


def test_two_downloads_of_one_file_fetch_it_once(hub: FakeHub, path: Path, tmp_path: Path) -> None:
    first = started_and_held(hub, path)
    second = start(tmp_path)
    assert second.stderr is not None
    waiting = f"lmlite: another process is fetching {NAME}; waiting for it\n"
    assert second.stderr.readline() == waiting
    first.kill()
    first.communicate()
    assert second.communicate()[0] == f"{path}\n"
    assert hub.asked[-1].headers["Range"] == f"bytes={HELD}-"
    assert path.read_bytes() == model()


def test_a_terminal_shows_a_bar(hub: FakeHub, tmp_path: Path) -> None:
    assert hub
    own, terminal = os.openpty()
    process = start(tmp_path, stderr=terminal)
    os.close(terminal)
    process.communicate()
    shown = read_all(own)
    assert shown.startswith("\r[" + "#" * 24 + "] 100 % of 4")
    assert shown.endswith("\x1b[K\r\n")


def read_all(fd: int) -> str:
    """All that was written to a terminal."""
    text = b""
    with open(fd, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(4096):
                text += data
        except OSError:  # its other side is closed
            pass
    return text.decode()


def test_numbers_are_for_people() -> None:
    assert numbers(EVENT) == "50 % of 98.4 MB, 1.2 MB/s, 66:40 left"
    assert numbers(EVENT | {"seconds_left": None}) == "50 % of 98.4 MB, 1.2 MB/s"
    assert bar(EVENT).startswith("[############            ] 50 % of 98.4 MB")
