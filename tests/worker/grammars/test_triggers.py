"""The end of a text starts a grammar that waits, whatever its length and wherever it is cut."""

import random
from typing import Any

from lmlite.worker.grammars.triggers import MAX_BYTES, Triggers

TOKEN, WORD, PATTERN, PATTERN_FULL = range(4)


def trigger(kind: int, value: str, token: int = -1) -> dict[str, Any]:
    return {"type": kind, "value": value, "token": token}


def woken_at(triggers: Triggers, text: str, rng: random.Random) -> tuple[int, str]:
    """(how many characters were heard at the trigger, those that are returned); ids are offsets."""
    at = 0
    while at < len(text):
        piece = text[at : at + rng.randrange(1, 9)]
        heard = triggers.hear(at, piece.encode())
        at += len(piece)
        if heard:
            return at, text[heard[0] : at]
    return -1, ""


def test_a_word_is_found_behind_any_text_and_wherever_it_is_cut() -> None:
    rng = random.Random(1)
    for _ in range(200):
        before = "".join(rng.choices("abc <tool_", k=rng.choice((0, 5, 600, 5000))))
        triggers = Triggers([trigger(WORD, "<tool_call>"), trigger(WORD, "[never]")])
        at, told = woken_at(triggers, f"{before}<tool_call> and more", rng)
        end = len(before) + len("<tool_call>")
        assert end <= at < end + 8
        assert "<tool_call>" in told
        assert len(told) <= MAX_BYTES + 16


def test_the_beginning_of_a_word_is_no_trigger() -> None:
    triggers = Triggers([trigger(WORD, "<tool_call>")])
    assert woken_at(triggers, "<tool_calls> <tool-call> " * 100, random.Random(1)) == (-1, "")


def test_patterns_are_searched_and_full_ones_have_to_match_the_whole_text() -> None:
    rng = random.Random(1)
    long = "word " * 500
    for kind, value, text, wakes in (
        (PATTERN, ">>>(?!all)", f"{long}>>>get", True),
        (PATTERN, '^\\s*(\\{\\s*"name")', ' {"name": 1', True),
        (PATTERN, '^\\s*(\\{\\s*"name")', f'{long} {{"name": 1', False),
        (PATTERN, "^to$", "to", True),
        (PATTERN, "^to$", "go to", False),
        (PATTERN_FULL, "a+", "aaa", True),
        (PATTERN_FULL, "a+", "baaa", False),
    ):
        assert (woken_at(Triggers([trigger(kind, value)]), text, rng)[0] > 0) == wakes, value


def test_a_token_is_a_trigger_whatever_its_text() -> None:
    triggers = Triggers([trigger(TOKEN, "", 7)])
    assert [triggers.hear(token, b"x") for token in (1, 2, 7)] == [[], [], [1, 2, 7]]
