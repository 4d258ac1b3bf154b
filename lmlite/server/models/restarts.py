"""How soon another worker is started after one that ended, and when there is no point in it.

Attempts count, not deaths alone: a process that could not be started is one, too. They count until
a worker proves itself, by an answer or by being ready for a minute. Starts nothing, and waits for
nothing. Belongs to the supervisor's thread.
"""

from collections.abc import Callable

MAX_DEATHS = 5  # in a row, of workers that had not proved themselves
PROOF_S = 60.0
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 5.0)  # before the next attempt, by those since the last proof
LATELY_S = 60.0


class Restarts:
    """The attempts to have one model's worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """The clock is monotonic, in seconds."""
        self._clock = clock
        self._ready_s: float | None = None  # since when the worker that runs is ready
        self._died_s: float | None = None
        self.forget()

    def forget(self) -> None:
        """Begins to count anew."""
        self._n_attempts = self._n_deaths = 0

    def begin(self) -> None:
        """A worker is to be started."""
        self._n_attempts += 1

    def ready(self) -> None:
        """It has loaded its model."""
        self._ready_s = self._clock()

    def answered(self) -> None:
        """It has proved itself."""
        self.forget()

    def end(self) -> None:
        """It is gone, for whatever reason."""
        if self._ready_s is not None and self._clock() - self._ready_s >= PROOF_S:
            self.forget()
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
        if self._n_attempts == 0:
            return 0.0
        return BACKOFF_S[min(self._n_attempts, len(BACKOFF_S)) - 1]

    @property
    def were_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return self._died_s is not None and self._clock() - self._died_s < LATELY_S
