"""The listening socket: a thread for each connection up to a cap, and an orderly end.

Knows how many requests are being served, and nothing of what they are. `serve_forever` runs in
a thread of its own; everything else may be called from any.
"""

import ipaddress
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lmlite.errors import Unavailable
from lmlite.server import wire
from lmlite.server.logs import Log
from lmlite.server.metrics import Metrics
from lmlite.server.registry import Registry
from lmlite.server.stored_responses import StoredResponses

MAX_CONNECTIONS = 256  # each costs a thread; further ones are refused without one


class Server(ThreadingHTTPServer):
    """Accepts connections, up to a cap, and knows how many requests are being served."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # a backlog of 5 turns a burst of connects into time-outs
    registry: Registry

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        registry: Registry,
        log: Log,
        *,
        is_strict: bool = False,
    ) -> None:
        """Listens at once; `handler` serves each connection. Raises OSError for a bad address.

        A strict server refuses requests with fields that it does not know.
        """
        self.registry = registry
        self.log = log
        self.metrics = Metrics()
        self.stored_responses = StoredResponses()
        self.is_strict = is_strict
        self.is_draining = False
        self._n_active = 0
        self._changed = threading.Condition()  # guards the count above
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        host, _ = address
        self.is_open = not _is_loopback(host)  # other machines may reach it
        self.allowed_hosts = wire.LOOPBACK_HOSTS | {f"[{host}]" if ":" in host else host}
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    @property
    def url(self) -> str:
        """Where clients find this server."""
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}"

    def server_bind(self) -> None:
        """Binds without asking a name server for our name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or a refusal without one."""
        if not self._places.acquire(blocking=False):
            _refuse_connection(request)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves one connection; runs in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection that failed outside any request: one line, no traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.log.line("error", f"connection failed: {error!r}")

    def begin_request(self) -> None:
        """Counts a request in. Raises Unavailable while the server drains."""
        with self._changed:
            if self.is_draining:
                raise Unavailable("the server is stopping")
            self._n_active += 1

    def end_request(self) -> None:
        """Counts a request out."""
        with self._changed:
            self._n_active -= 1
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Takes no more requests, and waits for those that run."""
        self.shutdown()
        with self._changed:
            self.is_draining = True
            self._changed.wait_for(lambda: self._n_active == 0, timeout_s)

    def close(self) -> None:
        """Gives the port back."""
        self.server_close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse_connection(sock: socket.socket) -> None:
    """Tells a connection over the cap to come back; runs in the accepting thread, and briefly."""
    body = wire.to_json(Unavailable("too many connections").body())
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Retry-After", "1"),
        ("Connection", "close"),
    ]
    try:
        sock.setblocking(False)
        sock.send(wire.reply_head(503, headers) + body)
    except OSError:
        pass
