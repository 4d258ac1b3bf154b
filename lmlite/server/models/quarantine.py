"""Refuses a request for ten minutes if two workers have died while they ran it.

The server never repeats a request by itself, but clients do. A request that crashes a worker may
crash each new one, too, and so fail the requests of all other clients. Belongs to the
supervisor, whose lock guards it. Stores hashes, not requests.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

from lmlite import frames
from lmlite.errors import HarmfulRequest
from lmlite.messages import Chat, Complete, Work

MAX_DEATHS = 2
REFUSED_S = 600.0  # since the last death
MAX_KEPT = 1024  # fingerprints


class Quarantine:
    """How many workers died while they ran each request."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, float]] = {}  # by fingerprint: count, time of the last

    def check(self, request: Work) -> None:
        """Raises HarmfulRequest if the request is refused now."""
        if not self._deaths:  # the usual case: saves the time for a fingerprint
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
        """Records a worker's death for the requests that it ran. Equal requests count once."""
        now = time.monotonic()
        for key in set(map(fingerprint, requests)):
            n_deaths, died_s = self._deaths.pop(key, (0, now))
            if now - died_s > REFUSED_S:
                n_deaths = 0
            self._deaths[key] = n_deaths + 1, now
            if len(self._deaths) > MAX_KEPT:
                del self._deaths[next(iter(self._deaths))]  # the oldest entry

    def clear(self, request: Work) -> None:
        """Forgets the deaths for a request that was completed: it did not cause them."""
        if self._deaths:
            self._deaths.pop(fingerprint(request), None)


def fingerprint(request: Work) -> int:
    """A hash of the request without its id, seed and trace flag."""
    if isinstance(request, Chat | Complete):
        request = replace(request, trace=False, params=replace(request.params, seed=None))
    return hash(frames.encode(replace(request, id=0)))
