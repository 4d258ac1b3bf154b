"""Log records: lines on standard error, and live subscribers who may also see prompts.

A record has LM Studio's form: {"timestamp": ms, "data": {"type": ..., ...}}. Lines of the server
go to standard error and to subscribers. What a model receives and returns goes to subscribers
only, and is not kept. Any thread may call anything here, and none waits: a paused pager or a
stopped viewer misses lines, and is told later how many.
"""

import collections
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

LEVELS = ("debug", "info", "warning", "error")
Level = Literal["debug", "info", "warning", "error"]
Source = Literal["model", "server"]
Record = dict[str, Any]

MAX_LINES = 10_000  # waiting for standard error
MAX_SAID = 1000  # lines that `line_once` remembers
MAX_RECORDS, MAX_CHARACTERS = 1000, 16 << 20  # waiting for one subscriber


class Log:
    """Takes lines about the server, and records of what its models do."""

    def __init__(self, level: Level = "info", stream: TextIO | None = None) -> None:
        """Lines below `level` reach subscribers only. The stream is standard error by default."""
        self._threshold = LEVELS.index(level)
        self._lines = _Lines(_write_to_stderr if stream is None else stream.write)
        self._lock = threading.Lock()
        self._subscribers: set[Subscriber] = set()
        self._n_records_dropped = 0
        self._said: set[str] = set()

    def line_once(self, level: Level, text: str) -> None:
        """A line that is not repeated, until too many others were remembered."""
        with self._lock:
            is_new = text not in self._said
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said.add(text)
        if is_new:
            self.line(level, text)

    def line(self, level: Level, text: str) -> None:
        """One line about the server. Never raises: a full disk must not stop the service."""
        text = printable(text)
        if LEVELS.index(level) >= self._threshold:
            self._lines.put(formatted(level, text))
        self.publish("server", _server_line(level, text))

    def publish(self, source: Source, data: dict[str, Any]) -> None:
        """Hands a record to the subscribers of this source; slow ones miss the newest records."""
        record = _record(data)
        with self._lock:
            for subscriber in self._subscribers:
                if subscriber.source == source and not subscriber.offer(record):
                    self._n_records_dropped += 1

    def is_watched(self, source: Source) -> bool:
        """Whether this source has a subscriber."""
        with self._lock:
            return any(subscriber.source == source for subscriber in self._subscribers)

    @contextmanager
    def subscription(self, source: Source) -> Iterator["Subscriber"]:
        """Receives the records of one source while the context lasts."""
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
        """Returns when every line is written, or after timeout_s."""
        self._lines.flush(timeout_s)


class _Lines:
    """Lines that wait for a file, and the only thread that waits for it."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """`write` takes the text of several lines; they are lost if it raises."""
        self.n_dropped = 0
        self._write = write
        self._waiting: list[str] = []
        self._n_missed = 0  # lines that found no place behind the waiting ones
        self._is_writing = False
        self._changed = threading.Condition()  # guards all of the above
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Never waits; drops the line when too many wait already."""
        with self._changed:
            if len(self._waiting) < MAX_LINES:
                self._waiting.append(line)
                self._changed.notify_all()
            else:
                self._n_missed += 1
                self.n_dropped += 1

    def flush(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._is_writing), timeout_s)

    def _run(self) -> None:
        n_failed = 0  # lines before the waiting ones that could not be written
        while True:
            lines, n_missed = self._take()
            try:
                self._write("".join([*_gap(n_failed), *lines, *_gap(n_missed)]))
                n_failed = 0
            except Exception:  # the file is closed, its disk or memory is full
                n_failed += len(lines) + n_missed
                with self._changed:
                    self.n_dropped += len(lines)

    def _take(self) -> tuple[list[str], int]:
        """All waiting lines, once there are some, and how many are missing after them."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting)
            taken = self._waiting, self._n_missed
            self._waiting, self._n_missed = [], 0
            self._is_writing = True
            return taken


class Subscriber:
    """The records of one source for one viewer, as long as it takes them in time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._records: collections.deque[Record] = collections.deque()
        self._n_characters = 0  # of the waiting records
        self._n_missed = 0  # records since the last one that was accepted
        self._changed = threading.Condition()

    def offer(self, record: Record) -> bool:
        """Never waits. False when the viewer is too far behind, and misses this record."""
        with self._changed:
            if self._is_full(_n_characters(record)):
                self._n_missed += 1
                return False
            if self._n_missed:
                self._append(_record(_server_line("warning", _missing(self._n_missed, "record"))))
                self._n_missed = 0
            self._append(record)
            return True

    def get(self, timeout_s: float) -> Record | None:
        """The next record, or None after timeout_s without one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._records, timeout_s):
                return None
            record = self._records.popleft()
            self._n_characters -= _n_characters(record)
            return record

    def _is_full(self, n_more: int) -> bool:
        """A single record always fits, however long it is."""
        n_waiting = len(self._records)
        n_characters = self._n_characters + n_more
        return n_waiting >= MAX_RECORDS or (n_waiting > 0 and n_characters > MAX_CHARACTERS)

    def _append(self, record: Record) -> None:
        self._records.append(record)
        self._n_characters += _n_characters(record)
        self._changed.notify()


def _record(data: dict[str, Any]) -> Record:
    return {"timestamp": int(time.time() * 1000), "data": data}


def _server_line(level: Level, text: str) -> dict[str, Any]:
    return {"type": "server.log", "level": level, "content": text}


def _n_characters(record: Record) -> int:
    return sum(len(value) for value in record["data"].values() if isinstance(value, str))


def _gap(n: int) -> list[str]:
    return [formatted("warning", _missing(n, "line"))] if n else []


def _missing(n: int, what: str) -> str:
    return f"{n:,} {what}s are missing here: nobody read them in time"


def formatted(level: Level, text: str) -> str:
    """A line as standard error shows it."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {level.upper():7} {text}\n"


def printable(text: str) -> str:
    r"""The text with control characters escaped: a request must not forge a line of the log.

    Bytes of a file name that are not UTF-8 are escaped, too, because JSON cannot hold them.

    >>> printable("a\nb"), printable(os.fsdecode(b"caf\xe9"))
    ('a\\nb', 'caf\\xe9')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def _write_to_stderr(text: str) -> None:
    """Bypasses sys.stderr, whose lock would keep a process alive while its pager is paused."""
    data = text.encode(sys.stderr.encoding, "backslashreplace")
    while data:
        try:
            data = data[os.write(2, data) :]
        except BlockingIOError:  # another process that has this file made it non-blocking
            select.select((), (2,), ())
