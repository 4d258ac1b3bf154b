"""Random JSON schemas and values, and whether a grammar accepts a value: for property tests.

The schemas are like those of agents, with odd keywords. `json_schema.py` decides whether a value is
valid. Properties of values come in the order in which a grammar writes them.
"""

import ctypes
import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions, Json
from lmlite.server.forms.schemas import ToolSchemas, honoured_schema, widened_schema
from lmlite.worker.chat.answer import Form
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from tests.support.json_schema import faults, target_of

NAMES = ("city", "cit", "c", "unit", "a b", 'q"', "é", "x-y", "size", "")
WORDS = ("", "a", "ab", "Paris", "no 1", 'say "x"', "línea\n", "日本", "\\", "\u0001", "x" * 70)
PATTERNS = ("^[a-z]+$", "a", "^a", "b$", r"\S", r"^\d{2,3}$", "^(cat|dog)s?$", "^a$|^b$", "(?=x)y")
FORMATS = {"date": "2024-02-29", "time": "10:00:00Z", "date-time": "2024-01-31T10:00:00+01:00",
           "ipv4": "10.0.0.255", "ipv6": "fe80::1", "uuid": "0f0e0d0c-0b0a-4908-8706-050403020100",
           "hostname": "a-b.example.com", "uri": "https://example.com/a?b=c#d", "email": "a.b@c.de",
           "duration": "P1DT2H", "int32": "x"}  # fmt: skip
_WITH_EXPONENT = re.compile(r"\b\d+(?:\.\d+)?e-\d+\b")
NOTHING: Any = object()  # returned if no value was found


# ---- schemas ---------------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema that probably has a valid value."""
    kinds: list[Callable[[random.Random, int], Any]] = [_text, _number, _number, _listed, _simple]
    if depth < 3:
        kinds += [_object, _object, _array, _composed]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.1 and type(schema) is dict:
        schema |= rng.choice(({"description": "d"}, {"title": "t"}, {"nullable": True},
                              {"x-order": 1}, {"$comment": "c"}))  # fmt: skip
    return schema


def random_document(rng: random.Random) -> Any:
    """An object with definitions, some of them recursive."""
    node = _object(rng, 1)
    node["$defs"] = {
        "a": random_schema(rng, 2),
        "tree": {"type": "object", "properties": {
            "value": random_schema(rng, 3),
            "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
            "required": ["value"]},
    }  # fmt: skip
    for name in rng.sample(("ref", "tree", "also"), rng.randrange(3)):
        target = "#/$defs/tree" if name == "tree" else "#/$defs/a"
        node["properties"][name] = rng.choice(({"$ref": target}, {"allOf": [{"$ref": target}]}))
    return node


def _text(rng: random.Random, _depth: int) -> Any:
    more = rng.choice((
        {}, {"minLength": rng.randrange(4)}, {"maxLength": rng.choice((1, 5, 80, 1000, 10_000))},
        {"minLength": 2.0, "maxLength": 90}, {"pattern": rng.choice(PATTERNS)},
        {"format": rng.choice(list(FORMATS))}, {"pattern": "^a", "minLength": 2},
        {"maxLength": 200_000},
    ))  # fmt: skip
    return {"type": rng.choice(("string", "string", ["string", "null"])), **more}


def _number(rng: random.Random, _depth: int) -> Any:
    low = round(rng.uniform(-100, 100), rng.choice((0, 1, 4)))
    more = rng.choice((
        {}, {"minimum": low}, {"maximum": low}, {"exclusiveMinimum": low},
        {"minimum": low, "maximum": low + rng.choice((2, 10.5, 1e6))},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 7},
        {"multipleOf": rng.choice((1, 5, 0.01, 0.25, 7))}, {"minimum": 0, "multipleOf": 0.5},
        {"minimum": 0, "maximum": 5, "multipleOf": 0.5},
    ))  # fmt: skip
    return {"type": rng.choice(("integer", "number")), **more}


def _listed(rng: random.Random, _depth: int) -> Any:
    values = rng.sample((*WORDS, 1, 2.5, None, True, 10**15, -3), rng.randrange(1, 6))
    return rng.choice(({"enum": values}, {"const": values[0]},
                       {"enum": [f"value {n}" for n in range(rng.choice((3, 30)))]}))  # fmt: skip


def _simple(rng: random.Random, _depth: int) -> Any:
    return rng.choice(({"type": "boolean"}, {"type": "null"}, {}, True, {"type": "object"},
                       {"type": "array"}, {"type": ["integer", "string"]},
                       {"minLength": 2}, {"properties": {"a": {"type": "null"}}}))  # fmt: skip


def _object(rng: random.Random, depth: int) -> Any:
    names = rng.sample(NAMES, rng.randrange(5))
    properties = {name: random_schema(rng, depth + 1) for name in names}
    schema: Any = {"type": "object", "properties": properties,
              "required": rng.sample(names, rng.randrange(len(names) + 1))}  # fmt: skip
    extra = rng.choice((True, False, {}, {"type": "integer"}, None))
    if extra is not None:
        schema["additionalProperties"] = extra
    more: Any = rng.choice(({}, {}, {}, {"minProperties": 1}, {"maxProperties": 9},
                            {"patternProperties": {"^z": {"type": "null"}}},
                            {"anyOf": [{"required": [name]} for name in names] or [{}]},
                            {"dependentRequired": {"city": ["unit"]}},
                            {"not": {"required": ["never"]}}))  # fmt: skip
    return schema | more


def _array(rng: random.Random, depth: int) -> Any:
    schema: Any = {"type": "array", "items": random_schema(rng, depth + 1)}
    if rng.random() < 0.3:
        schema["prefixItems"] = [random_schema(rng, depth + 1) for _ in range(2)]
        schema["items"] = rng.choice((True, False, {"type": "integer"}))
    return schema | rng.choice(({}, {"minItems": 1}, {"maxItems": 2}, {"uniqueItems": True},
                                {"maxItems": 5000}, {"minItems": 2, "maxItems": 2}))  # fmt: skip


def _composed(rng: random.Random, depth: int) -> Any:
    several = [random_schema(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
    bounds = {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 50}]}
    return rng.choice(({"anyOf": several}, {"anyOf": several}, {"oneOf": several},
                       {"allOf": several[:1]}, bounds))  # fmt: skip


# ---- values ----------------------------------------------------------------------------------


def random_value(rng: random.Random, schema: Any, root: Any) -> Any:
    """A value that fits the schema, or NOTHING."""
    for _ in range(4):
        value = _guess(rng, schema, root, 0)
        if value is not NOTHING and not faults(value, schema, root):
            return value
    return NOTHING


def _guess(rng: random.Random, schema: Any, root: Any, depth: int) -> Any:
    """A value that is likely to fit, or NOTHING."""
    if type(schema) is not dict:
        return rng.choice((1, "x", None)) if schema is True else NOTHING
    if depth > 8:
        return None
    if "$ref" in schema:
        return _guess(rng, target_of(schema["$ref"], root), root, depth + 1)
    several = next((schema[key] for key in ("oneOf", "anyOf", "allOf") if key in schema), None)
    if several is not None and "type" not in schema:
        is_range = "allOf" in schema and len(several) > 1
        return rng.randrange(60) if is_range else _guess(rng, rng.choice(several), root, depth + 1)
    if "const" in schema or "enum" in schema:
        return rng.choice(schema.get("enum") or [schema["const"]])
    return _guess_typed(rng, schema, root, depth)


def _guess_typed(rng: random.Random, schema: Any, root: Any, depth: int) -> Any:
    kind = schema.get("type", rng.choice(("object", "string", "integer", "null")))
    match rng.choice(kind) if type(kind) is list else kind:
        case "object":
            return _guess_object(rng, schema, root, depth)
        case "array":
            return _guess_array(rng, schema, root, depth)
        case "string":
            samples = (*WORDS, "ab", "a", "b", "12", "cats", "xa", *FORMATS.values(), "y" * 300)
            return FORMATS[schema["format"]] if "format" in schema else rng.choice(samples)
        case "integer" | "number" as number:
            return _guess_number(rng, schema, number)
        case "boolean":
            return rng.random() < 0.5
    return None


def _guess_number(rng: random.Random, schema: Any, kind: str) -> Any:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 2000))
    value = rng.choice((low, high, rng.uniform(low, high), rng.uniform(low, high), 2**60, 1e-7))
    step = schema.get("multipleOf")
    if step is not None:
        value = round(round(value / step) * step, 6)
    return round(value) if kind == "integer" or value == round(value) else value


def _guess_object(rng: random.Random, schema: Any, root: Any, depth: int) -> Any:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    optional = [name for name in properties if name not in required and rng.random() < 0.5]
    names = [name for name in properties if name in required] + optional
    found = {name: _guess(rng, properties[name], root, depth + 1) for name in names}
    extra = schema.get("additionalProperties", True)
    for name in rng.sample(("cit", "cityy", "z", "é2", "", "other"), rng.randrange(3)):
        if extra is not False and name not in properties:
            found[name] = _guess(rng, extra or True, root, depth + 1)
    return NOTHING if any(value is NOTHING for value in found.values()) else found


def _guess_array(rng: random.Random, schema: Any, root: Any, depth: int) -> Any:
    first, rest = schema.get("prefixItems", []), schema.get("items", True)
    n = rng.randrange(schema.get("minItems", 0), min(schema.get("maxItems", 4), 4) + 1)
    kinds = [*first, *[rest] * 4][:n]
    found = [_guess(rng, kind, root, depth + 1) for kind in kinds]
    return NOTHING if any(value is NOTHING for value in found) else found


# ---- grammars --------------------------------------------------------------------------------


class JsonGrammars:
    """The grammars that a model's template and llama.cpp make from rewritten schemas."""

    def __init__(self, model: Model, template: ChatTemplate) -> None:
        self._model, self._template = model, template
        vocab = model.vocab
        tokens = range(vocab.n_tokens)
        pieces = {each: vocab.piece(each) for each in tokens}
        # Only ASCII bytes: other single bytes could form invalid UTF-8.
        letters = [each for each, piece in pieces.items() if len(piece) == 1 and piece.isascii()]
        end = next(each for each in tokens if vocab.ends_generation(each))
        self._tokens = [*letters, end]

    def of(self, schema: Json) -> "JsonGrammar":
        """The grammar of a schema."""
        options = ChatOptions(json_schema=schema)
        form = self._template.render([ChatMessage("user", "Hi")], options).form
        return JsonGrammar(self._model, form, self._tokens)


class JsonGrammar:
    """The grammar of one schema."""

    def __init__(self, model: Model, form: Form, tokens: list[int]) -> None:
        """Samples consist of `tokens`, and end with the last of these tokens."""
        self._model, self._form, self._tokens, self._end = model, form, tokens, tokens[-1]

    def takes(self, value: Any) -> bool:
        """Whether the grammar accepts the value, with small numbers written without exponents."""
        plain = json.dumps(value, ensure_ascii=False)
        text = _WITH_EXPONENT.sub(lambda number: f"{Decimal(number[0]):f}", plain)
        grammar = Grammar(self._model, self._form.grammar, self._form.reply)
        tokens = self._model.vocab.tokenize(text, add_special=False, parse_special=False)
        try:
            return all(self._is_next(grammar, token) for token in [*tokens, self._end])
        finally:
            grammar.close()

    def samples(self, rng: random.Random, n: int) -> list[str]:
        """Random texts that the grammar accepts; texts that do not end soon are left out."""
        found = (self._sample(rng) for _ in range(n))
        return [text for text in found if text is not None]

    def _sample(self, rng: random.Random) -> str | None:
        grammar = Grammar(self._model, self._form.grammar, self._form.reply)
        vocab, lib, said = self._model.vocab, self._model.lib, b""
        tokens = self._tokens
        try:
            for _ in range(400):
                array = (capi.llama_token_data * len(tokens))(
                    *(capi.llama_token_data(each, 1.0, 0.0) for each in tokens)
                )
                candidates = capi.llama_token_data_array(array, len(tokens), -1, False)
                lib.llama_sampler_apply(grammar.pointer, ctypes.byref(candidates))
                allowed = [each.id for each in array if each.logit == 1.0]
                if not allowed:
                    return None
                token = self._end if said and self._end in allowed else rng.choice(allowed)
                if token == self._end:
                    return said.decode().strip().removeprefix("```json").removesuffix("```")
                said += vocab.piece(token)
                lib.llama_sampler_accept(grammar.pointer, token)
            return None
        finally:
            grammar.close()

    def _is_next(self, grammar: Grammar, token: int) -> bool:
        lib = self._model.lib
        candidate = (capi.llama_token_data * 1)(capi.llama_token_data(token, 1.0, 0.0))
        candidates = capi.llama_token_data_array(candidate, 1, -1, False)
        lib.llama_sampler_apply(grammar.pointer, ctypes.byref(candidates))
        is_next = bool(candidate[0].logit == 1.0)
        if is_next:
            lib.llama_sampler_accept(grammar.pointer, token)
        return is_next


# ---- the two promises ------------------------------------------------------------------------

N_VALUES = 4  # of each schema


def wrongly_refused(grammars: JsonGrammars, seed: int, is_tool: bool) -> tuple[int, str]:
    """(number of valid values, those that the schema's widened form refuses, or "")."""
    rng = random.Random(seed)
    schema = random_document(rng)
    values = [random_value(rng, schema, schema) for _ in range(N_VALUES)]
    fitting = [value for value in values if value is not NOTHING]
    widened = ToolSchemas().widened(schema, "f") if is_tool else widened_schema(schema)
    grammar = grammars.of(widened.schema)
    refused = [value for value in fitting if not grammar.takes(value)]
    return len(fitting), json.dumps([seed, schema, refused]) if refused else ""


def wrongly_taken(grammars: JsonGrammars, seed: int) -> tuple[int, str]:
    """(number of values that the strict schema accepts, those that are invalid, or "")."""
    rng = random.Random(seed)
    schema, other = random_document(rng), random_document(rng)
    try:
        grammar = grammars.of(honoured_schema(schema, "schema"))
    except BadRequest:
        return 0, ""
    values = [random_value(rng, schema, schema) for _ in range(N_VALUES)]
    values.append(random_value(rng, other, other))
    taken = [value for value in values if value is not NOTHING and grammar.takes(value)]
    taken += map(json.loads, grammar.samples(rng, 3))
    wrong = [value for value in taken if faults(value, schema, schema)]
    return len(taken), json.dumps([seed, schema, wrong]) if wrong else ""
