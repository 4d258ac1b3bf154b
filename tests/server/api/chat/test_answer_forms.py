"""vLLM's fields for the form of an answer mean here the same as there."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import ApiError
from lmlite.messages import Chat, Complete
from lmlite.server.api.openai.requests import parse_chat, parse_completion
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.server_process import RunningServer

HI = [{"role": "user", "content": "Hi"}]
NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 4}},
          "required": ["n"], "additionalProperties": False}  # fmt: skip
YES = 'root ::= "yes"'


def chat(**body: Any) -> Chat:
    call = parse_chat({"messages": HI, **body}, replace(NO_DEFAULTS, allows_grammars=True))
    assert isinstance(call.request, Chat)
    assert call.ignored == ()
    return call.request


def refused(body: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as caught:
        parse_chat({"messages": HI, **body}, NO_DEFAULTS)
    assert caught.value.status == 400
    return caught.value.param, caught.value.message


@pytest.mark.parametrize(("kind", "value"), [
    ("json", NUMBER), ("json", json.dumps(NUMBER)), ("json_object", True), ("regex", r"\d{2}"),
    ("choice", ["yes", "no"]), ("grammar", YES),
])  # fmt: skip
def test_both_spellings_mean_the_same(kind: str, value: Any) -> None:
    assert chat(structured_outputs={kind: value}) == chat(**{f"guided_{kind}": value})


def test_a_schema_is_held_as_a_strict_response_format_is() -> None:
    form = {"type": "json_schema", "json_schema": {"strict": True, "schema": NUMBER}}
    assert chat(guided_json=NUMBER) == chat(response_format=form)
    assert chat(guided_json_object=True) == chat(response_format={"type": "json_object"})
    assert chat(guided_grammar=YES) == chat(grammar=YES)


@pytest.mark.parametrize(("asked", "grammar"), [
    ({"guided_regex": r"\d{2}"}, "root ::= ([0-9]{2,2})"),
    ({"guided_regex": r"^a\$$"}, r"root ::= ([a][\U00000024])"),
    ({"guided_choice": ["yes", "no"]}, "root ::= (([n][o]|[y][e][s]))"),
    ({"guided_choice": ["(a)"]}, r"root ::= ([\U00000028][a][\U00000029])"),
])  # fmt: skip
def test_texts_are_held_by_a_grammar_without_the_flag_for_grammars(
    asked: dict[str, Any], grammar: str
) -> None:
    request = parse_chat({"messages": HI, **asked}).request
    assert isinstance(request, Chat)
    assert (request.grammar, request.options.thinks) == (grammar, False)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "two at once": ({"guided_json": NUMBER, "guided_choice": ["a"]}, "guided_choice", "beside"),
    "two names for one": ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"},
                          "guided_regex", "beside structured_outputs.regex"),
    "beside a response_format": (
        {"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex",
        "response_format"),
    "beside tools": ({"guided_regex": "a", "tools": [
        {"type": "function", "function": {"name": "f"}}]}, "guided_regex", "tools"),
    "tags": ({"structured_outputs": {"structural_tag": "{}"}},
             "structured_outputs.structural_tag", "structural_tag is not supported"),
    "spaces of one's own": ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern",
                            "space"),
    "a schema that cannot be held": ({"guided_json": {"not": {}}}, "guided_json",
                                     "guided_json.not cannot be honoured"),
    "a schema that is no JSON": ({"guided_json": "{"}, "guided_json", "is not JSON"),
    "looking ahead": ({"guided_regex": "(?=a)b"}, "guided_regex", "begins with (?"),
    "no choice": ({"guided_choice": []}, "guided_choice", "list"),
    "an empty choice": ({"guided_choice": ["a", ""]}, "guided_choice", "none of them empty"),
    "too many choices": ({"guided_choice": [f"{i}" for i in range(1001)]}, "guided_choice",
                         "1,000"),
    "a grammar without the flag": ({"guided_grammar": YES}, "guided_grammar", "--allow-grammar"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_held_is_refused_by_name(name: str) -> None:
    body, param, words = REFUSED[name]
    found, message = refused(body)
    assert found == param
    assert words in message


def test_completions_take_the_same_fields() -> None:
    call = parse_completion({"prompt": "Hi", "guided_json": NUMBER})
    assert isinstance(call.request, Complete)
    assert (call.request.grammar, call.ignored) == (None, ())
    assert call.request.json_schema == NUMBER


# ---- over HTTP -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--allow-grammar") as running:
        yield running


ANSWERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a choice": ({"guided_choice": ["red", "green", "reddish"]}, {"red", "green", "reddish"}),
    "an expression": ({"structured_outputs": {"regex": "(ab|ba){2}"}},
                      {"abab", "abba", "baab", "baba"}),
    "a grammar": ({"structured_outputs": {"grammar": YES}}, {"yes"}),
    "a schema": ({"guided_json": NUMBER}, {"3", "4"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_answer_has_the_form(server: RunningServer, path: str, name: str) -> None:
    asked, answers = ANSWERS[name]
    said: dict[str, Any] = {"prompt": "Say: "} if path == "/v1/completions" else {"messages": HI}
    answer = server.request("POST", path, {**said, **asked, "max_tokens": 60})
    choice = answer.json["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert (str(json.loads(text)["n"]) if name == "a schema" else text) in answers
