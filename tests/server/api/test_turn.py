"""A turn puts deltas together: what becomes a part, in which order, and what a writer is told."""

from collections.abc import Sequence
from typing import Any

import pytest

from lmlite.messages import CallDelta, Delta, Finished
from lmlite.server.api.turn import Part, Turn, Writer

STOP = Finished(0, 0, "stop", n_completion=1)
CUT = Finished(0, 0, "length", n_completion=1)


class Notes(Writer):
    """Writes down what it is told, one word for each change."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def begun(self, part: Part) -> None:
        assert part.text == ""
        self.words.append(f"+{part.kind}")

    def grown(self, part: Part, text: str, _logprobs: Sequence[Any]) -> None:
        assert part.pieces[-1] == text
        self.words.append(text)

    def ended(self, part: Part) -> None:
        assert part.status != "in_progress"
        self.words.append(f"-{part.kind}")

    def finished(self, event: Finished) -> None:
        self.words.append(event.reason)


def text(words: str) -> Delta:
    return Delta(0, 0, words)


def thought(words: str) -> Delta:
    return Delta(0, 0, "", reasoning=words)


def call(number: int, arguments: str) -> Delta:
    return Delta(0, 0, "", calls=(CallDelta(number, arguments, f"call_{number}", "f"),))


def more(number: int, arguments: str) -> Delta:
    return Delta(0, 0, "", calls=(CallDelta(number, arguments),))


def turn_of(*deltas: Delta, end: Finished = STOP, is_sequential: bool = False) -> Turn:
    turn = Turn((), Writer(), is_sequential=is_sequential)
    for delta in deltas:
        turn.add(delta)
    turn.finish(end)
    return turn


def parts(turn: Turn) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in turn.parts]


def test_text_after_thoughts_is_a_part_of_its_own() -> None:
    turn = turn_of(thought("h"), thought("m"), text("a"), text("b"), thought("c"))
    assert parts(turn) == [("reasoning", "hm"), ("text", "ab"), ("reasoning", "c")]
    assert (turn.said("text"), turn.said("reasoning")) == ("ab", "hmc")
    assert turn.end is STOP


def test_arguments_may_go_on_after_a_text() -> None:
    turn = turn_of(call(0, '{"a"'), text("hm"), more(0, ": 1}"))
    assert parts(turn) == [("call", '{"a": 1}'), ("text", "hm")]
    assert turn.calls()[0][1].arguments() == {"a": 1}


def test_a_sequential_turn_holds_a_text_until_the_call_is_complete() -> None:
    turn = turn_of(call(0, '{"a"'), text("hm"), more(0, ": 1}"), call(1, ""), is_sequential=True)
    assert parts(turn) == [("call", '{"a": 1}'), ("text", "hm"), ("call", "")]


def test_white_space_after_a_complete_call_is_dropped_when_a_text_has_followed() -> None:
    turn = turn_of(call(0, "{}"), text("hm"), more(0, "\n"), is_sequential=True)
    assert parts(turn) == [("call", "{}"), ("text", "hm")]


@pytest.mark.parametrize(("end", "status"), [(STOP, "completed"), (CUT, "incomplete")])
def test_the_last_part_is_as_complete_as_the_turn(end: Finished, status: str) -> None:
    turn = turn_of(thought("hm"), text("a"), end=end)
    assert [part.status for part in turn.parts] == ["completed", status]


@pytest.mark.parametrize(
    ("deltas", "end", "expected"),
    [
        ([thought("hm")], STOP, [("reasoning", "hm"), ("text", "")]),
        ([], STOP, [("text", "")]),
        ([thought("hm")], CUT, [("reasoning", "hm")]),
        ([call(0, "{}")], STOP, [("call", "{}")]),
    ],
)
def test_an_empty_text_is_added_only_to_a_whole_answer_of_thoughts(
    deltas: list[Delta], end: Finished, expected: list[tuple[str, str]]
) -> None:
    turn = Turn((), Writer(), is_sequential=False)
    for delta in deltas:
        turn.add(delta)
    turn.finish(end, has_text=True)
    assert parts(turn) == expected


def test_a_writer_is_told_of_each_change_in_order() -> None:
    notes = Notes()
    turn = Turn((), notes, is_sequential=False)
    for delta in (thought("hm"), text("a"), text("b"), call(0, "{}")):
        turn.add(delta)
    turn.finish(STOP)
    assert notes.words == [
        "+reasoning", "hm", "-reasoning", "+text", "a", "b", "-text", "+call", "{}", "-call",
        "stop",
    ]  # fmt: skip
