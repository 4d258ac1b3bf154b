"""A request's body that comes in chunks, put together as RFC 9112 (7.1) has it; no sockets.

As strict as the reading of a head: what another parser might end elsewhere is refused. Chunk
extensions and trailers are read, and dropped.
"""

import re
from collections.abc import Callable

from lmlite.errors import BadRequest, BodyTooLarge, HeadTooLarge
from lmlite.server.front import wire
from lmlite.server.front.limits import Limits

_SIZE_LINE = re.compile(r"([0-9A-Fa-f]{1,16})([ \t]*;.*)?")
_BEGINNING = re.compile(rb"([0-9A-Fa-f]{1,16}[ \t]*(;.*)?\r?)?", re.DOTALL)  # of such a line
_LINE_END = b"\r\n"
# However small a chunk is, it takes as long to read as kilobytes of data. So what stands around the
# data is bounded: by the size of a head, and one byte for so many that the body may have.
DATA_PER_FRAMING = 16


class ChunkedBody:
    """Takes bytes until the body is whole; how they are divided makes no difference."""

    def __init__(self, max_bytes: int, limits: Limits) -> None:
        self.data = bytearray()
        self.n_announced = 0  # bytes of data, by the sizes of the chunks so far
        self._max_bytes = max_bytes
        self._limits = limits
        self._n_framing_left = limits.max_head + max_bytes // DATA_PER_FRAMING
        self._n_trailers = 0
        # Takes what comes next; False when the buffer has too little of it.
        self._step: Callable[[bytearray], bool] | None = self._take_size

    def take(self, buffer: bytearray) -> bool:
        """Takes what belongs to the body from the buffer's front; whether that was its end.

        Raises an ApiError for what is malformed, or over a limit.
        """
        while self._step is not None and self._step(buffer):
            pass
        return self._step is None

    def _take_size(self, buffer: bytearray) -> bool:
        line = self._take_line(buffer)
        # A client that sends no chunks at all may end no line, and wait for an answer.
        match = _SIZE_LINE.fullmatch(line) if line is not None else _BEGINNING.fullmatch(buffer)
        if match is None:
            raise BadRequest("a chunk of the body does not begin with its size")
        if line is None:
            return False
        n_bytes = int(match[1], 16)
        self.n_announced += n_bytes
        if self.n_announced > self._max_bytes:
            raise BodyTooLarge(f"the body is over {self._max_bytes:,} bytes")
        self._step = self._take_data if n_bytes else self._take_trailer
        return True

    def _take_data(self, buffer: bytearray) -> bool:
        part = buffer[: self.n_announced - len(self.data)]
        self.data += part
        del buffer[: len(part)]
        if len(self.data) == self.n_announced:
            self._step = self._take_end_of_data
        return bool(part)

    def _take_end_of_data(self, buffer: bytearray) -> bool:
        found = buffer[: len(_LINE_END)]
        if not _LINE_END.startswith(found):
            raise BadRequest("a chunk of the body has not the size that it begins with")
        if found != _LINE_END:
            return False
        self._drop(buffer, len(_LINE_END))
        self._step = self._take_size
        return True

    def _take_trailer(self, buffer: bytearray) -> bool:
        line = self._take_line(buffer)
        if line is None:
            return False
        if line == "":
            self._step = None
            return True
        self._n_trailers += 1
        if self._n_trailers > self._limits.max_headers:
            raise HeadTooLarge(f"the body has over {self._limits.max_headers} trailers")
        wire.parse_headers([line], 1)
        return True

    def _take_line(self, buffer: bytearray) -> str | None:
        """The next line without its end; None until all of it is there."""
        most = self._limits.max_request_line
        end = buffer.find(b"\n", 0, most)
        if end < 0:
            if len(buffer) >= most:
                raise BadRequest(f"a line between the chunks of the body is over {most:,} bytes")
            return None
        # A bare LF is left in the line, and refused there as any other control character.
        line = bytes(buffer[: end + 1]).removesuffix(_LINE_END)
        self._drop(buffer, end + 1)
        return wire.split_lines(line)[0]

    def _drop(self, buffer: bytearray, n_bytes: int) -> None:
        """Takes bytes that are no data."""
        self._n_framing_left -= n_bytes
        if self._n_framing_left < 0:
            raise BadRequest("the body's chunks are too small, or have too much beside their data")
        del buffer[:n_bytes]
