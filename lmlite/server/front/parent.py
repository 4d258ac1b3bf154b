"""The program that started this server with `lmlite.start`.

Both hold an end of a pair of sockets. The server sends its address when the model is loaded; the
end of the program, however it comes about, ends the server.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable

VARIABLE = "LMLITE_PARENT_FD"  # the number of the server's end


class Parent:
    """The other end. Without such a program, nothing here has an effect."""

    def __init__(self) -> None:
        number = os.environ.pop(VARIABLE, "")
        self._sock: socket.socket | None = None
        with contextlib.suppress(OSError, ValueError):  # no descriptor, or not a socket
            self._sock = socket.socket(fileno=int(number))
            self._sock.set_inheritable(False)

    def tell(self, url: str) -> None:
        """Sends the server's address. Never raises: `watch` notices a parent that is gone."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.sendall(f"{url}\n".encode())

    def watch(self, at_end: Callable[[], object]) -> None:
        """Calls `at_end` in a thread of its own once the parent has closed its end."""
        if self._sock is not None:
            threading.Thread(target=self._wait, args=(at_end,), name="parent", daemon=True).start()

    def _wait(self, at_end: Callable[[], object]) -> None:
        assert self._sock is not None
        with contextlib.suppress(OSError):
            while self._sock.recv(1):
                pass
        at_end()
