"""Calls of custom tools: the text in their JSON, wherever it is cut into pieces."""

import json

import pytest

from lmlite.messages import CallDelta, Delta
from lmlite.server.api.chat.custom_tools import CustomCalls, as_arguments

TEXT = '*** Begin "Patch"\\\n+\tGrüße 😀\u2028\x7f\n'
ESCAPED = json.dumps({"input": TEXT})  # in ASCII, with pairs of surrogates
WRITTEN = as_arguments(TEXT)
LOOSE = f' {{ "input" :\n{json.dumps(TEXT, ensure_ascii=False)} }}\n'


def event(*calls: CallDelta, index: int = 0) -> Delta:
    return Delta(0, index, "", calls=calls)


def texts(pieces: list[str]) -> list[str]:
    """What is said of one call after each of its pieces."""
    calls = CustomCalls(frozenset({"say"}))
    found = [calls.read(event(CallDelta(0, "", "call_1", "say")))]
    assert found[0].calls == (CallDelta(0, "", "call_1", "say"),)
    found += [calls.read(event(CallDelta(0, piece))) for piece in pieces]
    assert calls.rest(0) == ()
    return ["".join(call.arguments for call in one.calls) for one in found[1:]]


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


def test_other_arguments_are_the_text_at_the_end() -> None:
    calls = CustomCalls(frozenset({"say"}))
    for number, arguments in enumerate(('{"text": "a"}', '{"input": ""}', "", "{")):
        read = calls.read(event(CallDelta(number, arguments, f"call_{number}", "say"), index=1))
        assert read.calls == (CallDelta(number, "", f"call_{number}", "say"),)
    assert calls.rest(0) == ()
    assert calls.rest(1) == (CallDelta(0, '{"text": "a"}'),)


def test_calls_of_functions_stay_as_they_are() -> None:
    calls = CustomCalls(frozenset({"say"}))
    mixed = event(CallDelta(0, ESCAPED, "call_1", "f"), CallDelta(1, ESCAPED, "call_2", "say"))
    first, second = calls.read(mixed).calls
    assert (first.arguments, second.arguments) == (ESCAPED, TEXT)
    assert (calls.has(0, 0), calls.has(0, 1), calls.has(1, 1)) == (False, True, False)
