"""The loop: admit, batch, decode, sample, emit. Continuous batching in one thread.

Every sequence has `tokens`, its prompt and what was sampled so far, and a lane of the
context's memory that holds a beginning of them. What memory lacks is *pending*. One step of
the loop takes pending tokens of all running sequences into one batch, decodes it, and where a
sequence has nothing pending any more, samples its next token, which is then pending. So
reading a prompt and generating are the same thing with different amounts pending, a new
request joins at the next step, and a sequence that lost its memory simply has all of its
tokens pending again.

An error belongs to the sequence that was at work: its request fails, and no other. Only a decode
is everybody's. When one fails, each of its sequences in turn reads its tokens again, alone and in
memory that is new: whose decode fails then is the one at fault.

`submit`, `cancel` and `stop` may be called from any thread; all else belongs to the engine
thread, the only one that touches the context. Knows no templates, no frames, no HTTP.
"""

import math
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lmlite.messages import Cause, EngineState, ReplyEvent
from lmlite.worker.batch import Batcher, Piece
from lmlite.worker.embedder import Embedder, Input, failed
from lmlite.worker.llama.model import Context, Model
from lmlite.worker.llama.samplers import SamplerChain
from lmlite.worker.logprobs import Logprobs
from lmlite.worker.media import MediaEncoder
from lmlite.worker.memory.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.memory.lanes import Place
from lmlite.worker.memory.memory import Memory
from lmlite.worker.meter import Meter
from lmlite.worker.sequence import Sequence
from lmlite.worker.threads import ThreadGovernor

REPORT_S = 1.0  # between two reports of what the engine is doing


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
        eye: MediaEncoder | None = None,
    ) -> None:
        """`context` is None for a model that cannot generate.

        `emit` is called once per step. If it raises, it has sent none of the events.
        Without a governor the context's own number of threads holds.
        """
        self._model, self._vocab = model, model.vocab
        self._context = context
        self._memory = Memory(model, context, tuple(checkpoints), parked) if context else None
        self._governor = governor
        self._embedder = embedder
        self._eye = eye
        self._emit = emit
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()  # in order of arrival
        self._running: list[Sequence] = []  # in order of admission
        self._on_trial: Sequence | None = None
        self._n_parallel = n_parallel
        self._max_s = max_s
        self._events: list[ReplyEvent | EngineState] = []  # of this step
        self._meter = Meter()
        if context is not None:
            self._batcher = Batcher(context, self._meter, prefill_budget_s, governor)
            self._logprobs = Logprobs(context, model.vocab)
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
            except Exception as err:  # no sequence's own: whatever it was, the loop lives on
                self._fail_running(err)
            self._events += self._embedder.step()
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
                with self._blame(command):
                    self._plan(command)
                self._release(command)
            else:
                self._waiting.append(command)
        return True

    def _plan(self, sequence: Sequence) -> None:
        """Tells what would happen, and lets it be."""
        assert self._memory is not None
        n_cached = self._memory.n_held(sequence.reusable)
        self._events.append(sequence.planned(n_cached, self._vocab))

    def _is_idle(self) -> bool:
        return not (self._waiting or self._running or self._embedder.has_work)

    def _admit(self) -> None:
        """Gives waiting sequences a lane each, oldest first, while places and memory last.

        One that begins with what another is reading just now waits until that is read. All wait
        while there is a trial: what a checkpoint brings is not new.
        """
        if self._suspects:
            return
        for sequence in list(self._waiting):
            if len(self._running) >= self._n_parallel:
                return
            if sequence not in self._waiting:  # another choice of its request has failed
                continue
            with self._blame(sequence):
                if not self._admit_one(sequence):
                    return

    def _admit_one(self, sequence: Sequence) -> bool:
        """False: there is no room for it, nor for any behind it."""
        assert self._memory is not None
        place = self._memory.place(sequence.reusable)
        if place is None or not self._has_room(sequence, place):
            return False
        reading = [(s.tokens, s.checkpoints_at) for s in self._running if s.n_pending > 1]
        if not self._memory.is_coming(sequence.reusable, place.n_tokens, reading):
            self._waiting.remove(sequence)
            self._start(sequence, place)
        return True

    def _tell_waiting(self) -> None:
        for n_ahead, sequence in enumerate(self._waiting):
            self._events += sequence.queued(n_ahead)

    def _has_room(self, sequence: Sequence, place: Place) -> bool:
        """Whether memory can hold it beside those that run. Idle prefixes do not count."""
        assert self._memory is not None
        if not self._running:
            return True
        n_pending = sum(running.n_pending for running in self._running)
        return self._memory.has_room(place, sequence.tokens, n_pending)

    def _step(self) -> None:
        """Decodes one batch of what is pending, and samples where nothing is any more."""
        if not self._running:
            return
        self._meter.n_steps += 1
        sequences = self._next_sequences()
        self._look(sequences)
        try:
            pieces = self._decode_next(sequences)
        except Exception as err:
            self._start_over(sequences, err)
            return
        for piece in pieces:
            if piece.sequence.lane is None:  # another choice of its request has failed
                continue
            with self._blame(piece.sequence):
                self._account(piece)

    def _next_sequences(self) -> list[Sequence]:
        """Those who take part in this step: all that run, or one on trial, whose memory is new."""
        suspects = self._suspects
        if not suspects:
            self._on_trial = None
            return list(self._running)
        if self._on_trial is not suspects[0]:
            self._on_trial = suspects[0]
            self._clear_memory()
        return suspects[:1]

    @property
    def _suspects(self) -> list[Sequence]:
        return [sequence for sequence in self._running if sequence.suspect]

    def _look(self, sequences: list[Sequence]) -> None:
        """Sees one picture at most, so that those who generate wait for no more than one."""
        if (sequence := next((s for s in sequences if s.next_chunk), None)) is not None:
            with self._blame(sequence):
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
        if sequence.checkpoints_at and sequence.checkpoints_at[0] == len(sequence.lane.tokens):
            self._memory.save(sequence.lane, sequence.checkpoints_at.pop(0) - sequence.n_cached)

    # ---- starting and ending ---------------------------------------------------------------

    def _start(self, sequence: Sequence, place: Place) -> None:
        assert self._context is not None and self._memory is not None
        sequence.lane = place.lane
        self._running.append(sequence)
        closest = self._memory.closest(sequence.reusable)
        sequence.prompt_logprobs.clear()  # they come again with the tokens
        sequence.n_cached = self._memory.assign(place, sequence.reusable)
        sequence.checkpoints_at = self._memory.checkpoints_at(
            sequence.prompt, sequence.n_cached, closest
        )
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
        self._close(sequence)

    def _close(self, sequence: Sequence) -> None:
        try:
            sequence.close()
        except Exception:  # it has ended: there is nobody to be told
            traceback.print_exc()

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

    @contextmanager
    def _blame(self, sequence: Sequence) -> Iterator[None]:
        """An error in here is the sequence's own: its request fails, and no other."""
        try:
            yield
        except Exception as err:
            lane = sequence.lane
            self._fail(sequence.request_id, err)
            self._release(sequence)  # an admission that failed has left it in no list
            if lane is not None:
                assert self._memory is not None
                self._memory.empty(lane)  # what it holds is not certain

    def _start_over(self, sequences: list[Sequence], error: Exception) -> None:
        """After a failed decode, which may be the fault of any that took part, or left by others.

        So each goes on trial: alone, in memory that is new, until its next token is sampled.
        """
        if sequences == [self._on_trial]:
            self._fail(sequences[0].request_id, error)
        for sequence in sequences:
            sequence.suspect = True
        self._on_trial = None
        self._clear_memory()

    def _clear_memory(self) -> None:
        """After a failed step nothing about it is certain: all that run read their tokens again."""
        assert self._memory is not None
        for sequence in self._running:
            sequence.lose_memory()
        self._memory.forget_all()

    def _fail_running(self, error: Exception) -> None:
        for request_id in {sequence.request_id for sequence in self._running}:
            self._fail(request_id, error)
        if self._memory is not None:
            self._clear_memory()

    def _fail(self, request_id: int, error: Exception) -> None:
        self._forget(request_id)
        self._events.append(failed(request_id, error))

    def _report(self) -> None:
        """Says what the engine is doing, now and then, and when there is nothing left to do."""
        now = time.monotonic()
        if self._memory is None or (now - self._reported_s < REPORT_S and not self._is_idle()):
            return
        self._reported_s = now
        counts = len(self._running), len(self._waiting)
        self._events.append(self._memory.state(*counts, self._meter))

    def _flush(self) -> None:
        events, self._events = self._events, []
        if not events:
            return
        try:
            self._emit(events)
        except Exception:
            self._flush_each(events)

    def _flush_each(self, events: list[ReplyEvent | EngineState]) -> None:
        """Sends the events one by one: a request ends with the first of its own that cannot be."""
        ended = set()
        for event in events:
            if isinstance(event, EngineState) or event.id in ended:
                continue
            try:
                self._emit([event])
            except Exception as err:
                traceback.print_exc()
                ended.add(event.id)
                self._fail(event.id, err)
        self._reported_s = -math.inf  # what was reported has changed
        self._report()
        events, self._events = self._events, []
        self._emit(events)

    # ---- one step --------------------------------------------------------------------------

    def _decode_next(self, sequences: list[Sequence]) -> list[Piece]:
        """Runs one batch of what is pending of these, and makes room for it before."""
        pieces = self._batcher.build(sequences)
        while pieces and not self._batcher.decode(pieces):
            self._make_room()
            pieces = self._batcher.build([s for s in sequences if s.lane is not None])
        for sequence, begin, n_tokens in ((p.sequence, p.begin, p.n_tokens) for p in pieces):
            assert sequence.lane is not None
            sequence.lane.tokens += sequence.tokens[begin : begin + n_tokens]
        return pieces

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

    def _account(self, piece: Piece) -> None:
        """Tells how much is read; samples the next token when nothing is pending."""
        sequence = piece.sequence
        self._note_read(sequence)
        if sequence.wants_prompt_logprobs and piece.begin < len(sequence.prompt):
            sequence.prompt_logprobs += self._logprobs.of_prompt(piece)
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
        banned = () if sequence.may_end else self._vocab.end_tokens
        token = sequence.chain.sample(self._context, index, sequence.active_grammar, banned)
        sequence.suspect = False
        sequence.tokens.append(token)
        sequence.n_completion += 1
        if self._vocab.ends_generation(token):
            self._finish(sequence, "end_token")
            return
        wanted = sequence.params.n_logprobs
        logprob = None if wanted is None else self._logprobs.of(token, index, wanted)
        piece = self._vocab.piece(token, special=sequence.piece_is_text(token))
        self._events += sequence.extended(piece, logprob)
        cause = sequence.cause_to_end(self._context.n_ctx_seq)
        if cause is not None:
            self._finish(sequence, cause)
