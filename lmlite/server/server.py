"""What all connections share: the models, the log, counts, and who is served.

A thread for each connection, up to a cap, and an orderly end. Connections are accepted in a
thread of its own, which never waits for a client; everything else may be called from any.
"""

import errno
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lmlite.errors import Unavailable
from lmlite.server.front.gate import LOOPBACK_GATE, Gate
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.front.sockets import close, host_of, is_loopback, refuse
from lmlite.server.logs import Log
from lmlite.server.models.registry import Registry
from lmlite.server.watch.metrics import Metrics

# Without descriptors or memory nothing can be accepted, and what waits to be accepted is told
# again at once: the thread would turn without a pause.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
EXHAUSTED_S = 0.05

Serve = Callable[[socket.socket, "Server"], None]  # one connection, to its end


class Server:
    """Accepts connections, up to a cap, and knows how many requests are being served."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        serve: Serve,
        registry: Registry,
        log: Log,
        *,
        gate: Gate = LOOPBACK_GATE,
        limits: Limits = DEFAULT_LIMITS,
        is_strict: bool = False,
    ) -> None:
        """Takes over sockets that listen; `serve` gets each connection after `start`.

        A strict server refuses requests with fields that it does not know.
        """
        self.registry = registry
        self.log = log
        self.gate = gate
        self.limits = limits
        self.metrics = Metrics()
        self.is_strict = is_strict
        self.is_draining = False
        self._host, self.port = host_of(sockets[0]), int(sockets[0].getsockname()[1])
        self._serve_one = serve
        self._sockets = sockets
        self._thread = threading.Thread(target=self._accept_all, name="accept", daemon=True)
        self._stopper, self._stopped = socket.socketpair()  # wakes that thread by its end
        self._n_active = 0  # requests
        self._connections: Counter[str] = Counter()  # by the client's address
        self._changed = threading.Condition()  # guards the counts above

    @property
    def url(self) -> str:
        """Where clients find this server."""
        return f"http://{self._host}:{self.port}"

    # ---- connections -----------------------------------------------------------------------

    def start(self) -> None:
        """Begins to accept connections; returns at once."""
        self._thread.start()

    def _accept_all(self) -> None:
        sockets = (*self._sockets, self._stopped)
        with selectors.DefaultSelector() as selector:
            for sock in sockets:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            while not self.is_draining:
                for key, _ in selector.select():
                    if key.fileobj is not self._stopped:
                        self._accept_one(key.fileobj)
        for sock in sockets:  # who comes now is to ask elsewhere, and not to wait here
            sock.close()

    def _accept_one(self, listening: Any) -> None:
        try:
            self._place(*listening.accept())
        except OSError as err:
            if err.errno in EXHAUSTED:
                time.sleep(EXHAUSTED_S)
            # else the client was gone before
        except Exception as err:  # whatever it was, the next one is accepted
            self.log.line("error", f"a connection was not accepted: {err!r}")
            time.sleep(EXHAUSTED_S)

    def _place(self, sock: socket.socket, address: Any) -> None:
        """Gives a connection a thread, or refuses it."""
        refusal = self._claim_place(address[0])
        if refusal is None:
            thread = threading.Thread(target=self._serve, args=(sock, address), daemon=True)
            try:
                thread.start()
                return
            except (RuntimeError, MemoryError):  # there are too many
                self._give_place_back(address[0])
                refusal = "threads"
        self.metrics.count_refusal(refusal)
        refuse(sock)

    def _serve(self, sock: socket.socket, address: Any) -> None:
        """Serves one connection; runs in its thread."""
        try:
            self._serve_one(sock, self)
        except OSError:
            pass  # the client is gone
        except Exception as err:  # outside of any request: one line, no traceback
            self.log.line("error", f"connection failed: {err!r}")
        finally:
            close(sock)
            self._give_place_back(address[0])

    def _claim_place(self, host: str) -> str | None:
        """A place for a connection, or what there are too many of."""
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
            self._connections += Counter()  # forgets those at zero

    def n_connections(self) -> int:
        """Connections that are open now."""
        with self._changed:
            return self._connections.total()

    # ---- requests --------------------------------------------------------------------------

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
        """Takes no more connections and requests, and waits for those that run."""
        with self._changed:
            self.is_draining = True
        self._stopper.close()
        self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: self._n_active == 0, timeout_s)
