"""The definitions of a JSON schema: what its references point at, rewritten.

A schema may contain itself through them; llama.cpp's grammars stay fast only if such a schema can
be told from its alternatives at once.
"""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from lmlite.server.forms.bounds import Reading
from lmlite.server.forms.comparing import Comparer
from lmlite.server.forms.parts import (
    ANYTHING,
    Json,
    alternatives,
    below,
    reference_of,
    steps_of,
)

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
        while name := self._ambiguous():
            why = (
                "cannot be honoured: in a schema that contains itself, the schemas of anyOf have "
                "to begin with different properties, or different values of one"
            )
            reading.drop(self._paths[name], why)
            self._nodes[name] = ANYTHING

    def _ambiguous(self) -> str:
        """A definition that contains itself in alternatives that begin alike; "" for none.

        With each level of such a definition, the ways to continue would double.
        """
        nodes = {name: below(node) for name, node in self._nodes.items()}
        for circle in _circles({name: _names_in(each) for name, each in nodes.items()}):
            for name in circle:
                several = (alternatives(node) for node in nodes[name])
                if not all(self._part_at_once(each, circle) for each in several if len(each) > 1):
                    return name
        return ""

    def _part_at_once(self, several: list[Any], circle: set[str]) -> bool:
        alone = [each for each in several if _names_in(below(each)) & circle]
        others = [each for each in several if not _names_in(below(each)) & circle]
        try:
            return not alone or self.comparer.part_at_once(alone, others)
        except ValueError:
            return False


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
