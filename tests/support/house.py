"""A real server in this process with a worker without a model, and its client."""

import http.client
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlite.gguf.file import ModelFile
from lmlite.gguf.shape import Shape
from lmlite.messages import Load
from lmlite.server.front.gate import LOOPBACK_GATE, Gate
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.front.sockets import listen
from lmlite.server.http import Handler
from lmlite.server.logs import Log
from lmlite.server.models.defaults import NO_DEFAULTS
from lmlite.server.models.life import Failed
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.server import Server
from tests import REPOSITORY

CHAT = "/v1/chat/completions"
WAIT_S = 20.0
FAKE_WORKER = (sys.executable, "-P", str(Path(__file__).parent / "fake_worker.py"))


@dataclass
class House:
    """A server in this process, and its log."""

    server: Server
    supervisor: Supervisor
    lines: io.StringIO

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def dial(self) -> socket.socket:
        """A new socket that is connected to the server."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def ask(self, content: str, **body: Any) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            return self.ask_on(connection, content, **body)

    def ask_on(
        self, connection: http.client.HTTPConnection, content: str, **body: Any
    ) -> tuple[int, bytes]:
        reply = self.begin(connection, content, **body)
        return reply.status, reply.read()

    def begin(
        self, connection: http.client.HTTPConnection, content: str, **body: Any
    ) -> http.client.HTTPResponse:
        """Sends a chat; returns when the reply begins."""
        self.send(connection, content, **body)
        return connection.getresponse()

    def send(self, connection: http.client.HTTPConnection, content: str, **body: Any) -> None:
        messages = [{"role": "user", "content": content}]
        data = json.dumps({"messages": messages, **body}).encode()
        connection.request("POST", CHAT, data, {"Content-Type": "application/json"})

    def exchange(self, data: bytes, ends: bool = False) -> bytes:
        """Sends bytes; returns all that the server sends until the connection ends.

        If `ends` is false, the server must end the connection.
        """
        with self.dial() as sock:
            sock.sendall(data)
            if ends:
                sock.shutdown(socket.SHUT_WR)
            return rest_of(sock)

    def log_text(self) -> str:
        """The log so far."""
        self.server.log.flush(WAIT_S)
        return self.lines.getvalue()

    def logged(self, n: int) -> list[str]:
        """The log, once it has n lines: a request's line is written after its reply."""
        while len(lines := self.log_text().splitlines()) < n:
            assert not isinstance(self.supervisor.state, Failed)
        return lines

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())


def rest_of(sock: socket.socket) -> bytes:
    """All bytes until the end."""
    answer = b""
    while data := sock.recv(65536):
        answer += data
    return answer


def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.005)


def model_file(path: str) -> ModelFile:
    """A description of a model that does not exist."""
    return ModelFile(
        path=path, architecture="llama", name="Fake", quantisation="F16",
        n_ctx_train=512, n_vocab=1000, chat_template=None, sampling={}, pooling="unspecified",
        embeds_only=False, n_tensor_bytes=1, n_params=1, mtime=1234567890,
        parts=(), shape=Shape(64, 4, 512, ((32, 32),), 0, 0, 1, 0, False),
    )  # fmt: skip


@contextmanager
def opened(
    mode: str = "",
    model_path: str = "fake.gguf",
    n_parallel: int = 4,
    n_queue: int = 64,
    gate: Gate = LOOPBACK_GATE,
    limits: Limits = DEFAULT_LIMITS,
    log: Log | None = None,
) -> Iterator[House]:
    """A server that is ready. In some modes of the fake worker, it is still loading."""
    lines = io.StringIO()
    log = log or Log("info", lines)
    load = Load(model_path, n_parallel=n_parallel, n_queue=n_queue)
    supervisor = Supervisor(load, log, (*FAKE_WORKER, mode))
    file = model_file(model_path)
    defaults = replace(NO_DEFAULTS, limits=limits)
    registry = Registry([ServedModel("fake", file, supervisor, defaults)], log)
    sockets = listen("127.0.0.1", 0, limits.backlog)
    server = Server(sockets, Handler, registry, log, gate=gate, limits=limits)
    supervisor.start()
    server.start()
    try:
        if not mode:
            supervisor.wait_until_settled(WAIT_S)
        yield House(server, supervisor, lines)
    finally:
        server.drain(0.0)
        supervisor.stop()


@contextmanager
def opened_apart(n_parallel: int = 4) -> Iterator[tuple[int, int]]:
    """The same server in its own process: process id and port."""
    command = [sys.executable, "-m", "tests.support.house", str(n_parallel)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def main() -> None:
    """Runs the process of `opened_apart` until its standard input ends."""
    with opened(n_parallel=int(sys.argv[1])) as house:
        print(house.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
