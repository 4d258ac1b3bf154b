"""What this process has mapped of files, and how to give back what it has read for the last time.

llama.cpp maps a model's file and copies the weights that its kernels want in another order, or
that go to a GPU. The pages that it copied from would stay in memory beside their copies.
"""

import ctypes
import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path

MAPS, STATUS = Path("/proc/self/maps"), Path("/proc/self/status")
WORTH = 0.25  # of a file: to fetch again what was not copied takes some 0.1 s for a gigabyte


def own_bytes() -> int:
    """Memory of this process that is no file's; 0 where the system does not tell."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 0


def give_back(inodes: Collection[int]) -> None:
    """Drops the pages of these files from this process; what it still needs comes back on its own.

    Only of mappings that nobody writes through, whose pages are those of the file.
    """
    drop = ctypes.CDLL(None).madvise
    drop.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for begin, end in _ranges(inodes):
        drop(begin, end - begin, mmap.MADV_DONTNEED)


def _ranges(inodes: Collection[int]) -> Iterator[tuple[int, int]]:
    try:
        lines = MAPS.read_bytes().splitlines()  # with names of files, which may be no text
    except OSError:
        return
    for line in lines:
        addresses, rights, _offset, _device, inode, *_ = line.split()
        if rights == b"r--s" and int(inode) in inodes:
            begin, end = addresses.split(b"-")
            yield int(begin, 16), int(end, 16)
