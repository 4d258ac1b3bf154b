"""A server that behaves as Hugging Face's does, and a second one for its large files.

The API lists a repository's files page by page. A file's address leads to the second server, on
another port, which knows ranges and strong etags. A `Fault` changes one answer of either. Both
remember what they were asked.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # files on a page of the API


@dataclass
class Fault:
    """What is different in one answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of the file
    cut_after: int | None = None  # bytes of the body, after which the connection ends
    hold_after: int | None = None  # bytes of the body, after which nothing is sent until the end
    ignores_ranges: bool = False
    etag: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request."""

    server: str  # hub or store
    path: str
    headers: dict[str, str]


class FakeHub:
    """Both servers. A test fills `files` and `faults`."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  # repository -> path -> content
        self.listed: list[dict[str, Any]] = []  # further entries of every list
        self.faults: list[tuple[str, Fault]] = []  # ("hub /path" or a part of it, the fault)
        self.asked: list[Asked] = []
        self.is_held = threading.Event()  # a fault with `hold_after` is being served
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name, answer))
            for name, answer in (("hub", self._answer_api), ("store", self._answer_store))
        ]
        self.url, self.store_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def release(self) -> None:
        """Ends the connections that are held."""
        self._released.set()

    def close(self) -> None:
        self.release()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked_for(self, text: str) -> list[Asked]:
        """The requests with this text in "hub /path" or "store /path"."""
        return [asked for asked in self.asked if text in f"{asked.server} {asked.path}"]

    def _handler(self, name: str, answer: Any) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urllib.parse.unquote(self.path)
                with hub._lock:
                    hub.asked.append(Asked(name, path, dict(self.headers)))
                    found = [
                        i for i, (text, _) in enumerate(hub.faults) if text in f"{name} {path}"
                    ]
                    fault = hub.faults.pop(found[0])[1] if found else Fault()
                if fault.status:
                    hub._send(self, fault.status, fault.body or b"", fault)
                else:
                    answer(self, path, fault)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer_api(self, handler: BaseHTTPRequestHandler, path: str, fault: Fault) -> None:
        words = path.strip("/").split("/")
        repository = "/".join(words[2:4] if words[0] == "api" else words[:2])
        files = self.files.get(repository)
        if files is None:
            fault.headers["X-Error-Code"] = "RepoNotFound"
            self._send(handler, 401, b"", fault)
        elif words[0] != "api":
            content = files["/".join(words[4:])]
            fault.headers |= {
                "Location": f"{self.store_url}/{urllib.parse.quote('/'.join(words))}",
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": COMMIT,
            }
            self._send(handler, 302, b"Found", fault)
        elif "tree" in words:
            start = int(path.partition("cursor=")[2] or 0)
            entries = [entry(name, content) for name, content in files.items()] + self.listed
            if start + PAGE < len(entries):
                page = f"{self.url}{path.partition('&')[0]}&cursor={start + PAGE}"
                fault.headers["Link"] = f'<{page}>; rel="next"'
            body = fault.body or json.dumps(entries[start : start + PAGE]).encode()
            self._send(handler, 200, body, fault)
        else:
            body = fault.body or json.dumps({"id": repository, "sha": COMMIT}).encode()
            self._send(handler, 200, body, fault)

    def _answer_store(self, handler: BaseHTTPRequestHandler, path: str, fault: Fault) -> None:
        words = path.strip("/").split("/")
        content = self.files["/".join(words[:2])]["/".join(words[4:])]
        content = fault.body if fault.body is not None else content
        etag = f'"{hashlib.md5(content).hexdigest()}"' if fault.etag is None else fault.etag
        fault.headers["ETag"] = etag
        wanted = handler.headers.get("Range")
        if wanted and handler.headers.get("If-Range", etag) == etag and not fault.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            part = content[int(first) : end]
            fault.headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            self._send(handler, 206, part, fault)
        else:
            self._send(handler, 200, content, fault)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, fault: Fault
    ) -> None:
        with suppress(OSError):  # the client was killed
            self._write(handler, status, body, fault)

    def _write(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, fault: Fault
    ) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | fault.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        n_sent = next((n for n in (fault.cut_after, fault.hold_after) if n is not None), len(body))
        handler.wfile.write(body[:n_sent])
        handler.wfile.flush()
        if fault.hold_after is not None:
            self.is_held.set()
            self._released.wait()
        if n_sent < len(body):
            handler.close_connection = True


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the API's list."""
    return {
        "type": "file",
        "oid": "0" * 40,
        "size": len(content),
        "path": path,
        "lfs": {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 134,
        },
    }


@contextmanager
def opened_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()
