"""Model, Vocab, Batch, Context and SamplerChain against the real library."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import SamplingParams
from lmlite.worker import llama
from lmlite.worker.llama import Batch, Context, Model, SamplerChain

TOKENIZERS = ["bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4",
              "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact",
              "starcoder"]  # fmt: skip


# ---- vocabularies --------------------------------------------------------------------------


def test_every_tokenizer_with_reference_pairs_is_tested(llama_cpp: Path) -> None:
    found = {path.name for path in (llama_cpp / "models").glob("ggml-vocab-*.gguf.inp")}
    assert found == {f"ggml-vocab-{name}.gguf.inp" for name in TOKENIZERS}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_agrees_with_its_reference_pairs(lib: Any, llama_cpp: Path, name: str) -> None:
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    expected = [list(map(int, line.split())) for line in lines]
    model = Model(lib, str(path), vocab_only=True)
    try:
        tokens = [
            model.vocab.tokenize(text, add_special=False, parse_special=False)
            for text in texts[: len(expected)]
        ]
    finally:
        model.close()
    assert len(expected) >= 40
    assert tokens == expected


def test_a_text_that_continues_another_gets_no_space_in_between(lib: Any, llama_cpp: Path) -> None:
    model = Model(lib, str(llama_cpp / "models" / "ggml-vocab-llama-spm.gguf"), vocab_only=True)
    try:
        whole = model.vocab.tokenize("Hello", add_special=False, parse_special=True)
        continued = model.vocab.tokenize(
            "lo", add_special=False, parse_special=True, continues=True
        )
        pieces = b"".join(map(model.vocab.piece, continued))
    finally:
        model.close()
    assert b"".join(map(model.vocab.piece, whole[:1])).startswith(b" ") or whole
    assert pieces == b"lo"


def test_control_tokens_print_nothing_unless_asked(default_model: Model) -> None:
    vocab = default_model.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert vocab.piece(end) == b""
    assert vocab.piece(end, special=True) == b"<|im_end|>"
    assert vocab.ends_generation(end)


def test_text_cannot_spell_control_tokens_unless_they_are_parsed(default_model: Model) -> None:
    tokens = default_model.vocab.tokenize("<|im_end|>", add_special=False, parse_special=False)
    assert len(tokens) > 1
    assert b"".join(map(default_model.vocab.piece, tokens)) == b"<|im_end|>"


def test_every_byte_has_a_token(default_model: Model) -> None:
    vocab = default_model.vocab
    text = "".join(map(chr, range(1, 256))) + "日本🙂\x00"
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text


def test_a_file_that_llama_cpp_refuses_is_a_llama_error(lib: Any, tmp_path: Path) -> None:
    path = tmp_path / "not-a-model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(llama.LlamaError, match=r"cannot load .*not-a-model\.gguf"):
        Model(lib, str(path))


# ---- samplers ------------------------------------------------------------------------------

LOGITS = [2.0, 1.0, 0.5, -1.0, -2.0]


@pytest.fixture
def chain(default_model: Model) -> Any:
    """Makes a chain, and closes it after the test."""
    chains: list[SamplerChain] = []

    def make(prompt: Sequence[int] = (), **params: Any) -> SamplerChain:
        sampling = SamplingParams(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **params})
        made = SamplerChain(default_model, sampling, seed=1, n_ctx=64, prompt=prompt)
        chains.append(made)
        return made

    yield make
    for made in chains:
        made.close()


def close(logits: dict[int, float]) -> dict[int, float]:
    return {token: round(logit, 5) for token, logit in sorted(logits.items())}


def test_without_cuts_a_chain_of_temperature_1_leaves_logits_alone(chain: Any) -> None:
    assert close(chain(temperature=1.0).apply(LOGITS)) == dict(enumerate(LOGITS))


def test_temperature_divides_logits(chain: Any) -> None:
    halves = {token: logit * 2 for token, logit in enumerate(LOGITS)}
    assert close(chain(temperature=0.5).apply(LOGITS)) == halves


def test_top_k_leaves_the_k_likeliest(chain: Any) -> None:
    assert set(chain(temperature=1.0, top_k=2).apply(LOGITS)) == {0, 1}


def test_top_p_leaves_the_likeliest_that_reach_p(chain: Any) -> None:
    # Softmax of LOGITS: 0.597, 0.220, 0.133, 0.030, 0.011 (and rounding).
    assert set(chain(temperature=1.0, top_p=0.5).apply(LOGITS)) == {0}
    assert set(chain(temperature=1.0, top_p=0.7).apply(LOGITS)) == {0, 1}
    assert set(chain(temperature=1.0, top_p=0.9).apply(LOGITS)) == {0, 1, 2}


def test_min_p_leaves_what_is_likely_beside_the_likeliest(chain: Any) -> None:
    # p/p_max = exp(logit - 2): 1, 0.37, 0.22, 0.05, 0.02.
    assert set(chain(temperature=1.0, min_p=0.3).apply(LOGITS)) == {0, 1}
    assert set(chain(temperature=1.0, min_p=0.04).apply(LOGITS)) == {0, 1, 2, 3}


def test_logit_bias_is_added(chain: Any) -> None:
    biased = chain(temperature=1.0, logit_bias=((1, 2.5), (3, -100.0))).apply(LOGITS)
    assert close(biased) == {0: 2.0, 1: 3.5, 2: 0.5, 3: -101.0, 4: -2.0}


def test_presence_penalty_is_taken_once_from_each_sampled_token(chain: Any) -> None:
    made = chain(temperature=1.0, presence_penalty=0.75)
    for token in (0, 0, 3):
        made.accept(token)
    assert close(made.apply(LOGITS)) == {0: 1.25, 1: 1.0, 2: 0.5, 3: -1.75, 4: -2.0}


def test_frequency_penalty_is_taken_once_per_time_sampled(chain: Any) -> None:
    made = chain(temperature=1.0, frequency_penalty=0.5)
    for token in (0, 0, 3):
        made.accept(token)
    assert close(made.apply(LOGITS)) == {0: 1.0, 1: 1.0, 2: 0.5, 3: -1.5, 4: -2.0}


def test_presence_and_frequency_penalties_do_not_count_the_prompt(chain: Any) -> None:
    made = chain(prompt=[0, 1], temperature=1.0, presence_penalty=1.0, frequency_penalty=1.0)
    assert close(made.apply(LOGITS)) == dict(enumerate(LOGITS))


def test_repeat_penalty_divides_what_is_positive_and_multiplies_what_is_negative(
    chain: Any,
) -> None:
    made = chain(temperature=1.0, repeat_penalty=2.0)
    for token in (0, 3):
        made.accept(token)
    assert close(made.apply(LOGITS)) == {0: 1.0, 1: 1.0, 2: 0.5, 3: -2.0, 4: -2.0}


def test_repeat_penalty_counts_the_last_64_tokens_of_the_prompt(chain: Any) -> None:
    recent = chain(prompt=[0] + [1] * 63, temperature=1.0, repeat_penalty=2.0)
    assert close(recent.apply(LOGITS))[0] == 1.0
    forgotten = chain(prompt=[0] + [1] * 64, temperature=1.0, repeat_penalty=2.0)
    assert close(forgotten.apply(LOGITS))[0] == 2.0


# ---- contexts ------------------------------------------------------------------------------


@pytest.fixture
def context(default_model: Model) -> Any:
    """A small context; its memory is cleared with it."""
    made = Context(default_model, n_ctx=256, n_batch=64, n_seq_max=4, n_threads=1)
    yield made
    made.close()


def test_logprobs_are_those_of_a_softmax_over_the_vocabulary(
    context: Context, default_model: Model
) -> None:
    batch = Batch(64)
    tokens = default_model.vocab.tokenize("Hello", add_special=True, parse_special=True)
    index = batch.extend(tokens, 0, 0, True)
    assert context.decode(batch)
    n_vocab = default_model.vocab.n_tokens
    _, everything = context.logprobs(index, 0, n_vocab)
    assert len(everything) == n_vocab
    assert sum(math.exp(value) for _, value in everything) == pytest.approx(1.0, abs=1e-4)
    assert [value for _, value in everything] == sorted((v for _, v in everything), reverse=True)
    best, best_logprob = everything[0]
    assert context.logprobs(index, best, 0) == (best_logprob, [])


def test_a_batch_that_memory_cannot_hold_is_refused_and_changes_nothing(
    context: Context, default_model: Model
) -> None:
    batch = Batch(64)
    token = default_model.vocab.tokenize("a", add_special=False, parse_special=False)[0]
    for begin in range(0, 256, 64):
        batch.clear()
        batch.extend([token] * 64, begin, 0, False)
        assert context.decode(batch)
    batch.clear()
    batch.add(token, 0, 1, True)
    assert not context.decode(batch)
    context.keep(0, 100)
    assert context.decode(batch)
