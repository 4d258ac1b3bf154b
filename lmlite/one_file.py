"""lmlite in one file: runs from a cache folder, which is filled once and checked at each start.

`native/pack.py` makes the file: a zip archive that Python starts. But the system loads libraries
only from files of their own, and llama.cpp maps a model from a file's first byte. So everything
in the archive is unpacked, into a folder that is named by the hash of the content.

- Nothing in the folder is used before its checksum agrees with the archive's. So neither an
  interrupted start nor a loss of power does harm: what is damaged is written again.
- Only this user and root can write to the folder. So the checksums need not withstand attacks.
- Several starts may check and fill the same folder at once: files are written aside and renamed.
"""

import fcntl
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import MAGIC_NUMBER
from typing import NamedTuple
from zipimport import zipimporter

MANIFEST = "lmlite/manifest"  # the archive's list of its files

# The first words of compiled code that Python does not compare with its source. Python ignores
# the two words that follow, usually the source's hash. Here they are the checksums of the source
# and of the code. https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation
_UNCHECKED = MAGIC_NUMBER + struct.pack("<I", 0b01)


class UnpackError(Exception):
    """The archive cannot be unpacked. Has one sentence."""


class File(NamedTuple):
    """A file of the archive."""

    path: str
    n_bytes: int
    checksum: int  # CRC-32
    entry: str  # of the archive; an .xz entry holds several files, one after the other


class Manifest(NamedTuple):
    """What the archive holds: the hash of the content, and the files."""

    name: str
    files: tuple[File, ...]


def write_manifest(manifest: Manifest) -> str:
    """The manifest's text: the hash, then a line for each file."""
    lines = (f"{file.checksum:08x} {file.n_bytes} {file.path} {file.entry}\n"
             for file in manifest.files)  # fmt: skip
    return f"{manifest.name}\n{''.join(lines)}"


def read_manifest(text: str) -> Manifest:
    """The reverse of `write_manifest`."""
    name, *lines = text.splitlines()
    fields = (line.split(" ") for line in lines)
    return Manifest(name, tuple(File(path, int(n), int(checksum, 16), entry)
                                for checksum, n, path, entry in fields))  # fmt: skip


def manifest_of(archive: zipimporter) -> Manifest:
    """What an archive holds."""
    return read_manifest(archive.get_data(MANIFEST).decode())


def find(manifest: Manifest) -> str | None:
    """A folder that holds all the files, each one checked."""
    for place in places():
        folder = os.path.join(place, manifest.name)
        with suppress(OSError):
            if fault_of(place) is None:
                hold(folder)
                if not damaged(folder, manifest.files):
                    return folder
    return None


# ---- places --------------------------------------------------------------------------------


def places() -> Iterator[str]:
    """Folders for the unpacked files, the best one first. They need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # as its specification says
        cache = "~/.cache"
    for parent in map(os.path.expanduser, (os.environ.get("LMLITE_CACHE", ""), cache)):
        if parent and not parent.startswith("~"):  # which stays if the user has no home
            yield os.path.join(os.path.abspath(parent), "lmlite")
    user = os.geteuid()
    shared = ("/tmp", "/var/tmp", f"/run/user/{user}", "/dev/shm")  # noqa: S108
    for parent in (os.environ.get("TMPDIR", ""), *shared):
        if os.path.isdir(parent):
            yield os.path.join(os.path.abspath(parent), f"lmlite-{user}")


def fault_of(place: str) -> str | None:
    """Why nothing in an existing folder may be used; None if it may. Raises OSError.

    It may be a link, as systemd makes one for a service's cache.
    """
    named, found, parent = os.lstat(place), os.stat(place), os.stat(os.path.dirname(place))
    if not stat.S_ISDIR(found.st_mode):
        return "not a folder"
    if not {named.st_uid, found.st_uid} <= {0, os.geteuid()}:
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        return "others may replace it"
    return "mounted noexec" if os.statvfs(place).f_flag & os.ST_NOEXEC else None


def hold(folder: str) -> int:
    """Protects a folder from removal while this process runs. Returns a file descriptor."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fd = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 3)  # standard streams may be closed
    os.close(opened)
    with suppress(OSError):  # the file system may be read-only, or know no locks
        os.utime(fd)  # the time of the last start
        fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


# ---- checks --------------------------------------------------------------------------------


def damaged(folder: str, files: Iterable[File]) -> list[File]:
    """The files that are missing in a folder, or differ from the archive's."""
    buffer = bytearray(1 << 20)
    return [file for file in files if not _is_whole(folder, file, buffer)]


def _is_whole(folder: str, file: File, buffer: bytearray) -> bool:
    path = os.path.join(folder, file.path)
    try:
        if _measured(path, buffer) != (file.n_bytes, file.checksum):
            return False
        if not path.endswith(".py"):
            return True
        with open(bytecode_path(path), "rb", buffering=0) as code:
            head, body = code.read(16), code.read()
    except OSError:
        return False
    return head == bytecode_head(file, body)


def _measured(path: str, buffer: bytearray) -> tuple[int, int]:
    """The size and the checksum of a file. Raises OSError."""
    n_bytes = checksum = 0
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            n_bytes += n
            checksum = zlib.crc32(view[:n], checksum)
    return n_bytes, checksum


def bytecode_path(path: str) -> str:
    """Where Python looks for the compiled code of a source file."""
    folder, name = os.path.split(path)
    level = f".opt-{sys.flags.optimize}" if sys.flags.optimize else ""
    return f"{folder}/__pycache__/{name[:-3]}.{sys.implementation.cache_tag}{level}.pyc"


def bytecode_head(source: File, code: bytes) -> bytes:
    """The 16 bytes that compiled code begins with."""
    return _UNCHECKED + struct.pack("<II", source.checksum, zlib.crc32(code))
