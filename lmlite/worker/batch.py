"""One batch: what is pending of some sequences, and its decode.

Who generates comes first, one token each. Prompts share what is left, cut so that a step takes no
longer than its budget while somebody is being answered. Belongs to the engine thread.
"""

import math
import time
from dataclasses import dataclass

from lmlite.contexts import MAX_OUTPUT_PIECE
from lmlite.worker.llama.model import Batch, Context
from lmlite.worker.meter import Meter
from lmlite.worker.sequence import Sequence
from lmlite.worker.threads import ThreadGovernor

ROW_BLOCK = 16  # tokens that matrix products on a CPU take at once: a part costs nearly as much


@dataclass(frozen=True)
class Piece:
    """What one sequence has in the batch of this step."""

    sequence: Sequence
    begin: int  # tokens that memory held before
    n_tokens: int
    last_index: int  # batch index of its last token
    has_logits: bool  # of that token


class Batcher:
    """The batch of a context, filled anew for each step."""

    def __init__(
        self, context: Context, meter: Meter, budget_s: float, governor: ThreadGovernor | None
    ) -> None:
        """`budget_s` bounds a step that reads prompts beside somebody who generates."""
        self._context, self._meter, self._budget_s = context, meter, budget_s
        self._governor = governor
        self._n_threads = governor.n_max if governor else 0  # of the last step
        self._batch = Batch(context.n_batch)

    def build(self, sequences: list[Sequence]) -> list[Piece]:
        """Those who generate first, one token each; then prompts, within the budget.

        Changes nothing but the batch, so that it can be built again when memory is short.
        """
        self._batch.clear()
        generating = [s for s in sequences if s.n_pending == 1]
        reading = [s for s in sequences if s.n_pending > 1]
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

    def _add(self, sequence: Sequence, n_tokens: int) -> Piece:
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
        return Piece(sequence, begin, n_tokens, last, ends or all_outputs)

    def _prompt_budget(self, n_generating: int) -> int:
        """Tokens of prompts in a step, so that it takes its time, in whole blocks of rows."""
        n_fitting = round(self._meter.prompt_rate * self._budget_s / ROW_BLOCK)
        n_least = math.ceil(n_generating / ROW_BLOCK) + 1  # however slow the machine
        return max(n_fitting, n_least) * ROW_BLOCK - n_generating

    def decode(self, pieces: list[Piece]) -> bool:
        """Runs the batch, with as many threads as pay. False: memory has no room for it.

        Numbers that are none fail it as a whole. They spread: where rows share cells of memory,
        one sequence's may be in another's row.
        """
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
        for piece in pieces:
            if piece.has_logits:
                self._context.check_numbers(piece.last_index)
        elapsed_s = time.monotonic() - began_s
        if self._governor is not None:
            self._governor.note(n_tokens, elapsed_s, reads=reads)
        self._meter.note(n_tokens, elapsed_s)
        return True
