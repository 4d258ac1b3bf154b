"""Sockets that systemd opened, reports to it, and standard streams that are closed."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.server.front import systemd
from tests import REPOSITORY
from tests.support.server_process import START_S


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket as systemd opens it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def take(monkeypatch: pytest.MonkeyPatch, first: int, **environment: str) -> list[socket.socket]:
    """The sockets taken when this descriptor stands in for number 3."""
    monkeypatch.setattr(systemd, "FIRST_FD", first)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sockets = systemd.take_sockets()
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()
    return sockets


def test_systemds_socket_is_taken_and_not_inherited(
    monkeypatch: pytest.MonkeyPatch, listening: socket.socket
) -> None:
    fd = os.dup(listening.fileno())
    os.set_inheritable(fd, True)
    pid = str(os.getpid())
    (sock,) = take(monkeypatch, fd, LISTEN_PID=pid, LISTEN_FDS="1", LISTEN_FDNAMES="http")
    with sock:
        assert (sock.fileno(), sock.get_inheritable()) == (fd, False)
        assert sock.getsockname() == listening.getsockname()


def test_systemds_socket_file_is_taken_and_left_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        fd = os.dup(listening.fileno())
        (sock,) = take(monkeypatch, fd, LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        assert sock.fileno() == fd
        sock.close()
    assert path.is_socket()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": "x", "LISTEN_FDS": "1"},
        {"LISTEN_PID": "self", "LISTEN_FDS": "x"},
        {"LISTEN_PID": "self", "LISTEN_FDS": "-1"},
        {"LISTEN_PID": "self"},
    ],
)
def test_sockets_for_another_process_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, listening: socket.socket, environment: dict[str, str]
) -> None:
    if environment.get("LISTEN_PID") == "self":
        environment = {**environment, "LISTEN_PID": str(os.getpid())}
    assert take(monkeypatch, listening.fileno(), **environment) == []


def test_a_descriptor_that_is_not_a_listening_socket_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with (
        socket.socket() as idle,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local,
        (tmp_path / "file").open("w") as file,
    ):
        local.bind(str(tmp_path / "socket"))
        for fd in (idle.fileno(), local.fileno(), file.fileno(), 9999):
            with pytest.raises(ValueError, match=f"descriptor {fd} .* is no socket that listens"):
                take(monkeypatch, fd, **mine)
        assert idle.fileno() >= 0
        os.fstat(idle.fileno())  # still open


@pytest.mark.parametrize("prefix", ["", "@"])
def test_states_are_reported_to_a_path_or_an_abstract_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefix: str
) -> None:
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0" + path if prefix else path)
        told.settimeout(START_S)
        monkeypatch.setenv("NOTIFY_SOCKET", prefix + path)
        notifier = systemd.Notifier()
        assert "NOTIFY_SOCKET" not in os.environ
        notifier.tell("READY=1")
        assert told.recv(100) == b"READY=1"
    notifier.tell("STOPPING=1")  # the receiver is closed


def test_without_systemd_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.Notifier().tell("READY=1")


# ---- a whole server --------------------------------------------------------------------------


# What systemd does before it becomes the server. 2=- closes a stream, 2=/dev/full redirects it.
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
for fd, path in (argument.split("=") for argument in sys.argv[2:]):
    if path == "-":
        os.close(int(fd))
    else:
        os.dup2(os.open(path, os.O_WRONLY), int(fd))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "lmlite", "serve"])
"""


class Activated:
    """A server on a socket that this process opened."""

    def __init__(self, listening: socket.socket, folder: Path, *redirections: str) -> None:
        self._listening, self._folder, self._redirections = listening, folder, redirections

    def __enter__(self) -> "Activated":
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(self._folder / "notify"))
        self.told.settimeout(START_S)
        fd = self._listening.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(fd), *self._redirections],
            cwd=REPOSITORY,
            env={**os.environ, "NOTIFY_SOCKET": str(self._folder / "notify")},
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.told.close()

    def get(self, path: str) -> tuple[int, bytes]:
        with socket.create_connection(self._listening.getsockname(), timeout=START_S) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while data := sock.recv(65536):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_S)


def test_a_server_takes_systemds_socket_and_reports_ready_and_stopping(
    listening: socket.socket, tmp_path: Path
) -> None:
    with Activated(listening, tmp_path) as server:
        assert server.told.recv(100) == b"READY=1"
        assert json.loads(server.get("/health")[1])["status"] == "ready"
        assert server.stop() == 0
        assert server.told.recv(100) == b"STOPPING=1"
        assert server.process.stderr is not None
        assert f"is ready at http://127.0.0.1:{listening.getsockname()[1]}/v1" in (
            server.process.stderr.read()
        )
    # The socket is still open in systemd: new clients wait for the next server.
    with socket.create_connection(listening.getsockname(), timeout=START_S):
        pass


@pytest.mark.parametrize(
    "redirections",
    [("2=-",), ("0=-", "1=-", "2=-"), ("2=/dev/full",), ("1=/dev/full", "2=/dev/full")],
)
def test_a_server_whose_standard_streams_are_closed_or_full_serves_and_ends_with_code_0(
    listening: socket.socket, tmp_path: Path, redirections: tuple[str, ...]
) -> None:
    with Activated(listening, tmp_path, *redirections) as server:
        assert server.told.recv(100) == b"READY=1"
        assert json.loads(server.get("/health")[1])["status"] == "ready"
        assert server.get("/v1/models")[0] == 200
        assert server.stop() == 0


def test_a_server_goes_on_when_nobody_reads_its_log(
    listening: socket.socket, tmp_path: Path
) -> None:
    with Activated(listening, tmp_path) as server:
        assert server.told.recv(100) == b"READY=1"
        assert server.process.stderr is not None
        server.process.stderr.close()
        for _ in range(3):
            assert server.get("/v1/models")[0] == 200
        assert server.stop() == 0
