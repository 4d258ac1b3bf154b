"""How soon a new worker is started after one has ended, and when to give up.

Counts attempts, too, because starting a process can fail. A worker that answers a request, or was
ready for a minute when it ended, resets the counts. Used by the supervisor's thread only.
"""

import time
from collections.abc import Callable

MAX_DEATHS = 5  # in a row, without a worker that proved to work
PROOF_S = 60.0  # a worker that was ready this long has proved to work
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 5.0)  # pause before the next attempt, by number of attempts
LATELY_S = 60.0


class Restarts:
    """Counts the attempts to start a worker for one model."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The clock is monotonic, in seconds."""
        self._clock = clock
        self._ready_s: float | None = None  # when the current worker became ready
        self._died_s: float | None = None
        self.reset()

    def reset(self) -> None:
        """A worker has proved to work, or the model's file was replaced."""
        self._n_attempts = self._n_deaths = 0

    def begin(self) -> None:
        """A worker is about to be started."""
        self._n_attempts += 1

    def ready(self) -> None:
        """The worker has loaded its model."""
        self._ready_s = self._clock()

    def end(self) -> None:
        """The worker has ended, for any reason."""
        if self._ready_s is not None and self._clock() - self._ready_s >= PROOF_S:
            self.reset()
        self._ready_s = None

    def die(self) -> None:
        """The worker died or could not be started."""
        self._died_s = self._clock()
        if self._n_attempts > 0:  # no proof that it works since it was started
            self._n_deaths += 1

    @property
    def are_hopeless(self) -> bool:
        """Whether to give up: too many workers died in a row."""
        return self._n_deaths >= MAX_DEATHS

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next attempt."""
        return BACKOFF_S[min(max(self._n_attempts, 1), len(BACKOFF_S)) - 1]

    @property
    def were_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return self._died_s is not None and self._clock() - self._died_s < LATELY_S
