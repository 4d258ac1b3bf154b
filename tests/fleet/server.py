"""One simulated server: the engine's own policy, with a clock in place of the library.

Which lane a prompt runs in, what it reuses, what is parked and what leaves memory, is decided by
`lmlite.worker.memory.Memory`; what a step holds by `lmlite.worker.batch.compose`. Only the loop
around them (admission, and steps that alike follow each other at once) is written again, after
`lmlite/worker/generator.py`. Tokens are numbers that mean nothing.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from lmlite.contexts import n_lanes
from lmlite.messages import Load
from lmlite.worker.batch import Piece, compose
from lmlite.worker.memory import lanes as policy
from lmlite.worker.memory.checkpoints import ParkedLanes
from lmlite.worker.memory.lanes import Lane
from lmlite.worker.memory.memory import Memory
from tests.fleet.step_times import StepTimes

LOAD = Load("", n_parallel=4)  # the defaults of `lmlite serve`


@dataclass(frozen=True)
class Sizes:
    """What a server is started with; the defaults are lmlite's."""

    n_parallel: int = LOAD.n_parallel
    n_ctx: int = 4096
    n_parked_bytes: int = LOAD.checkpoint_memory
    n_bytes_per_token: int = 12288  # of the 0.5B: 24 layers, 2 heads of 64, keys and values, f16


@dataclass(eq=False)
class Request:
    """A prompt and the answer that it will get. The names are those of the engine's Sequence."""

    prompt: list[int]
    answer: list[int]
    arrived_s: float = 0.0
    first_token_s: float | None = None  # on the clock of the simulation, like the others
    n_cached: int = 0
    n_completion: int = 0
    lane: Lane | None = None
    tokens: list[int] = field(default_factory=list)  # the prompt, and the answer so far
    wants_prompt_logprobs = False
    draft = ()  # a simulated model has none

    @property
    def n_held(self) -> int:
        assert self.lane is not None
        return len(self.lane.tokens)

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_held

    n_next = n_pending


class Cells:
    """In place of a Context: counts cells, and computes nothing."""

    def __init__(self, sizes: Sizes) -> None:
        self.n_ctx = sizes.n_ctx
        self.n_seq_max = n_lanes(sizes.n_parallel, can_cut_memory=True)
        self._n_bytes_per_token = sizes.n_bytes_per_token
        self.lanes: Sequence[Lane] = ()  # of the memory that is made with it

    def can_begin(self, seq_id: int, n_tokens: int) -> bool:  # noqa: ARG002
        return True

    def keep(self, seq_id: int, n_tokens: int) -> None:
        pass

    def share(self, source_id: int, seq_id: int, n_tokens: int) -> None:
        pass

    def n_state_bytes(self, seq_id: int) -> int:
        return len(self.lanes[seq_id].tokens) * self._n_bytes_per_token

    def state(self, seq_id: int) -> range:
        """Something as long as the state."""
        return range(self.n_state_bytes(seq_id))

    def restore(self, seq_id: int, state: range) -> bool:  # noqa: ARG002
        return self.n_free() >= len(state) // self._n_bytes_per_token

    def n_free(self) -> int:
        return self.n_ctx - policy.n_cells(self.lanes)

    def n_surely_free(self) -> int:
        """At most as many as are free, and counted faster: as if lanes shared no cells."""
        return self.n_ctx - sum(len(lane.tokens) for lane in self.lanes)


class Model(NamedTuple):
    """What the policy asks of a model."""

    can_cut_memory: bool = True
    takes_cells: bool = True


class Step(NamedTuple):
    """Steps of the same composition, one after the other."""

    pieces: list[Piece]
    began_s: float
    each_s: float
    n: int

    @property
    def end_s(self) -> float:
        return self.began_s + self.n * self.each_s


class Server:
    """A server with its requests. `now_s` never falls."""

    def __init__(self, sizes: Sizes, times: StepTimes) -> None:
        self._sizes, self._times = sizes, times
        self._cells = Cells(sizes)
        parked = ParkedLanes(sizes.n_parked_bytes) if sizes.n_parked_bytes else None
        self._memory = Memory(cast(Any, Model()), cast(Any, self._cells), (), parked)
        self._cells.lanes = self._memory.lanes
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._step: Step | None = None
        self.busy_s = 0.0

    @property
    def n_open(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    @property
    def step_end_s(self) -> float | None:
        """When its steps end; None while it has nothing to do."""
        return self._step and self._step.end_s

    def submit(self, request: Request, now_s: float) -> None:
        """Takes a request, which joins after the current step."""
        request.arrived_s, request.tokens = now_s, list(request.prompt)
        self._waiting.append(request)
        if self._step is None:
            self._begin(now_s)
        elif self._step.n > 1 and len(self._running) < self._sizes.n_parallel:
            n_done = math.ceil((now_s - self._step.began_s) / self._step.each_s)
            self._step = self._step._replace(n=min(max(n_done, 1), self._step.n))

    def end_step(self) -> list[Request]:
        """Ends the current steps and begins the next; returns the requests that are complete."""
        step = self._step
        assert step is not None
        self.busy_s += step.n * step.each_s
        finished = [done for piece in step.pieces if (done := self._read(piece, step))]
        self._step = None
        self._begin(step.end_s)
        return finished

    def _read(self, piece: Piece, step: Step) -> Request | None:
        """Puts what was read into the lane, and samples. Returns the request if it is complete."""
        request = cast(Request, piece.sequence)
        lane = request.lane
        assert lane is not None
        lane.tokens += piece.tokens
        if not piece.ends:
            return None
        begin = request.n_completion
        request.n_completion += step.n
        sampled = request.answer[begin : request.n_completion]
        request.tokens += sampled
        lane.tokens += sampled[:-1]  # each but the last was read by the step after it
        if request.first_token_s is None:
            request.first_token_s = step.began_s + step.each_s
        if request.n_completion < len(request.answer):
            return None
        self._leave(request)
        return request

    def _leave(self, request: Request) -> None:
        assert request.lane is not None
        self._memory.leave(request.lane)
        request.lane = None
        self._running.remove(request)

    # ---- as in Generator -------------------------------------------------------------------

    def _begin(self, now_s: float) -> None:
        self._admit()
        if not self._running:
            return
        pieces = self._composed()
        n_tokens = sum(len(piece.tokens) for piece in pieces)
        n_cells = sum(request.n_held for request in self._running)
        each_s = self._times.step_s(n_tokens, len(pieces), n_cells)
        self._step = Step(pieces, now_s, each_s, self._n_alike(pieces))

    def _admit(self) -> None:
        for request in list(self._waiting):
            if len(self._running) >= self._sizes.n_parallel:
                return
            place = self._memory.place(request.tokens)
            n_pending = sum(running.n_pending for running in self._running)
            if not (place and self._memory.has_room(place, request.tokens, n_pending)):
                return
            reading: list[tuple[list[int], list[int]]] = [
                (running.tokens, []) for running in self._running if running.n_pending > 1
            ]
            if not self._memory.is_coming(request.tokens, place.n_tokens, reading):
                self._waiting.remove(request)
                request.lane = place.lane
                self._running.append(request)
                request.n_cached = self._memory.assign(place, request.tokens)

    def _composed(self) -> list[Piece]:
        n_in_time = LOAD.prefill_budget_s / self._times.prompt_token_s
        while True:
            pieces = compose(cast(Any, self._running), LOAD.n_batch, n_in_time)
            n_tokens = sum(len(piece.tokens) for piece in pieces)
            if n_tokens <= self._cells.n_surely_free() or n_tokens <= self._cells.n_free():
                return pieces
            if not self._memory.evict():
                youngest = self._running[-1]
                assert len(self._running) > 1, "a conversation is longer than the context"
                self._leave(youngest)
                self._waiting.appendleft(youngest)

    def _n_alike(self, pieces: Sequence[Piece]) -> int:
        """How many such steps follow each other, if nothing arrives: 1 while prompts are read."""
        if len(pieces) < len(self._running) or any(len(piece.tokens) > 1 for piece in pieces):
            return 1
        left = min(len(request.answer) - request.n_completion for request in self._running)
        return max(1, min(left, self._cells.n_surely_free() // len(pieces)))
