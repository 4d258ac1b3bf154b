"""What a JSON schema says of its values: their types, and whether two schemas share one.

Pure, and careful: a schema is a client's JSON, of which nothing is known yet.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

Json = dict[str, Any]

_ALL_TYPES = frozenset(("object", "array", "string", "number", "boolean", "null"))


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


def whole(node: Any, root: Json) -> tuple[list[Json], set[str]]:
    """(the schemas that a value of a node has to fit one of, the references on the way)."""
    found: list[Json] = []
    seen: set[str] = set()
    todo = [node]
    while todo:
        for each in alternatives(todo.pop()):
            ref = reference_of(each)
            if ref is None:
                found.append(each if type(each) is dict else {})
            elif ref not in seen:
                seen.add(ref)
                todo.append(target_of(root, steps_of(ref)))
    return found, seen


def exclude_each_other(a: Any, b: Any, root: Json) -> bool:
    """Whether no value that a grammar makes of one schema fits the other.

    A grammar makes objects of the properties that are named, and of no others.
    """
    return all(
        _differ(x, y) or _have_other_properties(x, y)
        for x in whole(a, root)[0]
        for y in whole(b, root)[0]
    )


def part_at_once(a: Any, b: Any, root: Json) -> bool:
    """Whether a value tells by its type or its first property which of two schemas it is of."""
    return all(
        _differ(x, y) or _have_other_beginnings(x, y)
        for x in whole(a, root)[0]
        for y in whole(b, root)[0]
    )


def _differ(x: Any, y: Any) -> bool:
    """Whether two schemas take values of other types, or other values from a list."""
    if not _types(x) & _types(y):
        return True
    a, b = _values(x), _values(y)
    return a is not None and b is not None and not any(value in b for value in a)


def _have_other_properties(x: Json, y: Json) -> bool:
    names_x, names_y = _properties(x), _properties(y)
    required_x, required_y = _required(x), _required(y)
    if any(_differ(names_x[name], names_y[name]) for name in required_x if name in required_y):
        return True
    return bool(set(required_x) - set(names_y) and set(required_y) - set(names_x))


def _have_other_beginnings(x: Json, y: Json) -> bool:
    # A grammar writes the required properties first.
    first_x, first_y = _required(x)[:1], _required(y)[:1]
    if not first_x or not first_y:
        return False
    same = first_x == first_y
    return not same or _differ(_properties(x)[first_x[0]], _properties(y)[first_y[0]])


def _properties(node: Json) -> Json:
    found = node.get("properties")
    return found if type(found) is dict else {}


def _required(node: Json) -> list[str]:
    """The properties that are always there, in the order in which they are written."""
    names = node.get("required")
    return [name for name in _properties(node) if name in names] if type(names) is list else []


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
