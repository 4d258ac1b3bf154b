"""Which cached tokens a prompt can start from, and in which lane it runs.

Pure policy: no C, no threads, no text; a prompt is a list of token ids. A picture is as many
negative ones, made of its content, so that the same picture is the same prompt. The engine asks,
then does the copying, trimming and decoding itself. In unified memory a cell may belong to several
lanes, so a beginning that two lanes share is held once, and sharing it costs nothing.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

# Tokens compared at once: comparing slices is fast, but most prompts differ within a few tokens.
FIRST_BLOCK, BLOCK = 4, 256
MIN_SHARED = 16  # tokens for which waiting on another's reading is worth a step


@dataclass(eq=False)
class Lane:
    """One sequence's part of the context's memory. It outlives the sequences that use it."""

    seq_id: int
    tokens: list[int] = field(default_factory=list)  # what memory holds, oldest first
    busy: bool = False
    last_used: int = 0  # step of the engine; the smallest idle one is the first to leave
    shared: "dict[Lane, int]" = field(default_factory=dict)  # first cells that are another's too

    def cut(self, n_tokens: int) -> None:
        """Its memory keeps only the first n_tokens."""
        self.tokens = self.tokens[:n_tokens]
        for other, n_shared in list(self.shared.items()):
            self._note_shared(other, min(n_shared, n_tokens))

    def begin_with(self, source: "Lane", n_tokens: int) -> None:
        """Its memory, empty until now, holds the source's first n_tokens, in the same cells."""
        self.tokens = source.tokens[:n_tokens]
        for other, n_shared in [*source.shared.items(), (source, n_tokens)]:
            self._note_shared(other, min(n_shared, n_tokens))

    def _note_shared(self, other: "Lane", n_shared: int) -> None:
        self.shared[other] = other.shared[self] = n_shared
        if n_shared == 0:
            del self.shared[other], other.shared[self]


@dataclass(frozen=True)
class Place:
    """Where a prompt runs, and what it starts from."""

    lane: Lane  # idle
    source: Lane  # whose first n_tokens it starts from; may be the lane itself, may be busy
    n_tokens: int


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


_PLACE_BITS = 16  # of an id of a picture: how many of the picture's ids stand before this one


def picture_ids(content: int, n: int) -> list[int]:
    """The ids of a picture that takes n positions; `content` has 47 bits, of what it shows.

    >>> picture_ids(5, 2)
    [-327681, -327682]
    """
    assert n <= 1 << _PLACE_BITS
    return [-1 - (content << _PLACE_BITS | place) for place in range(n)]


def cut_before_picture(prompt: Sequence[int], n: int) -> int:
    """At most n, so that a prompt is not cut within a picture, which is read at once."""
    if n < len(prompt) and prompt[n] < 0:
        return n - (-1 - prompt[n]) % (1 << _PLACE_BITS)
    return n


def n_reusable(lane: Lane, prompt: Sequence[int], can_cut: bool = True) -> int:
    """How many of the lane's tokens the prompt can start from: all or nothing, without cutting."""
    # One token is always decoded again: sampling needs its logits, which are not kept.
    n = cut_before_picture(prompt, min(n_common(lane.tokens, prompt), len(prompt) - 1))
    return n if can_cut or n == len(lane.tokens) else 0


def place(lanes: Iterable[Lane], prompt: Sequence[int], can_cut: bool) -> Place | None:
    """The longest beginning that any lane holds, and an idle lane to run in. None: all are busy.

    `can_cut` says whether memory can drop the end of a lane, or give its beginning to another.
    """
    lanes = list(lanes)
    idle = [lane for lane in lanes if not lane.busy]
    if not idle:
        return None

    def rank(lane: Lane) -> tuple[int, bool, int]:
        # A long beginning, then no need to copy it, then to be idle for long.
        return n_reusable(lane, prompt, can_cut), not lane.busy, -lane.last_used

    source = max(lanes if can_cut else idle, key=rank)
    n_tokens = n_reusable(source, prompt, can_cut)
    # Its own lane, where little is lost by it; else the idle lane that nobody used for longest.
    if n_tokens and not source.busy and 2 * n_tokens >= len(source.tokens):
        return Place(source, source, n_tokens)
    lane = min(idle, key=lambda lane: (len(lane.tokens) > 0, lane.last_used))
    return Place(lane, source, n_tokens)


def account(
    held: Sequence[int], prompt: Sequence[int], n_reused: int, spell: Callable[[int], str]
) -> str:
    """How much of a prompt was in memory, and why not more, in words.

    `held` are the tokens in memory that come closest; `spell` shows a token.
    """
    said = f"reused {n_reused:,} of {len(prompt):,}"
    n = n_common(held, prompt)
    if n_reused > n:
        return f"{said}, from a checkpoint"
    if n_reused < min(n, len(prompt) - 1):
        return f"{said}: this model's memory cannot be cut at token {n:,}"
    if n == 0 or n >= min(len(held), len(prompt) - 1):
        return said
    now, was = spell(prompt[n]), spell(held[n])
    return f"{said}; first difference at token {n:,}: {now!r} was {was!r}"


def is_coming(prompt: Sequence[int], n_reused: int, reading: Iterable[Sequence[int]]) -> bool:
    """Whether others are reading more of this prompt than it could start from now.

    Then it is better to wait until they have than to read the same tokens beside them.
    """
    return any(n_common(prompt[:-1], other) >= n_reused + MIN_SHARED for other in reading)


def n_cells(lanes: Iterable[Lane]) -> int:
    """Cells that these lanes hold together; one that several share counts once."""
    counted: set[Lane] = set()
    n = 0
    for lane in lanes:
        n += len(lane.tokens) - n_shared(lane, counted)
        counted.add(lane)
    return n


def n_shared(lane: Lane, others: Collection[Lane]) -> int:
    """How many of a lane's cells any of the others holds too. They are its first ones."""
    return max((n for other, n in lane.shared.items() if other in others), default=0)


def evictable(lanes: Iterable[Lane]) -> Lane | None:
    """The idle lane whose memory is given up first when room is needed. None: nothing to give."""
    idle = [lane for lane in lanes if lane.tokens and not lane.busy]
    return min(idle, key=lambda lane: lane.last_used, default=None)
