"""Lanes of memory: which one a prompt runs in, and which cached tokens it starts from.

Pure policy: no C, no threads, no text. A prompt is a list of token ids. A picture in it is a run of
negative ids that encode a hash of its content, so that the same picture gives the same prompt.
In unified memory a cell may belong to several lanes: lanes share the cells of a common prefix.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from lmlite.messages import Scales

# Tokens compared at once. Comparing slices is fast, but most prompts differ in the first tokens.
FIRST_BLOCK, BLOCK = 4, 256
MIN_SHARED = 16  # tokens; fewer are not worth waiting while another lane reads them


@dataclass(eq=False)
class Lane:
    """One sequence's part of the context's memory. It outlives the sequences that use it."""

    seq_id: int
    tokens: list[int] = field(default_factory=list)  # held in memory, oldest first
    busy: bool = False
    last_used: int = 0  # the idle lane with the smallest number is evicted first
    scales: Scales = ()  # of the adapters that its tokens were read with
    shared: "dict[Lane, int]" = field(default_factory=dict)  # lane -> n first cells in common

    def held(self, scales: Scales) -> list[int]:
        """The tokens that a prompt with these adapters may reuse."""
        return self.tokens if self.scales == scales else []

    def cut(self, n_tokens: int) -> None:
        """Records that memory now holds only its first n_tokens."""
        self.tokens = self.tokens[:n_tokens]
        for other, n_shared in list(self.shared.items()):
            self._note_shared(other, min(n_shared, n_tokens))

    def begin_with(self, source: "Lane", n_tokens: int) -> None:
        """Records that this empty lane now shares the cells of the source's first n_tokens."""
        self.tokens = source.tokens[:n_tokens]
        for other, n_shared in [*source.shared.items(), (source, n_tokens)]:
            self._note_shared(other, min(n_shared, n_tokens))

    def _note_shared(self, other: "Lane", n_shared: int) -> None:
        self.shared[other] = other.shared[self] = n_shared
        if n_shared == 0:
            del self.shared[other], other.shared[self]


@dataclass(frozen=True)
class Place:
    """The lane for a prompt, and the cached tokens that it starts from."""

    lane: Lane  # idle
    source: Lane  # holds the first n_tokens; may be `lane` itself, may be busy
    n_tokens: int


# ---- tokens in common ----------------------------------------------------------------------


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix: n_common([1, 2, 3], [1, 2, 9]) == 2."""
    n = min(len(a), len(b))
    begin, size = 0, FIRST_BLOCK
    while begin < n:
        end = min(begin + size, n)
        if a[begin:end] != b[begin:end]:
            return next(i for i in range(begin, end) if a[i] != b[i])
        begin, size = end, min(2 * size, BLOCK)
    return n


_PLACE_BITS = 16  # of a picture's id: its index within the picture


def picture_ids(content: int, n: int) -> list[int]:
    """The ids of a picture that takes n positions; `content` is 47 bits of the picture's hash.

    >>> picture_ids(5, 2)
    [-327681, -327682]
    """
    assert n <= 1 << _PLACE_BITS
    return [-1 - (content << _PLACE_BITS | place) for place in range(n)]


def cut_before_picture(prompt: Sequence[int], n: int) -> int:
    """n, or less if that would cut the prompt within a picture, which is read as a whole."""
    if n < len(prompt) and prompt[n] < 0:
        return n - (-1 - prompt[n]) % (1 << _PLACE_BITS)
    return n


def n_reusable(held: Sequence[int], prompt: Sequence[int], can_cut: bool = True) -> int:
    """How many held tokens a prompt can reuse. If memory cannot be cut: all of them or 0."""
    # The prompt's last token is always decoded: sampling needs its logits, which are not kept.
    n = cut_before_picture(prompt, min(n_common(held, prompt), len(prompt) - 1))
    return n if can_cut or n == len(held) else 0


# ---- lanes for prompts ---------------------------------------------------------------------


def place(
    lanes: Sequence[Lane], prompt: Sequence[int], can_cut: bool, scales: Scales = ()
) -> Place | None:
    """The lane with the longest common prefix, and an idle lane to run in. None: all are busy.

    `can_cut`: whether memory can drop the end of a lane, or share its beginning.
    """
    idle = [lane for lane in lanes if not lane.busy]
    if not idle:
        return None

    def rank(lane: Lane) -> tuple[int, bool, int]:
        # Prefers a long prefix, then an idle lane, then the least recently used.
        return n_reusable(lane.held(scales), prompt, can_cut), not lane.busy, -lane.last_used

    source = max(lanes if can_cut else idle, key=rank)
    n_tokens = n_reusable(source.held(scales), prompt, can_cut)
    # The prompt runs in the source if little is lost, else in the least recently used idle lane.
    if n_tokens and not source.busy and 2 * n_tokens >= len(source.tokens):
        return Place(source, source, n_tokens)
    lane = min(idle, key=lambda lane: (len(lane.tokens) > 0, lane.last_used))
    return Place(lane, source, n_tokens)


def is_coming(prompt: Sequence[int], n_reused: int, reading: Iterable[Sequence[int]]) -> bool:
    """Whether running sequences are reading more of this prompt than it can reuse now.

    Then waiting is better than reading the same tokens twice.
    """
    return any(n_common(prompt[:-1], other) >= n_reused + MIN_SHARED for other in reading)


def evictable(lanes: Iterable[Lane]) -> Lane | None:
    """The idle lane to evict first. None if no idle lane holds tokens."""
    idle = [lane for lane in lanes if lane.tokens and not lane.busy]
    return min(idle, key=lambda lane: lane.last_used, default=None)


def n_cells(lanes: Iterable[Lane]) -> int:
    """Cells that these lanes hold in total; shared cells count once."""
    counted: set[Lane] = set()
    n = 0
    for lane in lanes:
        n += len(lane.tokens) - n_shared(lane, counted)
        counted.add(lane)
    return n


def n_shared(lane: Lane, others: Collection[Lane]) -> int:
    """How many of a lane's first cells are shared with any of the others."""
    return max((n for other, n in lane.shared.items() if other in others), default=0)
