"""JSON schemas of answers: honoured, or refused by the part at fault; other requests go on."""

import cProfile
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.server.forms.schemas import ToolSchemas, honoured_schema, widened_schema
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from tests.support.json_schema import faults
from tests.support.schema_cases import (
    INTEGER,
    NULL,
    REFUSED,
    STRING,
    VALID,
    array,
    named,
    nested,
    obj,
    pattern,
)
from tests.support.server_process import Answer, RunningServer
from tests.support.template_tree import FOLDER, NAMES, source_of

PARAMETERS = "tools.[0].function.parameters"
PATH = "response_format.json_schema.schema"
MAX_TOKENS = 250
MAX_UNENDED = len(VALID) // 6  # answers that a model of this size may cut at MAX_TOKENS
HELD_S = 1.0  # the longest that a hostile request may hold up another


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def ask(server: RunningServer, schema: Any, **more: Any) -> Answer:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "form", "strict": True, "schema": schema},
    }
    messages = [{"role": "user", "content": "Answer as JSON: Ben is 7."}]
    body = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    return server.request("POST", "/v1/chat/completions", body | {"response_format": form} | more)


def checked(server: RunningServer, name: str, **more: Any) -> str:
    """The finish reason of a valid answer; or what is wrong with it."""
    answer = ask(server, VALID[name], **more)
    if answer.status != 200:
        return f"{answer.status} {answer.body!r}"
    choice = answer.json["choices"][0]
    if choice["finish_reason"] == "length":
        return "length"
    text = choice["message"]["content"]
    try:
        wrong = faults(json.loads(text), VALID[name], VALID[name])
    except ValueError as err:
        wrong = [str(err)]
    return f"{wrong} in {text!r}" if wrong else str(choice["finish_reason"])


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 2, "seed": 7, "min_p": 0, "top_k": 0}], ids=["greedy", "wild"]
)
def test_an_answer_that_ends_is_valid(server: RunningServer, how: dict[str, Any]) -> None:
    with ThreadPoolExecutor(4) as threads:
        each = threads.map(lambda name: checked(server, name, **how), VALID)
        found = dict(zip(VALID, each, strict=True))
    assert {name: what for name, what in found.items() if what not in ("stop", "length")} == {}
    assert sum(what == "length" for what in found.values()) <= MAX_UNENDED


def test_there_are_at_least_150_schemas() -> None:
    assert len(VALID) + len(REFUSED) >= 150


def test_a_schema_that_cannot_be_honoured_is_refused_by_its_part(server: RunningServer) -> None:
    pid = server.worker_pid()
    found = {name: ask(server, schema) for name, (schema, _) in REFUSED.items()}
    assert {answer.status for answer in found.values()} == {400}
    for name, (_, part) in REFUSED.items():
        assert part in found[name].error["message"], name
        assert found[name].error["param"] == PATH
    assert server.worker_pid() == pid


# Tools whose grammar would be too large, or impossible.
HOSTILE: dict[str, Any] = {
    "a million items": obj(a={"type": "array", "minItems": 10**6}),
    "a bound of 400 digits": obj(a={"type": "number", "minimum": 10**400, "multipleOf": 10**400}),
    "more at least than at most": obj(a={"type": "array", "minItems": 5, "maxItems": 2}),
    "a thousand values": obj(a={"enum": list(range(1000))}),
    "many optional properties": obj([], **{f"p{i}": NULL for i in range(300)}),
    "many alternatives": obj(a={"anyOf": [{"const": i} for i in range(300)]}),
    "a pattern of products": obj(a=pattern("^(a{0,99}){0,99}$")),
    "alternatives that contain each other": {
        "type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": [
            {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
            {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 1}]}}},
    "a name that is too long": named(**{"_" * 30_000: NULL}),
    "values that are too many": obj(a={"enum": [f"{i}" for i in range(20_000)]}),
    "values that begin with each other": obj(a={"enum": ["a" * i for i in range(1500)]}),
    "many properties": named(**{f"p{i}": STRING for i in range(500)}),
    "properties that are too many": named(**{f"p{i}": STRING for i in range(9000)}),
    "a depth of 200": obj(a=nested(200)),
    "all of one that doubles": {
        "type": "object",
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)},
        "properties": {"a": {"$ref": "#/$defs/d0"}}},
    "references around": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}},
                          "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a reference to the whole": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "itself beside others": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}},
                             "$defs": {"a": {"$ref": "#/$defs/a", "type": "object", "properties": {
                                 "b": {"$ref": "#/$defs/a", "minProperties": 1, "required": []}}}}},
    "many that contain themselves": {
        **named(**{f"p{i}": {"$ref": f"#/$defs/d{i}"} for i in range(700)}),
        "$defs": {f"d{i}": {"anyOf": [array({"$ref": f"#/$defs/d{i}"}), array(NULL)]}
                  for i in range(700)}},
    "many lengths": obj([], **{f"p{i}": {"type": "string", "maxLength": 90_000 + i}
                               for i in range(90)}),
    "a chain of references": {
        "type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}},
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}},
}  # fmt: skip

# The largest schemas that each bound lets through.
LARGEST = {
    "optional properties": obj([], **{f"{i:09}": NULL for i in range(127)}),
    "overlapping alternatives": {"anyOf": [pattern(f"^a{{{i}}}$") for i in range(1, 128)]},
    "places in a pattern": pattern("^(a?){128}$"),
    "values that share nothing": {"enum": [f"{chr(0x4E00 + i)}x" for i in range(128)]},
    "values that share much": {"enum": [f"value {i:04}" for i in range(3900)]},
    "properties": named(**{f"{i:x}": NULL for i in range(1300)}),
    "characters": {"type": "string", "minLength": 999, "maxLength": 1000},
    "arrays": named(**{f"p{i}": {"type": "array", "items": NULL, "maxItems": 999}
                       for i in range(50)}),
}  # fmt: skip


@pytest.mark.parametrize("schema", LARGEST.values(), ids=LARGEST.keys())
def test_the_largest_schemas_hold_up_no_other_request(server: RunningServer, schema: Any) -> None:
    pid = server.worker_pid()
    with ThreadPoolExecutor(2) as threads:
        large = threads.submit(ask, server, schema, max_tokens=30)
        begin = time.monotonic()
        assert server.chat("Say hello", max_tokens=1)["usage"]["completion_tokens"] == 1
        assert time.monotonic() - begin < HELD_S
        assert large.result().status == 200
    assert server.worker_pid() == pid


@pytest.mark.parametrize("schema", [*LARGEST.values(), *(case[0] for case in REFUSED.values())])
def test_a_schema_is_read_at_once(schema: Any) -> None:
    begin = time.process_time()
    try:
        assert len(json.dumps(honoured_schema(schema, PATH))) < 400_000
    except BadRequest as err:
        assert err.message.startswith(PATH)
    assert time.process_time() - begin < HELD_S


# ---- rewriting -----------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "rewritten"), [
    ({"type": ["string", "null"], "title": "A"}, {"anyOf": [{"type": "string"}, NULL]}),
    ({"type": "integer", "enum": ["a", 1, 2.0, None]}, {"enum": [1, 2.0]}),
    ({"allOf": [{"const": 1}], "description": "b"}, {"enum": [1]}),
    ({"type": "integer", "minimum": 100}, {"type": "integer", "minimum": 100}),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
     {"type": "number", "minimum": 5e-324, "maximum": 0.5}),
    ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
     {"type": "number", "enum": [0, 0.25, 0.5, 0.75, 1]}),
    ({"type": "integer", "exclusiveMinimum": 1.5, "exclusiveMaximum": 5, "maximum": 9},
     {"type": "integer", "minimum": 2, "maximum": 4}),
    ({"type": "object", "required": ["a"]},
     {"type": "object", "properties": {"a": {"title": "anything"}}, "required": ["a"],
      "additionalProperties": False}),
    ({"$ref": "#/$defs/n", "default": 2, "$defs": {"n": {"type": "null"}}},
     {"$ref": "#/$defs/zz0", "$defs": {"zz0": NULL}}),
    (pattern(r"^a\d+?$"), pattern("^[a][0-9]+$")),
    (pattern('^[x"]$'), pattern(r'^([x]|[\\]["])$')),
    ({"enum": [f"no {n}" for n in range(17)]},
     pattern("^[n][o][\\U00000020]([0]|[1](|[0]|[1]|[2]|[3]|[4]|[5]|[6])|[2]|[3]|[4]|[5]|[6]|[7]|[8]"
             "|[9])$")),
])  # fmt: skip
def test_a_schema_is_rewritten_for_llama_cpp(schema: Any, rewritten: Any) -> None:
    assert honoured_schema(schema, PATH) == rewritten


# ---- templates -----------------------------------------------------------------------------

PERSON = obj(name={"type": "string"}, age={"type": "integer"})


@pytest.mark.parametrize("name", NAMES)
def test_every_template_holds_an_answer_or_refuses_to(default_model: Model, name: str) -> None:
    template = ChatTemplate(default_model, source_of(name))
    options = ChatOptions(json_schema=honoured_schema(PERSON, PATH))
    try:
        form = template.render([ChatMessage("user", "Hi")], options).form
        assert "integral-part ::=" in form.grammar
        assert not form.grammar_waits
        Grammar(default_model, form.grammar, form.reply).close()
    except BadRequest as err:
        assert name in ("Kimi-K3", "inclusionai-ling-3.0-flash")
        assert err.param == "response_format"
    template.close()


@pytest.mark.parametrize("name", ["Kimi-K2-Instruct", "meetkai-functionary-medium-v3.2"])
@pytest.mark.usefixtures("llama_cpp")
def test_a_template_without_a_grammar_of_its_own_is_held_too(name: str) -> None:
    with RunningServer("--chat-template", str(FOLDER / f"{name}.jinja")) as server:
        choice = ask(server, PERSON, temperature=1, seed=4).json["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert faults(json.loads(choice["message"]["content"]), PERSON, PERSON) == []


# ---- tools ---------------------------------------------------------------------------------


def call(server: RunningServer, parameters: Any) -> Answer:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 40}
    return server.request(
        "POST", "/v1/chat/completions", body | {"tools": [tool], "tool_choice": "required"}
    )


def test_a_tool_may_have_keywords_that_no_grammar_can_enforce(server: RunningServer) -> None:
    parameters = obj(a={"type": "array", "items": NULL, "uniqueItems": True},
                     b=pattern(r"^(?=x)(\w{1,5} ?){0,11}$"), c={"not": {"const": 1}},
                     d={"type": "number", "minimum": 1, "anything": [2]})  # fmt: skip
    assert call(server, parameters).status == 200


@pytest.mark.parametrize("parameters", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_tool_is_called_and_holds_up_no_other_request(
    server: RunningServer, parameters: Any
) -> None:
    pid = server.worker_pid()
    begin = time.monotonic()
    answer = call(server, parameters)
    # The tools may be too long for the prompt all the same.
    refused = answer.error if answer.status == 400 else {"code": None, "param": None}
    is_too_much = refused["code"] == "context_length_exceeded" or refused["param"] == PARAMETERS
    assert answer.status == 200 or is_too_much
    assert time.monotonic() - begin < 3 * HELD_S
    assert server.worker_pid() == pid


def test_a_part_that_calls_are_not_held_to_is_logged_once_with_the_tools_name(
    server: RunningServer,
) -> None:
    parameters = obj(tag={"type": "array", "uniqueItems": True})
    for _ in range(2):
        answer = call(server, parameters)
        assert (answer.status, answer.headers.get("x-ignored-schema")) == (200, None)
    line = server.wait_for_log("tool f: parameters[.]properties[.]tag[.]uniqueItems .*")[0]
    assert line.endswith("no grammar can express it: calls are not held to it")
    assert sum("properties.tag.uniqueItems" in each for each in server.log) == 1


def test_without_strict_a_header_names_the_parts_that_an_answer_is_not_held_to(
    server: RunningServer,
) -> None:
    schema = obj(n={"type": "integer", "multipleOf": 7}, tags=array(STRING, uniqueItems=True))
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    answer = ask(server, {}, response_format=form)
    assert answer.status == 200
    assert answer.headers["x-ignored-schema"] == (
        "properties.n.multipleOf, properties.tags.uniqueItems"
    )
    assert "x-ignored-schema" not in ask(server, obj(n=INTEGER)).headers


# ---- the cost of reading a schema ----------------------------------------------------------


def n_calls(read: Callable[[], object]) -> int:
    """How many functions are called: the cost, in a unit that is the same on all machines."""
    profile = cProfile.Profile()
    with suppress(BadRequest):
        profile.runcall(read)
    return sum(each.callcount for each in profile.getstats())


ONE_OF = {"$defs": {a: {"anyOf": [{"const": f"{a}{i}"} for i in range(350)]} for a in "ab"},
          **obj([], **{f"p{i}": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
                       for i in range(390)})}  # fmt: skip


@pytest.mark.parametrize("schema", [ONE_OF, *HOSTILE.values()], ids=["oneOf", *HOSTILE.keys()])
def test_reading_a_schema_takes_steps_in_proportion_to_its_size(schema: Any) -> None:
    size = len(json.dumps(schema))
    for read in (lambda: honoured_schema(schema, PATH), lambda: widened_schema(schema),
                 lambda: ToolSchemas().widened(schema, "f")):  # fmt: skip
        assert n_calls(read) < 400_000 + 20 * size


def test_a_letter_in_the_names_of_rules_may_repeat() -> None:
    schema = obj(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": NULL}, "description": "z" * 100_000}
    begin = time.process_time()
    widened = ToolSchemas().widened(schema, "f").schema
    assert time.process_time() - begin < HELD_S
    assert list(widened["$defs"]) == ["tool1xz0z0"]
