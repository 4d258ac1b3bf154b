"""Products with quantised weights as native/patches/products.patch has them: rows do not mix.

A step has as many rows as tokens, and the kernels take them by sixteen, twelve, eight, four and
one. What a token's row comes to must not depend on that.
"""

import platform
import random
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.bench.model import FTYPE_Q4_0, FTYPE_Q4_K_S, FTYPE_Q8_0, quantise
from tests.support.gguf_writer import Shape, tiny_llama
from tests.support.patches import same_bits_in_any_batch

N_TOKENS = (2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 20, 24, 28, 31, 32, 36, 63, 64)
N_MAX = max(N_TOKENS)
# A block of Q4_K is 256 weights wide. Keys and values have 8 rows, others 16 and more.
SHAPE = Shape(n_layer=1, n_embd=256, n_head=32, n_head_kv=1, n_ff=512, n_ctx=N_MAX)
X86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the kernels are those of x86"
)


# A file of Q4_0 or Q4_K also has tensors of Q6_K. From eight rows on, they are summed in another
# order. That changes the last digit, or 0.002 where it rounds to another 8-bit value.
@X86
@same_bits_in_any_batch
@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("ftype", "tolerance"), [(FTYPE_Q4_0, 0.01), (FTYPE_Q8_0, 0.0), (FTYPE_Q4_K_S, 0.01)]
)
def test_the_result_for_a_token_does_not_depend_on_the_size_of_its_batch(
    lib: Any, tmp_path: Path, ftype: int, tolerance: float, n_threads: int
) -> None:
    tiny_llama(tmp_path / "f32.gguf", shape=SHAPE)
    quantise(tmp_path / "f32.gguf", tmp_path / "model.gguf", ftype)
    model = Model(lib, str(tmp_path / "model.gguf"))
    context = Context(
        model, n_ctx=N_MAX, n_batch=N_MAX, n_seq_max=N_MAX, n_threads=n_threads,
        cache_type_k="f32", cache_type_v="f32", flash_attn="on",
    )  # fmt: skip
    tokens = [(7 * i) % model.vocab.n_tokens for i in range(N_MAX)]
    alone = [_logits(context, [token])[0] for token in tokens]
    assert len({tuple(row) for row in alone}) == N_MAX
    for n in N_TOKENS:
        rows = zip(_logits(context, tokens[:n]), alone[:n], strict=True)
        apart = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in rows]
        assert max(apart) <= tolerance, f"{n} tokens"
    context.close()
    model.close()


@X86
@same_bits_in_any_batch
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 8])  # three groups of heads share keys
def test_a_sequence_continues_the_same_beside_others(default_model: Model, n_threads: int) -> None:
    context = Context(
        default_model, n_ctx=256, n_batch=256, n_seq_max=4, n_threads=n_threads, flash_attn="on"
    )
    rng = random.Random(1)
    prompts = [rng.choices(range(context.n_vocab), k=20 + 5 * i) for i in range(4)]
    together = _next_logits(context, dict(enumerate(prompts)))
    for seq_id, prompt in enumerate(prompts):
        assert _next_logits(context, {seq_id: prompt}) == [together[seq_id]]
    context.close()


def _next_logits(context: Context, prompts: dict[int, list[int]]) -> list[list[float]]:
    """Logits of the last token of each sequence; all are read in one step."""
    context.clear_memory()
    batch = Batch(N_MAX)
    for seq_id, prompt in prompts.items():
        batch.clear()
        batch.extend(prompt[:-1], 0, seq_id, False)
        assert context.decode(batch)
    batch.clear()
    for seq_id, prompt in prompts.items():
        batch.add(prompt[-1], len(prompt) - 1, seq_id, True)
    assert context.decode(batch)
    rows = [context._lib.llama_get_logits_ith(context.pointer, i) for i in range(len(prompts))]
    return [row[: context.n_vocab] for row in rows]


def _logits(context: Context, tokens: list[int]) -> list[list[float]]:
    """Logits of tokens that see only themselves."""
    context.clear_memory()
    batch = Batch(N_MAX)
    for seq_id, token in enumerate(tokens):
        batch.add(token, 0, seq_id, True)
    assert context.decode(batch)
    rows = [context._lib.llama_get_logits_ith(context.pointer, i) for i in range(len(tokens))]
    return [row[: context.n_vocab] for row in rows]
