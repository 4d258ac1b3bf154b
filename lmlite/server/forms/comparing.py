"""Whether the schemas in a JSON schema can be told apart by their values."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmlite.server.forms.parts import (
    GUESSED,
    TYPES,
    Json,
    alternatives,
    list_of,
    properties_of,
    reference_of,
    steps_of,
    target_of,
    type_of,
)

MAX_STEPS = 20_000
# What a value shows of itself: a type, then perhaps the name of a property and its value.
_Key = tuple[str, ...]


class Comparer:
    """Compares the parts of one rewritten schema, in a bounded number of steps.

    Its methods raise ValueError after the last of them.
    """

    def __init__(self, root: Json) -> None:
        """`root` has the definitions under $defs; it may still grow."""
        self._root, self._n_left = root, MAX_STEPS

    def exclude_each_other(self, schemas: list[Any]) -> bool:
        """Whether no value that a grammar makes of one schema fits another.

        Types decide, or a property that all objects require, with other values in each. A grammar
        gives objects only the properties that are named, so a required property that only one
        schema names decides, too.
        """
        groups = [self._expanded(schema) for schema in schemas]
        every = list(itertools.chain(*groups))
        if any(GUESSED in each for each in every):
            return False
        objects = [each for each in every if _types(each) == {"object"}]
        name = _discriminator(objects)
        if name is None and _each_requires_its_own(objects):
            groups = [[each for each in some if _types(each) != {"object"}] for some in groups]
        return self._are_apart(groups, lambda _: name)

    def part_at_once(self, alone: list[Any], others: list[Any]) -> bool:
        """Whether a value's type or first property tells which schema it belongs to.

        Each of those `alone` from all; the `others` may begin alike.
        """
        groups = [
            self._expanded({"anyOf": group}) for group in (others, *([each] for each in alone))
        ]
        return self._are_apart(groups, lambda node: next(iter(_required(node)), None))

    def _are_apart(self, groups: list[list[Json]], name_of: Callable[[Json], str | None]) -> bool:
        """Whether no key of a group begins with one of another, or is the same."""
        keys = [
            (owner, key)
            for owner, group in enumerate(groups)
            for node in group
            for key in self._counted(_keys(node, name_of(node)))
        ]
        owners: dict[_Key, int] = {}  # by the beginnings of keys; -1 for several owners
        for owner, key in keys:
            for n in range(1, len(key) + 1):
                beginning = key[:n]
                owners[beginning] = owner if owners.get(beginning, owner) == owner else -1
        return all(owners[key] != -1 for _, key in keys)

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
            self._n_left -= 1
            if self._n_left < 0:
                raise ValueError(f"telling its parts apart takes more than {MAX_STEPS:,} steps")
            yield step


def _discriminator(objects: list[Json]) -> str | None:
    """A property that all of them require, with a list of values in each."""
    names = Counter(
        name
        for each in objects
        for name in _required(each)
        if _values(properties_of(each)[name]) is not None
    )
    return next((name for name, n in names.items() if n == len(objects)), None)


def _each_requires_its_own(objects: list[Json]) -> bool:
    named = Counter(name for each in objects for name in properties_of(each))
    return all(any(named[name] == 1 for name in _required(each)) for each in objects)


def _keys(node: Json, name: str | None) -> Iterator[_Key]:
    """The keys of all values of a schema; `name` is that of a property to look into."""
    values = _values(node)
    if values is not None:
        yield from map(_key_of, values)
        return
    for kind in _types(node):
        if kind != "object" or name is None:
            yield (kind,)
            continue
        inner = _values(properties_of(node).get(name))
        yield from ((kind, name, *key) for key in ([()] if inner is None else map(_key_of, inner)))


def _key_of(value: Any) -> _Key:
    kind = type_of(value)
    if kind in ("object", "array"):
        return (kind,)
    if kind in ("integer", "number"):
        return "number", repr(float(value))
    return kind, json.dumps(value)


def _required(node: Json) -> list[str]:
    """The properties that are always there, in the order in which they are written."""
    listed = set(list_of(node.get("required")))
    return [name for name in properties_of(node) if name in listed]


def _types(node: Json) -> set[str]:
    values = _values(node)
    if values is not None:
        names = list(map(type_of, values))
    else:
        named = node.get("type")
        names = [named] if type(named) is str else list(TYPES)
    return {"number" if name == "integer" else name for name in names}


def _values(node: Any) -> list[Any] | None:
    return node.get("enum") if type(node) is dict else None
