"""Listening sockets and their addresses."""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence

FILE_PREFIX = "unix:"  # before the path of a socket file, where an address could stand
FILE_MODE = 0o660  # whoever may write to the file may connect: its user and its group


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets at this address; two for `localhost` if the machine has IPv4 and IPv6.

    The address unix:/PATH is a socket file, which has no port. Raises OSError.
    """
    if host.startswith(FILE_PREFIX):
        return [SocketFile(os.path.abspath(host.removeprefix(FILE_PREFIX)), backlog)]
    if host != "localhost":
        return [_bound(host, port, backlog)]
    sockets = [_bound("127.0.0.1", port, backlog)]
    with contextlib.suppress(OSError):  # no IPv6, or the port is taken in IPv6
        sockets.append(_bound("::1", sockets[0].getsockname()[1], backlog))
    return sockets


def _bound(host: str, port: int, backlog: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


class SocketFile(socket.socket):
    """A socket that listens at a path. Closing it removes the file, if it is still its own."""

    def __init__(self, path: str, backlog: int) -> None:
        """Replaces a socket file at which nobody listens any more. Raises OSError."""
        super().__init__(socket.AF_UNIX)
        self._path = path
        self._identity: tuple[int, int] | None = None
        try:
            _remove_stale(path)
            os.fchmod(self.fileno(), FILE_MODE)  # the file begins with it, less the umask
            self.bind(path)
            self._identity = _identity(path)
            os.chmod(path, FILE_MODE)
            self.listen(backlog)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Removes the file first: who comes later finds none, or that of the next server."""
        with contextlib.suppress(OSError):
            if self._identity is not None and _identity(self._path) == self._identity:
                os.unlink(self._path)
        self._identity = None
        super().close()


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    """Raises OSError if a server listens at the path, or if the file is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog is an answer, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def url_of(sock: socket.socket) -> str:
    """The address of a listening socket, as clients write it."""
    if sock.family == socket.AF_UNIX:
        return host_of(sock)
    return f"http://{host_of(sock)}:{sock.getsockname()[1]}"


def host_of(sock: socket.socket) -> str:
    """The address of a listening socket, as a Host header spells it; unix:/PATH for a file."""
    if sock.family == socket.AF_UNIX:
        return f"{FILE_PREFIX}{os.fsdecode(sock.getsockname())}"
    address = sock.getsockname()[0]
    return f"[{address}]" if ":" in address else str(address)


def is_open(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines can reach one of the sockets."""
    return not all(
        sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0]) for sock in sockets
    )


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address; IPv6 sockets show IPv4 ones as ::ffff:..."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
