"""A service under systemd: takes the sockets that systemd opened, and reports the state.

See sd_listen_fds(3) and sd_notify(3). Their environment variables are deleted, because they are
meant for this process alone. Without systemd, nothing here has an effect.
"""

import contextlib
import os
import socket

FIRST_FD = 3


def take_sockets() -> list[socket.socket]:
    """The sockets opened for this process. Raises ValueError for one that cannot be used."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []  # the sockets are for a different process
    return [_taken(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]


def _taken(fd: int) -> socket.socket:
    with contextlib.suppress(OSError):  # not open, or not a socket
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            return sock
        sock.detach()  # the descriptor is not ours to close
    raise ValueError(f"descriptor {fd} that systemd passed on is no socket that listens at an "
                     "address (ListenStream=127.0.0.1:1234 makes one)")  # fmt: skip


class Notifier:
    """Reports to systemd."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")  # a path, or an abstract name after @

    def tell(self, state: str) -> None:
        """Reports a state, such as READY=1. Never raises: the service works without reports."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)
