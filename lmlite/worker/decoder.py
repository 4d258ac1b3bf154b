"""Pieces -> memory and logits: the decode calls of a context, and the time that they take.

Belongs to the engine thread. Times are seconds.
"""

import time
from collections.abc import Iterator, Sequence

from lmlite.messages import STEP_BOUNDS_S, TokenLogprob
from lmlite.worker.batch import Piece
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.vocab import Vocab
from lmlite.worker.threads import ThreadGovernor

MIN_MEASURED = 32  # tokens; the speed of smaller steps is not measured: they take as long as 32


class Decoder:
    """A context with its batch, its number of threads, and counts of its steps."""

    def __init__(self, context: Context, vocab: Vocab, governor: ThreadGovernor | None) -> None:
        """Without a governor, the number of threads stays the same."""
        self.context = context
        self._vocab, self._governor = vocab, governor
        self._n_threads = governor.n_max if governor else 0  # in the last step
        self._batch = Batch(context.n_batch)
        self.n_steps = 0
        self.step_s = 0.0  # sum over all steps
        self.steps_within = [0] * len(STEP_BOUNDS_S)
        self.prompt_rate = 0.0  # tokens per second, a moving average; 0 until the first prompt

    def decode(self, pieces: Sequence[Piece]) -> bool:
        """Runs a batch of these pieces. False: memory is full. Raises LlamaError.

        One row of invalid numbers fails the whole batch. Sequences share cells, so invalid numbers
        in one sequence's row may come from a different sequence.
        """
        n_tokens = self._fill(pieces)
        reads = n_tokens > sum(1 + piece.n_draft for piece in pieces)
        self._set_threads(n_tokens, reads)
        began_s = time.monotonic()
        if not self.context.decode(self._batch):
            return False
        for piece in pieces:
            if piece.ends or piece.wants_all:
                for index in range(piece.last_index - piece.n_draft, piece.last_index + 1):
                    self.context.check_numbers(index)
        elapsed_s = time.monotonic() - began_s
        if self._governor is not None:
            self._governor.note(n_tokens, elapsed_s, reads=reads)
        self._count(n_tokens, elapsed_s)
        return True

    def pause(self) -> None:
        """Called when nothing is left to decode for now."""
        if self._governor is not None:
            self._governor.pause()

    def logprob(self, token: int, index: int, n_top: int) -> TokenLogprob:
        """A token's log-probability at a batch index, and the n_top best. Raises LlamaError."""
        logprob, top = self.context.logprobs(index, token, n_top)
        piece = self._vocab.piece
        alternatives = tuple((piece(t, special=True), value) for t, value in top)
        return TokenLogprob(piece(token, special=True), logprob, alternatives)

    def prompt_logprobs(self, piece: Piece) -> Iterator[TokenLogprob]:
        """Log-probabilities of prompt tokens from a piece: each token's row predicts the next."""
        sequence, n_top = piece.sequence, piece.sequence.params.n_logprobs or 0
        if piece.begin == 0:
            first = self._vocab.piece(sequence.prompt[0], special=True)
            # A BOS that the tokenizer added is not part of the client's text.
            is_theirs = (sequence.echo or "").encode().startswith(first)
            yield TokenLogprob(first if is_theirs else b"", None, ())
        n_tokens = len(piece.tokens)
        following = sequence.prompt[piece.begin + 1 : piece.begin + 1 + n_tokens]
        for index, token in enumerate(following, piece.last_index - n_tokens + 1):
            yield self.logprob(token, index, n_top)

    def _fill(self, pieces: Sequence[Piece]) -> int:
        """Fills the batch; returns its number of tokens."""
        batch = self._batch
        batch.clear()
        for piece in pieces:
            assert piece.sequence.lane is not None
            begin, seq_id = piece.begin, piece.sequence.lane.seq_id
            if len(piece.tokens) == 1:
                batch.add(piece.tokens[0], begin, seq_id, piece.ends or piece.wants_all)
            else:
                batch.extend(piece.tokens, begin, seq_id, piece.ends, piece.wants_all)
        return len(batch)

    def _set_threads(self, n_tokens: int, reads: bool) -> None:
        if self._governor is not None:
            n_threads = self._governor.choose(n_tokens, reads=reads)
            if n_threads != self._n_threads:
                self.context.set_n_threads(n_threads)
                self._n_threads = n_threads

    def _count(self, n_tokens: int, elapsed_s: float) -> None:
        self.n_steps += 1
        self.step_s += elapsed_s
        for i, bound_s in enumerate(STEP_BOUNDS_S):
            self.steps_within[i] += elapsed_s <= bound_s
        if n_tokens >= MIN_MEASURED:
            rate = n_tokens / max(elapsed_s, 1e-6)
            self.prompt_rate = (self.prompt_rate + rate) / 2 if self.prompt_rate else rate
