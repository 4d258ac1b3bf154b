"""Times of a reply, with the fields of llama.cpp's server (tools/server/server-task.cpp). Pure."""

import time
from collections.abc import Callable

from lmlite.messages import Delta, Finished, Json, Reading, ReplyEvent, Started


class Timings:
    """Times of one choice, from when its prompt was begun: call `note` with each of its events."""

    def __init__(self, event: Started, clock: Callable[[], float] = time.monotonic) -> None:
        self._started, self._clock = event, clock
        self._began_s, self._n_completion = clock(), 0
        self._first_s: float | None = None  # of the first token
        self._last_s = self._began_s

    def note(self, event: ReplyEvent) -> None:
        """Takes the time of an event."""
        if isinstance(event, Delta | Finished):
            self._last_s = self._clock()
            self._first_s = self._last_s if self._first_s is None else self._first_s
        if isinstance(event, Finished):
            self._n_completion = event.n_completion

    def progress(self, event: Started | Reading) -> Json:
        """How much of the prompt is read."""
        cached = self._started.n_cached
        n_read = event.n_read if isinstance(event, Reading) else cached
        time_ms = round(1000 * (self._clock() - self._began_s))
        return {"total": self._started.n_prompt, "cache": cached, "processed": n_read,
                "time_ms": time_ms}  # fmt: skip

    def whole(self) -> Json:
        """The times of a finished choice; the last token of a prompt counts as read."""
        first_s = self._last_s if self._first_s is None else self._first_s
        n_read = self._started.n_prompt - self._started.n_cached
        return (
            {"cache_n": self._started.n_cached}
            | _pace("prompt", n_read, first_s - self._began_s)
            | _pace("predicted", self._n_completion, self._last_s - first_s)
        )


def _pace(name: str, n: int, seconds: float) -> Json:
    return {
        f"{name}_n": n,
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / n if n else 0.0,
        f"{name}_per_second": n / seconds if seconds else 0.0,
    }
