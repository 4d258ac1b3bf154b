"""A server at a socket file: who may connect, and what becomes of the file."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lmlite.server.front.sockets import SocketFile, is_open, listen, url_of
from tests import REPOSITORY
from tests.support.house import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lmlite.sock"


def test_only_the_user_and_the_group_may_connect(path: Path) -> None:
    before = os.umask(0o077)
    try:
        (sock,) = listen(f"unix:{path}", 1234, 5)
    finally:
        os.umask(before)
    with sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert url_of(sock) == f"unix:{path}"
        assert not is_open([sock])


def test_the_file_of_a_server_that_has_ended_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(path))
    assert path.is_socket()
    with SocketFile(str(path), 5), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_server_that_listens_keeps_its_file(path: Path) -> None:
    with SocketFile(str(path), 5):
        with pytest.raises(OSError, match="Address already in use"):
            SocketFile(str(path), 5)
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(OSError, match="there is a file that is no socket"):
        SocketFile(str(path), 5)
    assert path.read_text() == "mine"


def test_a_server_removes_its_own_file_and_not_that_of_the_next(path: Path) -> None:
    first = SocketFile(str(path), 5)
    path.unlink()
    second = SocketFile(str(path), 5)
    first.close()
    assert path.is_socket()
    second.close()
    assert not path.exists()


@contextmanager
def serving(path: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmlite", "serve", "--host", f"unix:{path}", *arguments],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.endswith(f" is ready at unix:{path}\n"):
                break
        yield process
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def ask(path: Path, method: str, target: str, body: object = None, host: str = "localhost") -> int:
    connection = http.client.HTTPConnection(host)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    with closing(connection):
        data = None if body is None else json.dumps(body)
        connection.request(method, target, data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status


def lmlite(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lmlite", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_requests_and_commands_reach_the_server_through_the_file(path: Path) -> None:
    url = f"unix:{path}"
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with serving(path, "--max-connections-per-address", "1") as process:
        assert ask(path, "POST", "/v1/chat/completions", chat) == 200
        assert ask(path, "GET", "/v1/models", host="attacker.example") == 403
        status = lmlite("status", "--url", url)
        assert status.stdout.startswith(f"server  {url}, lmlite ")
        assert json.loads(lmlite("status", "--json", "--url", url).stdout)["port"] is None
        assert lmlite("ls", "--url", url).returncode == 0
        answer = lmlite("chat", "-p", "Hi", "--temperature", "0", "--url", url)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout.strip()
        busy = lmlite("serve", "--host", url)
        assert busy.returncode == 2
        assert busy.stderr.endswith(f"lmlite: cannot listen on {url}: Address already in use\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not path.exists()
    gone = lmlite("status", "--url", url)
    assert gone.stderr == f"lmlite: no server listens at {url}; start one with lmlite serve\n"


def test_a_client_that_leaves_the_file_is_noticed(path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000, "ignore_eos": True}
    with serving(path, "--ctx", "2048") as process:
        data = json.dumps(chat).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
            )
        assert process.stderr is not None
        line = next(line for line in process.stderr if "/v1/chat/completions" in line)
        assert " 499 " in line


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    done = lmlite("serve", "--host", f"unix:{tmp_path}/{'x' * 200}")
    assert done.returncode == 2
    assert done.stderr.endswith("AF_UNIX path too long\n")
    until(lambda: not list(tmp_path.iterdir()))
