"""Unpacks the one file into a cache folder: at the first start, or if a file is damaged."""

import fcntl
import io
import lzma
import marshal
import os
import shutil
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from zipimport import ZipImportError, zipimporter

from lmlite.one_file import (
    File,
    Manifest,
    UnpackError,
    bytecode_head,
    bytecode_path,
    damaged,
    fault_of,
    hold,
    places,
)

N_THREADS = 4  # decompression uses several cores, Python's compiler one
ASIDE = "new-"  # how the names of folders for unfinished files begin
LEFT_BEHIND_S = 3600  # age of such a folder that an interrupted start has left
UNUSED_S = 30 * 24 * 3600  # since another version's last start, after which its files are removed

# What lmlite needs of the standard library and small distributions of Python lack.
NEEDED = ("ctypes", "dataclasses", "http.server", "json", "mmap", "resource", "socketserver")


def unpack(archive: zipimporter, manifest: Manifest) -> str:
    """Unpacks into the first place that takes all files; returns the folder.

    Raises UnpackError, and ModuleNotFoundError if the standard library is incomplete.
    """
    for name in NEEDED:
        __import__(name)
    refusals = []
    for place in places():
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            if fault := fault_of(place):
                raise OSError(fault)
            _fill(place, archive, manifest)
            return os.path.join(place, manifest.name)
        except OSError as err:
            refusals.append(f"{place}: {err.strerror or err}")
    raise UnpackError(
        "nothing can be unpacked: set LMLITE_CACHE to a folder that can be written and is not "
        f"mounted noexec ({'; '.join(refusals)})"
    )


def _fill(place: str, archive: zipimporter, manifest: Manifest) -> None:
    """Writes what is missing or damaged. Raises OSError and UnpackError."""
    folder = os.path.join(place, manifest.name)
    aside = os.path.join(place, ASIDE + os.urandom(8).hex())
    os.mkdir(aside, mode=0o700)
    try:
        is_new = not os.path.isdir(folder)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        held = hold(folder)
        try:
            missing = damaged(folder, manifest.files)
            Writer(archive, folder, aside, missing).write(manifest.files)
        except BaseException:
            os.close(held)
            if is_new:  # a part is of no use, and the disk may be full
                _remove(folder, aside)
            raise
        _remove_unused(place, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# ---- writing -------------------------------------------------------------------------------


class Writer:
    """Writes files of an archive to a folder. Each one is written aside first."""

    def __init__(
        self, archive: zipimporter, folder: str, aside: str, missing: Iterable[File]
    ) -> None:
        """`aside` is a folder for unfinished files, in the same file system."""
        self._archive, self._folder, self._aside = archive, folder, aside
        self._missing = frozenset(missing)
        self._faults: list[BaseException] = []

    def write(self, files: Iterable[File]) -> None:
        """Writes those of the files that are missing. Raises OSError and UnpackError."""
        entries = [tuple(group) for _, group in groupby(files, lambda file: file.entry)]
        work = [group for group in entries if not self._missing.isdisjoint(group)]
        work.sort(key=lambda group: sum(file.n_bytes for file in group))  # the longest is last
        threads = [threading.Thread(target=self._work, args=[work]) for _ in range(N_THREADS - 1)]
        with suppress(RuntimeError):  # this thread can do it alone, too
            for thread in threads:
                thread.start()
        self._work(work)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._faults:
            raise self._faults[0]

    def _work(self, work: list[tuple[File, ...]]) -> None:
        """Writes the last entry until none is left, or one has failed."""
        try:
            while not self._faults:
                self._write_entry(work.pop())
        except IndexError:
            pass
        except BaseException as err:
            self._faults.append(err)

    def _write_entry(self, files: Sequence[File]) -> None:
        """Writes the missing files of one entry of the archive."""
        entry = files[0].entry
        try:
            content = io.BytesIO(self._archive.get_data(entry))
            is_xz = entry.endswith(".xz")
            read = lzma.LZMAFile(content).read if is_xz else content.read  # noqa: SIM115
            for file in files:
                data = read(file.n_bytes)
                if (len(data), zlib.crc32(data)) != (file.n_bytes, file.checksum):
                    raise EOFError
                if file in self._missing:
                    self._write_file(file, data)
        except (ZipImportError, EOFError, zlib.error, lzma.LZMAError):
            raise UnpackError(f"{self._archive.archive} is damaged: copy it again") from None

    def _write_file(self, file: File, data: bytes) -> None:
        """Writes a file and, if it is Python's source, the code compiled from it."""
        path = os.path.join(self._folder, file.path)
        self._put(path, data)
        if path.endswith(".py"):
            code = marshal.dumps(compile(data, path, "exec", dont_inherit=True))
            self._put(bytecode_path(path), bytecode_head(file, code) + code)

    def _put(self, path: str, data: bytes) -> None:
        aside = os.path.join(self._aside, os.path.relpath(path, self._folder).replace("/", "-"))
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(aside, "xb") as file:
            file.write(data)
        os.replace(aside, path)


# ---- removing ------------------------------------------------------------------------------


def _remove_unused(place: str, aside: str) -> None:
    """Removes what interrupted starts have left, and other versions that nobody uses any more."""
    now = os.stat(aside).st_mtime  # by the clock of the file system
    for name in os.listdir(place):
        path = os.path.join(place, name)
        with suppress(OSError):
            age = now - os.stat(path).st_mtime
            if age > (LEFT_BEHIND_S if name.startswith(ASIDE) else UNUSED_S):
                _remove(path, aside)


def _remove(folder: str, aside: str) -> None:
    """Removes a folder unless a process holds it. `aside` is removed later."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder, os.path.join(aside, os.path.basename(folder)))
        finally:
            os.close(fd)
