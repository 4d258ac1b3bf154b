"""glibc's allocator, told to give back what is freed. It listens only before a program begins.

Left to itself it raises what it keeps to twice the largest block that was ever freed, in an arena
for each of many threads: a server that has read some large bodies never shrinks again.
"""

import contextlib
import os
import sys

_SETTINGS = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "131072",  # larger blocks go back to the system at once
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def begin_again() -> None:
    """Replaces this program by itself with the settings; returns if it has any of them."""
    if sys.platform != "linux" or not sys.executable or not _SETTINGS.keys().isdisjoint(os.environ):
        return
    os.environ.update(_SETTINGS)
    with contextlib.suppress(OSError):  # it serves without them, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
