"""A server as a child of a Python program: `with lmlite.start(model) as server: server.url`.

The child runs `lmlite serve` and ends with the `with` block or with the program, even if that is
killed. Its log goes to the program's standard error.
"""

import collections
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from lmlite.server.front.parent import VARIABLE

STOP_S = 30.0  # from SIGTERM to SIGKILL; running answers have --drain-seconds, which is 10
# Variables with a meaning of their own, for all commands.
OWN_VARIABLES = ("LMLITE_API_KEY", "LMLITE_CACHE", "LMLITE_LIB", "LMLITE_MODELS")


class CannotStart(Exception):
    """The server ended before it was ready. The message is the server's own sentence."""


class Server:
    """A running server. `with` stops it at the end; so does `stop`, from any thread."""

    def __init__(self, arguments: list[str], log: TextIO | None) -> None:
        """Starts `lmlite serve` and waits until it is ready. Raises CannotStart or OSError."""
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        own, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [*_program(), "serve", *arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment() | {VARIABLE: str(other.fileno())},
                pass_fds=(other.fileno(),),
                process_group=0,  # Control-C is for the program, which then stops the server
                text=True,
                errors="replace",
            )
        self._socket = own  # its end, which comes with this process's, ends the server
        self._reader = threading.Thread(target=self._copy, args=(log,), daemon=True)
        self._reader.start()
        try:
            with own.makefile() as told:
                self.url = told.readline().strip()  # such as http://127.0.0.1:1234
            if not self.url:
                raise CannotStart(self._last_sentence())
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ends the server; after timeout_s it is killed. May be called again."""
        self._socket.close()
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _copy(self, log: TextIO | None) -> None:
        """Copies the server's standard error, so that the server never waits for a reader."""
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                with contextlib.suppress(OSError, ValueError):  # the disk is full, or it is closed
                    print(line, end="", file=log or sys.stderr)

    def _last_sentence(self) -> str:
        code = self.process.wait()
        self._reader.join()
        last = self._lines[-1].strip() if self._lines else f"it ended with code {code}"
        return last.removeprefix("lmlite serve: error: ").removeprefix("lmlite: ")


def start(
    model: str | os.PathLike[str] | None = None,
    *,
    port: int = 0,
    log: TextIO | None = None,
    **flags: Any,
) -> Server:
    """Starts a server and waits until its model is loaded. Raises CannotStart.

    Flags are those of `lmlite serve` with underscores: `ctx=2048`, `strict=True`,
    `alias=["a", "b"]`. Variables of flags, such as LMLITE_CTX, are not read. Port 0 is a free one.
    The server's log goes to `log`, which is standard error by default.

    >>> arguments_of({"ctx": 2048, "strict": True, "alias": ["a", "b"], "mmproj": None})
    ['--ctx=2048', '--strict', '--alias=a', '--alias=b']
    """
    arguments = [] if model is None else ["--model", os.path.abspath(model)]
    return Server(arguments_of({"port": port, **flags}) + arguments, log)


def arguments_of(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line has them. None and False stand for a flag that is not given."""
    arguments = []
    for name, value in flags.items():
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                arguments.append(option)
            elif each is not None and each is not False:
                arguments.append(f"{option}={each}")
    return arguments


def _program() -> list[str]:
    """The command that runs this package, which may lie in a .pyz on the search path."""
    home = Path(__file__).parents[1]
    return [sys.executable, str(home)] if home.is_file() else [sys.executable, "-P", "-m", "lmlite"]


def _environment() -> dict[str, str]:
    """The variables of this process, but none of flags: those that the program gives count."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LMLITE_") or name in OWN_VARIABLES
    }
    search_path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(search_path)}
