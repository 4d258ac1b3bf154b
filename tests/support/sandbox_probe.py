"""Enters the sandbox, tries forbidden and required operations, and prints the outcomes.

    python -m tests.support.sandbox_probe FOLDER OUTSIDE [OPTION]

FOLDER may be written to, or is "-"; OUTSIDE holds the files `read` and `spare`.
OPTION is "without landlock", "landlock before" or "accepting".
"""

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from lmlite.worker.guard import sandbox

_libc = ctypes.CDLL(None, use_errno=True)


def outcome(attempt: Callable[[], object]) -> str:
    """The name of the error, or "done"."""
    try:
        attempt()
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    except RuntimeError as err:
        return str(err)
    return "done"


def call(number: int, *arguments: int) -> None:
    ctypes.set_errno(0)
    if _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def in_a_thread(attempt: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(outcome(attempt)))
        thread.start()
        thread.join()
        if found != ["done"]:
            raise OSError(getattr(errno, found[0]), "in the thread")

    return run


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def connections() -> dict[str, Callable[[], object]]:
    """What can be done with sockets that are open when the sandbox closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    waiting = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    unconnected, another = socket.socket(), socket.create_connection(listener.getsockname())
    assert another.fileno() >= 0
    return {
        "an open connection": lambda: accepted.recv(waiting.send(b"x")),
        "another connection": lambda: unconnected.connect(listener.getsockname()),
        "accepting": lambda: listener.accept()[0].close(),
        "listening": lambda: unconnected.listen(),
    }


def attempts(folder: Path | None, outside: Path) -> dict[str, Callable[[], object]]:
    machine = sandbox._machine()
    assert machine is not None
    read_memory = sandbox._NEVER["process_vm_readv"][machine.column] or 0
    parent = os.getppid()
    found: dict[str, Callable[[], object]] = {
        "a socket": lambda: socket.socket(socket.AF_INET).close(),
        "a local socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "a socket in a thread": in_a_thread(lambda: socket.socket().close()),
        "a program": lambda: os.execv("/bin/true", ["true"]),
        "a process": fork,
        "a subprocess": lambda: subprocess.run(["/bin/true"]),
        "a signal to the parent": lambda: os.kill(parent, signal.SIGURG),
        "io_uring": lambda: call(425, 1, 0),
        "memory of the parent": lambda: call(read_memory, parent, 0, 0, 0, 0, 0),
        "a new file": lambda: (outside / "new").write_bytes(b"x"),
        "an old file": lambda: (outside / "spare").write_bytes(b"x"),
        "appending": lambda: os.close(os.open(outside / "spare", os.O_WRONLY | os.O_APPEND)),
        "truncating": lambda: os.truncate(outside / "spare", 0),
        "removing": lambda: (outside / "spare").unlink(),
        "renaming": lambda: (outside / "spare").rename(outside / "other"),
        "a folder": lambda: (outside / "folder").mkdir(),
        "a link": lambda: (outside / "link").symlink_to("read"),
        "other rights": lambda: (outside / "spare").chmod(0o777),
        "a write in a thread": in_a_thread(lambda: (outside / "new").write_bytes(b"x")),
        "reading": lambda: (outside / "read").read_bytes(),
        "a thread": in_a_thread(lambda: None),
        "a signal to itself": lambda: os.kill(os.getpid(), signal.SIGURG),
        "memory": lambda: bytearray(50 << 20),
        "a library": lambda: ctypes.CDLL("libm.so.6"),
        "standard error": lambda: os.write(2, b"heard\n"),
    }
    if folder is not None:
        found |= {
            "a file in the folder": lambda: (folder / "a.tmp").write_bytes(b"x"),
            "renaming in the folder": lambda: (folder / "a.tmp").replace(folder / "a"),
            "times in the folder": lambda: os.utime(folder / "a"),
            "truncating in the folder": lambda: os.truncate(folder / "a", 0),
            "removing in the folder": lambda: (folder / "a").unlink(),
        }
    return found


def main(folder: str, outside: str, *options: str) -> None:
    inside = None if folder == "-" else folder
    bound = False if "without landlock" in options else None
    sockets = connections()
    if "landlock before" in options:
        bound = sandbox.bound_writes(inside)
    missing = sandbox.enter(inside, writes_are_bound=bound, accepts="accepting" in options)
    tried = attempts(Path(inside) if inside else None, Path(outside)) | sockets
    outcomes = {name: outcome(attempt) for name, attempt in tried.items()}
    json.dump({"missing": missing, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
