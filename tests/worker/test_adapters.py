"""Sequences with different LoRA adapters on one context."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Delta, SamplingParams, Scales
from lmlite.worker.generator import Generator
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.sequence import Sequence
from tests.support.adapters import write_adapter
from tests.support.gguf_writer import tiny_llama

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def generator(lib: Any, tmp_path: Path) -> Iterator[Generator]:
    tiny_llama(tmp_path / "base.gguf")
    with ExitStack() as stack:
        model = stack.enter_context(closing(Model(lib, str(tmp_path / "base.gguf"))))
        for seed in (1, 2):
            write_adapter(tmp_path / f"{seed}.gguf", seed)
            model.add_adapter(str(tmp_path / f"{seed}.gguf"))
        context = Context(model, n_ctx=512, n_batch=64, n_seq_max=8, n_threads=1)
        stack.enter_context(closing(context))
        yield Generator(model, context, n_parallel=4, prefill_budget_s=1)


def test_groups_of_sequences_take_turns(generator: Generator) -> None:
    scales: dict[int, Scales] = {1: (1.0, 0.0), 2: (0.0, 1.0), 3: (1.0, 0.0), 4: ()}
    for request_id, wanted in scales.items():
        prompt = [65 + request_id, 66, 67]
        generator.submit(Sequence(request_id, 0, prompt, PARAMS, 0, (), scales=wanted))
    steps = []
    while generator.has_work:
        events = [event for event in generator.step() if not isinstance(event, Delta)]
        steps.append({event.id for event in events if type(event).__name__ == "Finished"})
    # Each of the three groups needs eight steps, and the last ones end one after the other.
    assert steps == [*[set()] * 21, {1, 3}, {2}, {4}]


def test_a_file_that_is_no_adapter_is_an_error(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(LlamaError, match=r"cannot load the adapter .*base\.gguf"):
        generator._model.add_adapter(str(tmp_path / "base.gguf"))
