"""A program in a terminal of its own, and the person before it."""

import codecs
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests import REPOSITORY
from tests.support.house import until

WAIT_S = 20.0
# The first terminal that a session's first process opens is its own: Ctrl-C reaches it.
PROGRAM = """
import os, sys
os.open(os.ttyname(0), os.O_RDWR)
{before}
from lmlite.cli import command
sys.exit(command.main(sys.argv[1:]))
"""


class Terminal:
    """`lmlite` with these arguments. `before` is Python that runs first."""

    def __init__(self, *arguments: str, before: str = "", **environment: str) -> None:
        self._fd, other = pty.openpty()
        termios.tcsetwinsize(other, (50, 400))  # no line is broken
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(before=before), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null", **environment},
            stdin=other, stdout=other, stderr=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.shown = ""  # everything so far
        self._n_expected = 0  # characters of it that `expect` has passed

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def type(self, keys: str) -> None:
        r"""Presses keys; "\r" is Enter and "\x04" Ctrl-D."""
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Presses Ctrl-C as soon as the program waits.

        Python's readline takes no notice of a signal between its prompt and its wait.
        """
        stat = Path(f"/proc/{self.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
        self.type("\x03")

    def expect(self, text: str) -> str:
        """Waits until a text is shown, after what was expected before; returns what precedes it."""
        deadline_s = time.monotonic() + WAIT_S
        while (place := self.shown.find(text, self._n_expected)) < 0:
            assert self._read(deadline_s), f"no {text!r} in {self.shown!r}"
        before = self.shown[self._n_expected : place]
        self._n_expected = place + len(text)
        return before

    def end(self) -> int:
        """Waits for the end of the program; returns its exit code."""
        deadline_s = time.monotonic() + WAIT_S
        while self._read(deadline_s):
            pass
        return self.process.wait(WAIT_S)

    def _read(self, deadline_s: float) -> bool:
        """Adds to what is shown; False at the end, or when it is too late."""
        if not select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the program has ended
            return False
        self.shown += self._decoder.decode(data)
        return True
