"""Drops the pages of mapped weights after llama.cpp has copied them.

llama.cpp maps a model's file. It copies weights that go to a GPU, or that its kernels need in a
different order. Without this, the mapped pages would stay in memory in addition to the copies.
"""

import ctypes
import mmap
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

MAPS, STATUS = Path("/proc/self/maps"), Path("/proc/self/status")
TASKS = Path("/proc/self/task")
WORTH = 0.25  # least copied share of a file; the rest must be read again, at 0.1 s per gigabyte


def n_threads() -> int:
    """Threads of this process; 0 without /proc."""
    try:
        return len(os.listdir(TASKS))
    except OSError:
        return 0


def own_bytes() -> int:
    """Bytes of this process's memory that are not mapped from files; 0 without /proc."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 0


def drop_pages(inodes: Collection[int]) -> None:
    """Drops this process's pages of these files; the kernel reads them again on the next access.

    Drops only pages of read-only shared mappings, because they have no content besides the file's.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for begin, end in _ranges(inodes):
        advise(begin, end - begin, mmap.MADV_DONTNEED)


def _ranges(inodes: Collection[int]) -> Iterator[tuple[int, int]]:
    try:
        lines = MAPS.read_bytes().splitlines()  # bytes, because file names may not be UTF-8
    except OSError:
        return
    for line in lines:
        addresses, rights, _offset, _device, inode, *_ = line.split()
        if rights == b"r--s" and int(inode) in inodes:
            begin, end = addresses.split(b"-")
            yield int(begin, 16), int(end, 16)
