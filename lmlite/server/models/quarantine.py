"""Requests that were running when a worker died. One that saw it twice is refused for a while.

The server never tries a request again by itself, but clients do, and what ends a worker once
would end it each time, with the answers of everybody else. Belongs to the supervisor, which
guards it; knows requests by their hash alone.
"""

import time

from lmlite.errors import HarmfulRequest

MAX_DEATHS = 2
REFUSED_S = 600.0  # from the last death
MAX_SUSPECTS = 1024


class Suspects:
    """How often a worker died over each request."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, float]] = {}  # by request: how many, and the last one

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def check(self, request: int) -> None:
        """Raises HarmfulRequest."""
        n_deaths, died_s = self._deaths.get(request, (0, 0.0))
        left_s = died_s + REFUSED_S - time.monotonic()
        if n_deaths >= MAX_DEATHS and left_s > 0:
            error = HarmfulRequest(
                f"the model's worker died {n_deaths} times while it ran this request; "
                f"it is refused for {left_s / 60:.0f} minutes"
            )
            error.retry_after_s = round(left_s) + 1
            raise error

    def blame(self, request: int) -> None:
        """A worker died while it ran this request."""
        now = time.monotonic()
        n_deaths, died_s = self._deaths.pop(request, (0, now))
        if now - died_s > REFUSED_S:
            n_deaths = 0
        self._deaths[request] = n_deaths + 1, now
        if len(self._deaths) > MAX_SUSPECTS:
            del self._deaths[next(iter(self._deaths))]  # the one that was blamed longest ago

    def clear(self, request: int) -> None:
        """It came to its end: whatever happened before, it was not its fault."""
        self._deaths.pop(request, None)
