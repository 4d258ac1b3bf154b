"""A widened schema takes all values of the client's schema; a strict one takes no others.

Checked with llama.cpp's own grammars, for random schemas and values.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.messages import ChatMessage, ChatOptions
from lmlite.server.forms.schemas import ToolSchemas
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests.support.schema_cases import INTEGER, NULL, STRING, obj
from tests.support.schema_values import JsonGrammars, wrongly_refused, wrongly_taken
from tests.support.template_tree import source_of

N_SCHEMAS = 150


@pytest.fixture(scope="module")
def template(default_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(default_model)
    yield made
    made.close()


@pytest.mark.parametrize("is_tool", [False, True], ids=["of an answer", "of a tool"])
def test_a_widened_schema_refuses_no_value_of_the_original(
    default_model: Model, template: ChatTemplate, is_tool: bool
) -> None:
    grammars = JsonGrammars(default_model, template)
    found = [wrongly_refused(grammars, seed, is_tool) for seed in range(N_SCHEMAS)]
    assert [fault for _, fault in found if fault] == []
    assert sum(n for n, _ in found) > N_SCHEMAS  # else too few values were found


def test_a_strict_schema_takes_no_value_that_the_original_refuses(
    default_model: Model, template: ChatTemplate
) -> None:
    grammars = JsonGrammars(default_model, template)
    found = [wrongly_taken(grammars, seed) for seed in range(2 * N_SCHEMAS)]
    assert [fault for _, fault in found if fault] == []
    assert sum(n for n, _ in found) > N_SCHEMAS / 2  # many schemas are refused


# As agents send them: (a schema, values that fit it, the parts that calls are not held to).
ODD: dict[str, tuple[Any, list[Any], list[str]]] = {
    "true": ({"type": "object", "properties": {"a": True}}, [{"a": [1]}, {}], []),
    "nothing at all": (obj([], more=True, a={}), [{"a": None}], []),
    "false": (obj([], more=True, a=False, b=STRING), [{"b": "x"}], []),
    "a long text": (obj(a={"type": "string", "maxLength": 10_000}), [{"a": "x" * 200}], []),
    "too long a text": (obj(a={"type": "string", "maxLength": 10**6}), [{"a": "x" * 200}],
                        [".properties.a.maxLength"]),
    "counts with a point": (obj(a={"type": "string", "minLength": 1.0}), [{"a": "x"}], []),
    "a $ref to nowhere": (obj(a={"$ref": "#/$defs/A"}), [{"a": {"b": 1}}],
                          [".properties.a.$ref"]),
    "a $ref to nowhere, with an empty list of types": (
        obj(a={"$ref": "#/$defs/A", "type": []}), [{"a": 1}], [".properties.a.$ref"]),
    "a $ref to another place": (obj(a={"$ref": "https://a.example/s"}), [{"a": 1}],
                                [".properties.a.$ref"]),
    "a $ref to the whole": (obj([], a={"$ref": "#"}), [{"a": {"a": {}}}], []),
    "a $ref to itself": (obj(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/a"}}},
                         [{"a": 1}], [".properties.a.$ref"]),
    "a $ref with neighbours": (
        obj(a={"$ref": "#/$defs/a", "minLength": 2}) | {"$defs": {"a": STRING}},
        [{"a": "ab"}], []),
    "allOf of one $ref": (obj(a={"allOf": [{"$ref": "#/$defs/a"}]}) | {"$defs": {"a": STRING}},
                          [{"a": "Paris"}], []),
    "allOf of several": (
        {"allOf": [{"$ref": "#/$defs/a"}, obj(b=INTEGER)], "$defs": {"a": obj(a=STRING)}},
        [{"a": "x", "b": 1}], [".additionalProperties"]),
    "allOf of bounds": (obj(a={"allOf": [INTEGER, {"minimum": 3}, {"maximum": 5}]}), [{"a": 4}],
                        []),
    "anyOf at the root": (
        {"anyOf": [obj(["a"], True, a=STRING), obj(["b"], True, b=INTEGER)]},
        [{"a": "x"}, {"b": 1}, {"a": 1, "b": 2}], [".anyOf"]),
    "anyOf beside properties": (
        obj([], True, a=STRING, b=STRING) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": "x"}, {"b": "x"}], [".anyOf"]),
    "null for a list": ({"type": "object", "properties": {"a": STRING}, "required": None},
                        [{}, {"a": "x"}], [".required"]),
    "a list for an object": ({"type": "object", "properties": []}, [{"a": 1}], [".properties"]),
    "an enum with null": (obj(a={"type": ["string", "null"], "enum": ["c", "f", None]}),
                          [{"a": None}, {"a": "c"}], []),
    "nullable": (obj(a={"type": "string", "enum": ["c"], "nullable": True}),
                 [{"a": None}, {"a": "c"}], []),
    "values of another type": (obj(a={"type": "integer", "enum": ["1", "2"]}), [{"a": "1"}],
                               [".properties.a.enum"]),
    "types in capitals": ({"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
                          [{"a": "x"}], []),
    "types of Python": (obj(a={"type": "str"}), [{"a": "x"}], [".properties.a.type"]),
    "no type": ({"properties": {"a": {"properties": {"b": STRING}}}}, [{"a": {"b": "x"}},
                                                                      {"a": "text"}], []),
    "other properties": (obj(["ab"], True, ab=STRING, abc=INTEGER),
                         [{"ab": "x", "a": 1}, {"ab": "x", "abcd": None}, {"ab": "x", "": []}],
                         []),
    "names of patterns": (obj(a=STRING) | {"patternProperties": {"^x-": STRING}},
                          [{"a": "x", "x-b": "y"}], [".patternProperties"]),
    "names that end classes": (obj([], True, **{"]": NULL, "^": NULL, "\\": NULL, '"': NULL}),
                               [{"]]": 1, "^^": 1, '""': 1}], []),
    "a star": (obj(["*"], **{"*": INTEGER, "a": STRING}), [{"a": "x", "*": 1}],
               [".properties.*"]),
    "old exclusive bounds": (obj(a={"type": "number", "minimum": 0, "exclusiveMinimum": True}),
                             [{"a": 0.5}], [".properties.a.exclusiveMinimum"]),
    "long numbers": (obj(a=INTEGER, b={"type": "integer", "minimum": 1}),
                     [{"a": 2**64 - 1, "b": 1234567890123456789}], []),
    "a tuple": (obj(a={"type": "array", "items": [STRING, INTEGER]}),
                [{"a": ["x", 1]}, {"a": ["x"]}, {"a": ["x", 1, None]}], []),
    "conditions": (obj([], True, a=STRING) | {"if": {}, "then": {"required": ["b"]}},
                   [{"a": "x", "b": 1}], [".if", ".then"]),
    "a constant": (obj(a={"const": {"b": [1, {}]}}), [{"a": {"b": [1, {}]}}], []),
    "control characters": (obj(a={"type": "string", "maxLength": 3}), [{"a": "\u0001\u007f\n"}],
                           []),
    "a text": (STRING, [{}, {"a": 1}], []),
    "arguments without properties": ({"type": "object"}, [{}, {"a": {"b": 1}}], []),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_tool_takes_all_values_of_its_odd_schema(
    default_model: Model, template: ChatTemplate, name: str
) -> None:
    schema, values, paths = ODD[name]
    widened = ToolSchemas().widened(schema, "f")
    grammar = JsonGrammars(default_model, template).of(widened.schema)
    assert [value for value in values if not grammar.takes(value)] == []
    assert [part.path for part in widened.unheld] == paths


def test_keywords_that_a_grammar_can_enforce_are_enforced(
    default_model: Model, template: ChatTemplate
) -> None:
    schema = obj(["city"], True, city=STRING, unit={"enum": ["c", "f"]}, n=INTEGER)
    widened = ToolSchemas().widened(schema, "f")
    grammar = JsonGrammars(default_model, template).of(widened.schema)
    wrong: Any
    for wrong in ({"city": 1}, {}, {"city": "x", "unit": "k"}, {"city": "x", "n": "1"}, []):
        assert not grammar.takes(wrong)
    assert widened.unheld == ()


def test_a_tool_without_arguments_takes_none(default_model: Model, template: ChatTemplate) -> None:
    widened = ToolSchemas().widened({"type": "object", "properties": {}}, "f")
    grammar = JsonGrammars(default_model, template).of(widened.schema)
    assert (grammar.takes({}), grammar.takes({"a": 1})) == (True, False)


def test_definitions_of_two_tools_are_kept_apart(special_model: Model) -> None:
    schemas, tools = ToolSchemas(), []
    for kind, name in (({"enum": ["x"]}, "f"), ({"enum": [1]}, "g")):
        schema = obj(a={"$ref": "#/$defs/same"}) | {"$defs": {"same": kind}}
        function = {"name": name, "description": "", "parameters": schema}
        tools.append(({"type": "function", "function": function}, schemas.widened(schema, name)))
    options = ChatOptions(
        tools=tuple(tool for tool, _ in tools),
        tool_schemas=tuple(widened.schema for _, widened in tools),
        tool_choice="required",
    )
    template = ChatTemplate(special_model, source_of("Qwen-Qwen3-0.6B"))
    grammar = template.render([ChatMessage("user", "Hi")], options).form.grammar
    template.close()
    rules = dict(re.findall(r"^([\w-]+) ::= (.*)$", grammar, re.MULTILINE))
    found = [rules[rule] for rule in rules if rule.startswith("ref-defs-")]
    assert sorted(found) == ['("1")', r'("\"x\"")']


@pytest.mark.usefixtures("llama_cpp")
def test_the_model_reads_schemas_as_the_client_sent_them(default_model: Model) -> None:
    schema = obj(a={"type": "string", "maxLength": 10**6, "description": "Long?"}, b=True)
    function = {"name": "f", "description": "", "parameters": schema}
    held = ToolSchemas().widened(schema, "f").schema
    template = ChatTemplate(default_model, source_of("Qwen-Qwen3-0.6B"))
    tools = ({"type": "function", "function": function},)
    options = ChatOptions(tools=tools, tool_schemas=(held,), tool_choice="none")
    ids = template.render([ChatMessage("user", "Hi")], options).prompt.ids
    text = b"".join(default_model.vocab.piece(each, special=True) for each in ids).decode()
    template.close()
    assert '"maxLength": 1000000' in text
    assert '"b": true' in text


def test_a_property_that_refers_too_far_leaves_others_as_they_are() -> None:
    schema = obj(a={"$ref": "#/$defs/d0"}, b={"$ref": "#/$defs/b"}) | {
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(68)}
        | {"d68": NULL, "b": INTEGER}
    }
    widened = ToolSchemas().widened(schema, "f")
    properties = widened.schema["properties"]
    assert [part.path for part in widened.unheld] == [".properties.a"]
    assert widened.schema["$defs"][properties["b"]["$ref"].rpartition("/")[2]] == INTEGER
