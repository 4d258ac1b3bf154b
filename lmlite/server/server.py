"""Everything that connections share: models, log, gate and counts; and the shutdown.

Everything here may be called from any thread.
"""

import socket
import sys
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from lmlite.errors import Unavailable
from lmlite.server.front.gate import LOOPBACK_GATE, Gate
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.front.listener import Listener
from lmlite.server.logs import Log
from lmlite.server.models.registry import Registry
from lmlite.server.watch.metrics import Metrics

ARRIVAL_S = 0.2  # in which a connection that was accepted last brings its request


class Server(Listener):
    """A listener with models. It counts the requests that it is serving."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        handler: Callable[[Any, Any, Any], BaseHTTPRequestHandler],
        registry: Registry,
        log: Log,
        *,
        gate: Gate = LOOPBACK_GATE,
        limits: Limits = DEFAULT_LIMITS,
        is_strict: bool = False,
    ) -> None:
        """Takes over listening sockets; after `start`, `handler` gets each connection.

        A strict server refuses requests with unknown fields.
        """
        super().__init__(sockets, handler, limits)
        self.registry = registry
        self.log = log
        self.gate = gate
        self.metrics = Metrics()
        self.is_strict = is_strict
        self.is_leaving = False  # it serves, but /health asks load balancers to go elsewhere
        self.is_draining = False
        self.n_active = 0  # requests

    def count_refusal(self, reason: str) -> None:
        """Counts a refused connection."""
        self.metrics.count_refusal(reason)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Logs one line. The base class prints a traceback, even if only a client has left."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.log.line("error", f"a connection failed: {error!r}")

    def begin_request(self) -> None:
        """Counts a request that begins. Raises Unavailable while the server drains."""
        with self._changed:
            if self.is_draining:
                raise Unavailable("the server is stopping")
            self.n_active += 1

    def end_request(self) -> None:
        """Counts a request that has ended."""
        with self._changed:
            self.n_active -= 1
            self._changed.notify_all()

    def leave(self, grace_s: float) -> None:
        """Serves on for a while, with a /health of 503, and then accepts no more connections.

        Load balancers need this time to notice. Each reply ends its connection.
        """
        self.is_leaving = True
        time.sleep(grace_s)
        self.stop_accepting()
        time.sleep(ARRIVAL_S)

    def drain(self, timeout_s: float) -> None:
        """Stops accepting connections and requests, and waits for running requests to end."""
        with self._changed:
            self.is_draining = True
        self.stop_accepting()
        with self._changed:
            self._changed.wait_for(lambda: self.n_active == 0, timeout_s)
