"""Counts the calls in some work that can fail, and makes one of them fail, as curl's tests do.

A first run of the work counts these calls. The work is then repeated once for each call, and that
call fails. Each repetition must end in the right error, and must not leak anything.
"""

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

SEED = 20261125


class Saboteur:
    """Once armed with k, it makes the k-th call fail. Calls may come from any thread.

    If several threads make calls, their order is random. Then it is also armed with a name, and
    counts only the calls of that name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._k: int | None = None
        self._name: str | None = None
        self.calls: list[str] = []  # names of the calls since it was armed
        self.failed: str | None = None

    def arm(self, k: int | None, name: str | None = None) -> None:
        """`k` None: only counts. `name` None: calls of every name."""
        with self._lock:
            self._k, self._name, self.calls, self.failed = k, name, [], None

    def strikes(self, name: str) -> bool:
        """Counts a call. Returns whether the call must fail."""
        with self._lock:
            self.calls.append(name)
            n_calls = len(self.calls) if self._name is None else self.calls.count(self._name)
            if self._name not in (None, name) or n_calls != self._k:
                return False
            self.failed = name
            return True

    def wrap(self, name: str, function: Callable[..., Any], error: BaseException) -> Any:
        """The function, with calls that may raise the error instead."""

        def call(*arguments: Any, **options: Any) -> Any:
            if self.strikes(name):
                raise type(error)(*error.args)  # a new error: tracebacks keep objects alive
            return function(*arguments, **options)

        return call


def chosen(n_calls: int, n_most: int | None) -> Iterator[int]:
    """Each k from 1 to n_calls, or a random sample of n_most of them, always the same."""
    everyone = range(1, n_calls + 1)
    if n_most is None or n_most >= n_calls:
        return iter(everyone)
    return iter(sorted(random.Random(SEED).sample(everyone, n_most)))
