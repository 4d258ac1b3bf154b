"""What each step makes of messages that a chat template refuses."""

from typing import Any

import pytest

from lmlite.worker.chat import rearrangement
from lmlite.worker.chat.rearrangement import STEPS, Step, is_json_object, rearranged

Json = dict[str, Any]


def said(role: str, content: str, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def call(call_id: str, arguments: str = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def calling(*ids: str, content: str = "") -> Json:
    return said("assistant", content, tool_calls=[call(call_id) for call_id in ids])


def result(call_id: str, content: str) -> Json:
    return said("tool", content, tool_call_id=call_id)


S, S2 = said("system", "S"), said("system", "S2")
U, U2 = said("user", "U"), said("user", "U2")
A, A2 = said("assistant", "A"), said("assistant", "A2")
NOTHING_SAID, NOTHING_ANSWERED = said("user", ""), said("assistant", "")
USUAL = [S, U, A, U, calling("call00000"), result("call00000", "R"), A, U2]

CASES: list[tuple[str, list[Json], list[Json]]] = [
    ("join_leading_systems", [S, S2, U], [said("system", "S\n\nS2"), U]),
    ("join_leading_systems", [S, U, S2, U], [S, U, S2, U]),
    ("move_later_systems", [S, U, A, S2, U2], [S, U, A, said("user", "S2\n\nU2")]),
    ("move_later_systems", [U, S, A, S2, U2], [U, A, said("user", "S\n\nS2\n\nU2")]),
    ("move_later_systems", [S, U, S2], [S, U, said("user", "S2")]),
    ("move_later_systems", [U, S, A], [U, said("user", "S"), A]),
    ("move_all_systems", [S, U], [said("user", "S\n\nU")]),
    ("move_all_systems", [S], [said("user", "S")]),
    ("move_results", [calling("1", "2"), A, result("2", "R2"), U, result("1", "R1")],
     [calling("1", "2"), result("2", "R2"), result("1", "R1"), A, U]),
    ("move_results", [calling("1"), result("1", "R"), calling("1"), result("1", "R2")],
     [calling("1"), result("1", "R"), calling("1"), result("1", "R2")]),
    ("move_results", [calling("1"), A, result("2", "R")],
     [calling("1"), A, result("2", "R")]),
    ("split_calls",
     [calling("1", "2", content="A"), result("2", "R2"), result("1", "R1"), result("3", "R3"), U],
     [calling("1", content="A"), result("1", "R1"), calling("2"), result("2", "R2"),
      result("3", "R3"), U]),
    ("split_texts", [U, calling("1", content="A")], [U, A, calling("1")]),
    ("drop_thoughts", [said("assistant", "A", reasoning_content="T")], [A]),
    ("orphans_to_text", [result("1", "R"), A, result("2", "R2")],
     [said("user", "<tool_response>\nR\n</tool_response>"), A,
      said("user", "<tool_response>\nR2\n</tool_response>")]),
    ("orphans_to_text", [calling("1"), result("2", "R"), result("3", "R")],
     [calling("1"), result("2", "R"), result("3", "R")]),
    ("join_neighbours", [U, U2, A, NOTHING_ANSWERED, A2],
     [said("user", "U\n\nU2"), said("assistant", "A\n\nA2")]),
    ("join_neighbours", [A, calling("1"), calling("2"), result("1", "R"), result("2", "R")],
     [A, calling("1"), calling("2"), result("1", "R"), result("2", "R")]),
    ("alternate", [S, A, U], [S, NOTHING_SAID, A, U]),
    ("alternate", [U, calling("1"), result("1", "R"), U2],
     [U, calling("1"), result("1", "R"), NOTHING_ANSWERED, U2]),
    ("alternate", [U, A, calling("1"), result("1", "R"), A2],
     [U, A, NOTHING_SAID, calling("1"), result("1", "R"), A2]),
    ("alternate", [S], [S, NOTHING_SAID]),
    ("calls_to_text", [calling("1", content="A"), result("1", "R")],
     [said("assistant", 'A\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
      result("1", "R")]),
    ("results_to_text", [calling("1", "2"), result("1", "R"), result("2", "R2")],
     [calling("1", "2"), said("user", "<tool_response>\nR\n</tool_response>\n"
                              "<tool_response>\nR2\n</tool_response>")]),
    ("shorten_ids", [calling("call_1", "call_2"), result("call_2", "R"), result("call_3", "R")],
     [calling("call00000", "call00001"), result("call00001", "R"), result("call00002", "R")]),
]  # fmt: skip


def step(name: str) -> Step:
    found: Step = getattr(rearrangement, name)
    return found


@pytest.mark.parametrize(("name", "before", "after"), CASES)
def test_a_step_makes_this_change_only(name: str, before: list[Json], after: list[Json]) -> None:
    assert step(name)(before) == after


def test_each_step_has_a_case() -> None:
    tested = {step(name) for name, _, _ in CASES} | {rearrangement.repair_arguments}
    assert tested == set(STEPS)


@pytest.mark.parametrize("each", STEPS, ids=lambda each: each.__name__)
def test_no_step_changes_the_messages_it_gets(each: Step) -> None:
    before = [S, S2, A, U, U2, S, calling("x", "y", content="A"), U, result("x", "R")]
    copy = [dict(message) for message in before]
    each(before)
    assert before == copy


def test_only_the_last_three_steps_change_a_usual_conversation() -> None:
    changing = [each.__name__ for each in STEPS if each(USUAL) != USUAL]
    assert changing == ["move_all_systems", "calls_to_text", "results_to_text"]


def test_turns_alternate_after_the_roles_have_changed() -> None:
    before = [U, calling("1"), result("1", "R"), U2]
    told = rearranged(before, STEPS)
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[2]["content"] == "<tool_response>\nR\n</tool_response>\n\nU2"


WHOLE = ["{}", '{"a": [1, 2.5, null]}', '{"a": [1e308, -12345678901234567890123]}',
         ' {"é": "\\u00e9\\ud83d\\ude00"} ']  # fmt: skip
BROKEN = ["", "{", '{"city": "Par', '{"a": 1}}', "[1]", '"a"', "null", "5", '{"a": NaN}',
          '{"a": 1e400}', f'{{"a": -{"9" * 400}}}', '{"a": "\\ud800"}', "é",
          '{"a":' * 100_000]  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_arguments_that_are_an_object_stay(text: str) -> None:
    assert is_json_object(text)
    before = [said("assistant", "", tool_calls=[call("1", text)])]
    assert rearrangement.repair_arguments(before) == before


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_arguments_that_are_not_an_object_become_an_empty_one(text: str) -> None:
    assert not is_json_object(text)
    before = [said("assistant", "", tool_calls=[call("1", text)])]
    assert rearrangement.repair_arguments(before) == [
        said("assistant", "", tool_calls=[call("1", "{}")])
    ]
