"""`python -m lmlite` runs the command `lmlite`."""

import contextlib
import os
import sys

# glibc reads these settings only when a program starts. Without them its allocator keeps up to
# twice the largest block that was ever freed, for each of many threads: the server's memory
# would never shrink again after some large request bodies.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "131072",  # bytes; a larger block returns to the kernel when freed
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def main() -> int:
    """Runs the command. Returns its exit code."""
    if sys.argv[1:2] == ["serve"]:
        _start_again()
    from lmlite.cli import command

    return command.main()


def _start_again() -> None:
    """Runs this program again with the settings, unless the user has set any of them."""
    if sys.platform == "linux" and sys.executable and _ALLOCATOR.keys().isdisjoint(os.environ):
        os.environ.update(_ALLOCATOR)
        with contextlib.suppress(OSError):  # the server works without them, too
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
