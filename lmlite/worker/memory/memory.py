"""The context's memory: which tokens it holds, and how a prompt gets to start from them.

Joins three things: the policy (`prefix.py`), what C can do (`llama.Context`), and checkpoints,
which bring back what memory has lost or never could keep. Belongs to the engine thread. Knows
no requests: a prompt is a list of token ids, and runs in a lane.
"""

from collections.abc import Collection, Iterable, Sequence

from lmlite.messages import EngineState
from lmlite.worker.llama.model import Context, Model
from lmlite.worker.memory import lanes as prefix
from lmlite.worker.memory.checkpoints import MIN_PARKED, Checkpoints, ParkedLanes
from lmlite.worker.memory.lanes import Lane, Place
from lmlite.worker.meter import Meter

MIN_SHARE = 4  # a lane is parked if at least one of so many of its cells is its own

Reading = tuple[list[int], list[int]]  # a prompt, and behind which tokens it makes checkpoints


class Memory:
    """The lanes of a context, and the checkpoints beside them."""

    def __init__(
        self,
        model: Model,
        context: Context,
        checkpoints: Sequence[Checkpoints],
        parked: ParkedLanes | None = None,
    ) -> None:
        """`parked` is for models whose memory can be cut."""
        self._context = context
        self._can_cut, self._takes_cells = model.can_cut_memory, model.takes_cells
        self._checkpoints = checkpoints
        self._parked = parked
        self._stores = checkpoints if parked is None else (parked, *checkpoints)
        # Cells; without any, states, of which each lane has one whatever it has read.
        self.n_max = context.n_ctx if self._takes_cells else context.n_seq_max
        self.lanes = [Lane(seq_id) for seq_id in range(context.n_seq_max)]

    # ---- where a prompt starts -------------------------------------------------------------

    def place(self, tokens: Sequence[int]) -> Place | None:
        """Where a prompt would run, and what it would start from. None: every lane is busy."""
        return prefix.place(self.lanes, tokens, self._can_cut)

    def is_coming(self, tokens: list[int], n_held: int, reading: Iterable[Reading]) -> bool:
        """Whether others are just now reading more of a prompt than the n_held tokens there are.

        Of a memory that cannot be cut, others get only what a checkpoint will hold.
        """
        if self._can_cut:
            return prefix.is_coming(tokens, n_held, (read for read, _ in reading))
        return any(
            n_held + prefix.MIN_SHARED <= mark < len(tokens) and read[:mark] == tokens[:mark]
            for read, marks in reading
            for mark in marks
        )

    def assign(self, place: Place, tokens: list[int]) -> int:
        """Lets the lane hold the longest beginning there is; how many tokens that are."""
        lane = place.lane
        self._park_idle(place)
        n_tokens = self._restored(place, tokens) or self._taken(place)
        if n_tokens == 0:
            self.empty(lane)
        lane.busy = True
        return n_tokens

    def _taken(self, place: Place) -> int:
        """From a lane: its own, or another one, with which it then shares cells."""
        lane, source, n_tokens = place.lane, place.source, place.n_tokens
        # A checkpoint that was tried in vain may have cost what the source held.
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

    def _restored(self, place: Place, tokens: list[int]) -> int:
        """From a checkpoint, where one holds clearly more than any lane."""
        lane = place.lane
        n_free = self.n_max - self._n_cells([lane for lane in self.lanes if lane.busy])
        for store in self._stores:
            n_tokens, checkpoint = store.best(tokens, self._can_cut)
            if checkpoint is None or n_tokens < place.n_tokens + store.min_tokens:
                continue
            # It shares no cells. Where it does not fit, idle lanes would leave for nothing.
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
        """Idle lanes leave until there is room for it."""
        self.empty(lane)
        while not self._context.restore(lane.seq_id, state):
            if not self.evict():
                return False
        return True

    # ---- what is kept ----------------------------------------------------------------------

    def checkpoints_at(self, prompt: list[int], n_held: int, closest: list[int]) -> list[int]:
        """Behind which tokens of a prompt, that is about to be read, a checkpoint pays.

        All but the last, for who asks the same again or goes on from there. Where memory cannot
        be cut, also where it parts from the closest of others: such a beginning comes again.
        """
        worth = min((store.min_tokens for store in self._checkpoints), default=None)
        if worth is None:
            return []
        places = [len(prompt) - 1]
        if not self._can_cut:
            places.append(prefix.n_common(prompt, closest))
        places = [prefix.cut_before_picture(prompt, place) for place in places]
        return sorted({place for place in places if n_held + worth <= place < len(prompt)})

    def save(self, lane: Lane, n_new: int) -> None:
        """Makes a checkpoint of what the lane holds, n_new tokens of which were read for it."""
        stores = [
            store
            for store in self._checkpoints
            if n_new >= store.min_tokens and not store.holds(lane.tokens)
        ]
        if stores:
            state = self._context.state(lane.seq_id)
            for store in stores:
                store.add(list(lane.tokens), state)

    def _park_idle(self, place: Place) -> None:
        """Lanes that nobody uses leave the cells, each of which costs all others time.

        Attention passes over every cell up to the last one that is taken, in every step, and
        its threads share that stretch evenly, whoever's cells lie there. A lane stays whose
        cells are mostly those of one in use too.
        """
        if self._parked is None:
            return
        in_use = {lane for lane in self.lanes if lane.busy}
        if place.n_tokens:
            in_use.add(place.source)
        for lane in self.lanes:
            if lane in in_use or len(lane.tokens) < MIN_PARKED:
                continue
            n_own = len(lane.tokens) - prefix.n_shared(lane, in_use)
            if n_own >= max(MIN_PARKED, len(lane.tokens) // MIN_SHARE):
                self._park(lane, self._parked)

    def _park(self, lane: Lane, parked: ParkedLanes) -> None:
        """Into free room only: cells that are free cost less than what would be lost."""
        n_known, _ = parked.best(lane.tokens, self._can_cut)
        if len(lane.tokens) - n_known > MIN_PARKED:
            if not parked.has_room(self._context.n_state_bytes(lane.seq_id)):
                return
            parked.add(lane.tokens, self._context.state(lane.seq_id))
        self.empty(lane)

    def leave(self, lane: Lane, now: int) -> None:
        """The lane is idle; what it holds stays for prompts that begin alike."""
        lane.busy = False
        lane.last_used = now

    def evict(self) -> bool:
        """Gives up the idle lane that nobody used for longest. False: there is none."""
        victim = prefix.evictable(self.lanes)
        if victim is None:
            return False
        if self._parked is not None and len(victim.tokens) >= MIN_PARKED:
            self._parked.add(victim.tokens, self._context.state(victim.seq_id))
        self.empty(victim)
        return True

    def drop_end(self, lane: Lane) -> None:
        """After a picture that found no room: of it, parts may be in memory."""
        self._context.keep(lane.seq_id, len(lane.tokens))

    def forget_all(self) -> None:
        """Empties all lanes, and what their cells hold."""
        for lane in self.lanes:
            lane.cut(0)
        self._context.clear_memory(data=True)

    def empty(self, lane: Lane) -> None:
        """Forgets what a lane holds."""
        self._context.keep(lane.seq_id, 0)
        lane.cut(0)

    # ---- what is told ----------------------------------------------------------------------

    def closest(self, tokens: list[int]) -> list[int]:
        """What a lane holds, or held until it was parked, that is closest to a prompt."""
        held = [lane.tokens for lane in self.lanes]
        if self._parked is not None:
            held.append(self._parked.closest(tokens))
        return max(held, key=lambda tokens_held: prefix.n_common(tokens_held, tokens))

    def n_held(self, tokens: list[int]) -> int:
        """How many of a prompt's tokens would not have to be read, if it began now."""
        lanes = [lane for lane in self.lanes if self._can_cut or not lane.busy]
        of_lanes = [prefix.n_reusable(lane, tokens, self._can_cut) for lane in lanes]
        of_stores = [store.best(tokens, self._can_cut)[0] for store in self._stores]
        return max(0, *of_lanes, *of_stores)

    def n_cells(self) -> tuple[int, int]:
        """(cells of lanes that run, cells of idle ones)."""
        n_used = self._n_cells([lane for lane in self.lanes if lane.busy])
        return n_used, self._n_cells(self.lanes) - n_used

    def _n_cells(self, lanes: Collection[Lane]) -> int:
        return prefix.n_cells(lanes) if self._takes_cells else sum(bool(x.tokens) for x in lanes)

    def state(self, n_running: int, n_waiting: int, meter: Meter) -> EngineState:
        """What the engine is doing, for the server."""
        n_used, n_idle = self.n_cells()
        return EngineState(
            n_running=n_running,
            n_waiting=n_waiting,
            n_cells=self.n_max,
            n_cells_used=n_used,
            n_cells_idle=n_idle,
            n_bytes_parked=self.n_bytes_parked,
            n_steps=meter.n_steps,
            step_s=meter.step_s,
            steps_within=tuple(meter.steps_within),
        )

    @property
    def n_bytes_parked(self) -> int:
        """What is kept of lanes that left their cells."""
        return self._parked.n_bytes if self._parked is not None else 0

    def has_room(self, place: Place, tokens: list[int], n_pending: int) -> bool:
        """Whether a prompt fits at that place, beside what the lanes that run are yet to read."""
        if not self._takes_cells:
            return True  # the lane is free, and with it its state
        busy = {lane for lane in self.lanes if lane.busy}
        n_shared = place.n_tokens
        if not place.source.busy:  # then its cells are idle, but for those that others share
            n_shared = min(n_shared, prefix.n_shared(place.source, busy))
        return prefix.n_cells(busy) + len(tokens) - n_shared + n_pending < self.n_max
