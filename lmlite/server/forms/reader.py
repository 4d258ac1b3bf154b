"""A JSON schema, rewritten part by part into one of which llama.cpp makes the right grammar."""

import itertools
import json
from typing import Any

from lmlite.server.forms.bounds import MAX_COUNT, MAX_NAMES, Room, Ways
from lmlite.server.forms.definitions import Definitions
from lmlite.server.forms.faults import Faults, Unheld
from lmlite.server.forms.merging import Merger
from lmlite.server.forms.numbers import number_node
from lmlite.server.forms.parts import (
    ANYTHING,
    GUESSED,
    Json,
    alternatives,
    any_of,
    constant,
    has_long_numbers,
    is_annotation,
    loosely,
    steps_of,
    target_of,
    type_of,
    unescaped,
    with_integers,
)
from lmlite.server.forms.texts import MAX_LISTED, Texts

_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keywords by the type that they are about; of other types they say nothing.
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "boolean": (),
    "null": (),
}
_JSON_TYPES = ("object", "array", "string", "number", "boolean", "null")
_KNOWN = {"type", "enum", "const", *itertools.chain(*_OF_TYPE.values())}
_COMPOSED = ("$ref", "anyOf", "oneOf", "allOf")
_NO_CHANGE = {"uniqueItems": False, "minProperties": 0, "propertyNames": {"type": "string"}}
_ADDING = ("patternProperties", "dependentSchemas", "unevaluatedProperties")
_MAX_DEPTH = 72  # schemas in each other, through references too
_MAX_NAME = 256  # characters
_MAX_OPTIONAL = 100  # properties of an object that may be widened


class SchemaReader:
    """One schema, rewritten part by part; `path` says where in it a part stands."""

    def __init__(
        self, root: Any, faults: Faults, most_ways: int, room: Room, prefix: str = ""
    ) -> None:
        """`prefix` keeps its definitions apart from those of other schemas in one grammar."""
        self._root, self._faults, self._most_ways = root, faults, most_ways
        self._is_strict = faults.is_strict
        self._room = room
        self._texts = Texts(faults, self._room)
        self._merger = Merger(root, faults, self._room)
        self._depth = 0
        self._merging: list[str] = []  # references whose targets are read as merged, all around
        self._definitions = Definitions(root, prefix)

    def read(self) -> Json:
        """The whole. Raises Unheld, if all has to be held."""
        return self._finished(self._schema(self._root, ""))

    def read_arguments(self) -> Json:
        """The whole as that of an object, with its properties in sight: some parsers need them."""
        try:
            said = self._merger.united(self._merger.merged(self._root, "")[0], "")
            said["type"] = "object"
            for key in said.keys() & {"anyOf", "oneOf", "enum", "const"}:
                self._faults.note_path(f".{key}", "is left out beside other keywords")
            if said.get("properties") == {} and said.keys() == {"type", "properties"}:
                said["additionalProperties"] = False  # so OpenAI writes a tool without arguments
            node = self._object(self._known(said, ""), "")
        except Unheld as fault:
            self._faults.note(fault)
            node = {"type": "object"}
        return self._finished(node)

    def _schema(self, schema: Any, path: str) -> Json:
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                self._faults.refuse(path, "refers too far from one part to another, or is too deep")
            if len(path) > MAX_NAMES or not self._room.take(values=1, names=len(path)):
                self._faults.refuse(path, "is too much, with the other parts of the schema")
            node = self._read(schema, path)
            if not self._is_strict and schema is not True and schema.get("nullable") is True:
                return any_of([*alternatives(node), {"type": "null"}])
            return node
        except Unheld as fault:
            if self._is_strict:
                raise
            self._faults.note(fault)
            return loosely(schema)
        finally:
            self._depth -= 1

    def _read(self, schema: Any, path: str) -> Json:
        if schema is True:
            return ANYTHING
        if type(schema) is not dict:
            self._faults.refuse(path, "cannot be honoured: it is no schema that takes something")
        if path and "$id" in schema:
            self._faults.refuse(f"{path}.$id", "is not supported: only the whole schema has one")
        said = self._known(schema, path)
        composed = next((key for key in _COMPOSED if key in said), None)
        if composed is not None and not self._is_strict:
            return self._composed_widely(said, path)
        if composed is not None:
            self._check_alone(said, (composed,), path)
            return self._composed(composed, said[composed], f"{path}.{composed}")
        if "enum" in said or "const" in said:
            return self._listed(said, path)
        return self._of_types(said, path)

    def _of_types(self, said: Json, path: str) -> Json:
        nodes = [self._typed(name, said, path) for name in self._types(said, path)]
        if "type" not in said and self._is_strict and nodes != [ANYTHING]:
            nodes = [node | {GUESSED: True} for node in nodes]
        return ANYTHING if ANYTHING in nodes else any_of(nodes)

    def _known(self, schema: Json, path: str) -> Json:
        """The keywords that say something, without those that no grammar holds."""
        said: Json = {}
        is_open = False
        for key, value in schema.items():
            if is_annotation(key) or (key in _NO_CHANGE and _NO_CHANGE[key] == value):
                continue
            if key not in _KNOWN and key not in _COMPOSED:
                self._faults.drop(f"{path}.{key}", "cannot be honoured: no grammar holds it")
                is_open |= key in _ADDING
            elif value is None and key != "const" and not self._is_strict:
                self._faults.note_path(f"{path}.{key}", "is null")
            else:
                said[key] = value
        if is_open:
            said["additionalProperties"] = True
        return said

    def _check_alone(self, said: Json, keys: tuple[str, ...], path: str) -> None:
        for other in sorted(said.keys() - set(keys)):
            beside = next(key for key in keys if key in said)
            self._faults.drop(f"{path}.{other}", f"cannot be honoured beside {beside}")

    # ---- made of other schemas -------------------------------------------------------------

    def _composed(self, key: str, value: Any, path: str) -> Json:
        if key == "$ref":
            return self._reference(value, path)
        if type(value) is not list or not value:
            self._faults.refuse(path, "is not a list of schemas")
        if key == "allOf" and len(value) > 1:
            self._faults.refuse(path, "cannot be honoured: it has more than one schema")
        nodes = [self._schema(each, f"{path}.{i}") for i, each in enumerate(value)]
        if key == "oneOf" and self._is_strict:
            self._check_exclusive(nodes, path)
        return ANYTHING if ANYTHING in nodes else any_of(nodes)

    def _check_exclusive(self, nodes: list[Json], path: str) -> None:
        try:
            is_exclusive = self._definitions.comparer.exclude_each_other(nodes)
        except ValueError as err:
            self._faults.refuse(path, f"cannot be honoured: {err}")
        if not is_exclusive:
            why = "two of its schemas may take the same value, as those of anyOf may"
            self._faults.refuse(path, f"cannot be honoured: {why}")

    def _composed_widely(self, said: Json, path: str) -> Json:
        """A schema beside others: merged into one, where a value has to fit all of them."""
        others = said.keys() - {"type"}
        for key in _COMPOSED:
            is_single = key != "allOf" or type(said.get(key)) is not list or len(said[key]) == 1
            if others == {key} and is_single:
                kinds = said["type"] if key in ("anyOf", "oneOf") and "type" in said else None
                return self._composed(key, _of_kind(said[key], kinds), f"{path}.{key}")
        if "$ref" in said or "allOf" in said:
            return self._merged(said, path)
        # Either of anyOf and oneOf beside keywords of its own: these say more.
        for key in ("anyOf", "oneOf"):
            if key in said:
                self._faults.note_path(f"{path}.{key}", "is left out beside other keywords")
        rest = {key: value for key, value in said.items() if key not in _COMPOSED}
        return self._read(rest, path)

    def _merged(self, said: Json, path: str) -> Json:
        one, refs = self._merger.merged(said, path)
        again = sorted(refs & set(self._merging))
        if again:
            self._faults.refuse(path, f"holds itself through {again[0]:.80}, beside other keywords")
        self._merging += refs
        try:
            return self._read(one, path)
        finally:
            del self._merging[len(self._merging) - len(refs) :]

    def _reference(self, ref: Any, path: str) -> Json:
        if type(ref) is not str or not (ref == "#" or ref.startswith("#/")):
            why = "is not supported: it begins with #/, and stays in this schema"
            self._faults.refuse(path, why)
        if not self._definitions.knows(ref):
            target = target_of(self._root, map(unescaped, steps_of(ref)))
            if target is None:
                self._faults.refuse(path, f"refers to {ref:.80}, which is not there")
            self._definitions.name(ref, path)
            where = "".join(f".{step}" for step in steps_of(ref))
            self._definitions.define(ref, self._schema(target, where))
        return self._definitions.node(ref)

    # ---- values and types ------------------------------------------------------------------

    def _listed(self, said: Json, path: str) -> Json:
        key = "const" if "const" in said else "enum"
        self._check_alone(said, (key, "type"), path)
        values = said["enum"] if key == "enum" else [said["const"]]
        if type(values) is not list or not values:
            self._faults.refuse(f"{path}.enum", "is not a list of values")
        n_bytes = sum(map(len, map(json.dumps, values)))
        if any(map(has_long_numbers, values)) or not self._room.take(len(values), n_bytes=n_bytes):
            self._faults.refuse(f"{path}.{key}", "is too much, or has more than 64 bits")
        if "type" in said:
            names = with_integers(self._types(said, path))
            fitting = [value for value in values if type_of(value) in names]
            if not fitting:
                self._faults.drop(f"{path}.{key}", "has no value of its type")
            values = fitting or values
        texts = [value for value in values if type(value) is str]
        others = [value for value in values if type(value) is not str]
        if any(type(value) in (list, dict) for value in others):
            return any_of(list(map(constant, values)))
        if others and len(texts) <= MAX_LISTED:
            return {"enum": values}
        shared = self._texts.listed(texts, f"{path}.{key}") if texts else {"enum": others}
        return any_of([shared, {"enum": others}] if texts and others else [shared])

    def _types(self, said: Json, path: str) -> list[str]:
        """The types that a schema takes; where it has none, strictly the one that it speaks of."""
        if "type" in said:
            named = said["type"] if type(said["type"]) is list else [said["type"]]
            if not self._is_strict:
                named = [name.lower() if type(name) is str else name for name in named]
            if not named or any(type(name) is not str or name not in _OF_TYPE for name in named):
                self._faults.drop(f"{path}.type", f"is none of {', '.join(_OF_TYPE)}")
                return ["anything"]
            return list(dict.fromkeys(named))
        names = [name for name in _OF_TYPE if said.keys() & set(_OF_TYPE[name])]
        if not names:
            return ["anything"]
        if not self._is_strict:
            return list(_JSON_TYPES)
        if len({_OF_TYPE[name] for name in names}) > 1:
            kinds = " and ".join(names)
            self._faults.refuse(path, f"needs a type: it has keywords of {kinds}")
        return names[-1:]

    def _typed(self, name: str, said: Json, path: str) -> Json:
        match name:
            case "object":
                return self._object(said, path)
            case "array":
                return self._array(said, path)
            case "string":
                return self._texts.node(said, path)
            case "integer" | "number":
                return number_node(said, name == "integer", self._faults, path)
            case "anything":
                return ANYTHING
        return {"type": name}

    def _object(self, said: Json, path: str) -> Json:
        properties = self._of_kind(said, "properties", dict, path)
        required = self._of_kind(said, "required", list, path)
        extra = said.get("additionalProperties", True)
        if type(extra) not in (bool, dict):
            self._faults.drop(f"{path}.additionalProperties", "is not a schema")
            extra = True
        for name in required:
            if type(name) is not str or (name not in properties and extra is False):
                why = f"names {name!r:.80}, which properties lack"
                self._faults.drop(f"{path}.required", why)
                extra = True
        required = list(dict.fromkeys(name for name in required if type(name) is str))
        if not properties and not required and extra is not False:
            inner = self._schema(extra, f"{path}.additionalProperties")
            return {"type": "object", "additionalProperties": inner}
        named = properties | {name: extra for name in required if name not in properties}
        is_open = type(extra) is dict or (extra is True and not self._is_strict)
        left_out = self._left_out(named, required, is_open, path)
        named = {name: each for name, each in named.items() if name not in left_out}
        if left_out and extra is False:
            extra = True
        node: Json = {
            "type": "object",
            "properties": {
                name: self._schema(each, f"{path}.properties.{name}")
                for name, each in named.items()
            },
            "required": [name for name in required if name not in left_out],
            "additionalProperties": False,
        }
        if type(extra) is dict and extra:
            inner = self._schema(extra, f"{path}.additionalProperties")
            return node | {"additionalProperties": inner}
        return node if self._is_strict else node | {"additionalProperties": extra is not False}

    def _left_out(self, named: Json, required: list[str], is_open: bool, path: str) -> set[str]:
        """The properties of which no grammar can speak; others may be anything."""
        left_out = set()
        for name in named:
            # The first is llama.cpp's word for all the others, of which it lists these names.
            if name == "*" or (is_open and {"\r", "\n"} & set(name)) or len(name) > _MAX_NAME:
                where = f"{path}.properties.{name}"
                self._faults.drop(where, "cannot be honoured: llama.cpp takes no such name")
                left_out.add(name)
        if self._is_strict:
            return left_out
        needed = set(required)
        optional = [name for name in named if name not in needed]
        if len(optional) > _MAX_OPTIONAL:
            why = f"are too many: those behind the first {_MAX_OPTIONAL} may be anything"
            self._faults.note_path(f"{path}.properties", why)
        return (
            left_out
            | {*optional[_MAX_OPTIONAL:]}
            | {name for name in optional if named[name] is False}
        )

    def _array(self, said: Json, path: str) -> Json:
        items = said.get("items", True)
        counts = self._counts(said, path)
        if type(items) is not list and "prefixItems" not in said:
            if items is False and not self._is_strict:
                return {"type": "array", "items": ANYTHING, "maxItems": 0}
            return {"type": "array", "items": self._schema(items, f"{path}.items")} | counts
        is_old = type(items) is list  # drafts before 2020-12
        first, rest = ("items", "additionalItems") if is_old else ("prefixItems", "items")
        listed = self._of_kind(said, first, list, path)
        nodes = [self._schema(each, f"{path}.{first}.{i}") for i, each in enumerate(listed)]
        more = said.get(rest, True)
        if not self._is_strict:
            return self._any_tuple(nodes, more, counts, f"{path}.{rest}")
        if more not in (True, False, {}):
            self._faults.refuse(f"{path}.{rest}", f"cannot be honoured beside {first}")
        for key, n in counts.items():
            if (n > len(listed)) if key == "minItems" else (n < len(listed)):
                why = f"cannot be honoured: {first} has {len(listed)}"
                self._faults.refuse(f"{path}.{key}", why)
        return {"type": "array", "prefixItems": nodes}

    def _any_tuple(self, nodes: list[Json], more: Any, counts: Json, path: str) -> Json:
        """A tuple that may end early or go on, as a list of what stands anywhere in it."""
        most = min(counts.get("maxItems", MAX_COUNT), len(nodes) if more is False else MAX_COUNT)
        if nodes and counts.get("minItems", 0) == most == len(nodes):
            return {"type": "array", "prefixItems": nodes}
        if more is not False:
            nodes = [*nodes, self._schema(more, path)]
        elif nodes:
            counts = counts | {"maxItems": most}
        if counts.get("minItems", 0) > counts.get("maxItems", MAX_COUNT):
            counts = {}
        items = ANYTHING if ANYTHING in nodes or not nodes else any_of(nodes)
        return {"type": "array", "items": items} | counts

    def _counts(self, said: Json, path: str) -> Json:
        counts = {}
        for key in ("minItems", "maxItems"):
            if key not in said:
                continue
            value = said[key]
            if type(value) not in (int, float) or value != value // 1:
                self._faults.drop(f"{path}.{key}", "is not a whole number")
            elif not 0 <= value <= MAX_COUNT or not self._room.take(repeated=int(value)):
                self._faults.drop(f"{path}.{key}", f"is not from 0 to {MAX_COUNT:,}, or too much")
            else:
                counts[key] = int(value)
        if counts.get("minItems", 0) > counts.get("maxItems", MAX_COUNT):
            self._faults.drop(f"{path}.minItems", "is greater than maxItems")
            return {}
        return counts

    def _of_kind(self, said: Json, key: str, kind: type, path: str) -> Any:
        value = said.get(key, kind())
        if type(value) is not kind:
            what = "a list" if kind is list else "an object"
            self._faults.drop(f"{path}.{key}", f"is not {what}")
            return kind()
        return value

    # ---- the whole -------------------------------------------------------------------------

    def _finished(self, node: Json) -> Json:
        """With its definitions, and few ways open at once."""
        self._definitions.finish(self._faults)
        ways = Ways(self._definitions.root, self._texts.ways)
        if not self._is_strict:
            node = self._within_ways(node, ways)
        else:
            try:
                ways.check(node, self._most_ways)
            except ValueError as err:
                self._faults.refuse("", str(err))
        return node | self._definitions.root if self._definitions else node

    def _within_ways(self, node: Json, ways: Ways) -> Json:
        """Each property alone, so that one that is too much leaves the others as they are."""
        properties = node.get("properties", {})
        n_optional = len(properties) - len(node.get("required", ()))
        for name, each in properties.items():
            try:
                ways.check(each, self._most_ways - n_optional)
            except ValueError as err:
                self._faults.note_path(f".properties.{name}", str(err))
                properties[name] = loosely(each)
        try:
            ways.check(node, self._most_ways)
        except ValueError as err:
            self._faults.note_path("", str(err))
            return loosely(node)
        return node


def _of_kind(schemas: Any, kinds: Any) -> Any:
    """Alternatives, each with the type that stands beside them, where it has none."""
    if kinds is None or type(schemas) is not list:
        return schemas
    return [
        {"type": kinds} | each if type(each) is dict and not each.keys() & set(_COMPOSED) else each
        for each in schemas
    ]
