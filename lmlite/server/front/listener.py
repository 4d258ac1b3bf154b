"""`http.server`'s server, with limits on connections.

`ThreadingHTTPServer` gives each connection a thread and a request handler. Added here: several
listening sockets, caps, refusals without a thread, and a shutdown that does not wait for clients.
"""

import contextlib
import errno
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any

from lmlite.errors import Unavailable
from lmlite.server.front import wire
from lmlite.server.front.limits import Limits
from lmlite.server.front.sockets import is_loopback, url_of

# Without free descriptors or memory `accept` fails, and the waiting connection wakes the thread
# again at once. A pause keeps the thread from using a whole core.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
EXHAUSTED_S = 0.05
POLL_S = 3600.0  # `stop_accepting` wakes the thread, so it need not poll
LOCAL_CLIENT = ("127.0.0.1", 0)  # stands for the client of a socket file, which has no address
UNREAD_BYTES = 64 << 10  # read from a refused connection

_REFUSAL_BODY = wire.to_json(Unavailable("too many connections").body())
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: lmlite\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%b"
) % (len(_REFUSAL_BODY), _REFUSAL_BODY)


class Listener(ThreadingHTTPServer):
    """Accepts connections in one thread; the handler of each runs in a thread of its own."""

    block_on_close = False  # an idle client must not keep the process alive

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        handler: Callable[[Any, Any, Any], BaseHTTPRequestHandler],
        limits: Limits,
    ) -> None:
        """Takes over listening sockets; the base class would open its own socket."""
        BaseServer.__init__(self, sockets[0].getsockname(), handler)
        self.url = url_of(sockets[0])
        self.limits = limits
        self.socket = sockets[0]  # the socket that `accept` is called for
        self._stopper, self._stopped = socket.socketpair()  # closing the stopper wakes the thread
        self._sockets = {sock.fileno(): sock for sock in (*sockets, self._stopped)}
        self._waiting = select.epoll()
        for sock in self._sockets.values():
            sock.setblocking(False)
            self._waiting.register(sock, select.EPOLLIN)
        self._connections: Counter[str] = Counter()  # by the client's address
        self._changed = threading.Condition()  # guards the counts

    def start(self) -> None:
        """Begins to accept connections; returns at once."""
        threading.Thread(
            target=self.serve_forever, args=(POLL_S,), name="accept", daemon=True
        ).start()

    def stop_accepting(self) -> None:
        """Closes the sockets, so that new connects fail at once; open connections go on.

        Connections that wait in the kernel are accepted first: the kernel would reset them.
        """
        if self._waiting.closed:
            return
        self._stopper.close()
        self.shutdown()
        self._waiting.unregister(self._stopped)
        with contextlib.suppress(OSError):  # no more connections
            for _ in range(self.limits.backlog):
                self.process_request(*self.get_request())
        self.server_close()

    def n_connections(self) -> int:
        """Connections that are open now."""
        with self._changed:
            return self._connections.total()

    def count_refusal(self, reason: str) -> None:
        """Called for each refused connection; the reason names the exceeded limit."""

    # ---- called by `serve_forever` -----------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable when one of the sockets is."""
        return self._waiting.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A new connection. Raises OSError if there is none, or no memory or descriptor for it."""
        for number, _ in self._waiting.poll(0, 1):
            self.socket = self._sockets[number]
        try:
            connection, address = super().get_request()
        except (OSError, MemoryError) as err:  # the stopper's socket also fails here
            if getattr(err, "errno", errno.ENOMEM) in EXHAUSTED:
                time.sleep(EXHAUSTED_S)
            raise OSError("no connection") from err
        return connection, address or LOCAL_CLIENT

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a connection a thread, or refuses it."""
        refusal = self._claim_place(client_address[0])
        if refusal is None:
            try:
                super().process_request(request, client_address)
                return
            except (RuntimeError, MemoryError):  # no more threads
                self._give_place_back(client_address[0])
                refusal = "threads"
        self.count_refusal(refusal)
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(_REFUSAL)
            request.shutdown(socket.SHUT_WR)
            # Closing with unread data would reset the connection and lose the reply.
            request.recv(UNREAD_BYTES)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection, from its first request to its last."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_place_back(client_address[0])

    def server_close(self) -> None:
        """Closes all sockets."""
        self._waiting.close()
        for sock in self._sockets.values():
            sock.close()

    # ---- places ------------------------------------------------------------------------------

    def _claim_place(self, host: str) -> str | None:
        """Claims a place for a connection, or returns the name of the exceeded limit."""
        with self._changed:
            if self._connections.total() >= self.limits.max_connections:
                return "connections"
            is_full = self._connections[host] >= self.limits.max_connections_per_address
            if is_full and not is_loopback(host):
                return "address"
            self._connections[host] += 1
        return None

    def _give_place_back(self, host: str) -> None:
        with self._changed:
            self._connections[host] -= 1
            self._connections += Counter()  # drops those at zero
