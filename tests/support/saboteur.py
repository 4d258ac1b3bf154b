"""Counts the calls that may fail in some work, and lets one of them do so: curl's way of testing.

Done once, the work tells how many such calls it takes; done again for each of them, with that one
failing, it must end in the right error every time, and leave nothing behind.
"""

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

SEED = 20261125


class Saboteur:
    """Armed with k, it lets the k-th call from then on fail. Calls may come from any thread.

    Where several threads make them, in what order is chance: there it is armed with a name too,
    and counts the calls of that name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._k: int | None = None
        self._name: str | None = None
        self.calls: list[str] = []  # by name, since it was armed
        self.failed: str | None = None

    def arm(self, k: int | None, name: str | None = None) -> None:
        """None: only counts; no name: calls of every name."""
        with self._lock:
            self._k, self._name, self.calls, self.failed = k, name, [], None

    def strikes(self, name: str) -> bool:
        """One call; whether it is to fail."""
        with self._lock:
            self.calls.append(name)
            n_calls = len(self.calls) if self._name is None else self.calls.count(self._name)
            if self._name not in (None, name) or n_calls != self._k:
                return False
            self.failed = name
            return True

    def wrap(self, name: str, function: Callable[..., Any], error: BaseException) -> Any:
        """The function, or in its place the error."""

        def call(*arguments: Any, **options: Any) -> Any:
            if self.strikes(name):
                raise type(error)(*error.args)  # another one: its traceback holds what it passed
            return function(*arguments, **options)

        return call


def chosen(n_calls: int, n_most: int | None) -> Iterator[int]:
    """Each k from 1 to n_calls, or so many of them by chance, always the same."""
    everyone = range(1, n_calls + 1)
    if n_most is None or n_most >= n_calls:
        return iter(everyone)
    return iter(sorted(random.Random(SEED).sample(everyone, n_most)))
