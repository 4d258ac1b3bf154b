"""One reply on a connection: its head, once, and then its body, whole or in pieces.

Of the request it knows only what decides the form of the reply. Belongs to the thread of the
connection; everything may raise TimeoutError or ConnectionError.
"""

from collections.abc import Iterable
from typing import Any

from lmlite.server.front import wire
from lmlite.server.front.connection import Connection

Headers = Iterable[tuple[str, str]]

JSON_TYPE = ("Content-Type", "application/json")


class Sender:
    """What a request is answered with."""

    def __init__(self, connection: Connection, request_id: str) -> None:
        self.status = 0
        self.is_begun = False  # the status line is out
        self.is_last = True  # the connection ends with it, until a request was read to its end
        self.headers = [("X-Request-Id", request_id)]  # whatever the body is
        self._connection = connection
        self.has_body = True  # what is sent of it to HEAD is dropped
        self._may_chunk, self._is_chunked = True, False
        self._filler = b""

    def suit(self, head: wire.Head) -> None:
        """Takes the form that the request asks for."""
        self.has_body = head.method != "HEAD"
        self._may_chunk = head.version >= (1, 1)

    def send_json(self, status: int, body: Any, headers: Headers = ()) -> None:
        """A whole reply with an object in JSON."""
        self.send(status, wire.to_json(body), [JSON_TYPE, *headers])

    def send(self, status: int, data: bytes, headers: Headers) -> None:
        """A whole reply, in one write."""
        length = ("Content-Length", str(len(data)))
        self.send_head(status, [*headers, length], data if self.has_body else b"")

    def begin(self, headers: Headers, filler: bytes) -> None:
        """The head of a reply in pieces, once. A client of HTTP/1.0 gets them without chunks.

        The filler is a piece that means nothing.
        """
        if self.is_begun:
            return
        self._filler = filler
        self._is_chunked = self._may_chunk
        if self._is_chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        else:
            self.is_last = True
        self.send_head(200, headers)

    def send_piece(self, data: bytes) -> None:
        """The next piece, in one write."""
        if self.has_body:
            self._connection.write(self._framed(data))

    def send_filler(self) -> None:
        """Shows a client and its proxies that somebody is there."""
        self.send_piece(self._filler)

    def is_client_gone(self) -> bool:
        """Whether nobody is left to take this reply."""
        question = wire.CONTINUE if self._may_chunk else b""
        return self._connection.is_gone(self._framed(self._filler) if self.is_begun else question)

    def end(self) -> None:
        """After the last piece."""
        if self._is_chunked and self.has_body:
            self._connection.write(wire.LAST_HTTP_CHUNK)

    def _framed(self, data: bytes) -> bytes:
        return wire.http_chunk(data) if self._is_chunked else data

    def send_head(self, status: int, headers: Headers, data: bytes = b"") -> None:
        """A head, and in the same write what follows it."""
        self.is_begun, self.status = True, status
        connection = ("Connection", "close" if self.is_last else "keep-alive")
        head = wire.reply_head(status, [*headers, *self.headers, connection])
        self._connection.write(head + data)
