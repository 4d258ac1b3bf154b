"""Several JSON schemas that a value has to fit at once, as one: allOf, and what stands beside $ref.

For schemas that may be widened: what cannot be said of a value in one schema is left out.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

from lmlite.server.forms.bounds import Room
from lmlite.server.forms.faults import Faults
from lmlite.server.forms.parts import (
    Json,
    is_annotation,
    steps_of,
    target_of,
    unescaped,
    with_integers,
)

_MAX_DEPTH = 24  # of schemas that are merged into each other
_MAX_COMPARED = 10_000  # pairs of values
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties")


class Merger:
    """Merges the schemas of one document."""

    def __init__(self, root: Any, faults: Faults, room: Room) -> None:
        self._root, self._faults, self._room = root, faults, room

    def merged(self, schema: Any, path: str, depth: int = 0) -> tuple[Json, frozenset[str]]:
        """(a schema's keywords with those of its allOf and $ref, the references in it).

        Raises Unheld for what is no schema, or is too much.
        """
        if schema is True:
            return {}, frozenset()
        if type(schema) is not dict or depth > _MAX_DEPTH or not self._room.take(values=1):
            self._faults.refuse(path, "is no schema that takes something, or too much")
        said = {key: value for key, value in schema.items() if not is_annotation(key)}
        refs: frozenset[str] = frozenset()
        ref, every = said.pop("$ref", None), said.pop("allOf", None)
        members = [(each, f"{path}.allOf.{i}") for i, each in enumerate(_listed(every))]
        if type(ref) is str:
            refs |= {ref}
            target = target_of(self._root, map(unescaped, steps_of(ref)))
            members.append((target, f"{path}.$ref"))
        for member, where in members:
            other, inner = self.merged(member, where, depth + 1)
            said, refs = self._both(said, other, path), refs | inner
        return said, refs

    def united(self, said: Json, path: str) -> Json:
        """An object that takes what one of several does, with all of their properties in sight."""
        for key in ("anyOf", "oneOf"):
            several = _listed(said.get(key))
            if not several or "properties" in said:
                continue
            rest = {name: value for name, value in said.items() if name != key}
            found = [self.merged(each, f"{path}.{key}.{i}")[0] for i, each in enumerate(several)]
            self._faults.note_path(f"{path}.{key}", "is held as one object with all properties")
            return self._both(rest, reduce(_either, found), path)
        return said

    def _both(self, a: Json, b: Json, path: str) -> Json:
        both = dict(a)
        for key, value in b.items():
            if key not in both:
                both[key] = value
            elif both[key] != value:
                both[key] = self._one(key, both[key], value, f"{path}.{key}")
        are_objects = all(any(key in each for key in _OF_OBJECTS) for each in (a, b))
        if are_objects and both.pop("additionalProperties", True) is not True:
            self._faults.note_path(f"{path}.additionalProperties", "is left out beside allOf")
        return both

    def _one(self, key: str, a: Any, b: Any, path: str) -> Any:
        join = _JOIN.get(key)
        found = join(a, b) if join is not None else None
        if found is None:
            self._faults.note_path(path, "is said twice, and held once")
            return a
        return found


def _listed(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _either(a: Json, b: Json) -> Json:
    """An object that takes what one of two does."""
    names = dict.fromkeys([*_properties(a), *_properties(b)])
    is_closed = a.get("additionalProperties") is False and b.get("additionalProperties") is False
    required = [name for name in _listed(a.get("required")) if name in _listed(b.get("required"))]
    return {
        "type": "object",
        "properties": {name: _property_of_either(name, a, b) for name in names},
        "required": required,
        "additionalProperties": not is_closed,
    }


def _property_of_either(name: str, a: Json, b: Json) -> Any:
    found = [_properties(each).get(name) for each in (a, b) if name in _properties(each)]
    is_free = any(
        name not in _properties(each) and each.get("additionalProperties") is not False
        for each in (a, b)
    )
    if is_free:
        return True
    return found[0] if len(found) == 1 or found[0] == found[1] else {"anyOf": found}


def _properties(said: Json) -> Json:
    found = said.get("properties")
    return found if type(found) is dict else {}


def _joined_properties(a: Any, b: Any) -> Any:
    if type(a) is not dict or type(b) is not dict:
        return None
    return {**a, **{name: _all_of(a[name], b[name]) if name in a else b[name] for name in b}}


def _all_of(a: Any, b: Any) -> Any:
    return a if a == b else {"allOf": [a, b]}


def _joined_names(a: Any, b: Any) -> Any:
    return [*dict.fromkeys(name for name in [*_listed(a), *_listed(b)] if type(name) is str)]


def _joined_types(a: Any, b: Any) -> Any:
    both = [each if type(each) is list else [each] for each in (a, b)]
    if not all(type(name) is str for name in both[0] + both[1]):
        return None
    shared = sorted(with_integers(both[0]) & with_integers(both[1]))
    if "number" in shared and "integer" in shared:
        shared.remove("integer")
    return shared or None


def _joined_lists(a: Any, b: Any) -> Any:
    a, b = _listed(a), _listed(b)
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
