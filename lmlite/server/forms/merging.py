"""Merges JSON schemas that a value must all match into one: allOf, and keywords beside $ref.

Only for schemas that may be widened: keywords that cannot be combined are left out.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

from lmlite.server.forms.bounds import Reading
from lmlite.server.forms.parts import (
    Json,
    is_annotation,
    list_of,
    pointed_at,
    properties_of,
    with_integers,
)

_MAX_DEPTH = 24  # nested merges
_MAX_COMPARED = 10_000  # pairs of values in two enums
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties")


def merged(schema: Any, path: str, reading: Reading, depth: int = 0) -> tuple[Json, set[str]]:
    """(a schema's keywords merged with those of its allOf and $ref, the merged references).

    Raises Unheld for a value that is not a schema, and for a schema that is too large.
    """
    if schema is True:
        return {}, set()
    if type(schema) is not dict or depth > _MAX_DEPTH:
        reading.refuse(path, "is not a schema that takes something, or nests too deep")
    reading.take(path, values=1)
    schema = {key: value for key, value in schema.items() if not is_annotation(key)}
    ref, members = schema.pop("$ref", None), list_of(schema.pop("allOf", None))
    others = [(each, f"{path}.allOf.{i}") for i, each in enumerate(members)]
    refs = {ref} if type(ref) is str else set()
    others += [(pointed_at(reading.root, each), f"{path}.$ref") for each in refs]
    for each, where in others:
        other, inner = merged(each, where, reading, depth + 1)
        schema, refs = _both(schema, other, path, reading), refs | inner
    return schema, refs


def united(schema: Json, reading: Reading) -> Json:
    """The root's keywords. Replaces anyOf or oneOf by one object that has all their properties."""
    for key in ("anyOf", "oneOf"):
        several = list_of(schema.get(key))
        if several and "properties" not in schema:
            found = [merged(each, f".{key}.{i}", reading)[0] for i, each in enumerate(several)]
            reading.note(f".{key}", "is held as one object with all properties")
            rest = {name: value for name, value in schema.items() if name != key}
            return _both(rest, reduce(_either, found), "", reading)
    return schema


def _both(a: Json, b: Json, path: str, reading: Reading) -> Json:
    both = a | b
    for key in (key for key in b if key in a and a[key] != b[key]):
        join = _JOIN.get(key)
        joined = join(a[key], b[key]) if join is not None else None
        if joined is None:
            reading.note(f"{path}.{key}", "is given twice, and only one of them is held")
        both[key] = a[key] if joined is None else joined
    are_objects = all(any(key in each for key in _OF_OBJECTS) for each in (a, b))
    if are_objects and both.pop("additionalProperties", True) is not True:
        reading.note(f"{path}.additionalProperties", "is left out beside allOf")
    return both


def _either(a: Json, b: Json) -> Json:
    """The keywords of an object that matches either of two schemas."""
    required = list_of(b.get("required"))
    names = {**properties_of(a), **properties_of(b)}
    return {
        "type": "object",
        "properties": {name: _property_of_either(name, a, b) for name in names},
        "required": [name for name in list_of(a.get("required")) if name in required],
        "additionalProperties": any(
            each.get("additionalProperties") is not False for each in (a, b)
        ),
    }


def _property_of_either(name: str, a: Json, b: Json) -> Any:
    found = [
        properties_of(each).get(name, each.get("additionalProperties") is not False)
        for each in (a, b)
    ]
    if any(each is True for each in found):
        return True
    found = [each for each in found if each is not False] or [False]
    return found[0] if len(found) == 1 or found[0] == found[1] else {"anyOf": found}


# ---- how to combine a keyword's two values; None if they cannot be combined ----------------


def _all_of(a: Any, b: Any) -> Any:
    return a if a == b else {"allOf": [a, b]}


def _joined_properties(a: Any, b: Any) -> Any:
    if type(a) is not dict or type(b) is not dict:
        return None
    return a | {name: _all_of(a[name], b[name]) if name in a else b[name] for name in b}


def _joined_names(a: Any, b: Any) -> Any:
    return [*dict.fromkeys(name for name in [*list_of(a), *list_of(b)] if type(name) is str)]


def _joined_types(a: Any, b: Any) -> Any:
    both = [each if type(each) is list else [each] for each in (a, b)]
    if not all(type(name) is str for name in both[0] + both[1]):
        return None
    shared = with_integers(both[0]) & with_integers(both[1])
    return sorted(shared - {"integer"} if "number" in shared else shared) or None


def _joined_lists(a: Any, b: Any) -> Any:
    a, b = list_of(a), list_of(b)
    return None if len(a) * len(b) > _MAX_COMPARED else [each for each in a if each in b] or None


def _end(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def join(a: Any, b: Any) -> Any:
        are_numbers = type(a) in (int, float) and type(b) in (int, float)
        return choose(a, b) if are_numbers else None

    return join


_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    "properties": _joined_properties,
    "items": _all_of,
    "required": _joined_names,
    "type": _joined_types,
    "enum": _joined_lists,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems"), _end(max)),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems"), _end(min)),
}
