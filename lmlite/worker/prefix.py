"""Which lane takes a prompt, and how much of its memory is reused.

Pure policy: no C, no threads, no text; a prompt is a list of token ids. The engine asks,
then does the trimming and decoding itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Lane:
    """One sequence's part of the context's memory. It outlives the sequences that use it."""

    seq_id: int
    tokens: list[int] = field(default_factory=list)  # what memory holds, oldest first
    busy: bool = False
    last_used: int = 0  # step of the engine; the smallest idle one is the first to leave


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix: n_common([1, 2, 3], [1, 2, 9]) == 2."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def n_reusable(lane: Lane, prompt: Sequence[int]) -> int:
    """How many of the lane's tokens the prompt can start from."""
    # One token is always decoded again: sampling needs its logits, which are not kept.
    return min(n_common(lane.tokens, prompt), len(prompt) - 1)


def choose(lanes: Iterable[Lane], prompt: Sequence[int]) -> Lane | None:
    """The idle lane with most to reuse; among equals the one idle longest. None: all are busy."""
    idle = [lane for lane in lanes if not lane.busy]
    return max(idle, key=lambda lane: (n_reusable(lane, prompt), -lane.last_used), default=None)


def evictable(lanes: Iterable[Lane]) -> Lane | None:
    """The idle lane whose memory is given up first when room is needed. None: nothing to give."""
    idle = [lane for lane in lanes if lane.tokens and not lane.busy]
    return min(idle, key=lambda lane: lane.last_used, default=None)
