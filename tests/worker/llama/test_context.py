"""Batch and Context against the real library."""

import ctypes
import math
import os
import random
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.support.gguf_writer import tiny_llama_parts, write_gguf
from tests.support.house import until

N_THREADS = 4


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


# ---- threads -------------------------------------------------------------------------------


class Threads:
    """A context with N_THREADS threads, the one that decodes among them, and what they do."""

    def __init__(self, model: Model) -> None:
        self._before = set(os.listdir("/proc/self/task"))
        self.context = Context(model, n_ctx=256, n_batch=8, n_seq_max=1, n_threads=N_THREADS)
        self._batch = Batch(8)
        self._batch.extend([1] * 8, 0, 0, True)

    def started(self) -> list[str]:
        """The ids of the threads that the context has started."""
        return sorted(set(os.listdir("/proc/self/task")) - self._before)

    def step(self, n_threads: int) -> list[tuple[int, float]]:
        """Runs a step; returns its log-probabilities."""
        self.context.clear_memory()
        self.context.set_n_threads(n_threads)
        assert self.context.decode(self._batch)
        return self.context.logprobs(7, 0, self.context.n_vocab)[1]

    def turns(self) -> list[int]:
        """How many times each has been given a core, once all of them sleep."""
        paths = [f"/proc/self/task/{thread}" for thread in self.started()]
        stats = [Path(path, "stat") for path in paths]
        until(lambda: all(stat.read_text().rpartition(") ")[2][0] == "S" for stat in stats))
        return [int(Path(path, "schedstat").read_text().split()[2]) for path in paths]


@pytest.fixture
def threads(default_model: Model) -> Any:
    made = Threads(default_model)
    yield made
    made.context.close()


def test_threads_start_with_the_first_step_and_end_with_the_context(default_model: Model) -> None:
    threads = Threads(default_model)
    assert threads.started() == []  # a sandbox would not cover them
    for _ in range(3):
        threads.step(N_THREADS)
        assert len(threads.started()) == N_THREADS - 1
    threads.context.close()
    assert threads.started() == []


def test_threads_use_no_time_between_steps(threads: Threads) -> None:
    threads.step(N_THREADS)
    turns = threads.turns()
    time.sleep(0.2)  # what is measured, nothing is waited for
    assert threads.turns() == turns


def test_a_step_wakes_the_threads_unless_it_gets_only_one(threads: Threads) -> None:
    threads.step(N_THREADS)
    turns = threads.turns()
    for _ in range(20):
        threads.step(1)
    assert threads.turns() == turns
    threads.step(2)  # each finds out for itself whether it takes part
    assert all(after > before for before, after in zip(turns, threads.turns(), strict=True))


def test_steps_of_changing_numbers_of_threads_come_to_the_same_each_time(threads: Threads) -> None:
    source = random.Random(1)
    expected = {n: threads.step(n) for n in range(1, N_THREADS + 1)}
    for _ in range(60):
        n = source.randint(1, N_THREADS)
        assert threads.step(n) == expected[n]
        if source.random() < 0.2:
            threads.turns()  # all of them sleep
