"""Requests that were running when a worker died: one that saw two deaths is refused for a while.

The server never repeats a request by itself, but clients do. A request that ends a worker once
would end it each time, and with it the replies of all other clients. Belongs to the supervisor,
which guards it; keeps hashes, not requests.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

from lmlite import frames
from lmlite.errors import HarmfulRequest
from lmlite.messages import Chat, Complete, Work

MAX_DEATHS = 2
REFUSED_S = 600.0  # from the last death
MAX_KEPT = 1024  # requests


class Quarantine:
    """How often a worker died over each request."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, float]] = {}  # by fingerprint: how many, and the last

    def check(self, request: Work) -> None:
        """Raises HarmfulRequest."""
        if not self._deaths:  # which saves the fingerprint
            return
        n_deaths, died_s = self._deaths.get(fingerprint(request), (0, 0.0))
        left_s = died_s + REFUSED_S - time.monotonic()
        if n_deaths >= MAX_DEATHS and left_s > 0:
            error = HarmfulRequest(
                f"the model's worker died {n_deaths} times while it ran this request; "
                f"it is refused for {left_s / 60:.0f} minutes"
            )
            error.retry_after_s = round(left_s) + 1
            raise error

    def blame(self, requests: Iterable[Work]) -> None:
        """A worker died while it ran these; equal ones count once."""
        now = time.monotonic()
        for key in set(map(fingerprint, requests)):
            n_deaths, died_s = self._deaths.pop(key, (0, now))
            if now - died_s > REFUSED_S:
                n_deaths = 0
            self._deaths[key] = n_deaths + 1, now
            if len(self._deaths) > MAX_KEPT:
                del self._deaths[next(iter(self._deaths))]  # the one that was blamed longest ago

    def clear(self, request: Work) -> None:
        """The request was completed: it did not cause those deaths."""
        if self._deaths:
            self._deaths.pop(fingerprint(request), None)


def fingerprint(request: Work) -> int:
    """The same for equal requests, whatever their id and seed, and whether they are traced."""
    if isinstance(request, Chat | Complete):
        request = replace(request, trace=False, params=replace(request.params, seed=None))
    return hash(frames.encode(replace(request, id=0)))
