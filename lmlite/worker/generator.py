"""Continuous batching: completions of many sequences, one batch per step.

Every sequence has `tokens`: its prompt and the tokens sampled so far. A lane of the context's
memory holds the first of these tokens; the others are *pending*. One step takes pending tokens of
all running sequences into one batch and decodes it. If a sequence then has no pending tokens, its
next token is sampled, which is pending in the next step. So reading a prompt and generating are the
same thing with different amounts pending, a new request joins at the next step, and a sequence that
lost its memory simply has all of its tokens pending again.

Belongs to the engine thread. Knows nothing of templates, frames or HTTP.
"""

import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from lmlite.messages import Cause, EngineState, ReplyEvent, Scales
from lmlite.worker.batch import Piece, compose
from lmlite.worker.decoder import Decoder
from lmlite.worker.draft import Drafter
from lmlite.worker.failures import failed
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import SamplerChain
from lmlite.worker.media import MediaEncoder
from lmlite.worker.memory.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.memory.lanes import Place
from lmlite.worker.memory.memory import Memory
from lmlite.worker.sequence import Sequence
from lmlite.worker.threads import ThreadGovernor


class Generator:
    """Runs sequences on one context."""

    def __init__(
        self,
        model: Model,
        context: Context,
        *,
        n_parallel: int,
        prefill_budget_s: float,
        max_s: float = 600.0,
        checkpoints: tuple[Checkpoints, ...] = (),
        parked: ParkedLanes | None = None,
        governor: ThreadGovernor | None = None,
        encoder: MediaEncoder | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """At most n_parallel run at once, each for at most `max_s` from its first token.

        `prefill_budget_s` bounds a step that reads prompts while other sequences generate.
        """
        self._model, self._vocab, self._context = model, model.vocab, context
        self.memory = Memory(model, context, checkpoints, parked)
        self._decoder = Decoder(context, model.vocab, governor)
        self._encoder, self._drafter = encoder, drafter
        self._n_parallel, self._budget_s, self._max_s = n_parallel, prefill_budget_s, max_s
        self.waiting: deque[Sequence] = deque()  # in order of arrival
        self.running: list[Sequence] = []  # in order of admission
        self._on_trial: Sequence | None = None
        self._scales: Scales = ()  # of the adapters in the last step
        self._events: list[ReplyEvent] = []  # since the last step

    # ---- called by the loop ----------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence) -> None:
        """Queues a sequence. A dry run is answered at once."""
        if sequence.dry_run:
            with self._blame(sequence):
                n_cached = self.memory.n_held(sequence.reusable, sequence.scales)
                self._events.append(sequence.planned(n_cached, self._vocab))
            self._release(sequence)
        else:
            self.waiting.append(sequence)

    def cancel(self, request_id: int) -> None:
        """Drops a request's sequences, waiting or running."""
        for sequence in [*self.running, *self.waiting]:
            if sequence.request_id == request_id:
                self._release(sequence)

    def step(self) -> list[ReplyEvent]:
        """Admits sequences, decodes one batch, and samples. Returns the events for clients."""
        try:
            self._admit()
            for n_ahead, sequence in enumerate(self.waiting):
                self._events += sequence.queued(n_ahead)
            if self.running:
                self._advance(self._participants())
        except Exception as err:  # the failure is not one sequence's, so all that run fail
            for request_id in {sequence.request_id for sequence in self.running}:
                self._fail(request_id, err)
            self._clear_memory()
        if not self.has_work:
            self._decoder.pause()
        events, self._events = self._events, []
        return events

    def state(self) -> EngineState:
        """Counts of sequences, memory and steps, for the server."""
        n_used, n_idle = self.memory.n_cells()
        return EngineState(
            n_running=len(self.running),
            n_waiting=len(self.waiting),
            n_cells=self.memory.n_max,
            n_cells_used=n_used,
            n_cells_idle=n_idle,
            n_bytes_parked=self.memory.n_bytes_parked,
            n_steps=self._decoder.n_steps,
            step_s=self._decoder.step_s,
            steps_within=tuple(self._decoder.steps_within),
            n_drafted=self._drafter.n_drafted if self._drafter else 0,
            n_accepted=self._drafter.n_accepted if self._drafter else 0,
        )

    # ---- admission -------------------------------------------------------------------------

    def _admit(self) -> None:
        """Gives waiting sequences a lane each, oldest first, while places and memory last.

        A sequence keeps waiting while another one is reading the same beginning. During a trial
        no sequence is admitted, because a restored checkpoint is not new memory.
        """
        for sequence in list(self.waiting):
            if len(self.running) >= self._n_parallel or self._suspects:
                return
            if sequence not in self.waiting:  # another choice of its request has failed
                continue
            with self._blame(sequence):
                place = self.memory.place(sequence.reusable, sequence.scales)
                n_pending = sum(running.n_pending for running in self.running)
                if not (place and self.memory.has_room(place, sequence.tokens, n_pending)):
                    return
                reading = [
                    (s.tokens, s.checkpoints_at)
                    for s in self.running
                    if s.n_pending > 1 and s.scales == sequence.scales
                ]
                if not self.memory.is_coming(sequence.reusable, place.n_tokens, reading):
                    self.waiting.remove(sequence)
                    self._start(sequence, place)

    def _start(self, sequence: Sequence, place: Place) -> None:
        sequence.lane = place.lane
        self.running.append(sequence)
        closest = self.memory.closest(sequence.reusable, sequence.scales)
        sequence.lose_memory()
        n_cached = sequence.n_cached = self.memory.assign(place, sequence.reusable, sequence.scales)
        sequence.checkpoints_at = self.memory.checkpoints_at(sequence.prompt, n_cached, closest)
        if sequence.chain is not None:  # it ran before, and continues
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

    # ---- one step --------------------------------------------------------------------------

    def _advance(self, sequences: list[Sequence]) -> None:
        """Reads a picture and one batch of pending tokens; samples for sequences without more."""
        self._context.set_adapters(sequences[0].scales)
        self._read_picture(sequences)
        try:
            pieces = self._decode(sequences)
        except Exception as err:
            self._start_over(sequences, err)
            return
        for piece in pieces:
            sequence = piece.sequence
            if sequence.lane is None:  # another choice of its request has failed
                continue
            with self._blame(sequence):
                self._note_read(sequence)
                if sequence.wants_prompt_logprobs:
                    sequence.prompt_logprobs += self._decoder.prompt_logprobs(piece)
                if piece.ends:
                    self._sample_all(piece)
                else:
                    self._events.append(sequence.reading())

    def _decode(self, sequences: list[Sequence]) -> list[Piece]:
        """Decodes one batch of pending tokens and drafts, and makes room if memory is full."""
        if self._drafter is not None:
            self._drafter.draft([sequence for sequence in sequences if sequence.lane is not None])
        others_wait = any(s.n_pending <= 1 for s in self.running if s not in sequences)
        while True:
            remaining = [sequence for sequence in sequences if sequence.lane is not None]
            n_in_time = self._decoder.prompt_rate * self._budget_s
            pieces = compose(remaining, self._context.n_batch, n_in_time, others_wait=others_wait)
            if not pieces or self._decoder.decode(pieces):
                break
            if any(piece.n_draft for piece in pieces):  # no sequence must leave for a draft
                for sequence in remaining:
                    sequence.draft = []
            else:
                self._make_room()
        for piece in pieces:
            assert piece.sequence.lane is not None
            piece.sequence.lane.tokens += piece.tokens
        return pieces

    def _make_room(self) -> None:
        """Evicts an idle prefix; else the youngest sequence waits again, or ends if alone."""
        if self.memory.evict():
            return
        youngest = self.running[-1]
        if len(self.running) == 1:
            self._finish(youngest, "context_full")
        else:
            self._leave_lane(youngest)
            self.waiting.appendleft(youngest)

    def _note_read(self, sequence: Sequence) -> None:
        """Makes a checkpoint, if the sequence has reached a place for one."""
        if sequence.checkpoints_at and sequence.checkpoints_at[0] == sequence.n_held:
            assert sequence.lane is not None
            self.memory.save(sequence.lane, sequence.checkpoints_at.pop(0) - sequence.n_cached)

    def _sample_all(self, piece: Piece) -> None:
        """Chooses the next token, and one more for each token of the draft that was right."""
        sequence, draft = piece.sequence, piece.sequence.draft
        sequence.draft = []
        sequence.n_drafted += len(draft)
        for n_accepted, drafted in enumerate([*draft, None]):
            sequence.n_accepted += n_accepted > 0
            self._sample(sequence, piece.last_index - len(draft) + n_accepted)
            if sequence.lane is None or sequence.tokens[-1] != drafted:
                break
        if self._drafter is not None and draft:
            self._drafter.note(sequence, len(draft), n_accepted)
            if sequence.lane is not None:
                self.memory.cut(sequence.lane, len(sequence.tokens) - 1)

    def _sample(self, sequence: Sequence, index: int) -> None:
        """Chooses the next token from the logits at a batch index."""
        if sequence.n_completion == 0:
            sequence.end_s = time.monotonic() + self._max_s
            self._events += sequence.echoed()
            if sequence.params.max_tokens == 0:
                self._finish(sequence, "max_tokens")
                return
        assert sequence.chain is not None
        banned = () if sequence.may_end else self._vocab.end_tokens
        token, grammar = sequence.forced_token(), sequence.active_grammar
        if token is None:
            token = sequence.chain.sample(self._context, index, grammar, banned)
        else:
            sequence.chain.take(token, grammar)
        sequence.suspect = False
        sequence.tokens.append(token)
        sequence.n_completion += 1
        if self._vocab.ends_generation(token):
            self._finish(sequence, "end_token")
            return
        n_top = sequence.params.n_logprobs
        logprob = None if n_top is None else self._decoder.logprob(token, index, n_top)
        piece = self._vocab.piece(token, special=token in sequence.preserved)
        self._events += sequence.extended(piece, logprob)
        cause = sequence.cause_to_end(self._context.n_ctx_seq)
        if cause is not None:
            self._finish(sequence, cause)

    def _read_picture(self, sequences: list[Sequence]) -> None:
        """Reads at most one picture per step, to limit the delay of generating sequences."""
        sequence = next((s for s in sequences if s.next_chunk), None)
        if sequence is None:
            return
        with self._blame(sequence):
            # It has no lane any more if it had to make room itself.
            while (lane := sequence.lane) is not None and (chunk := sequence.next_chunk):
                assert self._encoder is not None
                n_held = len(lane.tokens)
                if self._encoder.encode(self._context, chunk, n_held, lane.seq_id):
                    lane.tokens += sequence.tokens[n_held : n_held + chunk.n_positions]
                    self._note_read(sequence)
                    self._events.append(sequence.reading())
                    return
                self.memory.drop_end(lane)
                self._make_room()

    # ---- ends ------------------------------------------------------------------------------

    def _finish(self, sequence: Sequence, cause: Cause) -> None:
        self._events += sequence.finished(cause)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Ends a sequence in any phase. Its memory stays, for prompts with the same beginning."""
        self._leave_lane(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        try:
            sequence.close()
        except Exception:  # it has ended, so no client waits for an error
            traceback.print_exc()

    def _leave_lane(self, sequence: Sequence) -> None:
        if sequence.lane is not None:
            self.memory.leave(sequence.lane)
            sequence.lane = None
            self.running.remove(sequence)

    # ---- faults ----------------------------------------------------------------------------

    @contextmanager
    def _blame(self, sequence: Sequence) -> Iterator[None]:
        """An error in this block fails the sequence's request, and no other."""
        try:
            yield
        except Exception as err:
            lane = sequence.lane
            self._fail(sequence.request_id, err)
            self._release(sequence)  # if admission failed, no list has it, so `_fail` missed it
            if lane is not None:
                self.memory.empty(lane)  # its contents are uncertain

    def _fail(self, request_id: int, error: Exception) -> None:
        self.cancel(request_id)
        self._events.append(failed(request_id, error))

    def _start_over(self, sequences: list[Sequence], error: Exception) -> None:
        """Handles a failed decode, caused by a participant or by old contents of memory.

        Each participant goes on trial: alone, in new memory, until its next token is sampled. If
        its decode fails again, its request fails.
        """
        if sequences == [self._on_trial]:
            self._fail(sequences[0].request_id, error)
        for sequence in sequences:
            sequence.suspect = True
        self._on_trial = None
        self._clear_memory()

    def _participants(self) -> list[Sequence]:
        """The sequences of this step: those of one group, or one on trial in new memory."""
        suspects = self._suspects
        if not suspects:
            self._on_trial = None
            return self._next_group()
        if self._on_trial is not suspects[0]:
            self._on_trial = suspects[0]
            self._clear_memory()
        return suspects[:1]

    def _next_group(self) -> list[Sequence]:
        """The running sequences with the same adapters. Such groups take turns, a step each."""
        groups = list(dict.fromkeys(sequence.scales for sequence in self.running))
        last = groups.index(self._scales) if self._scales in groups else -1
        self._scales = groups[(last + 1) % len(groups)]
        return [sequence for sequence in self.running if sequence.scales == self._scales]

    @property
    def _suspects(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.suspect]

    def _clear_memory(self) -> None:
        """Empties memory: all running sequences read their tokens again."""
        for sequence in self.running:
            sequence.lose_memory()
        self.memory.forget_all()
