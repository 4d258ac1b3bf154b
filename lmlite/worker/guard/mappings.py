"""Drops the pages of mapped weights after llama.cpp has copied them.

llama.cpp maps a model's file. It copies weights that go to a GPU, or that its kernels want repacked
in another order. The mapped pages would stay in memory beside their copies.
"""

import ctypes
import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path

MAPS, STATUS = Path("/proc/self/maps"), Path("/proc/self/status")
WORTH = 0.25  # of a file; the weights that were not copied are read again, at 0.1 s per gigabyte


def own_bytes() -> int:
    """Memory of this process that is not mapped from files; 0 without /proc."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 0


def drop_pages(inodes: Collection[int]) -> None:
    """Drops this process's pages of these files; the kernel reads them again when they are used.

    Only read-only shared mappings are dropped, as their pages are those of the file.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for begin, end in _ranges(inodes):
        advise(begin, end - begin, mmap.MADV_DONTNEED)


def _ranges(inodes: Collection[int]) -> Iterator[tuple[int, int]]:
    try:
        lines = MAPS.read_bytes().splitlines()  # bytes: names of files need not be UTF-8
    except OSError:
        return
    for line in lines:
        addresses, rights, _offset, _device, inode, *_ = line.split()
        if rights == b"r--s" and int(inode) in inodes:
            begin, end = addresses.split(b"-")
            yield int(begin, 16), int(end, 16)
