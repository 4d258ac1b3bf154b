"""A terminal: reads messages of several lines, and shows an answer as it comes.

No text of a model can control the terminal. Off a terminal, the answer alone is written, unchanged.
"""

import contextlib
import io
import itertools
import os
import re
import sys
import threading
from collections.abc import Iterator

from lmlite.cli.conversation import Piece
from lmlite.server.logs import printable

# C0 (but for tab and line feed), DEL and C1, of which escape sequences are made; marks that turn
# the direction of the text around them; halves of characters.
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_DIM, _PLAIN, _CLEAR_LINE = "\033[2m", "\033[0m", "\r\033[K"


def harmless(text: str) -> str:
    r"""The text with its control characters escaped.

    >>> harmless("\x1b[2Jok\n")
    '\\x1b[2Jok\n'
    """
    return _UNSAFE.sub(lambda match: printable(match[0]), text)


class Screen:
    """Standard output for the answer, and standard error for all that is said about it."""

    def __init__(self) -> None:
        smart = os.environ.get("TERM") != "dumb"
        self.is_terminal = sys.stdout.isatty()
        self._shows_status = sys.stderr.isatty() and smart
        self._has_colours = smart and not os.environ.get("NO_COLOR")
        self._kind = ""  # of the answer's last piece; empty between answers
        self._last = ""  # character of the answer
        self._status = ""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may know few characters
            sys.stdout.reconfigure(errors="replace")

    def show(self, piece: Piece) -> None:
        """Writes a piece of an answer. Thoughts are for terminals only."""
        if piece.kind == "waiting":
            self.status("" if self._kind else harmless(piece.text))
        elif piece.kind == "content" or self.is_terminal:
            self.status("")
            text = harmless(piece.text) if self.is_terminal else piece.text
            self._last = piece.text[-1]
            self._write(self._turn_to(piece.kind) + text)

    def end(self) -> None:
        """Ends an answer with its line."""
        self.status("")
        if self._kind:
            self._write(self._turn_to("") + ("" if self._last == "\n" else "\n"))

    def status(self, text: str) -> None:
        """A line that the next one replaces, where standard error is a terminal."""
        if self._shows_status and text != self._status:
            self._status = text
            print(f"{_CLEAR_LINE}{text}", end="", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows how many seconds a block has taken so far."""
        is_done = threading.Event()

        def show() -> None:
            for n_seconds in itertools.count():
                self.status(f"{text} {n_seconds} s")
                if is_done.wait(1):
                    return

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()
            self.status("")

    def note(self, text: str) -> None:
        """A remark."""
        if sys.stderr.isatty() and self._has_colours:
            text = f"{_DIM}{text}{_PLAIN}"
        print(text, file=sys.stderr, flush=True)

    def _turn_to(self, kind: str) -> str:
        """What comes between two kinds of pieces."""
        before, self._kind = self._kind, kind
        if before == kind or "reasoning" not in (before, kind):
            return ""
        gap = "\n\n" if before and kind else ""
        style = (_DIM if kind == "reasoning" else _PLAIN) if self._has_colours else ""
        return gap + style

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def read_message() -> str:
    r"""Asks for a message; a line that ends in \ goes on. Raises EOFError, KeyboardInterrupt."""
    with contextlib.suppress(ImportError):  # Python may be built without it
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # keeps pasted lines together
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... "))
    return "\n".join(lines)


def is_line_empty() -> bool:
    """Whether the line that Ctrl-C ended held nothing, as far as one can know."""
    readline = sys.modules.get("readline")
    return readline is None or not readline.get_line_buffer()
