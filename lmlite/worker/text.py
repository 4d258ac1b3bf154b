"""Piece bytes -> printable text: UTF-8 boundaries and stop strings.

A token's piece may be half a character, and a stop string may span several tokens. A TextStream
takes pieces and returns text that is safe to send: complete characters that cannot be the beginning
of a stop string. The log-probabilities of a token wait until its text is released. Pure: no tokens,
no threads.
"""

import codecs
from collections import deque

from lmlite.messages import TokenLogprob


class TextStream:
    """The text of one completion, released piece by piece.

    `stops` are the client's stop strings, `ends` the template's. The caller says when they apply.

    >>> stream = TextStream(stops=("END",))
    >>> [stream.push(b"abcE"), stream.push(b"NDx"), stream.stopped]
    ['abc', '', True]
    """

    def __init__(self, stops: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> None:
        self.stop_string: str | None = None  # the completed stop string; later text is dropped
        self._stops, self._ends = stops, ends
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded but not released: may begin a stop string
        self._n_released = 0  # characters
        self._is_finished = False
        # Begin and end of each token's text, in characters, and the token's log-probabilities.
        self._logprobs: deque[tuple[int, int, TokenLogprob]] = deque()

    def push(
        self,
        piece: bytes,
        logprob: TokenLogprob | None = None,
        *,
        may_stop: bool = True,
        may_end: bool = True,
        skips_space: bool = False,
    ) -> str:
        """The text that is now safe to send; "" while all of it must wait.

        `skips_space`: stop strings are searched only after leading white space.
        """
        begin = self._n_decoded if logprob is not None else 0
        self._held += self._decoder.decode(piece)
        if logprob is not None:
            self._logprobs.append((begin, self._n_decoded, logprob))
        stops = (self._stops if may_stop else ()) + (self._ends if may_end else ())
        n_spaces = len(self._held) - len(self._held.lstrip()) if skips_space else 0
        found = self._first(stops, n_spaces)
        if found is not None:
            cut, self.stop_string = found
            return self._release(cut)
        return self._release(len(self._held) - self._n_begun(stops, len(self._held) - n_spaces))

    def finish(self) -> str:
        """The held-back text, at the end. An incomplete last character is dropped."""
        self._is_finished = True
        return "" if self.stopped else self._release(len(self._held))

    @property
    def holds_back(self) -> bool:
        """Whether a character or a stop string may be incomplete."""
        return self._n_decoded > self._n_released

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self.stop_string is not None

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of tokens that are fully released, each once.

        After `finish`: also those of all other tokens, except tokens after a stop string.
        """
        taken = []
        while self._logprobs:
            begin, end, logprob = self._logprobs[0]
            is_cut = self.stopped and begin >= self._n_released
            if end > self._n_released and (is_cut or not self._is_finished):
                break
            taken.append(logprob)
            self._logprobs.popleft()
        return tuple(taken)

    @property
    def _n_decoded(self) -> int:
        """Characters seen so far; an incomplete character counts as one."""
        pending, _ = self._decoder.getstate()
        return self._n_released + len(self._held) + bool(pending)

    def _release(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        self._n_released += len(text)
        return text

    def _first(self, stops: tuple[str, ...], begin: int) -> tuple[int, str] | None:
        """(index, the first stop string in the held text); at the same index, the shortest."""
        found = [(at, stop) for stop in stops if (at := self._held.find(stop, begin)) >= 0]
        return min(found, default=None)

    def _n_begun(self, stops: tuple[str, ...], n_most: int) -> int:
        """How many last characters of the held text may begin a stop string; at most n_most."""
        longest = max(map(len, stops), default=0)
        for n in range(min(longest - 1, n_most), 0, -1):
            tail = self._held[-n:]
            if any(stop.startswith(tail) for stop in stops):
                return n
        return 0
