"""Piece bytes -> printable text: UTF-8 boundaries and stop strings.

A token's piece may be half a character, and a stop string may begin in one token and end in
another. A TextStream takes pieces and gives back text that is safe to send: whole characters,
and nothing that could still turn out to be the beginning of a stop string. Pure; no tokens,
no threads.
"""

import codecs
from collections import deque

from lmlite.messages import TokenLogprob


class TextStream:
    """The text of one completion, released piece by piece.

    `stops` are the client's, `ends` those of the template; both end it where the caller lets them.

    >>> stream = TextStream(stops=("END",))
    >>> [stream.push(b"abcE"), stream.push(b"NDx"), stream.stopped]
    ['abc', '', True]
    """

    def __init__(self, stops: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> None:
        self.stop_string: str | None = None  # the one that is complete; what follows is dropped
        self._stops, self._ends = stops, ends
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, not released: may begin a stop string
        self._n_released = 0  # characters

    def push(
        self,
        piece: bytes,
        *,
        may_stop: bool = True,
        may_end: bool = True,
        skips_space: bool = False,
    ) -> str:
        """The text that this piece makes safe to send; "" while all of it must wait.

        `skips_space`: both kinds hold from the first character that is no space.
        """
        self._held += self._decoder.decode(piece)
        stops = (self._stops if may_stop else ()) + (self._ends if may_end else ())
        n_spaces = len(self._held) - len(self._held.lstrip()) if skips_space else 0
        found = self._first(stops, n_spaces)
        if found is not None:
            cut, self.stop_string = found
            return self._release(cut)
        return self._release(len(self._held) - self._n_begun(stops, len(self._held) - n_spaces))

    def finish(self) -> str:
        """What was held back, now that nothing follows. Half a character at the end is dropped."""
        return "" if self.stopped else self._release(len(self._held))

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self.stop_string is not None

    @property
    def n_released(self) -> int:
        """Characters sent so far."""
        return self._n_released

    @property
    def n_decoded(self) -> int:
        """Characters seen so far; a character that is still incomplete counts as one."""
        pending, _ = self._decoder.getstate()
        return self._n_released + len(self._held) + bool(pending)

    def _release(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        self._n_released += len(text)
        return text

    def _first(self, stops: tuple[str, ...], begin: int) -> tuple[int, str] | None:
        """(where it begins, the stop string); of two at one place the shorter."""
        found = [(at, stop) for stop in stops if (at := self._held.find(stop, begin)) >= 0]
        return min(found, default=None)

    def _n_begun(self, stops: tuple[str, ...], n_most: int) -> int:
        """Length of the longest end of the held text, of n_most, that begins a stop string."""
        longest = max(map(len, stops), default=0)
        for n in range(min(longest - 1, n_most), 0, -1):
            tail = self._held[-n:]
            if any(stop.startswith(tail) for stop in stops):
                return n
        return 0


class LogprobQueue:
    """Log-probabilities that wait until the text of their token is released.

    Each entry remembers where its token begins and ends in the completion's text, in
    characters, so that a chunk carries the entries of the text that it carries.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int, TokenLogprob]] = deque()

    def push(self, begin: int, end: int, entry: TokenLogprob) -> None:
        """A token whose text lies at [begin, end)."""
        self._waiting.append((begin, end, entry))

    def released(self, n_released: int) -> tuple[TokenLogprob, ...]:
        """The entries whose whole text is among the first n_released characters."""
        entries = []
        while self._waiting and self._waiting[0][1] <= n_released:
            entries.append(self._waiting.popleft()[2])
        return tuple(entries)

    def rest(self, text: TextStream) -> tuple[TokenLogprob, ...]:
        """At the end: what still waits, less the tokens that a stop string cut off whole."""
        entries = [
            entry
            for begin, _, entry in self._waiting
            if not text.stopped or begin < text.n_released
        ]
        self._waiting.clear()
        return tuple(entries)
