"""The loop: admit, batch, decode, sample, emit. Continuous batching in one thread.

Every sequence has `tokens`, its prompt and what was sampled so far, and a lane of the
context's memory that holds a beginning of them. What memory lacks is *pending*. One step of
the loop takes pending tokens of all running sequences into one batch, decodes it, and where a
sequence has nothing pending any more, samples its next token, which is then pending. So
reading a prompt and generating are the same thing with different amounts pending, a new
request joins at the next step, and a sequence that lost its memory simply has all of its
tokens pending again.

`submit`, `cancel` and `stop` may be called from any thread; all else belongs to the engine
thread, the only one that touches the context. Knows no templates, no frames, no HTTP.
"""

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmlite.errors import InternalError
from lmlite.memory_estimate import MAX_OUTPUT_PIECE
from lmlite.messages import (
    Cause,
    EngineState,
    Failed,
    ReplyEvent,
    TokenLogprob,
)
from lmlite.worker.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.embedder import Embedder, Input
from lmlite.worker.llama import Batch, Context, LlamaError, Model
from lmlite.worker.media import Eye
from lmlite.worker.memory import Memory
from lmlite.worker.meter import Meter
from lmlite.worker.prefix import Place
from lmlite.worker.samplers import SamplerChain
from lmlite.worker.sequence import Sequence
from lmlite.worker.threads import ThreadGovernor

REPORT_S = 1.0  # between two reports of what the engine is doing
ROW_BLOCK = 16  # tokens that matrix products on a CPU take at once: a part costs nearly as much


@dataclass(frozen=True)
class _Piece:
    """What one sequence has in the batch of this step."""

    sequence: Sequence
    n_tokens: int
    last_index: int  # batch index of its last token


@dataclass(frozen=True)
class _Cancel:
    request_id: int


_Command = Sequence | Input | _Cancel | None  # None: stop


class Engine:
    """Runs sequences and embeddings on one model."""

    def __init__(
        self,
        model: Model,
        context: Context | None,
        embedder: Embedder,
        *,
        n_parallel: int,
        prefill_budget_s: float,
        max_s: float = 600.0,
        emit: Callable[[list[ReplyEvent | EngineState]], None],
        checkpoints: Iterable[Checkpoints] = (),
        parked: ParkedLanes | None = None,
        governor: ThreadGovernor | None = None,
        eye: Eye | None = None,
    ) -> None:
        """`context` is None for a model that cannot generate; `emit` is called once per step.

        Without a governor the context's own number of threads holds.
        """
        self._model, self._vocab = model, model.vocab
        self._context = context
        self._memory = Memory(model, context, tuple(checkpoints), parked) if context else None
        self._governor = governor
        self._n_threads = governor.n_max if governor else 0  # of the last step
        self._embedder = embedder
        self._eye = eye
        self._emit = emit
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()  # in order of arrival
        self._running: list[Sequence] = []  # in order of admission
        self._n_parallel = n_parallel
        self._prefill_budget_s = prefill_budget_s
        self._max_s = max_s
        self._batch = Batch(context.n_batch if context else 1)
        self._events: list[ReplyEvent | EngineState] = []  # of this step
        self._meter = Meter()
        self._reported_s = 0.0  # when, on the monotonic clock

    # ---- from any thread -------------------------------------------------------------------

    def submit(self, work: Iterable[Sequence | Input]) -> None:
        """Queues work; its events come through `emit`."""
        for item in work:
            self._inbox.put(item)

    def cancel(self, request_id: int) -> None:
        """Forgets a request, in whatever phase it is, before the next step."""
        self._inbox.put(_Cancel(request_id))

    def stop(self) -> None:
        """Ends `run` after the current step."""
        self._inbox.put(None)

    # ---- the loop --------------------------------------------------------------------------

    def run(self) -> None:
        """Turns until stopped. A step that fails takes its requests with it, not the loop."""
        while self._take_commands():
            try:
                self._admit()
                self._tell_waiting()
                self._step()
            except Exception as err:  # whatever it was, the loop lives on
                self._fail_running(err)
            try:
                self._events += self._embedder.step()
            except Exception as err:
                self._fail(self._embedder.fail_all(), err)
            self._report()
            self._flush()

    def _take_commands(self) -> bool:
        """Empties the inbox; waits for a first command if there is nothing else to do."""
        must_wait = self._is_idle()
        if must_wait and self._governor is not None:
            self._governor.pause()
        while must_wait or not self._inbox.empty():
            command = self._inbox.get()
            must_wait = False  # also a cancellation that leaves nothing to do is reported
            if command is None:
                return False
            if isinstance(command, _Cancel):
                self._forget(command.request_id)
            elif isinstance(command, Input):
                self._embedder.submit(command)
            elif command.dry_run:
                self._plan(command)
            else:
                self._waiting.append(command)
        return True

    def _plan(self, sequence: Sequence) -> None:
        """Tells what would happen, and lets it be."""
        assert self._memory is not None
        n_cached = self._memory.n_held(sequence.reusable)
        self._events.append(sequence.planned(n_cached, self._vocab))
        sequence.close()

    def _is_idle(self) -> bool:
        return not (self._waiting or self._running or self._embedder.has_work)

    def _admit(self) -> None:
        """Gives waiting sequences a lane each, oldest first, while places and memory last.

        One that begins with what another is reading just now waits until that is read.
        """
        for sequence in list(self._waiting):
            if len(self._running) >= self._n_parallel:
                return
            assert self._memory is not None
            place = self._memory.place(sequence.reusable)
            if place is None or not self._has_room(sequence, place):
                return
            reading = [(s.tokens, s.marks) for s in self._running if s.n_pending > 1]
            if self._memory.is_coming(sequence.reusable, place.n_tokens, reading):
                continue
            self._waiting.remove(sequence)
            self._start(sequence, place)

    def _tell_waiting(self) -> None:
        for n_ahead, sequence in enumerate(self._waiting):
            self._events += sequence.queued(n_ahead)

    def _has_room(self, sequence: Sequence, place: Place) -> bool:
        """Whether memory can hold it beside those that run. Idle prefixes do not count."""
        assert self._memory is not None
        if not self._running:
            return True
        n_pending = sum(running.n_pending for running in self._running)
        n_held = self._memory.n_cells_with(place, sequence.tokens)
        return n_held + n_pending < self._memory.n_max

    def _step(self) -> None:
        """Decodes one batch of what is pending, and samples where nothing is any more."""
        if not self._running:
            return
        self._meter.n_steps += 1
        self._look()
        pieces = self._build_batch()
        while pieces and not self._decode(pieces):
            self._make_room()
            pieces = self._build_batch()
        for piece in pieces:
            self._account(piece)

    def _look(self) -> None:
        """Sees one picture at most, so that those who generate wait for no more than one."""
        if (sequence := next((s for s in self._running if s.next_chunk), None)) is not None:
            self._see(sequence)

    def _see(self, sequence: Sequence) -> None:
        """Encodes a picture, and reads it into memory; or its sequence had to leave for room."""
        assert self._context is not None and self._memory is not None and self._eye is not None
        while (lane := sequence.lane) is not None:
            n_held, chunk = len(lane.tokens), sequence.next_chunk
            assert chunk is not None
            if self._eye.see(self._context, chunk, n_held, lane.seq_id):
                lane.tokens += sequence.tokens[n_held : n_held + chunk.n_positions]
                self._note_read(sequence)
                self._events.append(sequence.reading())
                return
            self._memory.drop_end(lane)
            self._make_room()

    def _note_read(self, sequence: Sequence) -> None:
        """Makes the checkpoint that was to be made here."""
        assert sequence.lane is not None and self._memory is not None
        if sequence.marks and sequence.marks[0] == len(sequence.lane.tokens):
            self._memory.save(sequence.lane, sequence.marks.pop(0) - sequence.n_cached)

    # ---- starting and ending ---------------------------------------------------------------

    def _start(self, sequence: Sequence, place: Place) -> None:
        assert self._context is not None and self._memory is not None
        closest = self._memory.closest(sequence.reusable)
        sequence.lane = place.lane
        self._running.append(sequence)
        sequence.prompt_logprobs.clear()  # they come again with the tokens
        sequence.n_cached = self._memory.begin(place, sequence.reusable)
        sequence.marks = self._memory.marks(sequence.prompt, sequence.n_cached, closest)
        if sequence.chain is not None:  # it goes on where it was put back
            return
        sequence.chain = SamplerChain(
            self._model,
            sequence.params,
            seed=sequence.seed,
            n_ctx=self._context.n_ctx_seq,
            prompt=sequence.prompt,
        )
        self._events.append(sequence.started(closest, self._vocab))
        if sequence.params.max_tokens == 0 and not sequence.wants_prompt_logprobs:
            self._events += sequence.echoed()
            self._finish(sequence, "max_tokens")

    def _finish(self, sequence: Sequence, cause: Cause) -> None:
        self._events += sequence.finished(cause)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Gives up the lane, whose memory stays for prompts that begin alike, and the samplers."""
        self._leave_lane(sequence)
        sequence.close()

    def _leave_lane(self, sequence: Sequence) -> None:
        if sequence.lane is not None:
            assert self._memory is not None
            self._memory.leave(sequence.lane, self._meter.n_steps)
            sequence.lane = None
            self._running.remove(sequence)

    def _forget(self, request_id: int) -> None:
        for sequence in [s for s in self._running if s.request_id == request_id]:
            self._release(sequence)
        for sequence in [s for s in self._waiting if s.request_id == request_id]:
            self._waiting.remove(sequence)
            self._release(sequence)
        self._embedder.cancel(request_id)

    def _fail_running(self, error: Exception) -> None:
        """After a failed step nothing about memory is certain: all end, and it is cleared."""
        self._fail({sequence.request_id for sequence in self._running}, error)
        if self._memory is not None:
            self._memory.forget_all()

    def _fail(self, request_ids: set[int], error: Exception) -> None:
        known = isinstance(error, LlamaError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        for request_id in request_ids:
            self._forget(request_id)
            self._events.append(Failed(request_id, InternalError.__name__, message))

    def _report(self) -> None:
        """Says what the engine is doing, now and then, and when there is nothing left to do."""
        now = time.monotonic()
        if self._memory is None or (now - self._reported_s < REPORT_S and not self._is_idle()):
            return
        self._reported_s = now
        n_used, n_idle = self._memory.n_cells()
        state = EngineState(
            n_running=len(self._running),
            n_waiting=len(self._waiting),
            n_cells=self._memory.n_max,
            n_cells_used=n_used,
            n_cells_idle=n_idle,
            n_bytes_parked=self._memory.n_bytes_parked,
            n_steps=self._meter.n_steps,
            step_s=self._meter.step_s,
            steps_within=tuple(self._meter.steps_within),
        )
        self._events.append(state)

    def _flush(self) -> None:
        if self._events:
            self._emit(self._events)
            self._events = []

    # ---- one step --------------------------------------------------------------------------

    def _build_batch(self) -> list[_Piece]:
        """Those who generate first, one token each; then prompts, within the budget.

        Changes nothing but the batch, so that it can be built again when memory is short.
        """
        self._batch.clear()
        generating = [s for s in self._running if s.n_pending == 1]
        reading = [s for s in self._running if s.n_pending > 1]
        pieces = [self._add(sequence, 1) for sequence in generating[: self._batch.n_free]]
        n_budget = self._prompt_budget(len(pieces)) if generating else self._batch.n_max
        for sequence in reading:
            n = min(sequence.n_next, n_budget, self._batch.n_free)
            if sequence.wants_prompt_logprobs:
                n = min(n, MAX_OUTPUT_PIECE)
            if n > 0:
                pieces.append(self._add(sequence, n))
                n_budget -= n
        return pieces

    def _add(self, sequence: Sequence, n_tokens: int) -> _Piece:
        assert sequence.lane is not None
        lane, begin = sequence.lane, len(sequence.lane.tokens)
        ends = n_tokens == sequence.n_pending
        all_outputs = sequence.wants_prompt_logprobs
        if n_tokens == 1:
            output = ends or all_outputs
            last = self._batch.add(sequence.tokens[begin], begin, lane.seq_id, output)
        else:
            tokens = sequence.tokens[begin : begin + n_tokens]
            last = self._batch.extend(tokens, begin, lane.seq_id, ends, all_outputs)
        return _Piece(sequence, n_tokens, last)

    def _prompt_budget(self, n_generating: int) -> int:
        """Tokens of prompts in a step, so that it takes its time, in whole blocks of rows."""
        n_fitting = round(self._meter.prompt_rate * self._prefill_budget_s / ROW_BLOCK)
        n_least = math.ceil(n_generating / ROW_BLOCK) + 1  # however slow the machine
        return max(n_fitting, n_least) * ROW_BLOCK - n_generating

    def _decode(self, pieces: list[_Piece]) -> bool:
        """Runs the batch, with as many threads as pay. False: memory has no room for it."""
        assert self._context is not None
        n_tokens = sum(piece.n_tokens for piece in pieces)
        reads = n_tokens > len(pieces)
        if self._governor is not None:
            n_threads = self._governor.choose(n_tokens, reads=reads)
            if n_threads != self._n_threads:
                self._context.set_n_threads(n_threads)
                self._n_threads = n_threads
        began_s = time.monotonic()
        if not self._context.decode(self._batch):
            return False
        elapsed_s = time.monotonic() - began_s
        if self._governor is not None:
            self._governor.note(n_tokens, elapsed_s, reads=reads)
        self._meter.note(n_tokens, elapsed_s)
        return True

    def _make_room(self) -> None:
        """Memory is full: idle prefixes go first, then the youngest waits again, then it ends."""
        assert self._memory is not None
        if self._memory.evict():
            return
        youngest = self._running[-1]
        if len(self._running) == 1:
            self._finish(youngest, "context_full")
            return
        self._leave_lane(youngest)
        self._waiting.appendleft(youngest)

    def _account(self, piece: _Piece) -> None:
        """Notes what memory holds now; samples the next token when nothing is pending."""
        sequence = piece.sequence
        assert sequence.lane is not None and self._memory is not None
        begin = len(sequence.lane.tokens)
        sequence.lane.tokens += sequence.tokens[begin : begin + piece.n_tokens]
        self._note_read(sequence)
        if sequence.wants_prompt_logprobs and begin < len(sequence.prompt):
            self._note_prompt_logprobs(sequence, begin, piece)
        if sequence.n_pending == 0:
            self._sample(sequence, piece.last_index)
        else:
            self._events.append(sequence.reading())

    def _sample(self, sequence: Sequence, index: int) -> None:
        if sequence.n_completion == 0:
            sequence.end_s = time.monotonic() + self._max_s
            self._events += sequence.echoed()
            if sequence.params.max_tokens == 0:
                self._finish(sequence, "max_tokens")
                return
        assert sequence.chain is not None and self._context is not None
        self._context.check_numbers(index)
        token = sequence.chain.sample(self._context, index, sequence.awake_grammar)
        sequence.tokens.append(token)
        sequence.n_completion += 1
        if self._vocab.ends_generation(token):
            self._finish(sequence, "end_token")
            return
        wanted = sequence.params.n_logprobs
        logprob = None if wanted is None else self._logprob(wanted, token, index)
        piece = self._vocab.piece(token, special=sequence.piece_is_text(token))
        self._events += sequence.extended(piece, logprob)
        cause = sequence.cause_to_end(self._context.n_ctx_seq)
        if cause is not None:
            self._finish(sequence, cause)

    def _note_prompt_logprobs(self, sequence: Sequence, begin: int, piece: _Piece) -> None:
        """The probability of each prompt token, found at the logits of the token before it."""
        assert sequence.params.n_logprobs is not None
        if begin == 0:
            first = self._vocab.piece(sequence.prompt[0], special=True)
            # A beginning that the tokenizer put there is no part of the client's text.
            is_theirs = (sequence.echo or "").encode().startswith(first)
            sequence.prompt_logprobs.append(TokenLogprob(first if is_theirs else b"", None, ()))
        first_index = piece.last_index - piece.n_tokens + 1
        following = sequence.prompt[begin + 1 : begin + 1 + piece.n_tokens]
        for i, token in enumerate(following, first_index):
            entry = self._logprob(sequence.params.n_logprobs, token, i)
            sequence.prompt_logprobs.append(entry)

    def _logprob(self, n_top: int, token: int, index: int) -> TokenLogprob:
        assert self._context is not None
        logprob, top = self._context.logprobs(index, token, n_top)
        piece = self._vocab.piece
        alternatives = tuple((piece(t, special=True), value) for t, value in top)
        return TokenLogprob(piece(token, special=True), logprob, alternatives)
