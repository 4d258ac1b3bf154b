"""The definitions of a JSON schema, rewritten, and whether its schemas can be told apart.

A schema may contain itself through its definitions. Where it does so in alternatives that begin
alike, the ways to continue double with each level.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmlite.server.forms.bounds import Reading
from lmlite.server.forms.parts import (
    ANYTHING,
    GUESSED,
    TYPES,
    Json,
    alternatives,
    below,
    list_of,
    properties_of,
    reference_of,
    steps_of,
    target_of,
    type_of,
)

MAX_STEPS = 20_000  # of comparing the parts of a schema
_Key = tuple[str, ...]  # a type; or a type and a value

_MARK = re.compile(r"(?=(z\d{0,8}z))")  # finds overlapping ones, all in one pass


class Definitions:
    """What the references of one schema point at, rewritten."""

    def __init__(self, root: Any, prefix: str) -> None:
        """`prefix` keeps their names apart from those of other schemas in one grammar."""
        self._names: dict[str, str] = {}  # by $ref
        self._paths: dict[str, str] = {}  # of the first part that refers there, by name
        self._nodes: dict[str, Json] = {}
        self.root: Json = {"$defs": self._nodes}
        self.comparer = Comparer(self.root)
        # llama.cpp names the rules of definitions and of properties alike. A mark that occurs
        # nowhere in the schema keeps them apart.
        taken = set(_MARK.findall(json.dumps(root)))
        marks = itertools.chain(["zz"], (f"z{n}z" for n in itertools.count()))
        self._mark = prefix + next(mark for mark in marks if mark not in taken)

    def __contains__(self, ref: str) -> bool:
        return ref in self._names

    def node(self, ref: str) -> Json:
        """The rewritten schema that refers there."""
        return {"$ref": f"#/$defs/{self._names[ref]}"}

    def name(self, ref: str, path: str) -> None:
        """Gives a name to the target of a reference at `path`, before the target is read."""
        name = self._names[ref] = f"{self._mark}{len(self._names)}"
        self._paths[name] = path

    def define(self, ref: str, node: Json) -> None:
        """Notes what was read there."""
        self._nodes[self._names[ref]] = node

    def finish(self, reading: Reading) -> None:
        """Drops definitions that are only references in a circle, and ambiguous ones."""
        at_once = {name: _names_in(alternatives(node)) for name, node in self._nodes.items()}
        for name in itertools.chain(*_circles(at_once)):
            reading.drop(self._paths[name], "cannot be honoured: it only refers to itself")
            self._nodes[name] = ANYTHING
        while names := self._ambiguous():
            why = (
                "cannot be honoured: in a schema that contains itself, the schemas of anyOf have "
                "to begin with different properties, or different values of one"
            )
            for name in names:
                reading.drop(self._paths[name], why)
                self._nodes[name] = ANYTHING

    def _ambiguous(self) -> list[str]:
        """The definitions that contain themselves in alternatives that begin alike."""
        nodes = {name: below(node) for name, node in self._nodes.items()}
        circles = _circles({name: _names_in(each) for name, each in nodes.items()})
        return [
            name
            for circle in circles
            for name in circle
            for several in map(alternatives, nodes[name])
            if len(several) > 1 and not self._part_at_once(several, circle)
        ]

    def _part_at_once(self, several: list[Any], circle: set[str]) -> bool:
        alone = [each for each in several if _names_in(below(each)) & circle]
        others = [each for each in several if not _names_in(below(each)) & circle]
        return not alone or self.comparer.part_at_once(alone, others)


def _names_in(nodes: Iterable[Any]) -> set[str]:
    """The definitions that some schemas refer to."""
    return {steps_of(ref)[-1] for ref in map(reference_of, nodes) if ref is not None}


def _circles(targets: dict[str, set[str]]) -> list[set[str]]:
    """The names that lead to each other, in groups (Tarjan); names in no circle are left out."""
    found: list[set[str]] = []
    numbers: dict[str, int] = {}  # of the earliest name on the path that each leads back to
    path: list[str] = []

    def visit(name: str) -> None:
        number = numbers[name] = len(numbers)
        begin = len(path)
        path.append(name)
        for other in targets[name]:
            if other not in numbers:
                visit(other)
            numbers[name] = min(numbers[name], numbers[other])
        if numbers[name] == number:  # nothing behind it leads further back
            group = set(path[begin:])
            del path[begin:]
            numbers.update(dict.fromkeys(group, len(targets)))  # later than all on the path
            if len(group) > 1 or name in targets[name]:
                found.append(group)

    for name in targets:
        if name not in numbers:
            visit(name)
    return found


# ---- telling schemas apart -----------------------------------------------------------------


class Comparer:
    """Compares the parts of one schema, in a bounded number of steps. After these it says no."""

    def __init__(self, root: Json) -> None:
        """`root` has the definitions under $defs; it may still grow."""
        self._root, self._n_left = root, MAX_STEPS

    def exclude_each_other(self, schemas: list[Any]) -> bool:
        """Whether no value that a grammar makes of one schema fits another."""
        groups = [self._expanded(schema) for schema in schemas]
        is_guessed = any(GUESSED in each for each in itertools.chain(*groups))
        return not is_guessed and self._are_apart(groups, _never_fit)

    def part_at_once(self, alone: list[Any], others: list[Any]) -> bool:
        """Whether the type or the first property of a value tells which schema it belongs to.

        Each of those `alone` from all; the `others` may begin alike.
        """
        groups = [
            self._expanded({"anyOf": group}) for group in (others, *([each] for each in alone))
        ]
        return self._are_apart(groups, _begin_apart)

    def _are_apart(self, groups: list[list[Json]], apart: Callable[[Json, Json], bool]) -> bool:
        """Whether all schemas of different groups are, by their types or values, or as objects."""
        keys = [[(each, set(self._counted(_keys(each)))) for each in group] for group in groups]
        for group, *others in (keys[i:] for i in range(len(keys))):
            pairs = itertools.product(group, itertools.chain(*others))
            for (a, keys_a), (b, keys_b) in self._counted(pairs):
                are_objects = keys_a == keys_b == {("object",)}
                if not (apart(a, b) if are_objects else _are_disjoint(keys_a, keys_b)):
                    return False
        return self._n_left > 0

    def _expanded(self, node: Any) -> list[Json]:
        """The schemas of which a value has to fit one, behind anyOf and references."""
        found: list[Json] = []
        seen: set[str] = set()
        todo = [node]
        while todo:
            for each in self._counted(alternatives(todo.pop())):
                ref = reference_of(each)
                if ref is None:
                    found.append(each if type(each) is dict else {})
                elif ref not in seen:
                    seen.add(ref)
                    todo.append(target_of(self._root, steps_of(ref)))
        return found

    def _counted(self, steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            if self._n_left == 0:
                return
            self._n_left -= 1
            yield step


def _never_fit(a: Json, b: Json) -> bool:
    """Whether two objects exclude each other.

    Each requires a property that the other never has, or they require one with other values.
    """
    if _requires_more(a, b) and _requires_more(b, a):
        return True
    shared = set(_required(a)) & set(_required(b))
    return any(
        _have_other_values(properties_of(a)[name], properties_of(b)[name]) for name in shared
    )


def _requires_more(a: Json, b: Json) -> bool:
    names = properties_of(b)
    is_closed = b.get("additionalProperties") is False
    return is_closed and any(name not in names for name in _required(a))


def _begin_apart(a: Json, b: Json) -> bool:
    """Whether two objects begin with different properties, or different values of one.

    A grammar writes the required properties first, in their order.
    """
    first, other = (next(iter(_required(each)), None) for each in (a, b))
    if first is None or other is None:
        return False
    return first != other or _have_other_values(properties_of(a)[first], properties_of(b)[first])


def _required(node: Json) -> list[str]:
    listed = set(list_of(node.get("required")))
    return [name for name in properties_of(node) if name in listed]


def _have_other_values(a: Json, b: Json) -> bool:
    return "enum" in a and "enum" in b and _are_disjoint(set(_keys(a)), set(_keys(b)))


def _are_disjoint(a: set[_Key], b: set[_Key]) -> bool:
    """A type stands for all its values."""
    both = a | b
    return not a & b and not any(key[:1] in both for key in both if len(key) > 1)


def _keys(node: Json) -> Iterator[_Key]:
    """What all values of a schema show of themselves."""
    if "enum" in node:
        return map(_key_of, node["enum"])
    named = node.get("type")
    return (("number" if name == "integer" else name,) for name in ([named] if named else TYPES))


def _key_of(value: Any) -> _Key:
    kind = type_of(value)
    if kind in ("object", "array"):
        return (kind,)
    if kind in ("integer", "number"):
        return "number", repr(float(value))
    return kind, json.dumps(value)
