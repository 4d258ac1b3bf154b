"""A context without a model: memory kept cell by cell, and tokens computed from its contents.

Replaces C under the real engine. A cell holds one token at one position, for one lane or for
several lanes with a common prefix. Each sampled token is a function of all tokens before it in
memory, so a lost, doubled or wrong cell shows in the text. Raises Violation if the engine does
what it must never do.
"""

import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmlite.messages import SamplingParams, Scales, TokenLogprob
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Batch

END = 0  # the token that ends generation
LETTERS = "abcdef"  # the pieces of tokens 1 to 6
N_VOCAB = 1 + len(LETTERS)
END_PER_MILLE = 25  # how often END is sampled
BROKEN = LlamaError("llama_decode failed with code -3")
NO_TOKEN = LlamaError("the grammar allows no further token")
NO_NUMBERS = LlamaError("the model produced invalid numbers")


class Violation(BaseException):
    """The engine broke a rule of memory. Not an Exception, which the engine would catch."""


def require(condition: bool, rule: str) -> None:
    if not condition:
        raise Violation(rule)


# ---- functions of tokens ---------------------------------------------------------------------


def digest(tokens: Sequence[int], salt: int) -> int:
    return zlib.crc32(array("i", tokens).tobytes(), salt)


def next_token(tokens: Sequence[int], salt: int, n_sampled: int) -> int:
    """The token after these tokens, for a chain of this salt that has sampled n_sampled."""
    drawn = digest(tokens, salt + 7919 * n_sampled)
    return END if drawn % 1000 < END_PER_MILLE else 1 + drawn // 1000 % len(LETTERS)


def salt_of(params: SamplingParams, seed: int) -> int:
    """The salt of a chain. Greedy chains all have the same."""
    return 0 if params.temperature == 0 else 1 + seed


def piece(token: int) -> bytes:
    return b"" if token == END else LETTERS[token - 1].encode()


def logprob(tokens: Sequence[int], token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token after the tokens, and the likeliest tokens."""
    value = -(digest(tokens, token) % 1000) / 100
    return value, [(rank % N_VOCAB, value - rank) for rank in range(n_top)]


def entry(tokens: Sequence[int], token: int, n_top: int) -> TokenLogprob:
    """The same in the form that a client gets."""
    value, top = logprob(tokens, token, n_top)
    return TokenLogprob(piece(token), value, tuple((piece(t), p) for t, p in top))


# ---- in place of C ---------------------------------------------------------------------------


class FakeVocab:
    end_tokens = (END,)

    def piece(self, token: int, *, special: bool = False) -> bytes:  # noqa: ARG002
        return piece(token)

    def ends_generation(self, token: int) -> bool:
        return token == END


class FakeModel:
    def __init__(self, can_cut_memory: bool) -> None:
        self.vocab = FakeVocab()
        self.can_cut_memory = can_cut_memory
        self.takes_cells = True


class Cell:
    """One token at one position. The position follows from its place in its lanes."""

    __slots__ = ("n_lanes", "token")

    def __init__(self, token: int) -> None:
        self.token = token
        self.n_lanes = 1  # that hold it; free with 0


class FakeContext:
    """Unified memory: one pool of cells for all lanes."""

    def __init__(
        self, n_ctx: int, *, n_ctx_seq: int, n_batch: int, n_seq_max: int, can_cut: bool = True
    ) -> None:
        """`can_cut`: whether a part of a lane can be dropped, or shared with a different lane."""
        self.n_ctx, self.n_ctx_seq, self.n_batch = n_ctx, n_ctx_seq, n_batch
        self.n_seq_max = n_seq_max
        self.n_steps = 0
        self.n_read: Counter[int] = Counter()  # tokens decoded, by seq_id
        self.now_s = 0.0  # the engine's clock: a step takes as long as its tokens
        self.breaks = False  # the next decode fails
        self.can_restore = True  # C may refuse a state for reasons other than too few cells
        self.n_refused = 0
        self.can_cut = can_cut
        self._lanes: list[list[Cell]] = [[] for _ in range(n_seq_max)]
        self._n_used = 0
        self._outputs: dict[int, tuple[int, int]] = {}  # batch index -> seq_id, tokens held

    def monotonic(self) -> float:
        """Replaces the function of the module `time`."""
        return self.now_s

    def set_adapters(self, scales: Scales) -> None:
        require(not scales, "no test with this context has adapters")

    def decode(self, batch: Batch) -> bool:
        if self.breaks:
            self.breaks = False
            raise BROKEN
        n = len(batch)
        require(n > 0, "an empty batch is an error in C")
        if self._n_used + n > self.n_ctx:
            return False
        self._outputs.clear()
        for i in range(n):
            seq_id, lane = batch._seq_ids[i], self._lanes[batch._seq_ids[i]]
            require(batch._positions[i] == len(lane), "a token is decoded at the next position")
            lane.append(Cell(batch._tokens[i]))
            self.n_read[seq_id] += 1
            if batch._outputs[i]:
                self._outputs[i] = seq_id, len(lane)
        self._n_used += n
        self.n_steps += 1
        self.now_s += 0.001 * n
        return True

    def can_begin(self, seq_id: int, n_tokens: int) -> bool:
        return self.can_cut or n_tokens in (0, len(self._lanes[seq_id]))

    def keep(self, seq_id: int, n_tokens: int) -> None:
        lane = self._lanes[seq_id]
        require(self.can_begin(seq_id, n_tokens), "only what can be cut is cut")
        require(n_tokens <= len(lane), "only what is held is kept")
        for cell in lane[n_tokens:]:
            cell.n_lanes -= 1
            self._n_used -= cell.n_lanes == 0
        del lane[n_tokens:]

    def share(self, source_id: int, seq_id: int, n_tokens: int) -> None:
        require(not self._lanes[seq_id], "a lane that takes another's beginning is empty")
        require(self.can_cut, "only what can be cut is shared")
        require(n_tokens <= len(self._lanes[source_id]), "only what is held is shared")
        self._lanes[seq_id] = self._lanes[source_id][:n_tokens]
        for cell in self._lanes[seq_id]:
            cell.n_lanes += 1

    def n_state_bytes(self, seq_id: int) -> int:
        return 4 * len(self._lanes[seq_id])

    def state(self, seq_id: int) -> bytes:
        return array("i", self.held(seq_id)).tobytes()

    def restore(self, seq_id: int, state: bytes) -> bool:
        require(not self._lanes[seq_id], "a lane that is restored is empty")
        tokens = array("i", state)
        if self._n_used + len(tokens) > self.n_ctx or not self.can_restore:
            self.n_refused += 1
            return False
        self._lanes[seq_id] = [Cell(token) for token in tokens]
        self._n_used += len(tokens)
        return True

    def clear_memory(self, *, data: bool = False) -> None:
        require(data, "after a fault no number stays")
        self._lanes = [[] for _ in self._lanes]
        self._n_used = 0

    def check_numbers(self, index: int) -> None:
        require(index in self._outputs, "logits were asked for in the batch")

    def logprobs(self, index: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        return logprob(self.before(index), token, n_top)

    # ---- for the tests ---------------------------------------------------------------------

    def held(self, seq_id: int) -> list[int]:
        """The tokens of a lane."""
        return [cell.token for cell in self._lanes[seq_id]]

    def before(self, index: int) -> list[int]:
        """The tokens before the logits at a batch index."""
        self.check_numbers(index)
        seq_id, n_held = self._outputs[index]
        return [cell.token for cell in self._lanes[seq_id][:n_held]]

    def n_cells(self, seq_ids: Sequence[int]) -> int:
        """Cells that belong to any of these lanes."""
        return len({cell for seq_id in seq_ids for cell in self._lanes[seq_id]})

    @property
    def n_used(self) -> int:
        return self._n_used


class FakeChain:
    """Replaces SamplerChain. Remembers how many tokens it sampled; C remembers which."""

    n_open = 0  # of all chains
    can_open = True

    def __init__(
        self,
        model: Any,  # noqa: ARG002
        params: SamplingParams,
        *,
        seed: int,
        n_ctx: int,  # noqa: ARG002
        prompt: Sequence[int],  # noqa: ARG002
    ) -> None:
        if not FakeChain.can_open:
            raise NO_TOKEN
        self._salt = salt_of(params, seed)
        self._n_sampled = 0
        self._is_open = True
        self.fails_at: int | None = None  # the index of the token that it fails to choose
        FakeChain.n_open += 1

    def sample(self, context: FakeContext, index: int, grammar: Any, banned: Sequence[int]) -> int:
        require(self._is_open and grammar is None, "a chain is used until it is closed")
        require(not banned, "no test here asks for more than the model wants")
        if self._n_sampled == self.fails_at:
            raise NO_TOKEN
        token = next_token(context.before(index), self._salt, self._n_sampled)
        self._n_sampled += 1
        return token

    def close(self) -> None:
        require(self._is_open, "a chain is closed once")
        self._is_open = False
        FakeChain.n_open -= 1
