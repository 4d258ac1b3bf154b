"""Triggers start a grammar that waits: words, patterns or tokens in a growing text. Pure.

llama.cpp's own code would search the whole text again at each token; this code searches the end.
"""

import re
from collections import deque
from collections.abc import Iterable
from typing import Any

# enum common_grammar_trigger_type
_TOKEN, _WORD, _PATTERN, _PATTERN_FULL = range(4)
MAX_BYTES = 512  # searched text; beyond it, only half is kept, which is longer than any trigger


class Triggers:
    """Takes tokens until one of the triggers is complete.

    >>> triggers = Triggers([{"type": 1, "value": "<tool>", "token": -1}])
    >>> [triggers.hear(token, piece) for token, piece in enumerate((b"I see. ", b"<to", b"ol>"))]
    [[], [], [0, 1, 2]]
    """

    def __init__(self, triggers: Iterable[dict[str, Any]]) -> None:
        """`triggers`: the list of that name in the bridge's reply (see lml_chat_render)."""
        self._tokens: set[int] = set()
        self._searched: list[re.Pattern[bytes]] = []
        self._whole: list[re.Pattern[bytes]] = []  # must match the whole text
        for trigger in triggers:
            self._add(trigger["type"], trigger["value"].encode(), trigger["token"])
        self._heard: deque[tuple[int, bytes]] = deque()
        self._text = b""  # the joined pieces in _heard

    def _add(self, kind: int, value: bytes, token: int) -> None:
        if kind == _TOKEN:
            self._tokens.add(token)
        elif kind == _WORD:
            self._searched.append(re.compile(re.escape(value)))
        elif kind == _PATTERN_FULL or (value.startswith(b"^") and value.endswith(b"$")):
            self._whole.append(re.compile(value.removeprefix(b"^").removesuffix(b"$")))
        else:
            self._searched.append(re.compile(value))

    def hear(self, token: int, piece: bytes) -> list[int]:
        """Takes a token. Returns the latest tokens if they contain a complete trigger, else []."""
        self._heard.append((token, piece))
        self._text += piece
        if self._is_complete(token):
            return [token for token, _ in self._heard]
        if len(self._text) > MAX_BYTES:
            self._forget()
        return []

    def _is_complete(self, token: int) -> bool:
        return (
            token in self._tokens
            or any(pattern.search(self._text) for pattern in self._searched)
            or any(pattern.fullmatch(self._text) for pattern in self._whole)
        )

    def _forget(self) -> None:
        """Drops the oldest tokens, and the patterns that can match only from the beginning."""
        n_bytes = len(self._text)
        while n_bytes > MAX_BYTES // 2:
            n_bytes -= len(self._heard.popleft()[1])
        self._text = self._text[len(self._text) - n_bytes :]
        self._whole.clear()
        self._searched = [p for p in self._searched if not p.pattern.startswith(b"^")]
