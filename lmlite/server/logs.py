"""Log records: lines on standard error, and live subscribers who may also see prompts.

A record is LM Studio's: {"timestamp": ms, "data": {"type": ..., ...}}. Lines of the server
go to standard error and to subscribers; what a model receives and returns goes to
subscribers only, and is kept nowhere. Any thread may call anything here.
"""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

LEVELS = ("debug", "info", "warning", "error")
Level = Literal["debug", "info", "warning", "error"]
Source = Literal["model", "server"]
Record = dict[str, Any]

QUEUE_LENGTH = 1000  # records that a slow subscriber may be behind before it misses some


class Log:
    """Where everything that is worth telling goes."""

    def __init__(self, level: Level = "info", stream: TextIO | None = None) -> None:
        """Lines below `level` reach subscribers only."""
        self._threshold = LEVELS.index(level)
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._subscribers: dict[queue.Queue[Record], Source] = {}

    def line(self, level: Level, text: str) -> None:
        """One line about the server. Never raises: a full disk must not stop the service."""
        text = printable(text)
        if LEVELS.index(level) >= self._threshold:
            clock = time.strftime("%Y-%m-%d %H:%M:%S")
            with self._lock:
                try:
                    self._stream.write(f"{clock} {level.upper():7} {text}\n")
                    self._stream.flush()
                except (OSError, ValueError):
                    pass  # standard error is closed or its disk is full
        self.publish("server", {"type": "server.log", "level": level, "content": text})

    def publish(self, source: Source, data: dict[str, Any]) -> None:
        """Hands a record to those who watch this source; the newest are dropped for slow ones."""
        record = {"timestamp": int(time.time() * 1000), "data": data}
        with self._lock:
            for subscriber, wanted in self._subscribers.items():
                if wanted == source and not subscriber.full():
                    subscriber.put_nowait(record)

    def is_watched(self, source: Source) -> bool:
        """Whether a record of this source would reach anybody."""
        with self._lock:
            return source in self._subscribers.values()

    @contextmanager
    def subscription(self, source: Source) -> Iterator["queue.Queue[Record]"]:
        """A queue that receives the records of one source while the context lasts."""
        subscriber: queue.Queue[Record] = queue.Queue(QUEUE_LENGTH)
        with self._lock:
            self._subscribers[subscriber] = source
        try:
            yield subscriber
        finally:
            with self._lock:
                del self._subscribers[subscriber]


def printable(text: str) -> str:
    r"""The text with control characters escaped: a request must not forge a line of the log.

    >>> printable("a\nb")
    'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
