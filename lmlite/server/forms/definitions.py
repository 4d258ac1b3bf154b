"""The parts of a JSON schema that others refer to, and through which it may hold itself."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.server.forms.faults import Faults
from lmlite.server.forms.parts import (
    ANYTHING,
    Comparer,
    Json,
    alternatives,
    below,
    reference_of,
    steps_of,
)

_MARK = re.compile(r"(?=(z\d{0,8}z))")  # all in one pass, though one may begin inside another


def _marks() -> Iterator[str]:
    return itertools.chain(["zz"], (f"z{n}z" for n in itertools.count()))


class Definitions:
    """What the references of one schema lead to, rewritten."""

    def __init__(self, root: Any, prefix: str = "") -> None:
        """`prefix` keeps their names apart from those of other schemas in one grammar."""
        self._names: dict[str, str] = {}  # by the $ref that asks for it
        self._paths: dict[str, str] = {}  # of the part that asks, by name
        self._nodes: dict[str, Json] = {}
        self.root: Json = {"$defs": self._nodes}
        self.comparer = Comparer(self.root)
        # llama.cpp names a definition's rule after it, and others after properties; names that
        # occur nowhere keep them apart.
        taken = set(_MARK.findall(json.dumps(root)))
        self._mark = prefix + next(mark for mark in _marks() if mark not in taken)

    def __len__(self) -> int:
        return len(self._names)

    def knows(self, ref: str) -> bool:
        """Whether the reference has a name."""
        return ref in self._names

    def node(self, ref: str) -> Json:
        """The schema that refers there."""
        return {"$ref": f"#/$defs/{self._names[ref]}"}

    def name(self, ref: str, path: str) -> None:
        """Gives a name to what a reference at `path` leads to, before that is read."""
        name = self._names[ref] = f"{self._mark}{len(self._names)}"
        self._paths[name] = path

    def define(self, ref: str, node: Json) -> None:
        """Notes what was read there."""
        self._nodes[self._names[ref]] = node

    def finish(self, faults: Faults) -> None:
        """Each leads somewhere, and parts at once where it holds itself. Raises Unheld."""
        at_once = {name: _names_in(alternatives(node)) for name, node in self._nodes.items()}
        for name in itertools.chain(*_circles(at_once)):
            faults.drop(self._paths[name], "cannot be honoured: it only refers to itself")
            self._nodes[name] = ANYTHING
        while name := self._ambiguous():
            why = (
                "cannot be honoured: in a schema that holds itself, those of anyOf have to begin "
                "with different properties, or different values of one"
            )
            faults.drop(self._paths[name], why)
            self._nodes[name] = ANYTHING

    def _ambiguous(self) -> str:
        """One whose alternatives hold each other without parting at once; "" for none.

        The ways to read on double with each level of such a one.
        """
        nodes = {name: below(node) for name, node in self._nodes.items()}
        leads_to = {name: _names_in(each) for name, each in nodes.items()}
        for circle in _circles(leads_to):
            for name in circle:
                for several in filter(lambda found: len(found) > 1, map(alternatives, nodes[name])):
                    if not self._part_at_once(several, circle):
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


def _circles(leads_to: dict[str, set[str]]) -> list[set[str]]:
    """The names that lead to each other, together (Kosaraju); those that do not are left out."""
    order: list[str] = []
    seen: set[str] = set()
    for name in leads_to:
        _visit(name, leads_to, seen, order)
    comes_from: dict[str, set[str]] = {name: set() for name in leads_to}
    for name, others in leads_to.items():
        for other in others:
            comes_from[other].add(name)
    found, seen = [], set()
    for name in reversed(order):
        circle: list[str] = []
        _visit(name, comes_from, seen, circle)
        if len(circle) > 1 or (circle and name in leads_to[name]):
            found.append(set(circle))
    return found


def _visit(name: str, leads_to: dict[str, set[str]], seen: set[str], order: list[str]) -> None:
    """Appends what can be reached and was not seen yet, each behind what it leads to."""
    todo = [(name, False)]
    while todo:
        each, is_left = todo.pop()
        if is_left:
            order.append(each)
        elif each not in seen:
            seen.add(each)
            todo.append((each, True))
            todo += ((other, False) for other in leads_to[each])
