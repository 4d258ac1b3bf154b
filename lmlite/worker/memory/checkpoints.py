"""Checkpoints: states of memory, kept so that a prompt that was read is not read again.

A checkpoint is the beginning of a prompt and the state that llama.cpp's memory had behind it.
Here is which one serves a prompt and which one makes room; `checkpoint_files.py` keeps them over
a restart. Knows no context and no lanes: a state is bytes. Belongs to the engine thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlite.worker.memory.lanes import cut_before_picture, n_common

MIN_PARKED = 16  # tokens of a lane that is worth parking


@dataclass(eq=False)
class Checkpoint:
    """The first tokens of a prompt, and their state."""

    tokens: list[int]
    n_bytes: int  # of the store that it takes
    state: bytes | None  # None: it is in the file
    path: Path = Path()  # of the file, if there is one
    is_gone: bool = False  # its file is not there, or must not stay


class Checkpoints:
    """Checkpoints in memory, least recently used first. For memory that cannot be cut."""

    min_tokens = 64  # that must have been read anew: it costs less to read fewer again

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept: list[Checkpoint] = []

    def best(self, prompt: Sequence[int], can_cut: bool) -> tuple[int, Checkpoint | None]:
        """The checkpoint that gives most tokens of a prompt, and how many: at most all but one.

        If memory cannot be cut, only one whose tokens all begin the prompt.
        """
        best: tuple[int, Checkpoint | None] = (0, None)
        for checkpoint in self.kept:
            n = min(n_common(checkpoint.tokens, prompt), len(prompt) - 1)
            n = cut_before_picture(prompt, n)
            if n > best[0] and (can_cut or n == len(checkpoint.tokens)):
                best = n, checkpoint
        return best

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether there is a checkpoint of exactly these tokens."""
        return any(checkpoint.tokens == tokens for checkpoint in self.kept)

    def load(self, checkpoint: Checkpoint) -> bytes | None:
        """Its state; it is now the most recently used. None: it cannot be read."""
        self.kept.remove(checkpoint)
        self.kept.append(checkpoint)
        return checkpoint.state

    def add(self, tokens: list[int], state: bytes) -> None:
        """Keeps a state; the least recently used ones make room."""
        self._keep(Checkpoint(tokens, len(state), state))

    @property
    def n_bytes(self) -> int:
        """Bytes that all of them take."""
        return sum(checkpoint.n_bytes for checkpoint in self.kept)

    def _keep(self, checkpoint: Checkpoint) -> None:
        if checkpoint.n_bytes > self.max_bytes:
            return
        self.kept.append(checkpoint)
        while self.n_bytes > self.max_bytes:
            self.drop(self.kept[0])

    def drop(self, checkpoint: Checkpoint) -> None:
        """Gives one up."""
        self.kept.remove(checkpoint)


class ParkedLanes(Checkpoints):
    """States of idle lanes, kept outside of the cells that attention reads."""

    min_tokens = MIN_PARKED

    def has_room(self, n_bytes: int) -> bool:
        """Whether nothing has to leave for it."""
        return self.n_bytes + n_bytes <= self.max_bytes

    def closest(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of the parked lane with the longest beginning in common with a prompt."""
        kept = (checkpoint.tokens for checkpoint in self.kept)
        return max(kept, key=lambda tokens: n_common(tokens, prompt), default=[])

    def add(self, tokens: list[int], state: bytes) -> None:
        """Keeps a state in place of those whose tokens it continues."""
        for checkpoint in list(self.kept):
            if n_common(checkpoint.tokens, tokens) == len(checkpoint.tokens):
                self.drop(checkpoint)
        super().add(tokens, state)
