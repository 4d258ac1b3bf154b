"""Rewrites the definitions of a JSON schema, and tells whether schemas exclude each other.

A schema may contain itself through its definitions. If it does so in alternatives that begin in
the same way, the number of ways to continue doubles with each level.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
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
    type_of,
)

MAX_STEPS = 20_000  # comparisons between parts of a schema
_Key = tuple[str, ...]  # (type,) or (type, value)

_DEFS = "#/$defs/"
_ONLY_ITSELF = "it only refers to itself"
_AMBIGUOUS = (
    "in a schema that contains itself, the schemas of anyOf have to begin with different "
    "properties, or different values of one"
)
_MARK = re.compile(r"(?=(z\d{0,8}z))")  # a lookahead, so that it finds overlapping marks, too


class Definitions:
    """The rewritten targets of the references in one schema."""

    def __init__(self, root: Any, prefix: str) -> None:
        """`prefix`: makes names differ from those of other schemas in the same grammar."""
        self.refs: dict[str, str] = {}  # the client's $ref -> the new $ref
        self.nodes: dict[str, Json] = {}  # the new $ref -> the rewritten target
        self._paths: dict[str, str] = {}  # the new $ref -> the path of its first use
        self.comparer = Comparer(self.nodes)
        self._root, self._prefix = root, prefix

    @cached_property
    def _mark(self) -> str:
        # llama.cpp names rules after definitions and after properties. A mark that does not occur
        # in the schema makes the names of definitions differ from those of properties.
        taken = set(_MARK.findall(json.dumps(self._root)))
        marks = itertools.chain(["zz"], (f"z{n}z" for n in itertools.count()))
        return self._prefix + next(mark for mark in marks if mark not in taken)

    def add(self, ref: str, path: str) -> str:
        """Makes a new $ref for the client's `ref`, which is first used at `path`."""
        new = self.refs[ref] = f"{_DEFS}{self._mark}{len(self.refs)}"
        self._paths[new] = path
        return new

    def written(self) -> Json:
        """The definitions, as a keyword of the schema's root."""
        named = {ref.removeprefix(_DEFS): node for ref, node in self.nodes.items()}
        return {"$defs": named} if named else {}

    def finish(self, reading: Reading) -> None:
        """Drops definitions that only refer to themselves in a cycle, and ambiguous ones."""
        at_once = {ref: _refs_in(alternatives(node)) for ref, node in self.nodes.items()}
        self._drop(itertools.chain(*_circles(at_once)), _ONLY_ITSELF, reading)
        while refs := self._ambiguous():
            self._drop(refs, _AMBIGUOUS, reading)

    def _drop(self, refs: Iterable[str], why: str, reading: Reading) -> None:
        for ref in refs:
            reading.drop(self._paths[ref], f"cannot be honoured: {why}")
            self.nodes[ref] = ANYTHING

    def _ambiguous(self) -> list[str]:
        """The definitions that contain themselves in alternatives that begin in the same way."""
        inside = {ref: below(node) for ref, node in self.nodes.items()}
        circles = _circles({ref: _refs_in(nodes) for ref, nodes in inside.items()})
        return [
            ref
            for circle in circles
            for ref in circle
            for several in map(alternatives, inside[ref])
            if len(several) > 1 and not self._part_at_once(several, circle)
        ]

    def _part_at_once(self, several: list[Json], circle: list[str]) -> bool:
        alone = [each for each in several if not _refs_in(below(each)).isdisjoint(circle)]
        others = [each for each in several if each not in alone]
        return not alone or self.comparer.part_at_once(alone, others)


def _refs_in(nodes: Iterable[Json]) -> set[str]:
    return {node["$ref"] for node in nodes if "$ref" in node}


def _circles(targets: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that lead to each other (Tarjan's strongly connected components)."""
    found: list[list[str]] = []
    numbers: dict[str, int] = {}  # by name: number of the earliest name on the path it leads to
    path: list[str] = []

    def visit(name: str) -> None:
        number = numbers[name] = len(numbers)
        begin = len(path)
        path.append(name)
        for other in targets[name]:
            if other not in numbers:
                visit(other)
            numbers[name] = min(numbers[name], numbers[other])
        if numbers[name] == number:  # no name after it on the path leads further back
            group = path[begin:]
            del path[begin:]
            numbers.update(dict.fromkeys(group, len(targets)))  # larger than all on the path
            if len(group) > 1 or name in targets[name]:
                found.append(group)

    for name in targets:
        if name not in numbers:
            visit(name)
    return found


# ---- whether schemas exclude each other ----------------------------------------------------


class Comparer:
    """Compares parts of one schema. After MAX_STEPS comparisons, all methods return False."""

    def __init__(self, targets: dict[str, Json]) -> None:
        """`targets`: the target of each $ref; may grow later."""
        self._targets, self._n_left = targets, MAX_STEPS

    def exclude_each_other(self, schemas: list[Json]) -> bool:
        """Whether no value that the grammar allows for one schema is valid for another schema."""
        groups = [self._expanded(schema) for schema in schemas]
        is_guessed = any(GUESSED in each for each in itertools.chain(*groups))
        return not is_guessed and self._are_apart(groups, _never_fit)

    def part_at_once(self, alone: list[Json], others: list[Json]) -> bool:
        """Whether the beginning of a value (type, first property) shows which schema it matches.

        Each schema in `alone` must differ from all schemas; `others` may begin in the same way.
        """
        groups = [
            self._expanded({"anyOf": group}) for group in (others, *([each] for each in alone))
        ]
        return self._are_apart(groups, _begin_apart)

    def _are_apart(self, groups: list[list[Json]], apart: Callable[[Json, Json], bool]) -> bool:
        """Whether schemas of different groups have no common keys; objects use `apart` instead."""
        keys = [[(each, set(self._counted(_keys(each)))) for each in group] for group in groups]
        for group, *others in (keys[i:] for i in range(len(keys))):
            pairs = itertools.product(group, itertools.chain(*others))
            for (a, keys_a), (b, keys_b) in self._counted(pairs):
                are_objects = keys_a == keys_b == {("object",)}
                if not (apart(a, b) if are_objects else _are_disjoint(keys_a, keys_b)):
                    return False
        return self._n_left > 0

    def _expanded(self, node: Json) -> list[Json]:
        """The alternatives of a schema, after following anyOf and references."""
        found: list[Json] = []
        seen: set[str] = set()
        todo = [node]
        while todo:
            for each in self._counted(alternatives(todo.pop())):
                ref = each.get("$ref")
                if ref is None:
                    found.append(each)
                elif ref not in seen:
                    seen.add(ref)
                    todo.append(self._targets.get(ref, ANYTHING))
        return found

    def _counted(self, steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            if self._n_left == 0:
                return
            self._n_left -= 1
            yield step


def _never_fit(a: Json, b: Json) -> bool:
    """Whether no object matches both schemas: by required properties or by enums of one."""
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
    """Whether the first property differs, or its possible values have nothing in common.

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
    """Whether two sets of keys have no common value. A type includes all its values."""
    both = a | b
    return not a & b and not any(key[:1] in both for key in both if len(key) > 1)


def _keys(node: Json) -> Iterator[_Key]:
    """The keys of all values of a schema: those of its enum, else its types."""
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
