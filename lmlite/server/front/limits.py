"""Limits on what a client may use. Each limit can be raised but not removed.

Each field is a flag of `lmlite serve`: `max_body` is `--max-body`. `--help` and the manual show its
default, range and description from here.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

_SIZES = {"": 0, "K": 10, "M": 20, "G": 30}


@dataclass(frozen=True)
class Bound:
    """The range of a limit, and its description in `--help`."""

    unit: str  # N, SIZE (bytes) or SECONDS
    low: float
    high: float
    help: str

    def parse(self, text: str) -> float:
        """The value of a flag. Raises ValueError with a message that says what is allowed."""
        value = float(parse_size(text) if self.unit == "SIZE" else text)
        if self.unit == "N" and not value.is_integer():
            raise ValueError("must be a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(f"must be from {self.show(self.low)} to {self.show(self.high)}")
        return value if self.unit == "SECONDS" else int(value)

    def show(self, value: float) -> str:
        """The value as a flag spells it.

        >>> Bound("SIZE", 1, 2, "").show(4 << 20)
        '4M'
        """
        if self.unit == "SIZE":
            for suffix, shift in reversed(_SIZES.items()):
                if value % (1 << shift) == 0:
                    return f"{int(value) >> shift}{suffix}"
        return f"{value:g}" if self.unit == "SECONDS" else str(int(value))


def parse_size(text: str) -> int:
    """Bytes: `4096`, `64K`, `300M`, `2G`. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9})([KMG]?)", text.upper())
    if match is None:
        raise ValueError("must be a number of bytes, such as 300M or 2G")
    return int(match[1]) << _SIZES[match[2]]


def _count(default: int, high: int, words: str) -> Any:
    return dataclasses.field(default=default, metadata={"bound": Bound("N", 1, high, words)})


def _size(default: int, low: int, high: int, words: str) -> Any:
    return dataclasses.field(default=default, metadata={"bound": Bound("SIZE", low, high, words)})


def _seconds(default: float, high: float, words: str) -> Any:
    bound = Bound("SECONDS", 0.001, high, words)
    return dataclasses.field(default=default, metadata={"bound": bound})


_K, _M = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """All limits, in the order in which they apply to a request."""

    # A connection costs 24 KiB and a thread. 256 are enough for 128 streams and 128 idle
    # connections, which clients keep for later. Any other machine gets at most a quarter.
    max_connections: int = _count(256, 10_000, "open connections; further ones get a 503")
    max_connections_per_address: int = _count(64, 10_000, "open connections of one other machine")
    # A backlog of 5 turns a burst of connects into time-outs.
    backlog: int = _count(1024, 65_535, "connections that may wait in the kernel")
    # Python 3.13 needs 2.5 MiB of stack to find that a body nests too deeply, and crashes with
    # less. Unused parts of a stack take no memory.
    thread_stack: int = _size(4 * _M, 4 * _M, 64 * _M, "stack of a connection's thread")
    # The kernel would keep megabytes for a client that does not read.
    send_buffer: int = _size(
        64 * _K, 4 * _K, 16 * _M, "bytes that the kernel keeps for a slow client"
    )
    max_requests_per_connection: int = _count(1000, 10**9, "requests before a connection is closed")
    idle_seconds: float = _seconds(15, 3600, "wait for the next request of a connection")
    head_seconds: float = _seconds(10, 3600, "wait for a whole request head")
    # OpenAI's clients send heads of less than 1.5 KiB.
    max_request_line: int = _size(4 * _K, 256, 64 * _K, "method, target and version of a request")
    max_head: int = _size(16 * _K, 512, _M, "request line and headers together")
    max_headers: int = _count(64, 1000, "headers of a request")
    max_body: int = _size(4 * _M, _K, 64 * _M, "body of a request; if not given, four times as "
                          "much for a model that takes images")  # fmt: skip
    body_seconds: float = _seconds(
        10, 3600, "wait for a whole body, and a second more per --body-rate"
    )
    body_rate: int = _size(256 * _K, 1, 1 << 30, "part of a body that gives it another second")
    # Each may become a Python object: a megabyte of brackets becomes twenty megabytes.
    max_values: int = _count(500_000, 5_000_000, "brackets and commas in a body")
    max_n: int = _count(8, 64, "choices per request")
    max_stops: int = _count(16, 256, "stop strings per request")
    max_stop_length: int = _count(256, 4096, "characters of a stop string")
    max_biases: int = _count(1024, 100_000, "tokens in logit_bias")
    max_prompts: int = _count(256, 2048, "prompts per completion")
    max_inputs: int = _count(2048, 10_000, "inputs per embeddings request, or documents to rank")
    max_images: int = _count(32, 1000, "images per request")
    max_image_bytes: int = _size(10 * _M, _K, 64 * _M, "size of an image file")
    max_image_side: int = _count(8192, 65_500, "pixels of an image's longer side")
    # A pixel briefly takes three bytes, and three more while the image is decoded.
    max_image_pixels: int = _count(16 * _M, 256 * _M, "pixels of an image; a request may have four "
                                   "times as many")  # fmt: skip
    # OpenAI's clients wait this long for a byte. A client that retries loses its place.
    queue_seconds: float = _seconds(600, 86_400, "wait of a request for its turn, before a 503")
    max_seconds: float = _seconds(600, 86_400, "time of a reply from its first token to its last")
    ping_seconds: float = _seconds(15, 600, "silence on a stream before a sign of life is sent")
    send_seconds: float = _seconds(30, 3600, "wait for a client to take what it is sent")
    drain_seconds: float = _seconds(10, 3600, "wait for running replies to end after a signal")


DEFAULT_LIMITS = Limits()
