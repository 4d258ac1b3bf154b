"""A client or the server itself ends, and all others see only proper errors."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tests.conftest import TIMES
from tests.support.gguf_writer import tiny_llama_parts, write_gguf
from tests.support.server_process import START_S, RunningServer

CHAT = "/v1/chat/completions"
# Factor on time limits. LMLITE_TIMES=10 checks the goals; `make test` only that nothing hangs.
SLACK = 3 if TIMES > 1 else 100
ASK = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def until(condition: Callable[[], bool]) -> None:
    """Polls, with a deadline."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        threading.Event().wait(0.01)


def open_stream(server: RunningServer, **body: Any) -> http.client.HTTPResponse:
    """A streamed chat whose first text has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_S)
    data = json.dumps({**ASK, **body, "stream": True}).encode()
    connection.request("POST", CHAT, data, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200
    while b'"content":"' not in (line := reply.readline()) or b'"content":""' in line:
        assert line, "the stream ended"
    return reply


# ---- a client that goes away -----------------------------------------------------------------


def test_clients_that_hang_up_free_their_places(
    server: RunningServer, endless: dict[str, Any]
) -> None:
    for _ in range(3):
        streams = [open_stream(server, **endless) for _ in range(4)]
        for stream in streams:
            stream.close()
    # Twelve endless answers were begun, but there are only four places: all were freed.
    assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"
    for _ in range(12):
        server.wait_for_log(rf"POST {CHAT} 499 ")


def test_a_client_that_waits_for_a_whole_answer_and_hangs_up_is_noticed(
    server: RunningServer, endless: dict[str, Any]
) -> None:
    body = json.dumps({**ASK, **endless, "n": 4}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: len(os.listdir(f"/proc/{server.process.pid}/task")) >= 6)
    server.wait_for_log(rf"POST {CHAT} 499 ")
    assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"


def test_many_clients_at_once_all_get_the_answer_that_one_gets(server: RunningServer) -> None:
    expected = server.chat("Hi")["choices"][0]["message"]["content"]
    answers: list[str] = []

    def ask() -> None:
        answers.append(server.chat("Hi")["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 40


# ---- the end of the server -------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_with_exit_code_0(number: int) -> None:
    with RunningServer() as server:
        assert server.stop(number) == 0
        assert server.log[-1].endswith("INFO    stopped")
        assert not any("Traceback" in line for line in server.log)


def test_a_signal_lets_a_running_answer_end(server: RunningServer) -> None:
    stream = open_stream(server, temperature=0)
    server.process.send_signal(signal.SIGTERM)
    assert stream.read().endswith(b"data: [DONE]\n\n")
    assert server.process.wait(START_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_lets_a_running_answer_end_too(
    server: RunningServer, endless: dict[str, Any], number: int
) -> None:
    stream = open_stream(server, **endless, max_tokens=300)
    os.kill(server.worker_pid(), number)
    server.process.send_signal(number)
    assert stream.read().endswith(b"data: [DONE]\n\n")
    assert server.process.wait(START_S) == 0
    assert not any("ERROR" in line for line in server.log)


def test_a_second_signal_ends_the_server_at_once(
    server: RunningServer, endless: dict[str, Any]
) -> None:
    stream = open_stream(server, **endless, max_tokens=-1)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: not is_listening(server.port))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(START_S) == 1
    stream.close()


def test_in_its_grace_time_a_server_serves_on_and_tells_load_balancers_to_go_elsewhere() -> None:
    with RunningServer("--grace-seconds", "600") as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping in 600 seconds")
        until(lambda: server.get("/health").status == 503)
        assert server.get("/health").json["status"] == "stopping"
        assert server.post(CHAT, **ASK).status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(START_S) == 1


def test_the_grace_time_ends() -> None:
    with RunningServer("--grace-seconds", "0.1") as server:
        assert server.stop() == 0


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(0.2)
        try:
            sock.connect(("127.0.0.1", port))
            sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return sock.recv(1) != b""
        except OSError:
            return False


# ---- a server that cannot start --------------------------------------------------------------


def serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lmlite", "serve", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=START_S)


def test_a_port_in_use_is_one_sentence_and_exit_code_2(server: RunningServer) -> None:
    done = serve("--port", str(server.port))
    assert done.returncode == 2
    where = f"localhost:{server.port}"
    assert done.stderr == f"lmlite: cannot listen on {where}: Address already in use\n"


@pytest.mark.parametrize("host", ["256.1.1.1", "no.such.host.invalid", "192.0.2.1", "a" * 70, "."])
def test_a_foreign_address_is_one_sentence_and_exit_code_2(host: str) -> None:
    done = serve("--port", "0", "--host", host)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("lmlite: ")


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64]
)
def test_a_file_that_is_not_a_model_is_one_sentence_and_exit_code_1(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    done = serve(str(path), "--port", "0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "bad.gguf" in done.stderr


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # relative, because a socket's name must be short


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, make_socket, lambda path: path.symlink_to("/dev/zero"), Path.touch,
     lambda path: path.write_bytes(b"G"), lambda path: path.symlink_to(path)],
    ids=["pipe", "folder", "socket", "device", "empty", "one byte", "circle"],
)  # fmt: skip
def test_a_path_that_is_no_model_file_is_refused_within_a_second(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "odd.gguf"
    make(path)
    began_s = time.monotonic()
    done = serve(str(path), "--port", "0")
    assert time.monotonic() - began_s <= 1 * SLACK
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("lmlite: odd.gguf cannot be loaded: it ")


def test_a_missing_model_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = serve(str(tmp_path / "none.gguf"), "--port", "0")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "none.gguf" in done.stderr


def test_a_reranking_model_without_scores_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    metadata, tensors = tiny_llama_parts()
    write_gguf(tmp_path / "rank.gguf", metadata | {"llama.pooling_type": 4}, tensors)
    done = serve(str(tmp_path / "rank.gguf"), "--port", "0")
    assert done.returncode == 1
    assert done.stderr == (
        "lmlite: rank.gguf cannot be loaded: it ranks texts, but has no scores for 1 labels\n"
    )


def test_a_template_that_cannot_be_read_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text("{% if %}")
    done = serve("--port", "0", "--chat-template", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("lmlite: the chat template cannot be read")


def test_a_template_file_replaces_the_models_own(tmp_path: Path) -> None:
    path = tmp_path / "strict.jinja"
    path.write_text("{{ raise_exception('only haiku, please') }}")
    with RunningServer("--chat-template", str(path)) as server:
        answer = server.post(CHAT, **ASK)
        assert answer.status == 400
        assert answer.error["param"] == "messages"
        assert answer.error["message"].endswith(": only haiku, please")


@pytest.mark.parametrize(
    "arguments",
    [("--batch", "4", "--parallel", "4"), ("--ctx", "3"), ("--ctx", "8", "--parallel", "64")],
    ids=" ".join,
)
def test_a_batch_or_context_smaller_than_the_number_of_sequences_still_serves(
    arguments: tuple[str, ...],
) -> None:
    with RunningServer(*arguments) as server:
        assert server.chat("Say: red")["choices"][0]["message"]["content"] == "red"


def test_a_template_that_renders_nothing_is_a_bad_request_at_once(tmp_path: Path) -> None:
    path = tmp_path / "silent.jinja"
    path.write_text("{% if messages[0].content == 'Hi' %}{% else %}x{% endif %}")
    with RunningServer("--chat-template", str(path)) as server:
        answer = server.post(CHAT, **ASK)
        assert (answer.status, answer.error["param"]) == (400, "messages")
        assert answer.error["message"] == "the text has no tokens"


@pytest.mark.parametrize(
    "arguments",
    [["--port", "70000"], ["--port", "x"], ["--parallel", "0"], ["--cache-type-k", "f8"], ["--no"]],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    assert serve(*arguments).returncode == 2
