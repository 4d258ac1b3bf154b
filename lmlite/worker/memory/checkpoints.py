"""Checkpoints: saved states of memory, so that the same prompt need not be read again.

A checkpoint is the beginning of a prompt and the state of llama.cpp's memory after it. This module
chooses which one serves a prompt and which are dropped; `checkpoint_files.py` keeps them over
a restart. Knows nothing of contexts and lanes: a state is bytes. Belongs to the engine thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlite.messages import Scales
from lmlite.worker.memory.lanes import cut_before_picture, n_common

MIN_PARKED = 16  # tokens; a shorter lane is not worth parking


@dataclass(eq=False)
class Checkpoint:
    """The first tokens of a prompt, and their state."""

    tokens: list[int]
    n_bytes: int  # that it takes in the store
    state: bytes | None  # None: read it from the file
    scales: Scales = ()  # of the adapters that the tokens were read with
    path: Path = Path()  # of its file, if it has one
    is_gone: bool = False  # its file does not exist, or must be removed


class Checkpoints:
    """Checkpoints in memory, least recently used first. For models whose memory cannot be cut."""

    min_tokens = 64  # newly read, to be worth a checkpoint: fewer are cheap to read again

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept: list[Checkpoint] = []

    def best(
        self, prompt: Sequence[int], can_cut: bool, scales: Scales = ()
    ) -> tuple[int, Checkpoint | None]:
        """(n_tokens, checkpoint) with most tokens of a prompt; at most all tokens but one.

        If memory cannot be cut, all tokens of the checkpoint must be a prefix of the prompt.
        """
        best: tuple[int, Checkpoint | None] = (0, None)
        for checkpoint in self.kept:
            n = min(n_common(checkpoint.tokens, prompt), len(prompt) - 1)
            n = cut_before_picture(prompt, n)
            is_usable = checkpoint.scales == scales and (can_cut or n == len(checkpoint.tokens))
            if n > best[0] and is_usable:
                best = n, checkpoint
        return best

    def holds(self, tokens: Sequence[int], scales: Scales = ()) -> bool:
        """Whether there is a checkpoint of exactly these tokens."""
        return any((kept.tokens, kept.scales) == (tokens, scales) for kept in self.kept)

    def load(self, checkpoint: Checkpoint) -> bytes | None:
        """The checkpoint's state, or None if unreadable. Marks it as the most recently used."""
        self.kept.remove(checkpoint)
        self.kept.append(checkpoint)
        return checkpoint.state

    def add(self, tokens: list[int], state: bytes, scales: Scales = ()) -> None:
        """Keeps a state. Drops the least recently used ones to make room."""
        self._keep(Checkpoint(tokens, len(state), state, scales))

    @property
    def n_bytes(self) -> int:
        """Bytes of all checkpoints."""
        return sum(checkpoint.n_bytes for checkpoint in self.kept)

    def _keep(self, checkpoint: Checkpoint) -> None:
        if checkpoint.n_bytes > self.max_bytes:
            return
        self.kept.append(checkpoint)
        while self.n_bytes > self.max_bytes:
            self.drop(self.kept[0])

    def drop(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint."""
        self.kept.remove(checkpoint)


class ParkedLanes(Checkpoints):
    """States of idle lanes, kept outside the cells that attention reads."""

    min_tokens = MIN_PARKED

    def has_room(self, n_bytes: int) -> bool:
        """Whether a state fits without dropping others."""
        return self.n_bytes + n_bytes <= self.max_bytes

    def closest(self, prompt: Sequence[int], scales: Scales = ()) -> list[int]:
        """The tokens of the parked lane with the longest beginning in common with a prompt."""
        kept = (each.tokens for each in self.kept if each.scales == scales)
        return max(kept, key=lambda tokens: n_common(tokens, prompt), default=[])

    def add(self, tokens: list[int], state: bytes, scales: Scales = ()) -> None:
        """Keeps a state. It replaces states that are a prefix of it."""
        for checkpoint in list(self.kept):
            n = n_common(checkpoint.tokens, tokens)
            if checkpoint.scales == scales and n == len(checkpoint.tokens):
                self.drop(checkpoint)
        super().add(tokens, state, scales)
