"""The unfinished file on disk: .NAME.part, and .NAME.version, which says what it is a part of.

Only one process writes it: it holds a lock (flock), which ends with the process. The part stays
when a download is interrupted, so that the next one can continue.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lmlite.downloads.progress import DownloadError

READ_BYTES = 1 << 20


class Part:
    """One file on its way. Its owner must call `close`."""

    def __init__(self, path: Path, n_total: int, version: str | None) -> None:
        """`path`: the finished file's. `version` differs for different content."""
        self.path, self.n_total, self._version = path, n_total, version or ""
        self.part_path = path.with_name(f".{path.name}.part")
        self._version_path = path.with_name(f".{path.name}.version")
        self._fd: int | None = None
        self.n_bytes = 0  # that are written
        self._digest = hashlib.sha256()

    def is_finished(self) -> bool:
        """Whether the finished file is there. Raises DownloadError if another one has its name."""
        if not self.path.exists():
            return False
        if self.path.stat().st_size != self.n_total:
            raise DownloadError(f"{self.path} exists and is another file; remove it first")
        return True

    def n_kept(self) -> int:
        """How many bytes an earlier attempt has left of this very content."""
        try:
            n_bytes = self.part_path.stat().st_size
            is_same = self._version != "" and self._version_path.read_text() == self._version
        except (OSError, ValueError):
            return 0
        return n_bytes if is_same and n_bytes <= self.n_total else 0

    def lock(self, note: Callable[[str], None]) -> None:
        """Waits until no other process writes the part, then takes over what it holds."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            fd = os.open(self.part_path, flags, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"another process is fetching {self.path.name}; waiting for it")
                fcntl.flock(fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.part_path)):
                    break
            os.close(fd)  # the other process has given it its name or removed it meanwhile
        self._fd = fd
        n_left = self.n_kept()
        if not n_left:
            self.empty()
        while n_left:
            data = os.read(fd, READ_BYTES)
            self._digest.update(data)
            self.n_bytes += len(data)
            n_left = n_left - len(data) if data else 0

    def empty(self) -> None:
        """Begins anew."""
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._version_path.write_text(self._version)
        self.n_bytes, self._digest = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Adds bytes. Raises OSError if the disk is full."""
        assert self._fd is not None
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            n_written = os.write(self._fd, rest)
            self.n_bytes += n_written
            rest = rest[n_written:]

    def check(self, sha256: str | None) -> None:
        """Removes the part and raises DownloadError if it is not what it should be."""
        if self.n_bytes != self.n_total or sha256 not in (None, self._digest.hexdigest()):
            self.remove()
            raise DownloadError(
                f"{self.path.name} did not arrive as it was sent (its size or SHA-256 is wrong); "
                "nothing of it was kept, fetch it again"
            )

    def finish(self) -> None:
        """Gives the file its name; it keeps it even if the machine stops now."""
        assert self._fd is not None
        os.fsync(self._fd)
        os.replace(self.part_path, self.path)
        self._version_path.unlink(missing_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def remove(self) -> None:
        """Removes what is there of it."""
        self.part_path.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the lock. A part without any bytes is removed."""
        if self._fd is not None:
            if not self.n_bytes:
                self.remove()
            os.close(self._fd)
