"""What the worker makes of a request before the engine sees it, without a model."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Complete, Embed, Event, SamplingParams
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence

N_VOCAB = 100


def preparer() -> Preparer:
    def send(_events: Iterable[Event]) -> None:
        raise AssertionError("no trace was asked for")

    model: Any = SimpleNamespace(vocab=SimpleNamespace(n_tokens=N_VOCAB), n_embd=8)
    template: Any = object()
    return Preparer(model, template, 2048, send)


def seeds(n: int, seed: int | None) -> list[int]:
    """Of the choices of one request for a prompt of three tokens."""
    request = Complete(1, ((1, 2, 3),), SamplingParams(seed=seed), n=n)
    return [cast(Sequence, sequence).seed for sequence in preparer().prepare(request)]


def test_each_choice_has_a_seed_of_its_own_and_the_first_the_one_asked_for() -> None:
    assert seeds(3, seed=7) == [7, 8, 9]


def test_no_choice_has_the_seed_that_stands_for_any() -> None:
    assert seeds(3, seed=2**32 - 2) == [2**32 - 2, 0, 1]
    assert seeds(2, seed=2**32 - 1) == [0, 1]


def test_each_request_without_a_seed_gets_another_one() -> None:
    drawn = [seeds(1, seed=None)[0] for _ in range(4)]
    assert len(set(drawn)) == 4
    assert all(0 <= seed < 2**32 - 1 for seed in drawn)


def test_more_dimensions_than_the_model_has_are_refused_before_anything_is_embedded() -> None:
    assert len(preparer().prepare(Embed(1, ((1, 2),), dimensions=8))) == 1
    with pytest.raises(BadRequest) as caught:
        preparer().prepare(Embed(1, ((1, 2),), dimensions=9))
    assert caught.value.message == "the model has 8 dimensions"
    assert caught.value.param == "dimensions"
