"""`http.server`'s request handler; parts that are too lenient for an open port are replaced.

The base class does the rest: the loop over a connection's requests, status lines, dates, headers,
and whether the connection stays open (`close_connection`). Belongs to the connection's thread.
Every method that writes may raise TimeoutError or ConnectionError.
"""

import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any

from lmlite.server.front import wire
from lmlite.server.front.connection import Connection
from lmlite.server.front.listener import Listener

Headers = Iterable[tuple[str, str]]

JSON_TYPE = ("Content-Type", "application/json")


class StrictRequestHandler(BaseHTTPRequestHandler):
    """Reads heads strictly, and writes replies whole or in pieces."""

    protocol_version = "HTTP/1.1"
    server: Listener
    _headers_buffer: list[bytes]  # the base class's

    def setup(self) -> None:
        """Uses `Connection`: the base class's files lack deadlines for a head, body or write."""
        self.client = self.rfile = self.wfile = Connection(self.request, self.server.limits)

    def reset(self, request_id: str) -> None:
        """Forgets the last request. The id is a header of the next reply."""
        self.began_s = time.monotonic()
        self.head: wire.Head | None = None  # None until it is read
        self.command, self.request_version = "", "HTTP/1.1"
        self.close_connection = True  # until the request is read to its end
        self.status = 0  # of the reply, once it has begun
        self.reply_headers = [("X-Request-Id", request_id)]  # of the reply, for any body
        self._is_chunked = False
        self._filler = b""

    def parse_request(self) -> bool:
        """Reads the next head; False if the client is done. Raises an ApiError if it is malformed.

        The base class accepts forms that parsers read differently: bare line feeds, folded lines,
        two lengths. It also has no deadline for the head.
        """
        data = self.client.read_head()
        if data is None:
            return False
        self.began_s = time.monotonic()  # waiting for the head does not count
        head = self.head = wire.parse_head(data, self.server.limits)
        self.command, self.path = head.method, head.target
        self.request_version = "HTTP/{}.{}".format(*head.version)
        # Names are in lower case here; the base class's Message ignores case.
        self.headers = head.headers  # type: ignore[assignment]
        return True

    # ---- replies -----------------------------------------------------------------------------

    def version_string(self) -> str:
        """Hides Python's version, which the base class shows and which only helps attackers."""
        return "lmlite"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The date, formatted once a second: that takes as long as half of the other headers."""
        return _formatted(int(time.time() if timestamp is None else timestamp))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
        """Notes the status. The base class logs a line here; lmlite logs when the reply ends."""
        self.status = int(code)

    def end_headers(self, data: bytes = b"") -> None:
        """Sends head and data in one write; the base class needs two, which make two packets."""
        self._headers_buffer += (b"\r\n", data)
        self.flush_headers()

    def send_head(self, status: int, headers: Headers, data: bytes = b"") -> None:
        """Sends a head and the first bytes of the body."""
        self.send_response(status)
        connection = ("Connection", "close" if self.close_connection else "keep-alive")
        for name, value in (*headers, *self.reply_headers, connection):
            if not value.isprintable():  # the base class does not check this
                raise ValueError(f"header {name} has a control character")
            self.send_header(name, value)
        self.end_headers(data if self.command != "HEAD" else b"")

    def send_body(self, status: int, data: bytes, headers: Headers) -> None:
        """Sends a whole reply."""
        self.send_head(status, [*headers, ("Content-Length", str(len(data)))], data)

    def send_json(self, status: int, body: Any, headers: Headers = ()) -> None:
        """Sends a JSON object as a whole reply."""
        self.send_body(status, wire.to_json(body), [JSON_TYPE, *headers])

    def begin_pieces(self, headers: Headers, filler: bytes) -> None:
        """Sends the head of a reply in pieces, once. The filler is a piece that clients ignore."""
        if self.status:
            return
        self._filler = filler
        self._is_chunked = self._may_chunk()
        if self._is_chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        else:
            self.close_connection = True  # the end of the connection ends the body
        self.send_head(200, headers)

    def send_piece(self, data: bytes) -> None:
        """Sends the next piece, in one write."""
        if self.command != "HEAD":
            self.client.write(self._framed(data))

    def end_pieces(self) -> None:
        """Ends the body, after the last piece."""
        if self._is_chunked and self.command != "HEAD":
            self.client.write(wire.LAST_HTTP_CHUNK)

    def is_client_gone(self) -> bool:
        """Whether the client has stopped reading this reply."""
        question = wire.CONTINUE if self._may_chunk() else b""
        return self.client.is_gone(self._framed(self._filler) if self.status else question)

    def _may_chunk(self) -> bool:
        return self.request_version == "HTTP/1.1"

    def _framed(self, data: bytes) -> bytes:
        return wire.http_chunk(data) if self._is_chunked else data


@lru_cache(1)
def _formatted(second: int) -> str:
    return formatdate(second, usegmt=True)
