"""A JSON schema from a client, before llama.cpp makes a grammar of it: honoured, or refused.

llama.cpp's converter leaves out what it does not know. So the schema of an answer is read here
first: each keyword in it is one that the converter honours where it stands, or is rewritten so
that it is, or is refused by its name and path. Annotations are dropped. What the rewritten schema
takes, the client's takes too; it may be less: an object with properties has no others, a tuple
has all of its items, an integer has at most 53 bits.
"""

import itertools
import json
import math
import os
from typing import Any, NoReturn
from urllib.parse import unquote

from lmlite.errors import BadRequest
from lmlite.server.patterns import grammar_pattern, literal
from lmlite.server.schema_bounds import MAX_TOOL_WAYS, MAX_WAYS, Ways, check_size
from lmlite.server.schema_parts import (
    Json,
    exclude_each_other,
    steps_of,
    target_of,
    type_of,
    whole,
    with_integers,
)

MAX_LISTED = 16  # texts, before the beginnings that they share are written once

ANNOTATIONS = frozenset((
    "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "nullable", "discriminator", "contentEncoding", "contentMediaType",
    "markdownDescription", "propertyOrdering", "$schema", "$id", "$comment", "$anchor", "$defs",
    "definitions",
))  # fmt: skip
# Keywords by the type that they are about; of other types they say nothing.
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_KNOWN = {"type", "enum", "const", *itertools.chain(*_OF_TYPE.values())}
_COMPOSED = ("$ref", "anyOf", "oneOf", "allOf")
_NO_CHANGE = {"uniqueItems": False, "minProperties": 0, "propertyNames": {"type": "string"}}
_ANYTHING = {"title": "anything"}  # not {}: of an empty schema llama.cpp makes no grammar
_MAX_INTEGER = 2**53 - 1

_DATE = (
    "((([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)|"
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    "02-(0[1-9]|1[0-9]|2[0-8])))"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+\-]([01]\d|2[0-3]):[0-5]\d)"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9]+([.+_\-][A-Za-z0-9]+)*@[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\.[a-z]{2,10}){1,3}",
}
_FORMAT_WAYS = 8


def checked_schema(schema: Any, param: str) -> None:
    """Checks a schema of which a grammar may leave something out: its bounds, and no more.

    Raises BadRequest for one that is too large, and for what is no object.
    """
    _check_sizes(schema, param)
    try:
        Ways(schema, param).check(MAX_TOOL_WAYS)
    except RecursionError:
        raise _too_far(param) from None


def honoured_schema(schema: Any, param: str) -> str:
    """What llama.cpp is to make a grammar of, as JSON: what that takes, the schema takes.

    Raises BadRequest for a schema that is too large, and for one with a part that no grammar
    holds; the message names the keyword and its path.
    """
    _check_sizes(schema, param)
    reader = _Reader(schema, param)
    try:
        honoured = reader.read()
        Ways(honoured, param, reader.pattern_ways).check()
    except RecursionError:
        raise _too_far(param) from None
    return json.dumps(honoured)


def _check_sizes(schema: Any, param: str) -> None:
    if type(schema) is not dict:
        raise BadRequest(f"{param} is not a JSON schema", param=param)
    check_size(schema, param)


def _too_far(param: str) -> BadRequest:
    return BadRequest(f"{param} refers too far from one part to another", param=param)


class _Reader:
    """One schema, rewritten part by part; `path` says where in it a part stands."""

    def __init__(self, root: Json, param: str) -> None:
        self._root, self._param = root, param
        self._names: dict[str, str] = {}  # of definitions, by the $ref that asks for them
        self._definitions: dict[str, Json] = {}
        self._defined = {"$defs": self._definitions}
        # llama.cpp names a definition's rule after it, and others after properties; names that
        # occur nowhere keep them apart.
        text = json.dumps(root)
        self._mark = next(mark for n in itertools.count(2) if (mark := "z" * n) not in text)
        self.pattern_ways: dict[str, int] = {}

    def read(self) -> Json:
        """The whole."""
        schema = self._schema(self._root, "")
        return schema | self._defined if self._definitions else schema

    def _refuse(self, path: str, why: str) -> NoReturn:
        raise BadRequest(f"{self._param}{path} {why}", param=self._param)

    def _schema(self, schema: Any, path: str) -> Json:
        if schema is True:
            return _ANYTHING
        if type(schema) is not dict:
            self._refuse(path, "cannot be honoured: it is no schema that takes something")
        if path and "$id" in schema:
            self._refuse(f"{path}.$id", "is not supported: only the whole schema has one")
        said = {
            key: value
            for key, value in schema.items()
            if not _is_annotation(key) and (key not in _NO_CHANGE or _NO_CHANGE[key] != value)
        }
        for key in said:
            if key not in _KNOWN and key not in _COMPOSED:
                self._refuse(f"{path}.{key}", "cannot be honoured: no grammar holds it")
        for key in _COMPOSED:
            if key in said:
                self._check_alone(said, (key,), path)
                return self._composed(key, said[key], f"{path}.{key}")
        if "enum" in said or "const" in said:
            return self._listed(said, path)
        return _any_of([self._typed(name, said, path) for name in self._types(said, path)])

    def _check_alone(self, said: Json, keys: tuple[str, ...], path: str) -> None:
        for other in sorted(said.keys() - set(keys)):
            beside = next(key for key in keys if key in said)
            self._refuse(f"{path}.{other}", f"cannot be honoured beside {beside}")

    # ---- made of other schemas -------------------------------------------------------------

    def _composed(self, key: str, value: Any, path: str) -> Json:
        if key == "$ref":
            return self._reference(value, path)
        if type(value) is not list or not value:
            self._refuse(path, "is not a list of schemas")
        if key == "allOf" and len(value) > 1:
            self._refuse(path, "cannot be honoured: it has more than one schema")
        nodes = [self._schema(each, f"{path}.{i}") for i, each in enumerate(value)]
        if key == "oneOf":
            for a, b in itertools.combinations(nodes, 2):
                if not exclude_each_other(a, b, self._defined):
                    why = "two of its schemas may take the same value, as those of anyOf may"
                    self._refuse(path, f"cannot be honoured: {why}")
        return _any_of(nodes)

    def _reference(self, ref: Any, path: str) -> Json:
        if type(ref) is not str or not (ref == "#" or ref.startswith("#/")):
            self._refuse(path, "is not supported: it begins with #/, and stays in this schema")
        if ref not in self._names:
            name = self._names[ref] = f"{self._mark}{len(self._names)}"
            target = target_of(self._root, map(_unescaped, steps_of(ref)))
            if target is None:
                self._refuse(path, f"refers to {ref:.80}, which is not there")
            node = self._schema(target, "".join(f".{step}" for step in steps_of(ref)))
            self._definitions[name] = node
            if f"#/$defs/{name}" in whole(node, self._defined)[1]:
                self._refuse(path, "cannot be honoured: it only refers to itself")
        return {"$ref": f"#/$defs/{self._names[ref]}"}

    # ---- values and types ------------------------------------------------------------------

    def _listed(self, said: Json, path: str) -> Json:
        key = "const" if "const" in said else "enum"
        self._check_alone(said, (key, "type"), path)
        values = said["enum"] if key == "enum" else [said["const"]]
        if type(values) is not list or not values:
            self._refuse(f"{path}.enum", "is not a list of values")
        if "type" in said:
            names = self._types(said, path)
            values = [value for value in values if type_of(value) in with_integers(names)]
        if not values:
            self._refuse(f"{path}.{key}", "has no value of its type")
        texts = [value for value in values if type(value) is str]
        if len(texts) <= MAX_LISTED:
            return {"enum": values}
        others = [value for value in values if type(value) is not str]
        shared = self._pattern(f"^{_prefix_tree(texts)}$", f"{path}.enum")
        return _any_of([shared, {"enum": others}] if others else [shared])

    def _types(self, said: Json, path: str) -> list[str]:
        """The types that a schema takes; where it has none, the one that it speaks of."""
        if "type" in said:
            names = said["type"] if type(said["type"]) is list else [said["type"]]
            if not names or any(type(name) is not str or name not in _OF_TYPE for name in names):
                self._refuse(f"{path}.type", f"is none of {', '.join(_OF_TYPE)}")
            return list(dict.fromkeys(names))
        names = [name for name in _OF_TYPE if said.keys() & set(_OF_TYPE[name])]
        if len({_OF_TYPE[name] for name in names}) > 1:
            self._refuse(path, f"needs a type: it has keywords of {' and '.join(names)}")
        return names[-1:] or ["anything"]

    def _typed(self, name: str, said: Json, path: str) -> Json:
        match name:
            case "object":
                return self._object(said, path)
            case "array":
                return self._array(said, path)
            case "string":
                return self._string(said, path)
            case "integer":
                return self._integer(said, path)
            case "number":
                for key in (key for key in said if key in _OF_TYPE["number"]):
                    self._refuse(f"{path}.{key}", "cannot be honoured for a number")
            case "anything":
                return _ANYTHING
        return {"type": name}

    def _object(self, said: Json, path: str) -> Json:
        properties = self._of_kind(said, "properties", dict, path)
        required = self._of_kind(said, "required", list, path)
        extra = said.get("additionalProperties", True)
        if type(extra) not in (bool, dict):
            self._refuse(f"{path}.additionalProperties", "is not a schema")
        if extra not in (True, False, {}) and properties:
            self._refuse(f"{path}.additionalProperties", "cannot be honoured beside properties")
        for name in required:
            if type(name) is not str or (name not in properties and extra is False):
                self._refuse(f"{path}.required", f"names {name!r:.80}, which properties lack")
        if not properties and not required and extra is not False:
            inner = self._schema(extra, f"{path}.additionalProperties")
            return {"type": "object", "additionalProperties": inner}
        named = properties | {name: extra for name in required if name not in properties}
        if "*" in named:  # llama.cpp's word for all the others
            self._refuse(f"{path}.properties.*", "cannot be honoured: no property is called so")
        return {
            "type": "object",
            "properties": {
                name: self._schema(each, f"{path}.properties.{name}")
                for name, each in named.items()
            },
            "required": required,
            "additionalProperties": False,
        }

    def _array(self, said: Json, path: str) -> Json:
        items = said.get("items", True)
        counts = self._counts(said, ("minItems", "maxItems"), path)
        if type(items) is not list and "prefixItems" not in said:
            return {"type": "array", "items": self._schema(items, f"{path}.items")} | counts
        is_old = type(items) is list  # drafts before 2020-12
        first, rest = ("items", "additionalItems") if is_old else ("prefixItems", "items")
        if said.get(rest, True) not in (True, False, {}):
            self._refuse(f"{path}.{rest}", f"cannot be honoured beside {first}")
        listed = self._of_kind(said, first, list, path)
        for key, n in counts.items():
            if (n > len(listed)) if key == "minItems" else (n < len(listed)):
                self._refuse(f"{path}.{key}", f"cannot be honoured: {first} has {len(listed)}")
        nodes = [self._schema(each, f"{path}.{first}.{i}") for i, each in enumerate(listed)]
        return {"type": "array", "prefixItems": nodes}

    def _string(self, said: Json, path: str) -> Json:
        keys = [key for key in ("pattern", "format", "minLength", "maxLength") if key in said]
        if not keys:
            return {"type": "string"}
        if keys[0] in ("pattern", "format"):
            for key in keys[1:]:
                self._refuse(f"{path}.{key}", f"cannot be honoured beside {keys[0]}")
        if keys[0] == "pattern":
            return self._pattern(said["pattern"], f"{path}.pattern")
        if keys[0] == "format":
            if type(said["format"]) is not str or said["format"] not in _FORMATS:
                known = ", ".join(_FORMATS)
                self._refuse(f"{path}.format", f"cannot be honoured: it is none of {known}")
            node = self._pattern(f"^{_FORMATS[said['format']]}$", f"{path}.format")
            self.pattern_ways[node["pattern"]] = _FORMAT_WAYS  # known better than by rule
            return node
        # Not left to llama.cpp, which counts one character twice that is spelled as two escapes.
        counts = self._counts(said, ("minLength", "maxLength"), path)
        low, high = counts.get("minLength", 0), counts.get("maxLength", "")
        return self._pattern(f"^[^]{{{low},{high}}}$", f"{path}.{keys[0]}")

    def _pattern(self, pattern: Any, path: str) -> Json:
        if type(pattern) is not str:
            self._refuse(path, "is not a text")
        try:
            text, ways = grammar_pattern(pattern)
        except ValueError as err:
            self._refuse(path, f"cannot be honoured: {err}")
        if ways > MAX_WAYS:
            self._refuse(path, f"cannot be honoured: a text may be read in {ways:,} ways at once")
        self.pattern_ways[text] = ways
        return {"type": "string", "pattern": text}

    def _integer(self, said: Json, path: str) -> Json:
        bounds = {key: said[key] for key in _OF_TYPE["integer"] if key in said}
        for key, value in bounds.items():
            if type(value) not in (int, float):
                self._refuse(f"{path}.{key}", "is not a number")
        if not bounds:
            return {"type": "integer"}
        # Both ends always: by one alone, llama.cpp lets 10 pass for a minimum of 100.
        low = max(
            math.ceil(bounds.get("minimum", -_MAX_INTEGER)),
            math.floor(bounds.get("exclusiveMinimum", -_MAX_INTEGER - 1)) + 1,
            -_MAX_INTEGER,
        )
        high = min(
            math.floor(bounds.get("maximum", _MAX_INTEGER)),
            math.ceil(bounds.get("exclusiveMaximum", _MAX_INTEGER + 1)) - 1,
            _MAX_INTEGER,
        )
        if low > high:
            self._refuse(f"{path}.{next(iter(bounds))}", "cannot be honoured: no integer is left")
        return {"type": "integer", "minimum": low, "maximum": high}

    def _counts(self, said: Json, keys: tuple[str, str], path: str) -> Json:
        counts = {key: said[key] for key in keys if key in said}
        for key, count in counts.items():
            if type(count) is not int:
                self._refuse(f"{path}.{key}", "is not a whole number")
        return counts

    def _of_kind(self, said: Json, key: str, kind: type, path: str) -> Any:
        value = said.get(key, kind())
        if type(value) is not kind:
            self._refuse(f"{path}.{key}", f"is not {'a list' if kind is list else 'an object'}")
        return value


def _is_annotation(key: str) -> bool:
    return key in ANNOTATIONS or key.startswith("x-")


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def _any_of(nodes: list[Json]) -> Json:
    return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}


def _prefix_tree(texts: list[str]) -> str:
    """An expression for these texts, with each beginning that some share written once.

    >>> _prefix_tree(["car", "cat", "dog"])
    '(ca(r|t)|dog)'
    """
    begin = os.path.commonprefix(texts)
    rests = sorted({text[len(begin) :] for text in texts})
    groups = [list(group) for _, group in itertools.groupby(rests, key=lambda rest: rest[:1])]
    if len(groups) == 1:
        return literal(begin)
    return f"{literal(begin)}({'|'.join(map(_prefix_tree, groups))})"
