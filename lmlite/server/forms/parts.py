"""What a JSON schema says of its values: their types, and whether several schemas share one.

Pure. The steps that an answer takes grow with the schema alone, and are bounded.
"""

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

Json = dict[str, Any]

ANNOTATIONS = frozenset((
    "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "nullable", "discriminator", "contentEncoding", "contentMediaType",
    "markdownDescription", "propertyOrdering", "$schema", "$id", "$comment", "$anchor", "$defs",
    "definitions",
))  # fmt: skip
GUESSED = "x-guessed"  # in a schema whose type was not said, so that it takes other types, too
ANYTHING = {"title": "anything"}  # not {}: of an empty schema llama.cpp makes no grammar
MAX_COMPARED = 20_000  # values and alternatives that are told from each other

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_ALL_TYPES = frozenset(("object", "array", "string", "number", "boolean", "null"))


def is_annotation(key: str) -> bool:
    """Whether a keyword says nothing of the values."""
    return key in ANNOTATIONS or key.startswith("x-")


def type_of(value: Any) -> str:
    """The narrowest type of a value."""
    match value:
        case bool():
            return "boolean"
        case float():
            return "integer" if value.is_integer() else "number"
    names = {type(None): "null", int: "integer", str: "string", list: "array"}
    return names.get(type(value), "object")


def with_integers(names: Collection[str]) -> set[str]:
    """Types, and the integers among numbers."""
    return {*names, "integer"} if "number" in names else set(names)


def target_of(root: Json, steps: Iterable[str]) -> Any:
    """What lies at a path of names and numbers; None for nothing."""
    target: Any = root
    for step in steps:
        if type(target) is list and step.isdecimal() and int(step[:9]) < len(target):
            target = target[int(step[:9])]
        elif type(target) is dict and step in target:
            target = target[step]
        else:
            return None
    return target


def steps_of(ref: str) -> list[str]:
    """The path in a $ref, as llama.cpp reads it: what stands between the slashes.

    >>> steps_of("#/$defs/a")
    ['$defs', 'a']
    """
    return ref.split("/")[1:]


def unescaped(step: str) -> str:
    """A step of a $ref as the standard reads it."""
    return unquote(step).replace("~1", "/").replace("~0", "~")


def reference_of(node: Any) -> str | None:
    """The $ref of a schema that is one."""
    ref = node.get("$ref") if type(node) is dict else None
    return ref if type(ref) is str else None


def alternatives(node: Any) -> list[Any]:
    """The schemas of which a value needs to fit one: those of anyOf, else the schema itself."""
    for key in ("oneOf", "anyOf"):  # in llama.cpp's order
        if type(node) is dict and type(node.get(key)) is list:
            return [each for alternative in node[key] for each in alternatives(alternative)]
    return [node]


def parts(node: Any) -> Iterator[Any]:
    """The schemas that stand in a schema, one level down."""
    if type(node) is not dict:
        return
    for key in ("anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties"):
        value = node.get(key)
        yield from value if type(value) is list else [value] if type(value) is dict else []
    properties = node.get("properties")
    yield from properties.values() if type(properties) is dict else []


def below(node: Any) -> list[Any]:
    """A schema and all that stand in it, at any depth."""
    return [node, *(each for part in parts(node) for each in below(part))]


def loosely(schema: Any) -> Json:
    """The types of a schema, and no more."""
    named = schema.get("type") if type(schema) is dict else None
    names = named if type(named) is list else [named]
    if not all(type(name) is str and name in TYPES for name in names):
        return ANYTHING
    nodes: list[Json] = [{"type": name} for name in dict.fromkeys(names)]
    if schema.get("nullable") is True:
        nodes.append({"type": "null"})
    return any_of(nodes)


def has_long_numbers(value: Any) -> bool:
    """Whether a value has a number that a parser of JSON does not keep as it is."""
    if type(value) is list:
        return any(map(has_long_numbers, value))
    if type(value) is dict:
        return any(map(has_long_numbers, value.values()))
    return type(value) is int and abs(value) >= 2**63


def constant(value: Any) -> Json:
    """The schema of one value, in which a grammar leaves room for spaces."""
    if type(value) is dict and value and "*" not in value:
        properties = {name: constant(each) for name, each in value.items()}
        closed = {"required": list(value), "additionalProperties": False}
        return {"type": "object", "properties": properties, **closed}
    if type(value) is list and value:
        return {"type": "array", "prefixItems": list(map(constant, value))}
    return {"enum": [value]}


def any_of(nodes: list[Json]) -> Json:
    """The schema of what one of several takes."""
    return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}


# ---- telling schemas apart -----------------------------------------------------------------

_Key = tuple[str, ...]  # what a value shows of itself: a type, then perhaps more


class Apart:
    """Keys and their owners: a key stands for itself and for all that begin with it."""

    def __init__(self) -> None:
        self._owners: dict[_Key, int] = {}
        self._owners_below: dict[_Key, int] = {}
        self.is_shared = False  # whether two owners have a key in common

    def add(self, key: _Key, owner: int) -> None:
        """Notes a key, and whether another owner has it or a part of it."""
        beginnings = [key[:n] for n in range(1, len(key) + 1)]
        others = [self._owners.get(each, owner) for each in beginnings]
        others.append(self._owners_below.get(key, owner))
        self.is_shared |= any(other != owner for other in others)
        self._owners[key] = owner
        for beginning in beginnings[:-1]:
            is_same = self._owners_below.get(beginning, owner) == owner
            self._owners_below[beginning] = owner if is_same else -1


class Comparer:
    """Tells the parts of one schema from each other, in a number of steps that is bounded.

    Its methods raise ValueError when that is spent.
    """

    def __init__(self, root: Json) -> None:
        """`root` has the definitions under $defs; it may still grow."""
        self._root, self._n_left = root, MAX_COMPARED

    def exclude_each_other(self, schemas: list[Any]) -> bool:
        """Whether no value that a grammar makes of one schema fits another.

        Types decide, or a property that all objects require, with other values in each. A grammar
        makes objects of the properties that are named, and of no others: so a required one that
        only one schema names tells it apart, too.
        """
        wholes = [self._whole(schema) for schema in schemas]
        if any(GUESSED in each for each in itertools.chain(*wholes)):
            return False
        objects = [each for each in itertools.chain(*wholes) if _types(each) == {"object"}]
        name = _discriminator(objects)
        if name is None and _require_names_of_their_own(objects):
            wholes = [[each for each in some if _types(each) != {"object"}] for some in wholes]
        apart = Apart()
        for owner, each in ((i, each) for i, some in enumerate(wholes) for each in some):
            for key in _keys(each, name):
                self._count()
                apart.add(key, owner)
        return not apart.is_shared

    def part_at_once(self, alone: list[Any], others: list[Any]) -> bool:
        """Whether a value tells by its type or its first property which schema it is of.

        Each of those `alone` from all; the `others` may share what they begin with.
        """
        apart = Apart()
        for owner, schema in [*((0, other) for other in others), *enumerate(alone, 1)]:
            for each in self._whole(schema):
                first = next(iter(_required(each)), None)
                for key in _keys(each, first):
                    self._count()
                    is_named = first is not None and key[0] == "object"
                    apart.add(("object", str(first), *key[1:]) if is_named else key, owner)
        return not apart.is_shared

    def _whole(self, node: Any) -> list[Json]:
        """The schemas that a value has to fit one of, behind anyOf and references."""
        found: list[Json] = []
        seen: set[str] = set()
        todo = [node]
        while todo:
            for each in alternatives(todo.pop()):
                self._count()
                ref = reference_of(each)
                if ref is None:
                    found.append(each if type(each) is dict else {})
                elif ref not in seen:
                    seen.add(ref)
                    todo.append(target_of(self._root, steps_of(ref)))
        return found

    def _count(self) -> None:
        self._n_left -= 1
        if self._n_left < 0:
            raise ValueError(f"telling its parts apart takes more than {MAX_COMPARED:,} steps")


def _discriminator(objects: list[Json]) -> str | None:
    """A property that all of them require, with a list of values in each."""
    names = Counter(
        name
        for each in objects
        for name in _required(each)
        if _values(_properties(each)[name]) is not None
    )
    return next((name for name, n in names.items() if n == len(objects)), None)


def _require_names_of_their_own(objects: list[Json]) -> bool:
    named = Counter(name for each in objects for name in _properties(each))
    return all(any(named[name] == 1 for name in _required(each)) for each in objects)


def _keys(node: Json, name: str | None) -> Iterator[_Key]:
    """The keys of all values of a schema; `name` is that of a property to look into."""
    values = _values(node)
    if values is not None:
        yield from map(_key_of, values)
        return
    for kind in _types(node):
        told = _values(_properties(node).get(name)) if kind == "object" and name else None
        if told is None:
            yield (kind,)
        else:
            yield from (("object", *_key_of(value)) for value in told)


def _key_of(value: Any) -> _Key:
    kind = type_of(value)
    if kind in ("object", "array"):
        return (kind,)
    if kind in ("integer", "number"):
        return "number", repr(float(value))
    return kind, json.dumps(value)


def _properties(node: Json) -> Json:
    found = node.get("properties")
    return found if type(found) is dict else {}


def _required(node: Json) -> list[str]:
    """The properties that are always there, in the order in which they are written."""
    names = node.get("required")
    listed = set(names) if type(names) is list else set()
    return [name for name in _properties(node) if name in listed]


def _types(node: Any) -> set[str]:
    values = _values(node)
    named = node.get("type") if type(node) is dict else None
    names = [named] if type(named) is str else named if type(named) is list else _ALL_TYPES
    if values is not None:
        names = list(map(type_of, values))
    return {"number" if name == "integer" else name for name in names if type(name) is str}


def _values(node: Any) -> list[Any] | None:
    if type(node) is dict and "const" in node:
        return [node["const"]]
    values = node.get("enum") if type(node) is dict else None
    return values if type(values) is list else None
