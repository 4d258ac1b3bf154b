"""A server of OpenAI's chats that answers what a test tells it to, and keeps what it was asked."""

import http.server
import json
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

WAIT_S = 20.0

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
    """Runs inside `with`; each chat gets the next reply."""

    def __init__(self, *replies: Reply, status: int = 200) -> None:
        self.chats: list[Json] = []  # the bodies of requests
        self.headers: list[dict[str, str]] = []  # of all requests; names in lower case
        self.left = threading.Event()  # the client of `wait_until_left` is gone
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        for reply in replies:
            self.add(reply)
        self._status = status
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

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
            def do_GET(self) -> None:
                self._begin(200)
                rows = [{"id": "one"}, {"id": "two"}]
                self.wfile.write(json.dumps({"object": "list", "data": rows}).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.chats.append(json.loads(body))
                reply = server._replies.get(timeout=WAIT_S)
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
