"""What a download tells while it runs, and the error that ends it.

An event is a dictionary with the key `event`:

    start     total_size_bytes, downloaded_bytes: of the files that are not there yet
    progress  the same, bytes_per_second, seconds_left (None: not known)
    note      message: one sentence
    done      paths: the model's files, the one to load first
    error     message: one sentence
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]

INTERVAL_S = 0.5  # between two events of progress
N_SAMPLES = 20  # the speed is that of the last ten seconds


class DownloadError(Exception):
    """Ends a download. The message is one sentence for the user."""


class Progress:
    """Counts the bytes of one download, and tells of them at most twice a second."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._n_total = self._n_done = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=N_SAMPLES)  # (seconds, bytes)

    def start(self, n_total: int, n_done: int) -> None:
        """Tells how many bytes there are, and how many an earlier attempt has left."""
        self._n_total, self._n_done = n_total, n_done
        self._samples.append((time.monotonic(), n_done))
        self._tell({"event": "start", "total_size_bytes": n_total, "downloaded_bytes": n_done})

    def note(self, message: str) -> None:
        """Tells a sentence."""
        self._tell({"event": "note", "message": message})

    def add(self, n_bytes: int) -> None:
        """Counts bytes that have arrived; a negative number if some are fetched again."""
        self._n_done += n_bytes
        now = time.monotonic()
        if now < self._samples[-1][0] + INTERVAL_S and self._n_done < self._n_total:
            return
        since, n_then = self._samples[0]
        speed = max(0.0, (self._n_done - n_then) / max(now - since, 1e-3))
        self._samples.append((now, self._n_done))
        self._tell({
            "event": "progress",
            "total_size_bytes": self._n_total,
            "downloaded_bytes": self._n_done,
            "bytes_per_second": round(speed),
            "seconds_left": round((self._n_total - self._n_done) / speed) if speed else None,
        })  # fmt: skip


def shown(n_bytes: float) -> str:
    """A size for people.

    >>> shown(98_362_432)
    '98.4 MB'
    """
    power = min((len(str(int(n_bytes))) - 1) // 3, 4)
    return f"{n_bytes / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
