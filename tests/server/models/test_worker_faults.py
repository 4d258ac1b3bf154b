"""A worker that is killed, stopped or starved, or that loses its model file."""

import http.client
import io
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ApiError
from lmlite.gguf import file as gguf
from lmlite.gguf.header import read_header
from lmlite.messages import Chat, ChatMessage, Load, SamplingParams
from lmlite.server.logs import Log
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.models.worker_process import WORKER_COMMAND
from tests.conftest import DEFAULT_MODEL, TIMES
from tests.served.test_faults import ASK, CHAT, SLACK, open_stream, until
from tests.support.gguf_writer import tiny_llama
from tests.support.server_process import START_S, RunningServer

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--batch", "16") as running:
        yield running


def milliseconds(times_s: list[float]) -> str:
    median, most = statistics.median(times_s) * 1000, max(times_s) * 1000
    return f"median {median:.1f} ms, at most {most:.1f} ms of {len(times_s)}"


# ---- F1, R1, R2: signals in every phase ------------------------------------------------------

numbers = itertools.count()


def begin_chat(server: RunningServer, content: str, **body: Any) -> http.client.HTTPResponse:
    """A streamed chat that was admitted: its first event has come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_S)
    messages = [{"role": "user", "content": content}]
    data = json.dumps({"messages": messages, "temperature": 0, **body, "stream": True}).encode()
    connection.request("POST", CHAT, data, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200
    assert b'"role":"assistant"' in reply.readline()
    return reply


def rest_of(stream: http.client.HTTPResponse) -> list[Any]:
    """The remaining events; a stream that fails ends with its error."""
    lines = [line[6:] for line in stream.read().split(b"\n") if line.startswith(b"data: ")]
    if lines[-1] == b"[DONE]":
        del lines[-1]
    return [json.loads(line) for line in lines]


def cut_short(stream: http.client.HTTPResponse) -> list[Any]:
    """The events, up to the error, of a stream that the death of its worker ends."""
    *events, last = rest_of(stream)
    assert last["error"]["type"] == "server_error"
    assert last["error"]["message"] == "the model's worker ended; the request may be sent again"
    return events


def end_idle(server: RunningServer, number: int, _endless: dict[str, Any]) -> float | None:
    pid = server.worker_pid()
    os.kill(pid, number)
    until(lambda: pid not in server.worker_pids())
    return None


def end_in_prefill(server: RunningServer, number: int, _endless: dict[str, Any]) -> float | None:
    """A prompt of sixty steps is being read, and the answer has not begun."""
    while True:
        stream = begin_chat(server, f"{next(numbers)} " + "one two three. " * 110)
        os.kill(server.worker_pid(), number)
        killed_s = time.monotonic()
        if not cut_short(stream):
            return time.monotonic() - killed_s


def end_in_decode(server: RunningServer, number: int, endless: dict[str, Any]) -> float | None:
    """Three streams and one that waits for its answer in one piece."""
    asked = [{"role": "user", "content": f"Say: number {next(numbers)}"} for _ in range(4)]
    streams = [open_stream(server, **endless, messages=[message]) for message in asked[:3]]
    answers: list[Any] = []
    body = {"messages": asked[3:], **endless}
    thread = threading.Thread(target=lambda: answers.append(server.post(CHAT, **body)))
    thread.start()
    until(lambda: b"lmlite_requests_open 4\n" in server.get("/metrics").body)
    os.kill(server.worker_pid(), number)
    killed_s = time.monotonic()
    for stream in streams:
        cut_short(stream)
    noticed_s = time.monotonic() - killed_s
    thread.join()
    (answer,) = answers
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.error["type"] == "server_error"
    return noticed_s


def end_while_loading(server: RunningServer, number: int, _endless: dict[str, Any]) -> float | None:
    """The worker has loaded the library, and nothing else."""
    first_pid = server.worker_pid()
    os.kill(first_pid, signal.SIGKILL)
    until(lambda: set(server.worker_pids()) - {first_pid} != set())
    (pid,) = set(server.worker_pids()) - {first_pid}
    maps = Path(f"/proc/{pid}/maps")
    until(lambda: "liblmlite.so" in maps.read_text())
    os.kill(pid, number)
    return None


PHASES = (end_idle, end_in_prefill, end_in_decode, end_while_loading)


@pytest.mark.parametrize("end", PHASES)
def test_a_signal_in_any_phase_ends_the_worker_and_nothing_else(
    server: RunningServer,
    endless: dict[str, Any],
    figure: Figure,
    end: Callable[[RunningServer, int, dict[str, Any]], float | None],
) -> None:
    server_pid, expected = server.process.pid, server.chat("Say hello world")
    noticed, back = [], []
    for number in SIGNALS * TIMES:
        worker_pid = server.worker_pid()
        noticed_s = end(server, number, endless)
        began_s = time.monotonic()
        answer = server.chat("Say hello world")
        back.append(time.monotonic() - began_s)
        if noticed_s is not None:
            noticed.append(noticed_s)
            assert noticed_s <= 0.2 * SLACK
        assert answer["choices"] == expected["choices"]
        assert back[-1] <= 0.5 * SLACK
        assert server.worker_pid() != worker_pid
        assert server.process.poll() is None and server.process.pid == server_pid
    phase = end.__name__.removeprefix("end_").replace("_", " ")
    figure("F1", f"{phase}: {len(back)} signals, each followed by the same answer as before")
    if noticed:
        figure("R1", f"{phase}: {milliseconds(noticed)}")
    figure("R2", f"{phase}: {milliseconds(back)}")


# ---- F2: one that stops ----------------------------------------------------------------------


def test_a_stopped_worker_is_replaced_and_its_streams_end(
    endless: dict[str, Any], figure: Figure
) -> None:
    with RunningServer("--watchdog", "2") as server:
        stream = open_stream(server, **endless)
        worker_pid = server.worker_pid()
        os.kill(worker_pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        cut_short(stream)
        waited_s = time.monotonic() - stopped_s
        assert 1.8 <= waited_s <= 2 + SLACK
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"
        server.wait_for_log(rf"worker {worker_pid} gave no sign of life for 2 s")
        figure("F2", f"noticed after {waited_s:.1f} s of 2 s")


# ---- a request that workers die of -----------------------------------------------------------


def test_a_request_over_which_two_workers_died_gets_a_422_that_names_a_time(
    server: RunningServer, endless: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "Say: poison"}], **endless, "stream": True}
    for _ in range(2):
        stream = open_stream(server, **body)
        os.kill(server.worker_pid(), signal.SIGSEGV)
        cut_short(stream)
    answer = server.post(CHAT, **body)
    assert (answer.status, answer.error["code"]) == (422, "request_ended_worker")
    assert 590 <= int(answer.headers["retry-after"]) <= 601
    assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"


# ---- F5, F6, R4: the end of the server -------------------------------------------------------


def test_when_the_server_is_killed_its_worker_and_its_port_are_free_within_a_second(
    endless: dict[str, Any], figure: Figure
) -> None:
    with RunningServer() as server:
        stream, worker_pid = open_stream(server, **endless), server.worker_pid()
        server.process.kill()
        killed_s = time.monotonic()
        until(lambda: not is_alive(worker_pid))
        gone_s = time.monotonic() - killed_s
        until(lambda: can_listen(server.port))
        assert time.monotonic() - killed_s <= 1.0 * SLACK
        figure("F5", f"worker gone after {gone_s * 1000:.0f} ms, port free")
        stream.close()


def can_listen(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.skipif(TIMES == 1, reason="waits for the end of the drain, ten seconds")
def test_streams_that_do_not_end_within_the_drain_get_an_error(
    endless: dict[str, Any], figure: Figure
) -> None:
    with RunningServer("--parallel", "8") as server:
        streams = [open_stream(server, **endless) for _ in range(8)]
        os.kill(server.worker_pid(), signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        until(lambda: not accepts(server.port))
        ends = [rest_of(stream)[-1]["error"]["message"] for stream in streams]
        assert ends == ["the server is stopping"] * 8
        assert server.process.wait(START_S) == 0
        took_s = time.monotonic() - asked_s
        assert 10 <= took_s <= 10 + 5 + SLACK
        figure("F6", f"8 streams ended by an error, exit 0 after {took_s:.1f} s")


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_an_idle_server_stops_at_once(figure: Figure) -> None:
    times_s = []
    for _ in range(TIMES):
        with RunningServer() as server:
            asked_s = time.monotonic()
            assert server.stop() == 0
            times_s.append(time.monotonic() - asked_s)
    assert max(times_s) <= 0.5 * SLACK
    figure("R4", milliseconds(times_s))


# ---- F12: not enough memory to load ----------------------------------------------------------

LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1]);"
    "resource.setrlimit(resource.RLIMIT_AS, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
)
MIB = 1 << 20


def load_within(n_bytes: int) -> str:
    """Loads the embedded model with this much address space; returns the outcome."""
    command = (sys.executable, "-c", LIMITED, str(n_bytes), *WORKER_COMMAND)
    file = gguf.read_model_file(DEFAULT_MODEL)
    load = Load(str(DEFAULT_MODEL), file.parts, n_threads=2)
    supervisor = Supervisor(load, Log("error", io.StringIO()), command, file=file)
    supervisor.start()
    try:
        supervisor.wait_until_settled(START_S)
        reply = supervisor.submit(
            Chat(0, (ChatMessage("user", "Hi"),), SamplingParams(temperature=0))
        )
        while not reply.is_complete:
            assert reply.next(START_S) is not None, "neither an answer nor an error"
        return "answered"
    except ApiError as err:
        assert err.status in (500, 503)
        return err.message
    finally:
        supervisor.stop()


@pytest.mark.long
def test_too_little_memory_is_reported_and_does_not_end_the_server(
    figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmlite.server.models.restarts.BACKOFF_S", (0.0,))
    n_points = 35 if TIMES > 1 else 7
    low, high = 20 * MIB, 190 * MIB
    outcomes = [load_within(low + (high - low) * i // (n_points - 1)) for i in range(n_points)]
    failures = [outcome for outcome in outcomes if outcome != "answered"]
    assert outcomes[-1] == "answered"
    assert outcomes[0] != "answered"
    print(*outcomes, sep="\n")
    figure("F12", f"{n_points - len(failures)} limits loaded, {len(failures)} named why not")


# ---- F14: the model's file, while it is mapped -----------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model, in a file that may be spoiled."""
    return Path(shutil.copy(DEFAULT_MODEL, tmp_path / "copy.gguf"))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model of the same size: it takes each token for the one after the next."""
    data = bytearray(DEFAULT_MODEL.read_bytes())
    tensors = read_header(str(DEFAULT_MODEL)).tensors
    (table,) = [each for each in tensors if each.name == "token_embd.weight"]
    begin = len(data) - max(each.offset + each.n_bytes for each in tensors) + table.offset
    two_rows = 2 * table.n_bytes // table.dims[1]
    rows = data[begin : begin + table.n_bytes]
    data[begin : begin + table.n_bytes] = rows[two_rows:] + rows[:two_rows]
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    return path


RELOADING = "the model's file was changed; it is being loaded again"


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def patient_chat(server: RunningServer, content: str) -> Any:
    """Repeats the request while the server says so."""
    while (answer := server.post(CHAT, messages=[{"role": "user", "content": content}],
                                 temperature=0, max_tokens=30)).status == 503:  # fmt: skip
        time.sleep(float(answer.headers["retry-after"]))
    return answer


@pytest.mark.parametrize("event", ["deleted", "renamed over"])
def test_a_model_file_that_loses_its_name_goes_on_answering(
    copy: Path, other: Path, event: str
) -> None:
    with RunningServer(str(copy)) as server:
        expected, worker_pid = server.chat("Say hello world"), server.worker_pid()
        copy.unlink() if event == "deleted" else other.rename(copy)
        for _ in range(3):
            assert text_of(server.chat("Say hello world")) == text_of(expected)
        assert server.worker_pid() == worker_pid


def overwrite(path: Path, data: bytes, flags: int) -> None:
    """Writes in place, as `cp` does (it cuts the file short first) or as `dd` can."""
    fd = os.open(path, os.O_WRONLY | flags)
    with open(fd, "wb", buffering=0) as file:
        file.write(data)


@pytest.mark.parametrize("flags", [0, os.O_TRUNC], ids=["as it is", "cut short first"])
def test_a_model_file_that_is_overwritten_in_place_is_loaded_again(
    copy: Path, other: Path, endless: dict[str, Any], flags: int
) -> None:
    """No text comes from weights that are half old and half new."""
    with RunningServer(str(other)) as server:
        new_text = text_of(patient_chat(server, "Count from 1 to 10.").json)
    with RunningServer(str(copy), "--parallel", "2") as server:
        old_text = text_of(server.chat("Count from 1 to 10.", max_tokens=30))
        assert old_text != new_text
        whole = "".join(pieces_of(rest_of(open_stream(server, **endless, max_tokens=300))))
        stream = open_stream(server, **endless)
        overwrite(copy, other.read_bytes(), flags)
        *events, last = rest_of(stream)
        assert last["error"]["message"] == RELOADING
        assert "".join(pieces_of(events)) in whole
        assert text_of(patient_chat(server, "Count from 1 to 10.").json) == new_text
        assert server.process.poll() is None


def pieces_of(events: list[Any]) -> Iterator[str]:
    for event in events:
        for choice in event.get("choices", []):
            yield choice["delta"].get("content") or ""


def test_a_model_file_that_is_away_between_two_workers_is_served_again_when_it_is_back(
    copy: Path,
) -> None:
    with RunningServer(str(copy)) as server:
        expected = text_of(server.chat("Say hello world"))
        away = copy.rename(copy.with_suffix(".away"))
        os.kill(server.worker_pid(), signal.SIGKILL)
        server.wait_for_log("copy.gguf cannot be loaded: it does not exist")
        answer = server.post(CHAT, **ASK)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        reason = "copy.gguf cannot be loaded: it does not exist"
        assert answer.error["message"] == f"the model is not available now: {reason}"
        assert server.get("/health").json == {"status": "loading", "progress": 0, "reason": reason}
        away.rename(copy)
        until(lambda: server.get("/health").status == 200)
        assert text_of(server.chat("Say hello world")) == expected


@pytest.mark.long
@pytest.mark.parametrize("n_bytes", [0, 2_000_000])
def test_a_model_file_that_is_cut_short_is_a_failure_with_its_reason(
    copy: Path, n_bytes: int
) -> None:
    with RunningServer(str(copy)) as server:
        server.chat("Hi")
        os.truncate(copy, n_bytes)
        answer = server.post(CHAT, **ASK)
        assert answer.status == 503
        assert answer.error["message"] == RELOADING
        until(lambda: server.get("/health").json["status"] == "failed")
        reason = server.get("/health").json["reason"]
        assert reason.startswith("copy.gguf cannot be loaded: it ")
        answer = server.post(CHAT, **ASK)
        assert (answer.status, "retry-after" in answer.headers) == (503, False)
        assert reason in answer.error["message"]
        shutil.copy(DEFAULT_MODEL, copy)
        until(lambda: server.get("/health").status == 200)
        assert text_of(server.chat("Say hello world")) == "hello world"


def test_weights_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    tiny_llama(path)
    with RunningServer(str(path)) as server:
        server.chat("Hi", max_tokens=3)
        data = path.read_bytes()
        overwrite(path, data[: len(data) // 2] + b"\xff" * (len(data) // 2), 0)
        answer = patient_chat(server, "Hi")
        assert answer.status == 500
        assert answer.error["message"] == "the model produced invalid numbers"
