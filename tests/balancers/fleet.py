"""Three servers, a balancer before them with the configuration of the manual, and conversations."""

import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.balancers.programs import program
from tests.support.documents import blocks
from tests.support.house import until

MARK = "run: tests/balancers/fleet.py"
N_SERVERS = 3
HOST = "127.0.0.1"
WAIT_S = 30.0

# nginx runs in the foreground, as whoever runs the tests, and writes into one folder.
NGINX_MAIN = "daemon off; pid {folder}/pid; error_log stderr;"
NGINX_HTTP = "access_log off;" + "".join(
    f" {kind}_temp_path {{folder}}/{kind};"
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def configuration(name: str, port: int, servers: Sequence[int]) -> str:
    """The manual's configuration of a balancer, for ports of this machine."""
    (text,) = (block.text for block in blocks(MARK) if block.language == name)
    text = re.sub(r"(bind |listen ):?8080", rf"\g<1>{HOST}:{port}", text)
    for i, server in enumerate(servers, 1):
        text = text.replace(f"10.0.0.{i}:1234", f"{HOST}:{server}")
    assert "10.0.0" not in text
    return text


@contextmanager
def balancer(
    name: str, servers: Sequence[int], folder: Path, change: tuple[str, str] = ("", "")
) -> Iterator[int]:
    """Runs HAProxy or nginx; yields its port. `change` replaces a part of its configuration."""
    port = free_port()
    text = configuration(name, port, servers).replace(*change)
    path = folder / name
    command = program(name)
    assert command is not None
    if name == "haproxy":
        command += ["-db", "-f", str(path)]
    else:
        text = text.replace("http {", "http {" + NGINX_HTTP.format(folder=folder), 1)
        user = "user root;" if os.geteuid() == 0 else ""
        command += [
            "-p",
            str(folder),
            "-c",
            str(path),
            "-g",
            user + NGINX_MAIN.format(folder=folder),
        ]
    path.write_text(text)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or is_open(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(WAIT_S)


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.create_server((HOST, 0))) as sock:
        return int(sock.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether somebody listens on a port."""
    with closing(socket.socket()) as sock:
        return sock.connect_ex((HOST, port)) == 0


# ---- clients -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A whole streamed answer to a chat."""

    text: str
    key: str  # X-Prefix-Key
    first_token_s: float
    n_prompt: int
    n_cached: int


class LostRequest(Exception):
    """What came in place of a whole answer."""


@contextmanager
def request(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """A reply whose head has been read, on a new connection; a `body` is sent as JSON."""
    sent = {"Content-Type": "application/json"} if body is not None else {}
    with closing(http.client.HTTPConnection(HOST, port, timeout=WAIT_S)) as connection:
        connection.request(method, path, body and json.dumps(body), sent | (headers or {}))
        yield connection.getresponse()


def chat(port: int, messages: Any, key: str | None = None, **body: Any) -> Reply:
    """Asks on a new connection. Raises LostRequest unless the whole answer comes."""
    headers = {"X-Prefix-Key": key} if key else {}
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **body}
    began_s = time.monotonic()
    first_s, text, usage, line = None, "", None, b""
    try:
        with request(port, "POST", "/v1/chat/completions", body, headers) as reply:
            if reply.status != 200:
                raise LostRequest(f"{reply.status} {reply.read()!r}")
            for line in filter(bytes.strip, reply):
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    usage = event.get("usage") or usage
                    piece = "".join(c["delta"].get("content") or "" for c in event["choices"])
                    first_s = first_s or (time.monotonic() if piece else None)
                    text += piece
    except (OSError, http.client.HTTPException) as err:
        raise LostRequest(repr(err)) from None
    if line.strip() != b"data: [DONE]" or usage is None:
        raise LostRequest(f"the answer ends with {line!r}")
    return Reply(
        text,
        reply.getheader("X-Prefix-Key", ""),
        (first_s or time.monotonic()) - began_s,
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


@dataclass
class Conversation:
    """A user's messages and the model's answers."""

    messages: list[dict[str, str]]
    key: str | None = None
    echoes: bool = True  # sends the key that the first reply proposes
    replies: list[Reply] = field(default_factory=list)

    def turn(self, port: int, question: str, **body: Any) -> None:
        """Asks a question after all that was said before. Raises LostRequest."""
        self.messages.append({"role": "user", "content": question})
        reply = chat(port, self.messages, self.key, **body)
        self.messages.append({"role": "assistant", "content": reply.text})
        self.replies.append(reply)
        if self.echoes:
            self.key = self.key or reply.key
