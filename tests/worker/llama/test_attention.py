"""Attention as native/patches/attention.patch has it: the same logits as without flash attention.

The batches are what the engine makes: a token each of sequences that generate and pieces of
prompts, in a memory that all share, where the cells of a sequence lie wherever there was room.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.support.gguf_writer import Shape, tiny_llama

N_SEQ = 12
N_CTX, N_BATCH = 2048, 640
# Tokens of a sequence's piece; a tile has 3 rows and more, up to 64.
N_PIECE = (1, 1, 1, 2, 3, 5, 17, 70)
# Heads that share keys: none, too few for a tile, just enough, seven, more than fit.
GROUPS = {"1": (4, 4), "2": (4, 2), "3": (6, 2), "7": (7, 1), "80": (80, 1)}
WIDTH = 8  # of a head


@pytest.fixture(scope="module", params=GROUPS)
def model(request: pytest.FixtureRequest, lib: Any, tmp_path_factory: Any) -> Iterator[Model]:
    n_head, n_head_kv = GROUPS[request.param]
    path: Path = tmp_path_factory.mktemp("models") / "model.gguf"
    shape = Shape(n_embd=WIDTH * n_head, n_head=n_head, n_head_kv=n_head_kv, n_ff=32, n_ctx=N_CTX)
    tiny_llama(path, shape=shape)
    model = Model(lib, str(path))
    yield model
    model.close()


class Sequences:
    """Runs the same batches on several contexts, and compares logits with the first context's."""

    def __init__(self, n_vocab: int, contexts: list[Context], seed: int) -> None:
        self._n_vocab = n_vocab
        self._contexts = contexts
        self._random = random.Random(seed)
        self._lengths = [0] * N_SEQ  # tokens of each, in memory
        self._batch = Batch(N_BATCH)

    def step(self) -> float:
        """Restarts, shares or extends some sequences; returns how far the logits differ."""
        chosen = self._random.sample(range(N_SEQ), self._random.choice((1, 1, 8)))
        for seq_id in chosen:
            self._change(seq_id)
        self._batch.clear()
        ends = [self._go_on(seq_id) for seq_id in chosen]
        logits = [self._logits(context, ends) for context in self._contexts]
        return max(abs(a - b) for other in logits for a, b in zip(logits[0], other, strict=True))

    def _change(self, seq_id: int) -> None:
        source = self._random.randrange(N_SEQ)
        if sum(self._lengths) > N_CTX - N_BATCH:
            self._keep(self._lengths.index(max(self._lengths)), 0)
        if self._random.random() < 0.2 and source != seq_id:
            n_tokens = self._random.randint(0, self._lengths[source])
            self._keep(seq_id, 0)
            self._lengths[seq_id] = n_tokens
            for context in self._contexts:
                context.share(source, seq_id, n_tokens)

    def _keep(self, seq_id: int, n_tokens: int) -> None:
        self._lengths[seq_id] = n_tokens
        for context in self._contexts:
            context.keep(seq_id, n_tokens)

    def _go_on(self, seq_id: int) -> int:
        tokens = self._random.choices(range(self._n_vocab), k=self._random.choice(N_PIECE))
        position = self._lengths[seq_id]
        self._lengths[seq_id] += len(tokens)
        return self._batch.extend(tokens, position, seq_id, True)

    def _logits(self, context: Context, indices: list[int]) -> list[float]:
        assert context.decode(self._batch)
        rows = [context._lib.llama_get_logits_ith(context.pointer, i) for i in indices]
        return [value for row in rows for value in row[: self._n_vocab]]


def test_logits_of_any_batch_are_those_without_flash_attention(model: Model) -> None:
    with ExitStack() as stack:
        contexts = [_context(model, "off", 1)] + [_context(model, "on", n) for n in (1, 2, 3)]
        for context in contexts:
            stack.callback(context.close)
        sequences = Sequences(model.vocab.n_tokens, contexts, seed=1)
        # Flash attention rounds keys and values to 16 bits; one wrong cell differs by more.
        assert max(sequences.step() for _ in range(60)) <= 0.02


def _context(model: Model, flash_attn: str, n_threads: int) -> Context:
    return Context(
        model, n_ctx=N_CTX, n_batch=N_BATCH, n_seq_max=N_SEQ, n_threads=n_threads,
        cache_type_k="f32", cache_type_v="f32", flash_attn=flash_attn,
    )  # fmt: skip
