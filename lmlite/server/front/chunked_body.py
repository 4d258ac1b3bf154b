"""Decodes a request body in chunks (RFC 9112, 7.1).

As strict as the reading of a head: a body that other parsers might end elsewhere is refused.
Chunk extensions and trailers are read and dropped.
"""

import re
from collections.abc import Callable

from lmlite.errors import BadRequest, BodyTooLarge, HeadTooLarge
from lmlite.server.front import wire
from lmlite.server.front.limits import Limits

_SIZE_LINE = re.compile(r"([0-9A-Fa-f]{1,16})([ \t]*;.*)?")
_BEGINNING = re.compile(rb"([0-9A-Fa-f]{1,16}[ \t]*(;.*)?\r?)?", re.DOTALL)  # of a size line
_LINE_END = b"\r\n"
# A chunk of one byte takes as long to read as one of kilobytes. So the bytes of framing are
# limited to max_head, plus one for each DATA_PER_FRAMING bytes of the body's maximum size.
DATA_PER_FRAMING = 16


class ChunkedBody:
    """Reads one body from a buffer. `receive` fills it, and gets the bytes announced so far."""

    def __init__(
        self, buffer: bytearray, receive: Callable[[int], None], max_bytes: int, limits: Limits
    ) -> None:
        self._buffer, self._receive = buffer, receive
        self._max_bytes, self._limits = max_bytes, limits
        self._n_announced = 0  # bytes of data: the sum of chunk sizes so far
        self._n_framing_left = limits.max_head + max_bytes // DATA_PER_FRAMING

    def read(self) -> bytes:
        """The data of all chunks. Raises an ApiError for a malformed or too large body."""
        data = bytearray()
        while self._read_size():
            while len(data) < self._n_announced:
                if not self._buffer:
                    self._receive(self._n_announced)
                part = self._buffer[: self._n_announced - len(data)]
                data += part
                del self._buffer[: len(part)]
            self._read_end_of_chunk()
        n_trailers = 0
        while line := self._read_line():
            n_trailers += 1
            if n_trailers > self._limits.max_headers:
                raise HeadTooLarge(f"the body has over {self._limits.max_headers} trailers")
            wire.parse_headers([line], 1)
        return bytes(data)

    def _read_size(self) -> int:
        match = _SIZE_LINE.fullmatch(self._read_line(_BEGINNING))
        if match is None:
            raise BadRequest("a chunk of the body does not begin with its size")
        n_bytes = int(match[1], 16)
        self._n_announced += n_bytes
        if self._n_announced > self._max_bytes:
            raise BodyTooLarge(f"the body is over {self._max_bytes:,} bytes")
        return n_bytes

    def _read_end_of_chunk(self) -> None:
        while (found := self._buffer[: len(_LINE_END)]) != _LINE_END:
            if not _LINE_END.startswith(found):
                raise BadRequest("a chunk of the body is longer or shorter than its size says")
            self._receive(self._n_announced)
        self._drop(len(_LINE_END))

    def _read_line(self, beginning: re.Pattern[bytes] | None = None) -> str:
        """The next line without its end.

        A line that begins wrongly is refused before its end: a client that does not send chunks
        may never send that end, and would wait for a reply.
        """
        most = self._limits.max_request_line
        while (end := self._buffer.find(b"\n", 0, most)) < 0:
            if len(self._buffer) >= most:
                raise BadRequest(f"a line between the chunks of the body is over {most:,} bytes")
            if beginning is not None and not beginning.fullmatch(self._buffer):
                raise BadRequest("a chunk of the body does not begin with its size")
            self._receive(self._n_announced)
        # A bare line feed stays in the line, and is refused as a control character.
        line = bytes(self._buffer[: end + 1]).removesuffix(_LINE_END)
        self._drop(end + 1)
        return wire.split_lines(line)[0]

    def _drop(self, n_bytes: int) -> None:
        """Removes bytes of framing from the buffer."""
        self._n_framing_left -= n_bytes
        if self._n_framing_left < 0:
            raise BadRequest("the body's chunks are too small, or have too much beside their data")
        del self._buffer[:n_bytes]
