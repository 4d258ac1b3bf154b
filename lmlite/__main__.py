"""`python -m lmlite` runs the command `lmlite`; so does the one file."""

import os
import sys
from zipimport import zipimporter

TYPE_CHECKING = False  # imports are few here, because `lmlite serve` starts twice
if TYPE_CHECKING:
    import subprocess

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
    is_serving = sys.argv[1:2] == ["serve"] and not {"-h", "--help"} & set(sys.argv)
    if is_serving:
        _start_again()
    _fill_closed_streams()
    archive = globals()["__loader__"]
    if isinstance(archive, zipimporter) and not _unpack(archive):
        return 1
    worker = _start_worker() if is_serving else None
    from lmlite.cli import command

    return command.main(worker=worker)


def _start_again() -> None:
    """Runs this program again with the settings, unless the user has set any of them."""
    if sys.platform == "linux" and sys.executable and _ALLOCATOR.keys().isdisjoint(os.environ):
        os.environ.update(_ALLOCATOR)
        try:  # noqa: SIM105
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
        except OSError:
            pass  # the server works without them, too


def _unpack(archive: zipimporter) -> bool:
    """Makes Python import the rest from the unpacked files. Prints why it cannot."""
    import contextlib

    from lmlite.one_file import UnpackError

    try:
        sys.path.insert(0, unpacked(archive))
    except UnpackError as err:
        with contextlib.suppress(OSError):  # standard error may have no reader
            print(f"lmlite: {err}", file=sys.stderr)
        return False
    sys.dont_write_bytecode = True  # each file there is checked at the next start
    for name in [name for name in sys.modules if name.split(".")[0] == "lmlite"]:
        del sys.modules[name]
    return True


def unpacked(archive: zipimporter) -> str:
    """The folder with the archive's files, each one checked. Raises UnpackError."""
    from lmlite import one_file

    manifest = one_file.manifest_of(archive)
    if found := one_file.find(manifest):
        return found
    from lmlite import unpacking  # once

    return unpacking.unpack(archive, manifest)


def _start_worker() -> "subprocess.Popen[bytes] | None":
    """Starts a worker first, so that both processes import their code at the same time."""
    from lmlite.server.models import worker_process

    try:
        return worker_process.start()
    except OSError:  # the server will try again and report the cause
        return None


def _fill_closed_streams() -> None:
    """Opens closed standard streams: otherwise the next file or socket would get their number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
