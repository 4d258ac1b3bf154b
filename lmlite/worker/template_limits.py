"""Bounds on what a chat template takes: it is a program that comes with a model file.

llama.cpp runs it without any. Memory beyond the bound is an error of the library's, which it
reports. Time is another matter: nothing in a process can end a call, so it ends the process,
and the server sees a worker that died. Knows nothing of templates themselves.
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

MAX_SECONDS = 10.0  # the slowest known takes a hundredth, for a context full of messages
MAX_BYTES = 1 << 30  # beside what the process has mapped already


@contextmanager
def bounded() -> Iterator[None]:
    """For one call of the library that runs a template. Not within another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _mapped_bytes() + MAX_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)  # SIGALRM ends a process at once
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
