"""The context's memory: which tokens it holds, and how many a prompt can reuse.

Joins the policy (`lanes.py`), llama.cpp's operations (`Context`), and checkpoints, which restore
states that memory has lost or could not keep. Belongs to the engine thread. Knows nothing of
requests: a prompt is a list of token ids, and runs in a lane.
"""

from collections.abc import Collection, Iterable, Sequence

from lmlite.messages import Scales
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.memory import lanes as policy
from lmlite.worker.memory.checkpoints import MIN_PARKED, Checkpoints, ParkedLanes
from lmlite.worker.memory.lanes import Lane, Place

MIN_OWN = 1 / 4  # share of a lane's cells that must not be shared, to be worth parking

Reading = tuple[list[int], list[int]]  # a prompt, and its `checkpoints_at`


class Memory:
    """The lanes of a context, and its checkpoints."""

    def __init__(
        self,
        model: Model,
        context: Context,
        checkpoints: Sequence[Checkpoints] = (),
        parked: ParkedLanes | None = None,
    ) -> None:
        """`parked` is only for models whose memory can be cut."""
        self._context = context
        self._can_cut, self._takes_cells = model.can_cut_memory, model.takes_cells
        self._checkpoints, self._parked = checkpoints, parked
        self._stores = checkpoints if parked is None else (parked, *checkpoints)
        # In cells; in states for a recurrent model, where each lane has one state of fixed size.
        self.n_max = context.n_ctx if self._takes_cells else context.n_seq_max
        self.lanes = [Lane(seq_id) for seq_id in range(context.n_seq_max)]
        self._n_left = 0  # how many times a lane became idle

    # ---- where a prompt starts -------------------------------------------------------------

    def place(self, tokens: Sequence[int], scales: Scales = ()) -> Place | None:
        """Where a prompt would run, and what it would reuse. None: every lane is busy."""
        return policy.place(self.lanes, tokens, self._can_cut, scales)

    def has_room(self, place: Place, tokens: list[int], n_pending: int) -> bool:
        """Whether a prompt fits there, in addition to the n_pending tokens of busy lanes."""
        busy = {lane for lane in self.lanes if lane.busy}
        if not (busy and self._takes_cells):  # nothing competes for cells
            return True
        n_shared = place.n_tokens
        if not place.source.busy:  # then its cells count as free, except shared ones
            n_shared = min(n_shared, policy.n_shared(place.source, busy))
        return policy.n_cells(busy) + len(tokens) - n_shared + n_pending < self.n_max

    def is_coming(self, tokens: list[int], n_held: int, reading: Iterable[Reading]) -> bool:
        """Whether running sequences are reading more of a prompt than the n_held tokens.

        If memory cannot be cut, only tokens up to a planned checkpoint can be reused.
        """
        if self._can_cut:
            return policy.is_coming(tokens, n_held, (read for read, _ in reading))
        return any(
            n_held + policy.MIN_SHARED <= n < len(tokens) and read[:n] == tokens[:n]
            for read, checkpoints_at in reading
            for n in checkpoints_at
        )

    def assign(self, place: Place, tokens: list[int], scales: Scales = ()) -> int:
        """Gives the lane to a prompt, with as many cached tokens as possible. Returns how many."""
        lane = place.lane
        self._park_idle(place)
        n_tokens = self._restored(place, tokens, scales) or self._taken(place)
        if n_tokens == 0:
            self.empty(lane)
        lane.busy, lane.scales = True, scales
        return n_tokens

    def _taken(self, place: Place) -> int:
        """Reuses tokens of the lane itself, or shares the cells of a different lane."""
        lane, source, n_tokens = place.lane, place.source, place.n_tokens
        # Trying to restore a checkpoint may have evicted the source.
        if not 0 < n_tokens <= len(source.tokens):
            return 0
        if not self._context.can_begin(source.seq_id, n_tokens):
            return 0
        if source is lane:
            self._context.keep(lane.seq_id, n_tokens)
            lane.cut(n_tokens)
        else:
            self.empty(lane)
            self._context.share(source.seq_id, lane.seq_id, n_tokens)
            lane.begin_with(source, n_tokens)
        return n_tokens

    def _restored(self, place: Place, tokens: list[int], scales: Scales) -> int:
        """Restores a checkpoint, if one has clearly more of the prompt than any lane."""
        lane, n_free = place.lane, self.n_max - self.n_cells()[0]
        for store in self._stores:
            n_tokens, checkpoint = store.best(tokens, self._can_cut, scales)
            if checkpoint is None or n_tokens < place.n_tokens + store.min_tokens:
                continue
            # A restored state shares no cells. If it cannot fit, evicting would be for nothing.
            if self._takes_cells and max(len(checkpoint.tokens), len(tokens)) > n_free:
                continue
            state = store.load(checkpoint)
            if state is None or not self._restore(lane, state):
                continue
            if self._context.can_begin(lane.seq_id, n_tokens):
                self._context.keep(lane.seq_id, n_tokens)
                lane.tokens = tokens[:n_tokens]
                return n_tokens
            self.empty(lane)
        return 0

    def _restore(self, lane: Lane, state: bytes) -> bool:
        """Restores a state; evicts idle lanes until it fits."""
        self.empty(lane)
        while not self._context.restore(lane.seq_id, state):
            if not self.evict():
                return False
        return True

    # ---- checkpoints and idle lanes --------------------------------------------------------

    def checkpoints_at(self, prompt: list[int], n_held: int, closest: list[int]) -> list[int]:
        """After how many tokens of a prompt that will be read checkpoints are worthwhile.

        One before its last token serves the same prompt, or a continuation of it. If memory cannot
        be cut, also one where it departs from `closest`: a shared prefix tends to come again.
        """
        worth = min((store.min_tokens for store in self._checkpoints), default=None)
        if worth is None:
            return []
        ends = [len(prompt) - 1]
        if not self._can_cut:
            ends.append(policy.n_common(prompt, closest))
        ends = [policy.cut_before_picture(prompt, end) for end in ends]
        return sorted({end for end in ends if n_held + worth <= end < len(prompt)})

    def save(self, lane: Lane, n_new: int) -> None:
        """Makes a checkpoint of the lane. n_new of its tokens were read, not cached."""
        stores = [
            store
            for store in self._checkpoints
            if n_new >= store.min_tokens and not store.holds(lane.tokens, lane.scales)
        ]
        if stores:
            state = self._context.state(lane.seq_id)
            for store in stores:
                store.add(list(lane.tokens), state, lane.scales)

    def _park_idle(self, place: Place) -> None:
        """Moves idle lanes out of the cells, because each used cell costs time in every step.

        Attention passes over all cells up to the last one in use, whichever sequence owned the
        cells. A lane stays if it shares most of its cells with a lane in use.
        """
        if self._parked is None:
            return
        in_use = {lane for lane in self.lanes if lane.busy}
        if place.n_tokens:
            in_use.add(place.source)
        for lane in self.lanes:
            n_own = len(lane.tokens) - policy.n_shared(lane, in_use)
            if lane not in in_use and n_own >= max(MIN_PARKED, MIN_OWN * len(lane.tokens)):
                self._park(lane, self._parked)

    def _park(self, lane: Lane, parked: ParkedLanes) -> None:
        """Parks a lane if there is room: free cells are not worth dropping a parked lane."""
        n_known, _ = parked.best(lane.tokens, self._can_cut, lane.scales)
        if len(lane.tokens) - n_known > MIN_PARKED:
            if not parked.has_room(self._context.n_state_bytes(lane.seq_id)):
                return
            parked.add(lane.tokens, self._context.state(lane.seq_id), lane.scales)
        self.empty(lane)

    def leave(self, lane: Lane) -> None:
        """Marks the lane as idle; its tokens stay, for prompts with the same beginning."""
        self._n_left += 1
        lane.busy, lane.last_used = False, self._n_left

    def evict(self) -> bool:
        """Empties the least recently used idle lane. False if there is no such lane."""
        victim = policy.evictable(self.lanes)
        if victim is None:
            return False
        if self._parked is not None and len(victim.tokens) >= MIN_PARKED:
            state = self._context.state(victim.seq_id)
            self._parked.add(victim.tokens, state, victim.scales)
        self.empty(victim)
        return True

    def drop_end(self, lane: Lane) -> None:
        """Drops the read parts of a picture that did not fit as a whole."""
        self._context.keep(lane.seq_id, len(lane.tokens))

    def cut(self, lane: Lane, n_tokens: int) -> None:
        """Drops all but the first n_tokens; these too if a sliding window has lost some of them."""
        if not self._context.can_begin(lane.seq_id, n_tokens):
            n_tokens = 0
        self._context.keep(lane.seq_id, n_tokens)
        lane.cut(n_tokens)

    def empty(self, lane: Lane) -> None:
        """Empties a lane."""
        self._context.keep(lane.seq_id, 0)
        lane.cut(0)

    def forget_all(self) -> None:
        """Empties all lanes and clears the cells."""
        for lane in self.lanes:
            lane.cut(0)
        self._context.clear_memory(data=True)

    # ---- queries ---------------------------------------------------------------------------

    def closest(self, tokens: list[int], scales: Scales = ()) -> list[int]:
        """The tokens of the lane, busy, idle or parked, with the longest prefix in common."""
        held = [lane.held(scales) for lane in self.lanes]
        if self._parked is not None:
            held.append(self._parked.closest(tokens, scales))
        return max(held, key=lambda tokens_held: policy.n_common(tokens_held, tokens))

    def n_held(self, tokens: list[int], scales: Scales = ()) -> int:
        """How many of a prompt's tokens could be reused if it started now."""
        of_lanes = [
            policy.n_reusable(lane.held(scales), tokens, self._can_cut)
            for lane in self.lanes
            if self._can_cut or not lane.busy
        ]
        of_stores = [store.best(tokens, self._can_cut, scales)[0] for store in self._stores]
        return max(0, *of_lanes, *of_stores)

    def n_cells(self) -> tuple[int, int]:
        """(cells of busy lanes, cells of idle lanes)."""
        n_used = self._n_cells([lane for lane in self.lanes if lane.busy])
        return n_used, self._n_cells(self.lanes) - n_used

    def _n_cells(self, lanes: Collection[Lane]) -> int:
        return policy.n_cells(lanes) if self._takes_cells else sum(bool(x.tokens) for x in lanes)

    @property
    def n_bytes_parked(self) -> int:
        """Bytes that parked lanes take."""
        return self._parked.n_bytes if self._parked is not None else 0
