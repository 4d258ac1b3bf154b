"""Batch and Context against the real library."""

import ctypes
import math
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.support.gguf_writer import tiny_llama_parts, write_gguf


def test_a_file_that_llama_cpp_refuses_is_a_llama_error(lib: Any, tmp_path: Path) -> None:
    path = tmp_path / "not-a-model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LlamaError, match=r"cannot load .*not-a-model\.gguf"):
        Model(lib, str(path))


@pytest.fixture
def context(default_model: Model) -> Any:
    """A small context."""
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


@pytest.mark.parametrize("n_vocab", [1, 7, 8, 100])
def test_a_single_nan_is_found_at_any_place_of_a_row(lib: Any, n_vocab: int) -> None:
    for place in range(n_vocab):
        logits = (ctypes.c_float * n_vocab)(*range(n_vocab))
        logits[place] = -math.inf  # a token that is banned
        assert lib.lml_are_numbers(logits, n_vocab)
        for value in (math.nan, -math.nan, math.inf):
            logits[place] = value
            assert not lib.lml_are_numbers(logits, n_vocab)


def test_a_model_with_one_damaged_row_of_its_output_matrix_is_found_out(
    lib: Any, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.gguf"
    metadata, tensors = tiny_llama_parts()
    (output,) = (each for each in tensors if each.name == "output.weight")
    n_row = 4 * output.dims[0]
    last = struct.pack("<f", math.nan) * output.dims[0]
    damaged = output._replace(data=output.data[:-n_row] + last)
    write_gguf(path, metadata, [damaged if each is output else each for each in tensors])
    with ExitStack() as stack:
        model = Model(lib, str(path))
        stack.callback(model.close)
        made = Context(model, n_ctx=64, n_batch=64, n_seq_max=1, n_threads=1)
        stack.callback(made.close)
        batch = Batch(64)
        index = batch.add(1, 0, 0, True)
        assert made.decode(batch)
        with pytest.raises(LlamaError, match="the model produced invalid numbers"):
            made.check_numbers(index)


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
