"""A server that answers what a test has prepared, for commands that ask a running one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class PreparedServer:
    """Listens on a free port from `with` on."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}  # "GET /path": status and JSON
        self.asked: list[tuple[str, Any]] = []  # "POST /path" and the request's JSON
        self.keys: list[str | None] = []  # the header Authorization of each request
        prepared = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                n_bytes = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(n_bytes)) if n_bytes else None
                asked = f"{self.command} {self.path}"
                prepared.asked.append((asked, body))
                prepared.keys.append(self.headers.get("Authorization"))
                status, found = prepared.answers.get(asked, (404, {}))
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815 (the names that http.server calls)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "PreparedServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
