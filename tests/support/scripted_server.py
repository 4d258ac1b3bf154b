"""A server that answers what a test tells it to, and keeps what it was asked."""

import http.server
import json
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

WAIT_S = 20.0
CHAT = "POST /v1/chat/completions"

Json = dict[str, Any]
Reply = Sequence[bytes | Callable[[], object]]  # what is sent, and what is done in between


def data(chunk: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def piece(**delta: str) -> bytes:
    """A piece of an answer: its `content` or `reasoning_content`."""
    return data({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def end(reason: str = "stop", n_prompt: int = 7, n_cached: int = 3, n_completion: int = 5) -> bytes:
    """The last piece, the usage and the end of a stream."""
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_completion,
             "prompt_tokens_details": {"cached_tokens": n_cached}}  # fmt: skip
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return data(last) + data({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def said(text: str) -> list[bytes]:
    """A whole answer."""
    return [piece(content=text), end()]


class ScriptedServer:
    """Runs inside `with`; each chat gets the next reply, any other request its answer."""

    def __init__(self, *replies: Reply, status: int = 200) -> None:
        models = {"object": "list", "data": [{"id": "one"}, {"id": "two"}]}
        # "GET /path": status and JSON
        self.answers: dict[str, tuple[int, Any]] = {"GET /v1/models": (200, models)}
        self.asked: list[tuple[str, Any]] = []  # "POST /path" and the request's JSON
        self.headers: list[dict[str, str]] = []  # of all requests; names in lower case
        self.left = threading.Event()  # the client of `wait_until_left` is gone
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        for reply in replies:
            self.add(reply)
        self._status = status
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def chats(self) -> list[Json]:
        """The bodies of requests for chats."""
        return [body for asked, body in self.asked if asked == CHAT]

    def add(self, reply: Reply) -> None:
        """Adds a reply, which may hold this server's own steps."""
        self._replies.put(reply)

    def __enter__(self) -> "ScriptedServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                n_bytes = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(n_bytes)) if n_bytes else None
                asked = f"{self.command} {self.path}"
                server.asked.append((asked, body))
                if asked == CHAT:
                    self._play(server._replies.get(timeout=WAIT_S))
                else:
                    status, found = server.answers.get(asked, (404, {}))
                    self._begin(status)
                    self.wfile.write(json.dumps(found).encode())

            do_GET = do_POST = answer  # noqa: N815 (the names that http.server calls)

            def _play(self, reply: Reply) -> None:
                is_begun = False
                for step in reply:
                    if isinstance(step, bytes):
                        if not is_begun:
                            self._begin(server._status)
                        is_begun = True
                        self.wfile.write(step)
                    elif step == server.wait_until_left:
                        self.connection.settimeout(WAIT_S)
                        assert self.connection.recv(1) == b""
                        server.left.set()
                    else:
                        step()

            def _begin(self, status: int) -> None:
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def wait_until_left(self) -> None:
        """As a step of a reply: waits until the client has closed the connection."""
