"""A real `lmlite serve` in its own process, on a free port, for tests and checks."""

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import REPOSITORY
from tests.support.process_figures import children

START_S = 30.0  # timeout for a log line, or for the end of the process


@dataclass(frozen=True)
class Answer:
    """A whole HTTP reply."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


class RunningServer:
    """Started by `with`, and stopped by its process id at the end."""

    def __init__(
        self,
        *arguments: str,
        folder: Path = REPOSITORY,
        program: Sequence[str] = (sys.executable, "-m", "lmlite"),
        **environment: str,
    ) -> None:
        """`folder` is where the package lies; `program` is run in it."""
        self._arguments, self._folder, self._program = arguments, folder, program
        self._environment = environment  # in addition to the tests' environment
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> "RunningServer":
        self.process = subprocess.Popen(
            [*self._program, "serve", "--port", "0", *self._arguments],
            cwd=self._folder,
            env={**os.environ, **self._environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready = self.wait_for_log(r"(\S+) is ready at http://127\.0\.0\.1:(\d+)/v1")
        except BaseException:
            self.process.kill()
            raise
        self.model, self.port = ready[1], int(ready[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the server by a signal; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The next log line that matches. Fails if the server ends or the wait is too long."""
        while (line := self._lines.get(timeout=START_S)) is not None:
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"the server ended without {pattern!r}: {self.log}")

    def worker_pid(self) -> int:
        """The process id of the worker that runs now."""
        (pid,) = self.worker_pids()
        return pid

    def worker_pids(self) -> list[int]:
        """Usually one process id; 0 or 2 while a worker is being replaced."""
        return children(self.process.pid)

    # ---- requests --------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Sends a request on a new connection; a `body` that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, sent | (headers or {}))
        reply = connection.getresponse()
        try:
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, found, reply.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, **body: Any) -> Answer:
        return self.request("POST", path, body)

    def chat(self, content: str, **body: Any) -> Any:
        """The JSON of a chat's answer to one user message; greedy by default."""
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "temperature": 0, **body}
        answer = self.post("/v1/chat/completions", **body)
        assert answer.status == 200, answer.body
        return answer.json

    def stream(self, path: str, **body: Any) -> Iterator[Any]:
        """The objects of a streamed answer. Chats and completions end with "[DONE]".

        If events have names, checks that each object's type is its event's name.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps({**body, "stream": True}).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        try:
            assert reply.status == 200, reply.read()
            assert reply.getheader("Content-Type", "").startswith("text/event-stream")
            name = None
            for line in reply:
                if line.startswith(b"data: "):
                    payload = line[len(b"data: ") :].strip()
                    found: Any = "[DONE]" if payload == b"[DONE]" else json.loads(payload)
                    assert name is None or name == found["type"]
                    yield found
                elif line.startswith(b"event: "):
                    name = line[len(b"event: ") :].strip().decode()
                else:
                    assert line == b"\n" or line.startswith(b":"), line
        finally:
            connection.close()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            self._lines.put(line)
        self._lines.put(None)
