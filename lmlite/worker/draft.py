"""Drafts: a small model proposes the next tokens, and the large one checks them in one step.

A step with a few tokens may take hardly longer than a step with one. The large model still samples
each token from its own logits; a draft only lets it have the logits of several tokens at once. So a
draft changes when a text comes, and not the text. Whether it pays depends on both models and on the
machine, so that is measured.

Belongs to the engine thread.
"""

import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from lmlite.messages import SamplingParams
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import SamplerChain
from lmlite.worker.llama.vocab import Vocab
from lmlite.worker.memory.lanes import Lane, n_common
from lmlite.worker.memory.memory import Memory
from lmlite.worker.sequence import Sequence

MOST_TOGETHER = 16  # tokens in a step that checks drafts; with more, each costs as much as alone
MAX_PAUSE = 32  # steps without a draft, after several drafts that were wrong from the first token
SHARED_READ = 64  # prompt tokens that the draft model reads at once while others generate
MAX_EXTRA = 128  # tokens that only one of two vocabularies has, unused ones at the end
TRIAL, PERIOD = 8, 256  # steps with drafts, then as many without, of each so many
N_COSTS = 32  # last steps of a kind that count


@dataclass(slots=True)
class Pay:
    """Whether tokens come sooner with drafts than without, for one number of sequences."""

    n_steps: int = 0
    # (seconds, tokens) of the last steps, without drafts and with them
    costs: dict[bool, deque[tuple[float, int]]] = field(
        default_factory=lambda: {kind: deque(maxlen=N_COSTS) for kind in (False, True)}
    )

    def wants(self) -> bool:
        """Whether the next step is one with drafts: on trial, or because they pay."""
        if (place := self.n_steps % PERIOD) < 2 * TRIAL:
            return place < TRIAL
        return self._cost(True) < self._cost(False)

    def _cost(self, kind: bool) -> float:
        """Seconds per token."""
        costs = self.costs[kind]
        return sum(elapsed_s for elapsed_s, _ in costs) / max(1, sum(n for _, n in costs))


@dataclass(slots=True)
class _Step:
    """A step that has begun."""

    running: Items[Sequence]
    n_tokens: int  # of all that run
    began_s: float
    drafts: bool
    switched: bool  # the step before was of the other kind; then the draft model has to catch up


@dataclass(slots=True)
class _Track:
    """How drafting goes for one sequence."""

    lane: Lane  # in the draft model's memory
    pause: int = 0  # steps to wait after the next draft that is wrong from its first token
    n_waiting: int = 0  # steps left to wait now


class Drafter:
    """Proposes the next tokens of sequences, with a model and a context of its own."""

    def __init__(
        self,
        model: Model,
        context: Context,
        target: Context,
        n_draft: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Proposes up to n_draft tokens per sequence, which `target` will check."""
        self._clock, self._step = clock, _Step((), 0, 0.0, drafts=False, switched=True)
        self._pay: defaultdict[int, Pay] = defaultdict(Pay)  # by the number of sequences
        self._model, self._context, self._n_draft = model, context, n_draft
        self._n_together = min(MOST_TOGETHER, target.n_batch)
        self._n_ctx = min(context.n_ctx_seq, target.n_ctx_seq)
        self._n_vocab = min(context.n_vocab, target.n_vocab)
        self._memory, self._batch = Memory(model, context), Batch(context.n_batch)
        greedy = SamplingParams(temperature=0)
        self._chain = SamplerChain(model, greedy, seed=0, n_ctx=self._n_ctx, prompt=())
        self._tracks: dict[Sequence, _Track] = {}
        self.has_failed = False
        self.n_drafted = self.n_accepted = 0  # tokens

    def close(self) -> None:
        """Frees the sampler."""
        self._chain.close()

    def draft(self, running: Items[Sequence]) -> None:
        """Sets `draft` of each sequence, to [] where it would not pay. Never raises.

        None pays while a prompt is read, or while so many generate that they fill a step.
        """
        for sequence in running:
            sequence.draft = []
        for sequence in self._tracks.keys() - set(running):
            self._memory.leave(self._tracks.pop(sequence).lane)
        if self.has_failed or any(sequence.n_pending != 1 for sequence in running):
            self._step.running = ()
            return
        if not self._begins_with_drafts(running):
            return
        try:
            lengths = {sequence: self._length(sequence, len(running)) for sequence in running}
            self._propose({s: n for s, n in lengths.items() if n > 0}, len(running) == 1)
        except Exception:  # answers go on without drafts
            traceback.print_exc()
            self.has_failed = True
            for sequence in running:
                sequence.draft = []

    def _begins_with_drafts(self, running: Items[Sequence]) -> bool:
        """Measures the step before, and decides about this one."""
        before, pay, now_s = self._step, self._pay[len(running)], self._clock()
        n_tokens = sum(len(sequence.tokens) for sequence in running)
        if before.running == running:
            pay.n_steps += 1
            if not before.switched:
                cost = now_s - before.began_s, n_tokens - before.n_tokens
                pay.costs[before.drafts].append(cost)
        drafts = pay.wants()
        self._step = _Step(running, n_tokens, now_s, drafts, switched=drafts != before.drafts)
        return drafts

    def note(self, sequence: Sequence, n_drafted: int, n_accepted: int) -> None:
        """Counts a checked draft. Wrong ones make the next ones rarer."""
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        if (track := self._tracks.get(sequence)) is not None:
            track.pause = 0 if n_accepted else min(2 * track.pause + 1, MAX_PAUSE)
            track.n_waiting = track.pause

    def _length(self, sequence: Sequence, n_running: int) -> int:
        """Most tokens to draft for a sequence now; 0 or less: none."""
        if sequence.suspect or sequence.chunks:  # the draft model sees no pictures
            return 0
        track = self._tracks.get(sequence)
        if track is not None and track.n_waiting:
            track.n_waiting -= 1
            return 0
        n_left = self._n_ctx - len(sequence.tokens)
        if sequence.params.max_tokens is not None:
            n_left = min(n_left, sequence.params.max_tokens - sequence.n_completion)
        # The step that checks a draft samples one token more than the draft has.
        return min(self._n_draft, n_left - 1, self._n_together // n_running - 1)

    def _propose(self, lengths: dict[Sequence, int], is_alone: bool) -> None:
        """Drafts for all these sequences together, a token of each per decode."""
        for sequence in lengths:
            self._follow(sequence)
        n_most = self._batch.n_max if is_alone else SHARED_READ
        while lengths:
            rows = self._read(list(lengths), n_most)
            # Those without a row still read their prompts, and continue in the next step.
            lengths = {
                sequence: lengths[sequence]
                for sequence, index in rows.items()
                if self._extend(sequence, index) and len(sequence.draft) < lengths[sequence]
            }

    def _extend(self, sequence: Sequence, index: int) -> bool:
        """Appends the likeliest token to a draft. False: it ends the text, so nothing follows."""
        token = self._chain.sample(self._context, index)
        if token >= self._n_vocab or self._model.vocab.ends_generation(token):
            return False
        sequence.draft.append(token)
        return True

    def _follow(self, sequence: Sequence) -> None:
        """Gives the sequence a lane, which then holds nothing but a beginning of its tokens."""
        track, tokens = self._tracks.get(sequence), sequence.tokens
        if track is None:
            place = self._memory.place(tokens)
            assert place is not None  # there are as many lanes as for the large model
            self._memory.assign(place, tokens)
            self._tracks[sequence] = _Track(place.lane)
        else:
            n_held = min(n_common(track.lane.tokens, tokens), len(tokens) - 1)
            self._memory.cut(track.lane, n_held)

    def _read(self, sequences: Items[Sequence], n_most: int) -> dict[Sequence, int]:
        """Decodes up to n_most pending tokens; the batch index of each sequence's next token."""
        self._batch.clear()
        rows, read = {}, []
        for sequence in sequences:
            lane = self._tracks[sequence].lane
            n_held = len(lane.tokens)
            n_of_draft = max(0, n_held - len(sequence.tokens))
            pending = sequence.tokens[n_held:] + sequence.draft[n_of_draft:]
            tokens = pending[: n_most - len(self._batch)]
            if tokens and max(tokens) < self._n_vocab:
                is_whole = len(tokens) == len(pending)
                index = self._batch.extend(tokens, n_held, lane.seq_id, is_whole)
                read.append((lane, tokens))
                if is_whole:
                    rows[sequence] = index
        while read and not self._context.decode(self._batch):
            if not self._memory.evict():
                return {}
        for lane, tokens in read:
            lane.tokens += tokens
        return rows


def check_vocabulary(draft: Vocab, target: Vocab, name: str) -> None:
    """Raises LlamaError if the draft model's tokens mean other texts than the large model's."""
    n_tokens = min(draft.n_tokens, target.n_tokens)
    differs = max(draft.n_tokens, target.n_tokens) - n_tokens > MAX_EXTRA or any(
        draft.piece(token, special=True) != target.piece(token, special=True)
        for token in range(n_tokens)
    )
    if differs:
        raise LlamaError(
            f"{name} cannot draft for this model: it has another vocabulary "
            f"({draft.n_tokens:,} tokens, the model {target.n_tokens:,}); use a smaller model of "
            "the same family as --draft"
        )
