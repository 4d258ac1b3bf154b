"""Bounds on what a chat template takes: it is a program that comes with a model file.

llama.cpp runs it without any. What it allocates beyond them fails, in its own thread alone, with
an error that the library reports. A call that does not even allocate is ended with its process,
and the server sees a worker that died. Knows nothing of templates themselves.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_SECONDS = 10.0  # the slowest known takes a hundredth, for a context full of messages
MAX_BYTES = 1 << 30  # beside what its thread has allocated already
TO_REPORT = 0.5  # of the time more, to give back what was allocated, before the process ends


@contextmanager
def bounded(lib: Any) -> Iterator[None]:
    """For one call of the library that runs a template. Not within another."""
    lib.lml_bound_thread(MAX_BYTES, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS * (1 + TO_REPORT))  # SIGALRM ends a process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lib.lml_bound_thread(0, 0)
