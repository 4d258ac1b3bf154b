"""`python -m lmlite` is the command `lmlite`."""

import contextlib
import os
import sys

# glibc reads these settings only when a program starts. Without them its allocator keeps up to
# twice the largest block that was ever freed, for each of many threads: a server that has read
# some large bodies would never shrink again.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "131072",  # larger blocks go back to the system at once
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def main() -> int:
    """Runs the command. Returns its exit code."""
    if sys.argv[1:2] == ["serve"]:
        _start_again()
    from lmlite.cli import command

    return command.main()


def _start_again() -> None:
    """Replaces this program by itself with the settings, unless the user has made any of them."""
    if sys.platform == "linux" and sys.executable and _ALLOCATOR.keys().isdisjoint(os.environ):
        os.environ.update(_ALLOCATOR)
        with contextlib.suppress(OSError):  # the server works without them, too
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
