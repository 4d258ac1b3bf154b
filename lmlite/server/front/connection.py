"""One client's socket: deadlines for heads and bodies, whole writes, and whether it is gone.

Python's buffered readers have no deadline for a whole head, and lose data at a time-out, so
`recv` fills a buffer here. Of HTTP, this module knows only where heads and bodies end. Belongs to
the connection's thread.
"""

import contextlib
import io
import math
import select
import socket
import time
from typing import Any

from lmlite.server.front.chunked_body import ChunkedBody
from lmlite.server.front.limits import Limits

LINE_END = b"\r\n"
HEAD_END = LINE_END * 2
MAX_EMPTY_LINES = 2  # allowed before a head
RECEIVE_BYTES = 64 << 10
LINGER_S, LINGER_BYTES = 2.0, 32 << 20  # bounds on reading what a refused client still sends


class Connection(io.BufferedIOBase):
    """One accepted socket, as a file that a request handler can write to."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._socket = sock
        self._limits = limits
        self._buffer = bytearray()
        self._asked_s = -math.inf  # when `is_gone` last sent its question
        with contextlib.suppress(OSError):  # a socket file has no packets
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)

    def read_head(self) -> bytes | None:
        """The next head with its end, or more bytes than a head may have.

        None if the client closes or stays silent before the first byte. Raises TimeoutError if a
        head does not end in time, and ConnectionError if it is cut short.
        """
        if not self._wait_for_head():
            return None
        deadline_s = time.monotonic() + self._limits.head_seconds
        searched = 0
        while (end := self._buffer.find(HEAD_END, searched)) < 0:
            if len(self._buffer) > self._limits.max_head:
                return bytes(self._buffer)
            searched = max(0, len(self._buffer) - len(HEAD_END) + 1)
            self._receive(deadline_s)
        return self._take(end + len(HEAD_END))

    def read_body(self, n_bytes: int) -> bytes:
        """A body of this length. Raises TimeoutError or ConnectionError."""
        deadline_s = time.monotonic() + self._body_seconds(n_bytes)
        while len(self._buffer) < n_bytes:
            self._receive(deadline_s)
        return self._take(n_bytes)

    def read_chunks(self, max_bytes: int) -> bytes:
        """A body in chunks. Raises TimeoutError, ConnectionError or an ApiError.

        Only data that the chunks announce extends its deadline.
        """
        began_s = time.monotonic()

        def receive(n_announced: int) -> None:
            self._receive(began_s + self._body_seconds(n_announced))

        return ChunkedBody(self._buffer, receive, max_bytes, self._limits).read()

    def write(self, data: Any) -> int:
        """Sends all of it. Raises TimeoutError or ConnectionError."""
        self._socket.settimeout(self._limits.send_seconds)
        self._socket.sendall(data)
        return len(data)

    def is_gone(self, question: bytes = b"") -> bool:
        """Whether the client has stopped reading. Data that it sent before stays readable.

        A client that closed its connection looks like one that only ended its sending side and
        waits for the reply. Sending `question` tells them apart: it resets a closed connection.
        Without a question, both count as gone.
        """
        if not self._hang_up():
            return False
        now = time.monotonic()
        if question and now - self._asked_s >= self._limits.ping_seconds:
            self._asked_s = now
            try:
                self.write(question)
            except OSError:
                return True
        return not question or bool(self._hang_up() & (select.POLLHUP | select.POLLERR))

    def _hang_up(self) -> int:
        """POLLRDHUP: the client has stopped sending. POLLHUP, POLLERR: also reading. Else 0."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return sum(events for _, events in poll.poll(0))

    def linger(self) -> None:
        """After a refusal: ends this side, and waits for the client to end its side.

        Closing while the client still sends would reset the connection and lose the reply.
        """
        deadline_s, n_read = time.monotonic() + LINGER_S, 0
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while n_read < LINGER_BYTES and (left_s := deadline_s - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    return
                n_read += len(data)
        except OSError:
            pass  # the client is gone

    def _wait_for_head(self) -> bool:
        """Waits for the first byte of a head. False if it does not come in time.

        Empty lines are skipped: some clients send one after a body (RFC 9112, 2.2).
        """
        deadline_s = time.monotonic() + self._limits.idle_seconds
        n_left = MAX_EMPTY_LINES
        while True:
            while n_left and self._buffer.startswith(LINE_END):
                self._take(len(LINE_END))
                n_left -= 1
            if self._buffer not in (b"", LINE_END[:1]):
                return True
            try:
                self._receive(deadline_s)
            except OSError:
                return False

    def _body_seconds(self, n_bytes: int) -> float:
        return self._limits.body_seconds + n_bytes / self._limits.body_rate

    def _receive(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionAbortedError("the client hung up")
        self._buffer += data

    def _take(self, n_bytes: int) -> bytes:
        data = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return data
