"""How soon another worker is started after one that ended, and when there is no point in it.

Attempts count, not only deaths: starting a process can fail, too. They count until a worker
proves itself, by an answer or by being ready for a minute. Belongs to the supervisor's thread.
"""

import time
from collections.abc import Callable

MAX_DEATHS = 5  # in a row, of workers that had not proved themselves
PROOF_S = 60.0
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 5.0)  # before the next attempt, by attempts since the last proof
LATELY_S = 60.0


class Restarts:
    """The attempts to have one model's worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The clock is monotonic, in seconds."""
        self._clock = clock
        self._ready_s: float | None = None  # since when the worker that runs is ready
        self._died_s: float | None = None
        self.reset()

    def reset(self) -> None:
        """A worker has proved itself, or the model's file is another one."""
        self._n_attempts = self._n_deaths = 0

    def begin(self) -> None:
        """A worker is to be started."""
        self._n_attempts += 1

    def ready(self) -> None:
        """It has loaded its model."""
        self._ready_s = self._clock()

    def end(self) -> None:
        """It is gone, for whatever reason."""
        if self._ready_s is not None and self._clock() - self._ready_s >= PROOF_S:
            self.reset()
        self._ready_s = None

    def die(self) -> None:
        """It died, or could not be started."""
        self._died_s = self._clock()
        if self._n_attempts > 0:  # it had not proved itself
            self._n_deaths += 1

    @property
    def are_hopeless(self) -> bool:
        """Whether another attempt would end as the last ones did."""
        return self._n_deaths >= MAX_DEATHS

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        return BACKOFF_S[min(max(self._n_attempts, 1), len(BACKOFF_S)) - 1]

    @property
    def were_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return self._died_s is not None and self._clock() - self._died_s < LATELY_S
