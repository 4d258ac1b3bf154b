"""What is told of a sequence."""

import pytest

from lmlite.worker.memory.lanes import n_reusable
from lmlite.worker.sequence import cache_note


def spell(token: int) -> str:
    return f" {token}"


@pytest.mark.parametrize(
    "held, prompt, said",
    [
        ([], [1, 2, 3], "reused 0 of 3"),
        ([1, 2, 3], [1, 2, 3], "reused 2 of 3"),
        ([1, 2], [1, 2, 3, 4], "reused 2 of 4"),
        ([1, 2, 9, 4], [1, 2, 3, 4],
         "reused 2 of 4; first difference at token 2: ' 3' was ' 9'"),
        ([5, 6], [1, 2, 3], "reused 0 of 3"),
    ],
)  # fmt: skip
def test_what_was_reused_and_where_it_ended_is_told(
    held: list[int], prompt: list[int], said: str
) -> None:
    assert cache_note(held, prompt, n_reusable(held, prompt), spell) == said


def test_a_memory_that_cannot_be_cut_is_told_as_the_reason() -> None:
    said = "reused 0 of 5: this model's memory cannot be cut at token 2"
    assert cache_note([1, 2, 3], [1, 2, 7, 8, 9], 0, spell) == said


def test_what_came_from_a_checkpoint_is_told() -> None:
    assert cache_note([1, 2], [1, 2, 7, 8, 9], 4, spell) == "reused 4 of 5, from a checkpoint"
