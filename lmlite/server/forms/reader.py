"""Rewrites a JSON schema part by part so that llama.cpp makes a correct grammar from it."""

import itertools
import json
from typing import Any

from lmlite.server.forms.bounds import MAX_COUNT, Reading, Unheld, Ways
from lmlite.server.forms.definitions import Definitions
from lmlite.server.forms.merging import merged, united
from lmlite.server.forms.numbers import number_node
from lmlite.server.forms.parts import (
    ANYTHING,
    GUESSED,
    NULL,
    TYPES,
    Json,
    alternatives,
    any_of,
    constant,
    is_annotation,
    loosely,
    pointed_at,
    type_of,
    with_integers,
)
from lmlite.server.forms.texts import MAX_LISTED, listed_texts, text_node

_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keywords by the type that they restrict. They do not restrict values of other types.
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "boolean": (),
    "null": (),
}
_COMPOSED = ("$ref", "anyOf", "oneOf", "allOf")
_KNOWN = {"type", "enum", "const", *_COMPOSED, *itertools.chain(*_OF_TYPE.values())}
_NO_CHANGE = {"uniqueItems": False, "minProperties": 0, "propertyNames": {"type": "string"}}
_ADDING = ("patternProperties", "dependentSchemas", "unevaluatedProperties")
_MAX_DEPTH = 72  # nested schemas, also through references
_MAX_NAME = 256  # characters in the name of a property
_MAX_OPTIONAL = 100  # optional properties of an object in a schema that is not strict
_TOO_OPEN = (
    "it has too many alternatives, values or optional properties, or refers too far from one part "
    "to another"
)


class SchemaReader:
    """Rewrites one schema. `path` is always the place of a part in the schema."""

    def __init__(self, reading: Reading, most_ways: int, prefix: str = "") -> None:
        """`prefix`: makes names differ from those of other schemas in the same grammar."""
        self._reading, self._most_ways = reading, most_ways
        self._is_strict = reading.is_strict
        self._definitions = Definitions(reading.root, prefix)
        self._depth = 0
        self._merging: list[str] = []  # references whose merged targets are being read

    def read(self) -> Json:
        """Rewrites the whole schema. Raises Unheld if the reading is strict."""
        return self._finished(self._schema(self._reading.root, ""))

    def read_arguments(self) -> Json:
        """Rewrites the whole schema to an object with its properties at the root.

        llama.cpp's parsers of calls look for properties only there, and do not follow references.
        """
        try:
            schema = united(merged(self._reading.root, "", self._reading)[0], self._reading)
            schema["type"] = "object"
            for key in sorted(schema.keys() & {"anyOf", "oneOf", "enum", "const"}):
                self._reading.note(f".{key}", "is left out beside other keywords")
            if schema.get("properties") == {} and schema.keys() == {"type", "properties"}:
                schema["additionalProperties"] = False  # OpenAI's form of a tool without arguments
            node = self._object(self._known(schema, ""), "")
        except Unheld as fault:
            self._reading.note(fault.path, fault.why)
            node = {"type": "object"}
        return self._finished(node)

    def _finished(self, node: Json) -> Json:
        """Adds the definitions, and widens parts that would leave too many ways open at once."""
        self._definitions.finish(self._reading)
        ways = Ways(self._definitions.nodes, self._reading.ways)
        if not self._is_strict and ways.of(node) > self._most_ways:
            # Check each property separately, so that one costly property does not widen all.
            properties = node.get("properties", {})
            most = self._most_ways - len(properties) + len(node.get("required", ()))
            for name, each in properties.items():
                properties[name] = self._limited(each, ways, most, f".properties.{name}")
        node = self._limited(node, ways, self._most_ways, "")
        return node | self._definitions.written()

    def _limited(self, node: Json, ways: Ways, most: int, path: str) -> Json:
        if ways.of(node) <= most:
            return node
        self._reading.drop(path, f"leaves more than {most} ways open at once: {_TOO_OPEN}")
        return loosely(node)

    # ---- any schema ------------------------------------------------------------------------

    def _schema(self, schema: Any, path: str) -> Json:
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                why = "refers too far from one part to another, or is too deep"
                self._reading.refuse(path, why)
            self._reading.take(path, values=1, paths=len(path))
            node = self._read(schema, path)
            if not self._is_strict and schema is not True and schema.get("nullable") is True:
                return any_of([*alternatives(node), NULL])
            return node
        except Unheld as fault:
            if self._is_strict:
                raise
            self._reading.note(fault.path, fault.why)
            return loosely(schema)
        finally:
            self._depth -= 1

    def _read(self, schema: Any, path: str) -> Json:
        if schema is True:
            return ANYTHING
        if type(schema) is not dict:
            why = "cannot be honoured: it is not a schema that takes something"
            self._reading.refuse(path, why)
        if path and "$id" in schema:
            self._reading.refuse(f"{path}.$id", "is not supported: only the whole schema has one")
        schema = self._known(schema, path)
        if not schema.keys().isdisjoint(_COMPOSED):
            return self._composed(schema, path)
        if "enum" in schema or "const" in schema:
            return self._listed(schema, path)
        nodes = [self._typed(name, schema, path) for name in self._types(schema, path)]
        if "type" not in schema and self._is_strict and nodes != [ANYTHING]:
            nodes = [node | {GUESSED: True} for node in nodes]
        return any_of(nodes)

    def _known(self, schema: Json, path: str) -> Json:
        """The keywords that restrict values, without those that no grammar can enforce."""
        known: Json = {}
        is_open = False
        for key, value in schema.items():
            if key in _KNOWN:
                if value is not None or key == "const" or self._is_strict:
                    known[key] = value
                else:
                    self._reading.note(f"{path}.{key}", "is null")
            elif not is_annotation(key) and (key not in _NO_CHANGE or _NO_CHANGE[key] != value):
                self._reading.drop(f"{path}.{key}", "cannot be honoured: no grammar can express it")
                is_open |= key in _ADDING
        return known | {"additionalProperties": True} if is_open else known

    def _check_alone(self, schema: Json, keys: tuple[str, ...], path: str) -> None:
        for other in sorted(schema.keys() - set(keys)):
            self._reading.drop(f"{path}.{other}", f"cannot be honoured beside {keys[0]}")

    # ---- composed of other schemas ---------------------------------------------------------

    def _composed(self, schema: Json, path: str) -> Json:
        key = next(key for key in _COMPOSED if key in schema)
        if self._is_strict:
            self._check_alone(schema, (key,), path)
        is_long = key == "allOf" and type(schema[key]) is list and len(schema[key]) != 1
        if self._is_strict or (schema.keys() <= {key, "type"} and not is_long):
            return self._combined(key, schema, f"{path}.{key}")
        if key in ("$ref", "allOf") or "allOf" in schema:
            return self._merged(schema, path)
        # Keywords beside anyOf or oneOf are usually more specific, so they are kept instead.
        for other in schema.keys() & {"anyOf", "oneOf"}:
            self._reading.note(f"{path}.{other}", "is left out beside other keywords")
        rest = {other: value for other, value in schema.items() if other not in ("anyOf", "oneOf")}
        return self._read(rest, path)

    def _combined(self, key: str, schema: Json, path: str) -> Json:
        """A schema that has only this keyword and maybe a type."""
        value = schema[key]
        if key == "$ref":
            return self._reference(value, path)
        if type(value) is not list or not value:
            self._reading.refuse(path, "is not a list of schemas")
        if key == "allOf" and len(value) > 1:
            self._reading.refuse(path, "cannot be honoured: it has more than one schema")
        if key != "allOf" and "type" in schema:  # applies to alternatives without a type
            value = [
                {"type": schema["type"]} | each
                if type(each) is dict and not each.keys() & set(_COMPOSED)
                else each
                for each in value
            ]
        nodes = [self._schema(each, f"{path}.{i}") for i, each in enumerate(value)]
        is_exclusive = key == "oneOf" and self._is_strict
        if is_exclusive and not self._definitions.comparer.exclude_each_other(nodes):
            why = "two of its schemas may take the same value, as those of anyOf may"
            self._reading.refuse(path, f"cannot be honoured: {why}")
        return any_of(nodes)

    def _merged(self, schema: Json, path: str) -> Json:
        one, refs = merged(schema, path, self._reading)
        again = sorted(refs & set(self._merging))
        if again:
            why = f"contains itself through {again[0]:.80}, beside other keywords"
            self._reading.refuse(path, why)
        outer = self._merging
        self._merging = [*outer, *refs]
        try:
            return self._read(one, path)
        finally:
            self._merging = outer

    def _reference(self, ref: Any, path: str) -> Json:
        if type(ref) is not str or not (ref == "#" or ref.startswith("#/")):
            why = "is not supported: it has to begin with #/, and to stay in this schema"
            self._reading.refuse(path, why)
        new = self._definitions.refs.get(ref)
        if new is None:
            target = pointed_at(self._reading.root, ref)
            if target is None:
                self._reading.refuse(path, f"refers to {ref:.80}, which is not there")
            new = self._definitions.add(ref, path)
            where = ref.removeprefix("#").replace("/", ".")
            self._definitions.nodes[new] = self._schema(target, where)
        return {"$ref": new}

    # ---- values and types ------------------------------------------------------------------

    def _listed(self, schema: Json, path: str) -> Json:
        key = "const" if "const" in schema else "enum"
        self._check_alone(schema, (key, "type"), path)
        values = schema["enum"] if key == "enum" else [schema["const"]]
        path = f"{path}.{key}"
        if type(values) is not list or not values:
            self._reading.refuse(path, "is not a list of values")
        if _has_long_numbers(values):
            self._reading.refuse(path, "has more than 64 bits")
        n_bytes = len(json.dumps(values)) - 2 * len(values)  # without ", " between values
        self._reading.take(path, values=len(values), n_bytes=n_bytes)
        if "type" in schema:
            names = with_integers(self._types(schema, path.removesuffix(f".{key}")))
            fitting = [value for value in values if type_of(value) in names]
            if not fitting:
                self._reading.drop(path, "has no value of its type")
            values = fitting or values
        texts = [value for value in values if type(value) is str]
        others = [value for value in values if type(value) is not str]
        if any(type(value) in (list, dict) for value in others):
            return any_of(list(map(constant, values)))
        if not texts or (others and len(texts) <= MAX_LISTED):
            return {"enum": values}
        node = listed_texts(texts, self._reading, path)
        return any_of([node, {"enum": others}] if others else [node])

    def _types(self, schema: Json, path: str) -> list[str]:
        """The schema's types; without `type`, all types or, if strict, that of its keywords."""
        if "type" in schema:
            named = schema["type"] if type(schema["type"]) is list else [schema["type"]]
            names = [name if self._is_strict else name.lower()
                     for name in named if type(name) is str]  # fmt: skip
            if not names or len(names) < len(named) or not _OF_TYPE.keys() >= set(names):
                self._reading.drop(f"{path}.type", f"is not one of {', '.join(_OF_TYPE)}")
                return ["anything"]
            return list(dict.fromkeys(names))
        names = [name for name in _OF_TYPE if schema.keys() & set(_OF_TYPE[name])]
        if not names or not self._is_strict:
            return list(TYPES) if names else ["anything"]
        if len({_OF_TYPE[name] for name in names}) > 1:
            why = f"needs a type: it has keywords of {' and '.join(names)}"
            self._reading.refuse(path, why)
        return names[-1:]

    def _typed(self, name: str, schema: Json, path: str) -> Json:
        match name:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "anything":
                return ANYTHING
            case _ if schema.keys().isdisjoint(_OF_TYPE[name]):
                return {"type": name}
            case "string":
                return text_node(schema, self._reading, path)
        return number_node(schema, name == "integer", self._reading, path)

    def _of_kind(self, schema: Json, key: str, kind: type, path: str) -> Any:
        value = schema.get(key, kind())
        if type(value) is not kind:
            what = "a list" if kind is list else "an object"
            self._reading.drop(f"{path}.{key}", f"is not {what}")
            return kind()
        return value

    # ---- objects ---------------------------------------------------------------------------

    def _object(self, schema: Json, path: str) -> Json:
        properties = self._of_kind(schema, "properties", dict, path)
        required = self._of_kind(schema, "required", list, path)
        extra = schema.get("additionalProperties", True)
        if type(extra) not in (bool, dict):
            self._reading.drop(f"{path}.additionalProperties", "is not a schema")
            extra = True
        for name in required:
            if type(name) is not str or (name not in properties and extra is False):
                why = f"names {name!r:.80}, which properties lack"
                self._reading.drop(f"{path}.required", why)
                extra = True
        required = list(dict.fromkeys(name for name in required if type(name) is str))
        if not properties and not required and extra is not False:
            inner = self._schema(extra, f"{path}.additionalProperties")
            return {"type": "object", "additionalProperties": inner}
        named = properties | {name: extra for name in required if name not in properties}
        is_open = type(extra) is dict or (extra is True and not self._is_strict)
        left_out = self._left_out(named, required, is_open, path)
        node: Json = {
            "type": "object",
            "properties": {
                name: self._schema(each, f"{path}.properties.{name}")
                for name, each in named.items()
                if name not in left_out
            },
            "required": [name for name in required if name not in left_out],
            "additionalProperties": not self._is_strict and (extra is not False or bool(left_out)),
        }
        if type(extra) is dict and extra:
            node["additionalProperties"] = self._schema(extra, f"{path}.additionalProperties")
        return node

    def _left_out(self, named: Json, required: list[str], is_open: bool, path: str) -> set[str]:
        """The properties that the grammar leaves out, so that their values are not restricted."""
        left_out = set()
        for name in named:
            # llama.cpp uses "*" for additional properties, whose names must not equal these names.
            if name == "*" or (is_open and ("\r" in name or "\n" in name)) or len(name) > _MAX_NAME:
                why = "cannot be honoured: llama.cpp takes no such names"
                self._reading.drop(f"{path}.properties.{name[:_MAX_NAME]}", why)
                left_out.add(name)
        if self._is_strict:
            return left_out
        needed = set(required)
        optional = [name for name in named if name not in needed]
        if len(optional) > _MAX_OPTIONAL:
            why = f"are too many: those behind the first {_MAX_OPTIONAL} may be anything"
            self._reading.note(f"{path}.properties", why)
        never = {name for name in optional if named[name] is False}
        return left_out | never | {*optional[_MAX_OPTIONAL:]}

    # ---- arrays ----------------------------------------------------------------------------

    def _array(self, schema: Json, path: str) -> Json:
        items = schema.get("items", True)
        low, high = self._reading.counts(schema, "Items", MAX_COUNT, path)
        self._reading.take(path, repeated=low + (high or 0))
        if type(items) is not list and "prefixItems" not in schema:
            if items is False and not self._is_strict:
                return _array_of([ANYTHING], 0, 0)
            return _array_of([self._schema(items, f"{path}.items")], low, high)
        is_old = type(items) is list  # drafts before 2020-12
        first, rest = ("items", "additionalItems") if is_old else ("prefixItems", "items")
        listed = self._of_kind(schema, first, list, path)
        nodes = [self._schema(each, f"{path}.{first}.{i}") for i, each in enumerate(listed)]
        more = schema.get(rest, True)
        if not self._is_strict:
            return self._any_tuple(nodes, more, low, high, f"{path}.{rest}")
        if more not in (True, False, {}):
            self._reading.refuse(f"{path}.{rest}", f"cannot be honoured beside {first}")
        if not low <= len(nodes) <= (MAX_COUNT if high is None else high):
            key = "minItems" if low > len(nodes) else "maxItems"
            self._reading.refuse(f"{path}.{key}", f"cannot be honoured: {first} has {len(nodes)}")
        return {"type": "array", "prefixItems": nodes}

    def _any_tuple(
        self, nodes: list[Json], more: Any, low: int, high: int | None, path: str
    ) -> Json:
        """A tuple of variable length: rewritten to a list of items that may be any of its items."""
        if more is False:
            high = len(nodes) if high is None else min(high, len(nodes))
        if nodes and low == high == len(nodes):
            return {"type": "array", "prefixItems": nodes}
        if more is not False:
            nodes = [*nodes, self._schema(more, path)]
        return _array_of(nodes or [ANYTHING], min(low, MAX_COUNT if high is None else high), high)


def _array_of(nodes: list[Json], low: int, high: int | None) -> Json:
    """An array of `low` to `high` values that each match at least one of the schemas."""
    counts = {"minItems": low or None, "maxItems": high}
    node = {"type": "array", "items": any_of(nodes)}
    return node | {key: n for key, n in counts.items() if n is not None}


def _has_long_numbers(value: Any) -> bool:
    """Whether a value contains an integer that does not fit into 64 bits."""
    if type(value) in (list, dict):
        return any(map(_has_long_numbers, value.values() if type(value) is dict else value))
    return type(value) is int and abs(value) >= 2**63
