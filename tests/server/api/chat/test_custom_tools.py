"""Calls of custom tools: the text in their JSON, wherever it is cut into pieces."""

import json

import pytest

from lmlite.messages import CallDelta, Delta, Finished
from lmlite.server.api.chat.custom_tools import CustomInput, as_arguments
from lmlite.server.api.turn import Turn, Writer

TEXT = '*** Begin "Patch"\\\n+\tGrüße 😀\u2028\x7f\n'
ESCAPED = json.dumps({"input": TEXT})  # in ASCII, with pairs of surrogates
WRITTEN = as_arguments(TEXT)
LOOSE = f' {{ "input" :\n{json.dumps(TEXT, ensure_ascii=False)} }}\n'


def texts(pieces: list[str]) -> list[str]:
    """What each piece of a call's arguments adds to the text."""
    text = CustomInput()
    found = [text.push(piece) for piece in pieces]
    assert text.unread == ""
    return found


@pytest.mark.parametrize("arguments", [ESCAPED, WRITTEN, LOOSE])
def test_the_text_is_whole_wherever_its_json_is_cut(arguments: str) -> None:
    for cut in range(len(arguments) + 1):
        assert "".join(texts([arguments[:cut], arguments[cut:]])) == TEXT
    assert "".join(texts(list(arguments))) == TEXT


def test_it_comes_as_soon_as_it_is_known() -> None:
    pieces = ['{"in', 'put": "a', "b\\", 'n\\ud83d"'[:-1], "\\ude00c", '"}']
    assert texts(pieces) == ["", "a", "b", "\n", "😀c", ""]


def test_half_a_pair_of_surrogates_is_no_character() -> None:
    assert texts(['{"input": "\\ud83dx\\ude00\\ud83d\\n"}']) == ["\ufffdx\ufffd\ufffd\n"]


def test_a_text_that_was_cut_off_is_what_there_is_of_it() -> None:
    assert texts(['{"input": "abc\\u00']) == ["abc"]


@pytest.mark.parametrize(
    ("arguments", "unread"),
    [('{"text": "a"}', '{"text": "a"}'), ('{"input": ""}', ""), ("", ""), ("{", "")],
)
def test_arguments_of_another_form_are_unread(arguments: str, unread: str) -> None:
    text = CustomInput()
    assert (text.push(arguments), text.unread) == ("", unread)


def turn_of(*calls: CallDelta) -> Turn:
    turn = Turn({"say"}, Writer(), is_sequential=False)
    turn.add(Delta(0, 0, "", calls=calls))
    turn.finish(Finished(0, 0, "tool_calls", n_completion=1))
    return turn


def test_arguments_of_another_form_are_the_text_of_their_own_call() -> None:
    turn = turn_of(
        CallDelta(0, '{"text": "a"}', "call_1", "say"),
        CallDelta(1, '{"input": "b"}', "call_2", "say"),
        CallDelta(2, "{", "call_3", "say"),
    )
    assert [part.text for _, part in turn.calls()] == ['{"text": "a"}', "b", ""]


def test_calls_of_functions_stay_as_they_are() -> None:
    turn = turn_of(CallDelta(0, ESCAPED, "call_1", "f"), CallDelta(1, ESCAPED, "call_2", "say"))
    assert [part.text for _, part in turn.calls()] == [ESCAPED, TEXT]
    assert [part.custom is not None for _, part in turn.calls()] == [False, True]
