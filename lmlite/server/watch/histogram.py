"""A histogram as Prometheus adds them up: how many values are at most each of its bounds.

Histograms of the same bounds add up, over requests, servers and time. So bounds are constants.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts of values by bounds. It has no lock: it belongs to one thread, or to a lock's owner.

    >>> latency = Histogram((0.1, 1))
    >>> for value_s in (0.05, 0.1, 0.2, 3):
    ...     latency.add(value_s)
    >>> latency.within(), latency.total
    ([2, 3, 4], 3.35)
    """

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise. Each is the largest value of its bucket; the last bucket has no bound."""
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total: float = 0  # the sum of all values

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def merge(self, other: "Histogram") -> None:
        """Counts all values of another histogram, which has the same bounds."""
        assert self.bounds == other.bounds
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.total += other.total

    def within(self) -> list[int]:
        """How many values are at most each bound; the last count is of all values."""
        return list(accumulate(self._counts))
