"""The log: a writer never waits for a reader, and missing lines are counted."""

import fcntl
import http.client
import io
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lmlite.server import logs
from lmlite.server.logs import Log, Subscriber
from tests import REPOSITORY
from tests.support.house import House, until
from tests.support.server_process import START_S, RunningServer

WAIT_S = 20.0
HELLO = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}'
JSON_TYPE = {"Content-Type": "application/json"}


class PausedStream(io.StringIO):
    """A pager that reads nothing until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.is_waited_for.set()
        assert self.go_on.wait(WAIT_S)
        return super().write(text)


class FullStream(io.StringIO):
    """A file whose disk is full for some time."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError("no space left")
        return super().write(text)


def texts(stream: io.StringIO) -> list[str]:
    """The lines without their times."""
    return [line.split(" ", 2)[2] for line in stream.getvalue().splitlines()]


def written(log: Log, stream: io.StringIO) -> list[str]:
    log.flush(WAIT_S)
    return texts(stream)


# ---- standard error --------------------------------------------------------------------------


def test_lines_come_in_their_order_and_those_below_the_level_do_not() -> None:
    stream = io.StringIO()
    log = Log("info", stream)
    log.line("info", "one")
    log.line("debug", "two")
    log.line("error", "three")
    assert written(log, stream) == ["INFO    one", "ERROR   three"]


def test_a_line_in_json_has_its_fields_and_so_has_the_notice_of_a_gap() -> None:
    stream = FullStream()
    log = Log("info", stream, is_json=True)
    log.line("error", "lost")
    log.flush(WAIT_S)
    stream.is_full = False
    log.line("info", 'a "b"\nc', {"status": 200})
    log.flush(WAIT_S)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert lines == [
        {"level": "warning", "message": "1 lines are missing here: nobody read them in time"},
        {"level": "info", "message": 'a "b"\\nc', "status": 200},
    ]


def test_a_paused_stream_blocks_no_writer_and_the_gap_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_LINES", 2)
    stream = PausedStream()
    log = Log("info", stream)
    log.line("info", "being written")
    assert stream.is_waited_for.wait(WAIT_S)
    for number in range(1002):
        log.line("info", f"waiting {number}")
    assert log.n_dropped() == {"stderr": 1000, "viewers": 0}
    stream.go_on.set()
    log.flush(WAIT_S)
    log.line("info", "later")
    assert written(log, stream) == [
        "INFO    being written",
        "INFO    waiting 0",
        "INFO    waiting 1",
        "WARNING 1,000 lines are missing here: nobody read them in time",
        "INFO    later",
    ]


def test_lines_that_could_not_be_written_are_counted_and_told_when_there_is_space_again() -> None:
    stream = FullStream()
    log = Log("info", stream)
    for number in range(3):
        log.line("info", f"lost {number}")
        log.flush(WAIT_S)
    assert log.n_dropped() == {"stderr": 3, "viewers": 0}
    stream.is_full = False
    log.line("info", "written")
    assert written(log, stream) == [
        "WARNING 3 lines are missing here: nobody read them in time",
        "INFO    written",
    ]


def test_flushing_a_log_that_nobody_reads_ends_after_its_time() -> None:
    stream = PausedStream()
    log = Log("info", stream)
    log.line("info", "one")
    log.flush(0.01)
    assert stream.getvalue() == ""
    stream.go_on.set()


def test_a_non_blocking_pipe_gets_every_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program that shares this standard error may have made it non-blocking."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    write, wait = os.write, select.select
    monkeypatch.setattr(os, "write", lambda _fd, data: write(write_end, data))
    monkeypatch.setattr(select, "select", lambda *_: wait((), (write_end,), ()))
    text = "é" * size
    thread = threading.Thread(target=logs._write_to_stderr, args=(text,))
    thread.start()
    with open(read_end, "rb") as reader:
        data = reader.read(len(text.encode()))
    thread.join(WAIT_S)
    os.close(write_end)
    assert data.decode() == text


# ---- a server with an unread standard error --------------------------------------------------


@contextmanager
def unread_server() -> Iterator[tuple[RunningServer, Any]]:
    """A server that is ready, and its standard error: a small pipe that is full."""
    server = RunningServer()
    server.process = subprocess.Popen(
        [sys.executable, "-m", "lmlite", "serve", "--port", "0"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    stderr: Any = server.process.stderr
    fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
    try:
        while " is ready at " not in (line := stderr.readline()):
            assert line, "the server ended"
        server.port = int(line.rstrip().removesuffix("/v1").rpartition(":")[2])
        yield server, stderr
    finally:
        server.process.kill()
        server.process.wait()
        stderr.close()


def test_a_server_with_an_unread_standard_error_answers_and_stops() -> None:
    with unread_server() as (server, stderr):
        n_requests = 100  # a line each, of which the pipe holds half
        for _ in range(n_requests):
            assert server.get("/v1/models").status == 200
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"
        assert server.stop() == 0
        assert 20 < len(stderr.read().splitlines()) < n_requests


def test_waiting_lines_are_written_at_the_end_if_there_is_a_reader() -> None:
    with unread_server() as (server, stderr):
        n_requests = 100
        for _ in range(n_requests):
            assert server.get("/v1/models").status == 200
        server.process.terminate()
        lines = stderr.read().splitlines()
        assert server.process.wait(START_S) == 0
    assert sum("GET /v1/models 200" in line for line in lines) == n_requests
    assert lines[-1].endswith("INFO    stopped")


def test_an_unread_log_does_not_block_a_worker_that_writes_much(
    open_house: Any,
) -> None:
    stream = PausedStream()
    house = open_house(log=Log("debug", stream))
    for _ in range(3):
        assert house.ask("babble 300000")[0] == 200
    stream.go_on.set()


# ---- viewers ---------------------------------------------------------------------------------


def contents(subscriber: Subscriber) -> list[str]:
    return [record["data"]["content"] for record in subscriber.records(0)]


def test_a_viewer_that_is_far_behind_is_told_how_much_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_RECORDS", 2)
    log = Log("error", io.StringIO())
    with log.subscription("server") as slow:
        for number in range(5):
            log.line("info", f"line {number}")
        assert log.n_dropped() == {"stderr": 0, "viewers": 3}
        assert contents(slow) == [
            "line 0",
            "line 1",
            "3 records are missing here: nobody read them in time",
        ]
        log.line("info", "line 5")
        assert contents(slow) == ["line 5"]


def test_a_server_logs_each_request_as_json() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmlite", "serve", "--port", "0", "--log-json"],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        ready = json.loads(next(line for line in process.stderr if "is ready at" in line))
        port = int(re.findall(r":(\d+)/v1", ready["message"])[0])
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("POST", "/v1/chat/completions", HELLO, JSON_TYPE)
            reply = connection.getresponse()
            reply.read()
        line = json.loads(next(process.stderr))
    finally:
        process.terminate()
        rest = [json.loads(line) for line in process.stderr]
        process.wait()
    assert rest[-1]["message"] == "stopped"
    assert line.keys() == {
        "time", "level", "message", "id", "method", "path", "status", "ms", "cut_short", "model",
        "prompt_tokens", "cached_tokens", "completion_tokens",
    }  # fmt: skip
    assert line["id"] == reply.headers["X-Request-Id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["completion_tokens"] == 2
    assert line["cut_short"] is False


def test_a_server_that_cannot_start_says_so_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmlite", "serve", "--log-json", "--host", "0.0.0.0", "--port", "0"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert line["message"].startswith("other machines would reach this server")


def test_records_waiting_for_a_viewer_are_bounded_in_length_but_one_always_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_CHARACTERS", 100)
    log = Log("error", io.StringIO())
    with log.subscription("server") as slow:
        log.line("info", "a" * 1000)
        log.line("info", "b")
        assert contents(slow) == [
            "a" * 1000,
            "1 records are missing here: nobody read them in time",
        ]
        log.line("info", "c")
        assert contents(slow) == ["c"]
    assert log.n_dropped()["viewers"] == 1


def test_a_viewer_that_stops_reading_blocks_nobody(house: House) -> None:
    with house.dial() as viewer:
        viewer.sendall(b"GET /log/stream?source=server HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: house.server.log.is_watched("server"))
        for _ in range(50):
            assert house.ask("echo " + "x" * 1000)[0] == 200
