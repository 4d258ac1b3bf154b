"""Log records: lines on standard error, and live subscribers, which may also see prompts.

A record has LM Studio's form: {"timestamp": ms, "data": {"type": ..., ...}}. The server's own
lines go to standard error and to subscribers. Prompts and completions go to subscribers only and
are not stored. Any thread may call any function here, and no caller waits for a slow reader: a
paused pager or a stopped viewer misses lines, and later gets a line that says how many.
"""

import json
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Generic, Literal, TextIO, TypeVar

LEVELS = ("debug", "info", "warning", "error")
Level = Literal["debug", "info", "warning", "error"]
Source = Literal["model", "server"]
Record = dict[str, Any]
T = TypeVar("T")

NO_DETAILS: Mapping[str, Any] = MappingProxyType({})
MAX_LINES = 10_000  # waiting to be written to standard error
MAX_SAID = 1000  # lines that `line_once` remembers
MAX_RECORDS, MAX_CHARACTERS = 1000, 16 << 20  # waiting for one subscriber


class Log:
    """Takes lines about the server, and records of what its models do."""

    def __init__(
        self, level: Level = "info", stream: TextIO | None = None, *, is_json: bool = False
    ) -> None:
        """Lines below `level` reach subscribers only. The stream is standard error by default."""
        self._threshold = LEVELS.index(level)
        self._format = json_line if is_json else formatted
        write = _write_to_stderr if stream is None else stream.write
        self._lines = _Lines(write, self._format)
        self._lock = threading.Lock()
        self._subscribers: set[Subscriber] = set()
        self._n_records_dropped = 0
        self._said: set[str] = set()

    def line_once(self, level: Level, text: str) -> None:
        """Logs a line only the first time, or again after MAX_SAID different lines."""
        with self._lock:
            is_new = text not in self._said
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said.add(text)
        if is_new:
            self.line(level, text)

    def line(self, level: Level, text: str, details: Mapping[str, Any] = NO_DETAILS) -> None:
        """One line about the server. Never raises: a full disk must not stop the service.

        The details are what the text says, as fields for a program.
        """
        text = printable(text)
        if LEVELS.index(level) >= self._threshold:
            self._lines.put(self._format(level, text, details))
        self.publish("server", _server_line(level, text))

    def publish(self, source: Source, data: dict[str, Any]) -> None:
        """Gives a record to this source's subscribers; a slow one misses the newest records."""
        record = _record(data)
        with self._lock:
            for subscriber in self._subscribers:
                if subscriber.source == source and not subscriber.put(record):
                    self._n_records_dropped += 1

    def is_watched(self, source: Source) -> bool:
        """Whether this source has a subscriber."""
        with self._lock:
            return any(subscriber.source == source for subscriber in self._subscribers)

    @contextmanager
    def subscription(self, source: Source) -> Iterator["Subscriber"]:
        """A subscriber that receives the records of one source inside the `with` block."""
        subscriber = Subscriber(source)
        with self._lock:
            self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            with self._lock:
                self._subscribers.remove(subscriber)

    def n_dropped(self) -> dict[str, int]:
        """Lines that standard error missed, and records that viewers missed."""
        return {"stderr": self._lines.n_dropped, "viewers": self._n_records_dropped}

    def flush(self, timeout_s: float) -> None:
        """Waits until every line is written, at most timeout_s."""
        self._lines.flush(timeout_s)


class Backlog(Generic[T]):
    """Items that wait for one slow reader. Writers never wait: an item without room is dropped."""

    def __init__(self, n_most: int, size_most: float, size_of: Callable[[T], int]) -> None:
        self.n_dropped = self.n_accepted = 0  # items since the beginning
        self._n_most, self._size_most, self._size_of = n_most, size_most, size_of
        self._items: list[T] = []
        self._size = 0  # total size of the waiting items
        self._n_missed = 0  # items dropped since the newest waiting item was accepted
        self._changed = threading.Condition()  # guards all of the above

    def put(self, item: T) -> bool:
        """Adds an item, or returns False and drops it. An empty backlog accepts any size."""
        with self._changed:
            size = self._size + self._size_of(item)
            is_full = len(self._items) >= self._n_most or size > self._size_most
            if self._items and (is_full or self._n_missed):
                self._n_missed += 1
                self.n_dropped += 1
                return False
            self._items.append(item)
            self._size = size
            self.n_accepted += 1
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float | None = None) -> tuple[list[T], int]:
        """Waits at most timeout_s for items. Returns all of them, and how many were dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._items, timeout_s)
            taken = self._items, self._n_missed
            self._items, self._size, self._n_missed = [], 0, 0
            return taken


class _Lines(Backlog[str]):
    """Lines to be written to a file, and the only thread that writes to it and may block."""

    def __init__(self, write: Callable[[str], object], form: Callable[[Level, str], str]) -> None:
        """`write` takes the text of several lines; if it raises, they are lost."""
        super().__init__(MAX_LINES, math.inf, len)
        self._form = form
        self._write = write
        self._n_done = 0  # accepted lines that were written or lost
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def flush(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._n_done == self.n_accepted, timeout_s)

    def _run(self) -> None:
        n_failed = 0  # lines that could not be written since the last successful write
        while True:
            lines, n_missed = self.take()
            try:
                self._write("".join([*self._gap(n_failed), *lines, *self._gap(n_missed)]))
                n_failed = n_lost = 0
            except Exception:  # for example: the file is closed, the disk or memory is full
                n_lost = len(lines)
                n_failed += n_lost + n_missed
            with self._changed:
                self.n_dropped += n_lost
                self._n_done += len(lines)
                self._changed.notify_all()

    def _gap(self, n: int) -> list[str]:
        return [self._form("warning", _missing(n, "line"))] if n else []


class Subscriber(Backlog[Record]):
    """The records of one source for one viewer. A slow viewer misses the newest ones."""

    def __init__(self, source: Source) -> None:
        super().__init__(MAX_RECORDS, MAX_CHARACTERS, _n_characters)
        self.source = source

    def records(self, timeout_s: float) -> list[Record]:
        """The next records; [] after timeout_s. A last record says how many are missing."""
        records, n_missed = self.take(timeout_s)
        if n_missed:
            records.append(_record(_server_line("warning", _missing(n_missed, "record"))))
        return records


def _record(data: dict[str, Any]) -> Record:
    return {"timestamp": int(time.time() * 1000), "data": data}


def _server_line(level: Level, text: str) -> dict[str, Any]:
    return {"type": "server.log", "level": level, "content": text}


def _n_characters(record: Record) -> int:
    return sum(len(value) for value in record["data"].values() if isinstance(value, str))


def _missing(n: int, what: str) -> str:
    return f"{n:,} {what}s are missing here: nobody read them in time"


def formatted(level: Level, text: str, _details: Mapping[str, Any] = NO_DETAILS) -> str:
    """A line as standard error shows it to people."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {level.upper():7} {text}\n"


def json_line(level: Level, text: str, details: Mapping[str, Any] = NO_DETAILS) -> str:
    """A line as --log-json writes it; the time as in RFC 3339."""
    now_s = time.time()
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
    line = {"time": f"{second}.{int(now_s * 1000) % 1000:03}Z", "level": level, "message": text}
    return json.dumps({**line, **details}) + "\n"


def printable(text: str) -> str:
    r"""Escapes control characters, so that a request cannot forge a line of the log.

    Bytes of a file name that are not UTF-8 are escaped, too, because JSON cannot hold them.

    >>> printable("a\nb"), printable(os.fsdecode(b"caf\xe9"))
    ('a\\nb', 'caf\\xe9')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode encodes it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def _write_to_stderr(text: str) -> None:
    """Bypasses sys.stderr: its lock would stop the process from exiting while a pager is paused."""
    data = text.encode(sys.stderr.encoding, "backslashreplace")
    while data:
        try:
            data = data[os.write(2, data) :]
        except BlockingIOError:  # another process with this file open made it non-blocking
            select.select((), (2,), ())
