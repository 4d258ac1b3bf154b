"""The engine's schedule against chance: no request starves, no cell leaks, each request ends once.

    python -m tests.worker.test_scheduler --count 5000 --seed 7     more of it, by hand

The real engine runs step by step over the memory of `fake_context.py`. What it is asked is drawn
from a seed: prompts that begin alike, of one token up to the whole context, answers of every
length, clients that leave, requests with a fault, decodes that fail for no reason, and memory for a
few of them at a time. Before every step memory is compared with what the engine believes of
it; at its end every answer with the one that follows from its prompt alone.
"""

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest

from lmlite.frames import FrameError
from lmlite.messages import (
    Cause,
    Delta,
    EngineState,
    Failed,
    Finished,
    Reading,
    ReplyEvent,
    Returned,
    SamplingParams,
    Started,
    TokenLogprob,
)
from lmlite.worker import decoder as decoder_module
from lmlite.worker import engine as engine_module
from lmlite.worker import generator as generator_module
from lmlite.worker import sequence as sequence_module
from lmlite.worker.embedder import Embedder
from lmlite.worker.engine import Engine
from lmlite.worker.failures import failed
from lmlite.worker.generator import Generator
from lmlite.worker.llama.context import Batch
from lmlite.worker.memory.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.memory.lanes import Place, n_common
from lmlite.worker.sequence import Sequence
from tests.support.fake_context import (
    BROKEN,
    END,
    LETTERS,
    NO_NUMBERS,
    NO_TOKEN,
    FakeChain,
    FakeContext,
    FakeModel,
    Violation,
    entry,
    next_token,
    piece,
    require,
    salt_of,
)

N_WORLDS = (20, pytest.param(40, marks=pytest.mark.long))  # of each kind
N_EVENTS = 100  # arrivals, cancellations and failed steps of each
REPORT_S = 0.05  # between the engine's reports, on a clock of a millisecond per token

Key = tuple[int, int]  # request, choice

# ---- what is due -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a client gets of one choice."""

    echo: str
    said: str
    n_completion: int
    cause: Cause
    entries: tuple[TokenLogprob, ...]


def alone(sequence: Sequence, n_ctx_seq: int) -> Outcome:
    """What a sequence comes to by itself, told without an engine."""
    params, tokens = sequence.params, list(sequence.prompt)
    n_top, echo = params.n_logprobs, sequence.echo
    entries: list[TokenLogprob] = []
    if n_top is not None and echo is not None:
        entries.append(TokenLogprob(piece(tokens[0]), None, ()))
        entries += [entry(tokens[:i], tokens[i], n_top) for i in range(1, len(tokens))]
    if params.max_tokens == 0:
        return Outcome(echo or "", "", 0, "max_tokens", tuple(entries))
    said, n_completion = "", 0
    cause: Cause | None = None
    later: list[TokenLogprob] = []
    while cause is None:
        token = next_token(tokens, salt_of(params, sequence.seed), n_completion)
        if n_top is not None and token != END:
            later.append(entry(tokens, token, n_top))
        tokens.append(token)
        n_completion += 1
        said += piece(token).decode()
        cuts = [said.index(stop) for stop in sequence.params.stop if stop in said]
        if token == END:
            cause = "end_token"
        elif cuts:
            said, cause = said[: min(cuts)], "stop_string"
        elif n_completion == params.max_tokens:
            cause = "max_tokens"
        elif len(tokens) >= n_ctx_seq:
            cause = "context_full"
    entries += later[: len(said)]  # a token is a letter
    return Outcome(echo or "", said, n_completion, cause, tuple(entries))


def spelled(tokens: list[int]) -> str:
    return b"".join(map(piece, tokens)).decode()


def key_of(sequence: Sequence) -> Key:
    return sequence.request_id, sequence.index


class Fault(NamedTuple):
    """What goes wrong with one choice, once so much of it went well."""

    kind: str  # one of FAULTS
    after: int  # of what FAULTS says


FAULTS = {
    "chain": NO_TOKEN,  # after tokens sampled
    "decode": BROKEN,  # after tokens held: every batch that has the next one
    "numbers": NO_NUMBERS,  # after tokens held: every row, until memory is cleared
    "start": NO_TOKEN,  # when it is given a lane
    "emit": FrameError("too large"),  # after events
}


@dataclass(eq=False)
class Choice:
    """A sequence that is at work, and what is known of it."""

    sequence: Sequence
    due: Outcome
    arrived: int  # step
    n_ahead: int  # sequences that had not ended then
    fault: Fault | None = None
    n_lost_before: int = 0  # times that memory was cleared before it came
    n_lost: int = 0  # and while it ran
    events: list[ReplyEvent] = field(default_factory=list)
    n_read: int = 0  # tokens decoded for it
    n_put_back: int = 0
    n_in_vain: int = 0  # times in a row that it was put back as it had come
    put_back_at: tuple[int, int] = (-1, -1)  # how many had gone, and how long it was
    n_steps: int = 0  # from its arrival to its end

    @property
    def started(self) -> Started:
        (started,) = [event for event in self.events if isinstance(event, Started)]
        return started


# ---- the engine under watch ------------------------------------------------------------------


class Stage:
    """An engine over fake memory, and checks of it at every step."""

    def __init__(
        self,
        context: FakeContext,
        n_parallel: int,
        stores: tuple[Checkpoints, ...] = (),
        prefill_budget_s: float = 0.15,
        parked: ParkedLanes | None = None,
    ) -> None:
        self.context = context
        model: Any = FakeModel(context.can_cut)
        fake: Any = context
        self.generator = Generator(
            model, fake, n_parallel=n_parallel, prefill_budget_s=prefill_budget_s,
            checkpoints=stores, parked=parked,
        )  # fmt: skip
        self.engine = Engine(self.generator, Embedder(lambda: fake), self.emit)
        self.n_parallel = n_parallel
        self.lanes = self.generator.memory.lanes
        self.choices: dict[Key, Choice] = {}  # that have not ended
        self.finished: dict[Key, Choice] = {}
        self.starts: list[Key] = []  # in order
        self.ended: Counter[str] = Counter()
        self.slowest = 0.0  # of all sequences: steps, as a part of those that it may take
        self._coming: list[Sequence] = []  # submitted since the last step
        self._leaving: set[int] = set()  # requests that were cancelled since then
        self._n_heard = 0  # of both
        self._put_back: set[Sequence] = set()  # that wait for a place again
        self._n_gone = 0  # times that a sequence gave up its place, or stopped waiting for one
        self._at_fault: set[int] = set()  # requests that must fail now
        self._poisoned: set[int] = set()  # lanes with invalid numbers
        self._n_lost = 0  # times that memory was cleared
        self._watch()

    def run(self) -> None:
        """Steps of the engine, until no more requests come."""
        FakeChain.n_open = 0
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(generator_module, "SamplerChain", FakeChain)
            for module in (engine_module, generator_module, decoder_module, sequence_module):
                patched.setattr(module, "time", self.context)
            patched.setattr(engine_module, "REPORT_S", REPORT_S)
            while self._hear():
                self._coming.clear()
                self._leaving.clear()
                self.engine.step()
        assert not (self.choices or self.generator.running or self.generator.waiting)
        assert not self._at_fault
        assert not any(lane.busy for lane in self.lanes)
        assert (self.state.n_running, self.state.n_waiting, self.state.n_cells_used) == (0, 0, 0)
        assert FakeChain.n_open == 0

    # ---- requests and cancellations ------------------------------------------------------

    def _hear(self) -> bool:
        """Lets requests and cancellations come; whether there is a next step."""
        if not self.engine.has_work:
            self.when_idle()
            if not self.engine.has_work:
                return False
        n_heard = -1
        while self._n_heard > n_heard:
            n_heard = self._n_heard
            self.look()
            self.before_step()
        return True

    def before_step(self) -> None:
        """Requests and cancellations that come while there is work."""

    def when_idle(self) -> None:
        """Those that come when there is none; without any the run ends."""

    def submit(self, sequence: Sequence, fault: Fault | None = None) -> Choice:
        due = alone(sequence, self.context.n_ctx_seq)
        choice = Choice(sequence, due, self.context.n_steps, len(self.choices), fault, self._n_lost)
        self.choices[key_of(sequence)] = choice
        self._n_heard += 1
        self._coming.append(sequence)
        self._leaving.discard(sequence.request_id)
        self.engine.submit([sequence])
        return choice

    def cancel(self, request_id: int) -> None:
        self._drop(request_id, "cancelled")
        self._n_heard += 1
        self._leaving.add(request_id)
        self.engine.cancel(request_id)

    def _drop(self, request_id: int, how: str) -> None:
        """From now on no event of it may come."""
        self._at_fault.discard(request_id)
        for key in [key for key in self.choices if key[0] == request_id]:
            del self.choices[key]
            self.ended[how] += 1
            self._n_gone += 1

    # ---- what must hold --------------------------------------------------------------------

    def _watch(self) -> None:
        """Counts what is read for each sequence."""
        self._watch_memory()
        self._watch_starts()
        decode = self.context.decode

        def watched_decode(batch: Batch) -> bool:
            keys = {s.lane.seq_id: key_of(s) for s in self.generator.running if s.lane}
            counts = Counter(batch._seq_ids[: len(batch)])
            self._misbehave(counts, keys)
            if not decode(batch):
                return False
            for seq_id, n_tokens in counts.items():
                self.choices[keys[seq_id]].n_read += n_tokens
            return True

        self.context.decode = watched_decode  # type: ignore[method-assign]

    def _watch_memory(self) -> None:
        """Invalid numbers spread until memory is cleared."""
        memory, check_numbers = self.generator.memory, self.context.check_numbers
        forget_all = memory.forget_all

        def watched_numbers(index: int) -> None:
            check_numbers(index)
            if self._poisoned:
                raise NO_NUMBERS

        def watched_forgetting() -> None:
            self._poisoned.clear()
            self._n_lost += 1
            for sequence in self.generator.running:
                self.choices[key_of(sequence)].n_lost += 1
            forget_all()

        self.context.check_numbers = watched_numbers  # type: ignore[method-assign]
        memory.forget_all = watched_forgetting  # type: ignore[method-assign]

    def _watch_starts(self) -> None:
        start = self.generator._start

        def watched_start(sequence: Sequence, place: Place) -> None:
            lanes = map(self.context.held, range(self.context.n_seq_max))
            n_held = max(n_common(lane, sequence.tokens[:-1]) for lane in lanes)
            n_refused = self.context.n_refused
            self._put_back.discard(sequence)
            if sequence.chain is None:
                self.starts.append(key_of(sequence))
            fault = self.choices[key_of(sequence)].fault or Fault("none", 0)
            FakeChain.can_open = fault.kind != "start"
            if not FakeChain.can_open:
                self._at_fault.add(sequence.request_id)
            start(sequence, place)
            if fault.kind == "chain" and isinstance(sequence.chain, FakeChain):
                sequence.chain.fails_at = fault.after
            wants_all = sequence.wants_prompt_logprobs or not self.context.can_cut
            made_room = self.context.n_refused > n_refused  # in vain, for a checkpoint
            if sequence.lane and not wants_all and not made_room:
                require(len(sequence.lane.tokens) >= n_held, "what is held is not read again")

        self.generator._start = watched_start  # type: ignore[method-assign]

    def _misbehave(self, counts: Counter[int], keys: dict[int, Key]) -> None:
        """What sequences with a fault do to a batch."""
        alone = any(sequence.suspect for sequence in self.generator.running)
        if alone:
            require(len(counts) == 1 and self._poisoned <= {*counts}, "a trial has one sequence")
            require(self.context.n_cells([*counts]) == self.context.n_used, "memory is new")
        for seq_id, n_tokens in counts.items():
            request_id, fault = keys[seq_id][0], self.choices[keys[seq_id]].fault
            is_broken = alone and self.context.breaks  # for no reason, but the engine cannot know
            if fault is None or len(self.context.held(seq_id)) + n_tokens <= fault.after:
                fault = None
            if is_broken or (alone and fault and fault.kind in ("decode", "numbers")):
                self._at_fault.add(request_id)
            if fault and fault.kind == "decode":
                raise BROKEN
            if fault and fault.kind == "numbers":
                self._poisoned.add(seq_id)

    def look(self) -> None:
        """Before each step: memory and the requests are as the engine believes."""
        running, waiting = self.generator.running, self.generator.waiting
        for lane in self.lanes:
            assert lane.tokens == self.context.held(lane.seq_id)
        lanes = [sequence.lane for sequence in running]
        assert len(lanes) == len(set(lanes)) <= self.n_parallel
        assert {lane for lane in self.lanes if lane.busy} == set(lanes)
        assert all(sequence.lane is None for sequence in waiting)
        here = map(key_of, (*running, *waiting, *self._coming))
        assert sorted(key for key in here if key[0] not in self._leaving) == sorted(self.choices)
        self._look_who_was_put_back()

    def _look_who_was_put_back(self) -> None:
        """A sequence that lost its place gets one again only when it can keep it.

        Sequences that go make room. Once, room may also come from a beginning that two hold: if it
        was short, they read it side by side, and share it from then on.
        """
        waiting = {s for s in self.generator.waiting if s.chain is not None}
        new = [self.choices[key_of(s)] for s in waiting - self._put_back]
        for choice in new:
            now = self._n_gone, len(choice.sequence.tokens)
            choice.n_in_vain = choice.n_in_vain + 1 if choice.put_back_at == now else 0
            assert choice.n_in_vain <= 1
        self._n_gone += len(new)
        for choice in new:
            choice.n_put_back += 1
            choice.put_back_at = self._n_gone, len(choice.sequence.tokens)
            self.ended["put back"] += 1
        self._put_back = waiting

    def emit(self, events: list[ReplyEvent | EngineState]) -> None:
        """Takes all of them or none."""
        n_before: Counter[Key] = Counter()
        for event in events:
            if isinstance(event, EngineState | Failed):
                continue
            key = event.id, event.index
            fault = self.choices[key].fault
            n_taken = len(self.choices[key].events) + n_before[key]
            if fault is not None and fault.kind == "emit" and n_taken >= fault.after:
                self._at_fault.add(event.id)
                raise FAULTS[fault.kind].with_traceback(None)  # or it would grow each time
            n_before[key] += 1
        try:
            self.take(events)
        except Exception as err:  # which the engine would take for a fault of this function
            raise Violation from err

    def take(self, events: list[ReplyEvent | EngineState]) -> None:
        for event in events:
            match event:
                case EngineState():
                    self._check_state(event)
                case Failed():
                    self._check_failure(event)
                    self._drop(event.id, "failed")
                case Finished(request_id, index):
                    choice = self.choices.pop((request_id, index))  # nothing may follow
                    self.finished[request_id, index] = choice
                    self._n_gone += 1
                    self.ended[event.cause] += 1
                    self._check_answer(choice, event)
                case _:
                    self.choices[event.id, event.index].events.append(event)

    def _check_failure(self, event: Failed) -> None:
        """A request that fails has a fault, or was alone in a decode that failed for no reason."""
        choices = [self.choices[key] for key in self.choices if key[0] == event.id]
        assert choices
        faults = [FAULTS[c.fault.kind] for c in choices if c.fault is not None]
        if event.id in self._at_fault:
            faults.append(BROKEN)
        assert event.message in {failed(event.id, fault).message for fault in faults}

    def _check_state(self, state: EngineState) -> None:
        """What it reports is exact, to the cell."""
        self.state = state
        generator, context = self.generator, self.context
        busy = [lane.seq_id for lane in self.lanes if lane.busy]
        n_waiting = len(generator.waiting)
        assert (state.n_running, state.n_waiting) == (len(generator.running), n_waiting)
        assert state.n_cells_used == context.n_cells(busy)
        assert state.n_cells_used + state.n_cells_idle == context.n_used <= state.n_cells

    def _check_answer(self, choice: Choice, end: Finished) -> None:
        due, events = choice.due, choice.events
        deltas = [event for event in events if isinstance(event, Delta)]
        text = "".join(delta.text for delta in deltas)
        entries = tuple(entry for delta in deltas for entry in delta.logprobs)
        assert (text, entries) == (due.echo + due.said, due.entries)
        assert (end.cause, end.n_completion) == (due.cause, due.n_completion)
        if choice.fault is not None:  # it never came to it
            assert self._n_done(choice, end, choice.fault.kind) <= choice.fault.after
        assert all(e.n_read < e.n_prompt for e in events if isinstance(e, Reading))
        returned = [event.text for event in events if isinstance(event, Returned)]
        assert returned == [due.said] * choice.sequence.trace
        self._check_effort(choice, end)

    def _n_done(self, choice: Choice, end: Finished, kind: str) -> int:
        """How far it came, counted as a fault of this kind is."""
        if kind in ("chain", "emit"):
            return end.n_completion if kind == "chain" else len(choice.events)
        sequence = choice.sequence
        scores = choice.due.echo != "" and sequence.params.n_logprobs is not None
        is_read = end.n_completion or scores
        return len(sequence.prompt) + max(end.n_completion - 1, 0) if is_read else 0

    def _check_effort(self, choice: Choice, end: Finished) -> None:
        """Each token is read once, and no request waits longer than those in front may take."""
        # The last token is sampled, not decoded.
        n_due = choice.started.n_prompt - choice.started.n_cached + max(end.n_completion - 1, 0)
        if choice.n_put_back or choice.n_lost:
            n_due += (choice.n_put_back + choice.n_lost) * self.context.n_ctx_seq
            assert choice.n_read <= n_due
        elif choice.n_read or choice.sequence.params.max_tokens != 0:
            assert choice.n_read == n_due
        # The oldest running sequence is never put back and gets a token further at each step, up to
        # the context at most. Then it is the next one's turn. If memory is lost, they read theirs
        # again one after the other.
        n_losses = self._n_lost - choice.n_lost_before
        n_steps_due = choice.n_ahead + 1 + n_losses * self.n_parallel
        n_steps_due *= self.context.n_ctx_seq
        choice.n_steps = self.context.n_steps - choice.arrived
        assert choice.n_steps <= n_steps_due
        self.slowest = max(self.slowest, choice.n_steps / n_steps_due)


# ---- chance ----------------------------------------------------------------------------------


class SmallStore(Checkpoints):
    """Checkpoints that pay for short prompts."""

    min_tokens = 8


class Kind(NamedTuple):
    """A memory, and what keeps what it lost."""

    can_cut: bool = True  # which a recurrent one cannot be
    has_store: bool = False
    parks: bool = False


KINDS = {
    "unified": Kind(),
    "unified with checkpoints": Kind(has_store=True),
    "unified, and idle lanes are parked": Kind(parks=True),
    "recurrent": Kind(can_cut=False),
    "recurrent with checkpoints": Kind(can_cut=False, has_store=True),
}


class World(Stage):
    """Requests, cancellations, and how much memory there is for them, drawn from a seed."""

    def __init__(self, seed: int, kind: str, n_events: int = N_EVENTS) -> None:
        self.rng = rng = random.Random(f"{seed} {kind}")
        can_cut, has_store, parks = KINDS[kind]
        n_ctx = rng.choice((24, 40, 64, 100))
        n_parallel = rng.choice((1, 2, 3, 4, 8))
        context = FakeContext(
            n_ctx,
            n_ctx_seq=rng.choice((n_ctx, n_ctx, n_ctx // 2)),
            n_batch=rng.choice((n_parallel + 1, 16, 64)),
            n_seq_max=4 * n_parallel if can_cut else n_parallel,
            can_cut=can_cut,
        )
        context.can_restore = rng.random() < 0.8
        stores = (SmallStore(rng.choice((300, 1500))),) if has_store else ()
        parked = ParkedLanes(rng.choice((300, 1500))) if parks else None
        super().__init__(context, n_parallel, stores, rng.choice((0.01, 0.15)), parked)
        self.n_requests = 0
        self._n_to_come = n_events
        self._rate = rng.choice((0.02, 0.1, 0.4, 0.7))  # of something to come before a step
        self._cancel_rate = rng.choice((0.0, 0.1, 0.4))
        self._break_rate = rng.choice((0.0, 0.0, 0.05))
        self._fault_rate = rng.choice((0.0, 0.1, 0.5))  # of choices
        self._prompts = [self.tokens(rng.randrange(1, n_ctx)) for _ in range(3)]

    def before_step(self) -> None:
        if self._n_to_come and self.rng.random() < self._rate:
            self._happen()

    def when_idle(self) -> None:
        while self._n_to_come and not self.engine.has_work:
            self._happen()

    def _happen(self) -> None:
        self._n_to_come -= 1
        dice = self.rng.random()
        if dice < self._break_rate:
            self.context.breaks = True
        elif dice < self._break_rate + self._cancel_rate:
            self.cancel(self.rng.randrange(self.n_requests + 1))  # any, also one that has ended
        else:
            self._arrive()

    def _arrive(self) -> None:
        rng, prompt = self.rng, self._prompt()
        params = SamplingParams(
            temperature=rng.choice((0.0, 1.0)),
            max_tokens=rng.choice((None, None, 0, 1, 2, rng.randrange(1, 60))),
            n_logprobs=rng.choice((None, None, None, 0, 2)),
        )
        stop = tuple("".join(rng.choices(LETTERS, k=2)) for _ in range(rng.choice((0, 0, 2))))
        params = replace(params, stop=stop)
        echo = spelled(prompt) if rng.random() < 0.2 else None
        trace = rng.random() < 0.2
        for index in range(rng.choice((1, 1, 1, 2, 4))):
            ids, seed = (self.n_requests, index), self.n_requests + index
            self.submit(Sequence(*ids, prompt, params, seed, (), echo, trace), self._fault())
        self.n_requests += 1

    def _fault(self) -> Fault | None:
        if self.rng.random() >= self._fault_rate:
            return None
        return Fault(self.rng.choice([*FAULTS]), self.rng.choice((0, 1, 3, 10, 40)))

    def _prompt(self) -> list[int]:
        """A beginning that others have, or all of it, and an end of its own."""
        rng, n_max = self.rng, self.context.n_ctx_seq
        begun = rng.choice(self._prompts)
        begun = begun[: rng.choice((0, len(begun), rng.randrange(len(begun) + 1)))]
        own = self.tokens(rng.choice((0, 1, 5, 20, n_max)))
        prompt = (begun + own)[: rng.choice((n_max, n_max, n_max - 1, 20))] or self.tokens(1)
        prompt = prompt[:n_max]
        if rng.random() < 0.3:
            self._prompts.append(prompt)
        return prompt

    def tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(1, 1 + len(LETTERS)) for _ in range(n)]


def world(seed: int, kind: str) -> World:
    """A world after its end; its seed is printed if it does not reach it."""
    made = World(seed, kind)
    try:
        made.run()
    except BaseException:
        print(f"seed {seed}, {kind}")
        raise
    return made


@pytest.mark.parametrize("n_worlds", N_WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_request_ends_once_with_the_answer_that_it_gets_alone(
    kind: str, n_worlds: int
) -> None:
    ended: Counter[str] = Counter()
    for seed in range(n_worlds):
        ended += world(seed, kind).ended
    assert ended["put back"] > n_worlds  # these worlds are as narrow as they should be
    assert min(ended[how] for how in ("cancelled", "failed", "context_full")) > n_worlds


# ---- what chance has found, and what it may miss ---------------------------------------------


class Script(Stage):
    """Memory for n_ctx tokens, three places, and requests at chosen steps."""

    def __init__(
        self, n_ctx: int, *, n_batch: int = 64, stores: tuple[Checkpoints, ...] = ()
    ) -> None:
        context = FakeContext(n_ctx, n_ctx_seq=n_ctx, n_batch=n_batch, n_seq_max=12)
        super().__init__(context, 3, stores)
        self._later: list[tuple[int, Sequence]] = []
        self._n_asked = 0

    def before_step(self) -> None:
        for at in [at for at in self._later if at[0] <= self.context.n_steps]:
            self._later.remove(at)
            self.submit(at[1])

    def ask(
        self, prompt: list[int], n_out: int, *, after: int = 0, echo: bool = False,
        fault: Fault | None = None,
    ) -> Key:  # fmt: skip
        """A request, `after` steps from now, whose answer has exactly n_out tokens."""
        params = SamplingParams(temperature=1.0, max_tokens=n_out, n_logprobs=0 if echo else None)
        self._n_asked += 1
        for seed in range(1000):
            made = Sequence(
                self._n_asked, 0, prompt, params, seed, (), spelled(prompt) if echo else None
            )
            if alone(made, self.context.n_ctx_seq).n_completion == n_out:
                break
        if after:
            self._later.append((self.context.n_steps + after, made))
        else:
            self.submit(made, fault)
        return key_of(made)


def fresh(n: int, kind: int = 0) -> list[int]:
    """A prompt that begins like no other of another kind, of which there are six."""
    return [1 + kind, *random.Random(kind).choices(range(1, 1 + len(LETTERS)), k=n - 1)]


class Stream(Script):
    """A small prompt at every step, and one that fills the context, until that has ended."""

    n_come = 0
    large: Key | None = None

    def before_step(self) -> None:
        if self.n_come > self.context.n_steps:  # one of them has come before this step
            return
        self.n_come += 1
        if self.n_come == 20:
            self.large = self.ask(fresh(98), 1)
        elif self.large is None or self.large in self.choices:
            self.ask(fresh(5, 1 + self.n_come % 5), 10)


def test_a_prompt_that_fills_the_context_gets_its_turn_in_a_stream_of_small_ones() -> None:
    stream = Stream(100)
    stream.ask(fresh(5), 10)
    stream.run()
    assert stream.starts == sorted(stream.starts)
    assert stream.large is not None
    # Twenty came before it; they have three places, and ten steps each.
    assert stream.finished[stream.large].n_steps <= 7 * 10 + 2


def test_shared_cells_stay_counted_after_the_sequence_that_read_them_has_ended() -> None:
    script = Script(100)
    begin = fresh(40)
    script.ask(begin, 5)
    stays = script.ask(begin + fresh(4, 1), 30, after=2)
    comes = script.ask(fresh(60, 2), 2, after=8)
    script.run()
    assert script.finished[stays].started.n_cached == 40
    assert script.ended["put back"] == 0
    assert script.finished[comes].n_read == 60 + 1


def test_a_prompt_that_is_read_for_its_logprobs_needs_room_for_all_of_it() -> None:
    script = Script(100)
    script.ask(fresh(60), 30)
    scores = script.ask(fresh(60), 2, after=2, echo=True)
    script.run()
    assert script.ended["put back"] == 0
    assert script.finished[scores].n_read == 60 + 1


def test_a_checkpoint_that_finds_no_room_leaves_what_a_lane_holds_in_its_place() -> None:
    script = Script(100, stores=(SmallStore(1000),))
    for prompt in (fresh(60), fresh(70, 1), fresh(60)[:20]):
        script.ask(prompt, 1)
        script.run()
    script.ask(fresh(50, 2), 40)
    comes = script.ask(fresh(60)[:35], 1, after=2)
    script.run()
    assert script.finished[comes].started.n_cached == 20


def test_a_sequence_that_is_read_again_reports_all_of_its_tokens() -> None:
    script = Script(100, n_batch=16)
    script.ask(fresh(30), 60)
    again = script.ask(fresh(30, 1), 60)
    script.run()
    told = [event for event in script.finished[again].events if isinstance(event, Reading)]
    assert script.finished[again].n_put_back == 1
    assert (told[0].n_read, told[0].n_prompt) == (2, 30)
    assert told[-1].n_read < told[-1].n_prompt > 40


class Leaving(Script):
    """A client that cancels as soon as its request reaches a phase."""

    def __init__(self, phase: str) -> None:
        super().__init__(100, n_batch=16)
        self._phase = phase
        self.leaver: Key | None = None

    def before_step(self) -> None:
        if self.leaver not in self.choices:
            return
        sequence = self.choices[self.leaver].sequence
        phase = "generating" if sequence.n_completion > 1 else "reading"
        if (phase if sequence.lane else "queued") == self._phase:
            self.cancel(sequence.request_id)


@pytest.mark.parametrize("phase", ["queued", "reading", "generating"])
def test_a_cancelled_request_is_gone_before_the_next_step(phase: str) -> None:
    leaving = Leaving(phase)
    for kind in range(3 if phase == "queued" else 1):
        leaving.ask(fresh(5, kind), 20)
    leaving.leaver = leaving.ask(fresh(40, 4), 30)
    last = leaving.ask(fresh(5, 5), 10)
    leaving.run()  # which compares before every step which requests are there
    assert leaving.ended["cancelled"] == 1
    assert leaving.leaver not in leaving.finished and last in leaving.finished


def test_the_state_is_reported_after_the_last_request_is_cancelled() -> None:
    leaving = Leaving("generating")
    leaving.leaver = leaving.ask(fresh(10), 30)
    leaving.run()
    assert leaving.ended == {"cancelled": 1}
    assert (leaving.state.n_running, leaving.state.n_cells_used) == (0, 0)
    assert leaving.state.n_cells_idle == 10 + 1


@pytest.mark.parametrize("kind", FAULTS)
def test_a_request_with_a_fault_fails_and_the_others_get_their_answers(kind: str) -> None:
    script = Script(100)
    others = [script.ask(fresh(10), 20), script.ask(fresh(15, 1), 20)]
    script.ask(fresh(8, 2), 20, fault=Fault(kind, 12))
    last = script.ask(fresh(8, 3), 5)
    script.run()  # which compares each answer with the one that is due
    assert script.ended["failed"] == 1
    assert {*others, last} == {*script.finished}
    is_everybodys = kind in ("decode", "numbers")
    assert [script.finished[key].n_lost > 0 for key in others] == [is_everybodys] * 2


def test_a_sequence_that_cannot_be_closed_is_gone_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_chain: FakeChain) -> None:
        FakeChain.n_open -= 1
        raise BROKEN

    leaving = Leaving("generating")
    leaving.leaver = leaving.ask(fresh(10), 30)
    other = leaving.ask(fresh(12, 1), 20)
    monkeypatch.setattr(FakeChain, "close", broken)
    leaving.run()
    assert other in leaving.finished
    assert capsys.readouterr().err.count(str(BROKEN)) == 2


def test_the_probabilities_of_a_long_prompt_come_in_several_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence_module, "MAX_ENTRIES", 16)
    script = Script(100)
    key = script.ask(fresh(40), 1, echo=True)
    script.run()
    deltas = [event for event in script.finished[key].events if isinstance(event, Delta)]
    assert [len(delta.logprobs) for delta in deltas] == [16, 16, 8, 1]
    assert [len(delta.text) for delta in deltas] == [40, 0, 0, 1]


# ---- by hand ---------------------------------------------------------------------------------


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The engine's schedule against chance.")
    parser.add_argument("--count", type=int, default=1000, help="worlds of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the first one")
    options = parser.parse_args()
    for kind in KINDS:
        start_s, ended, slowest = time.monotonic(), Counter[str](), 0.0
        for seed in range(options.seed, options.seed + options.count):
            made = world(seed, kind)
            ended += made.ended
            slowest = max(slowest, made.slowest)
        counts = ", ".join(f"{n:,} {how}" for how, n in sorted(ended.items()))
        print(f"{kind}: {options.count:,} worlds in {time.monotonic() - start_s:.0f} s: {counts}; "
              f"the slowest took {slowest:.0%} of its time")  # fmt: skip


if __name__ == "__main__":
    main()
