"""Bounds of a JSON schema from a client: it must hold nobody up, neither be nor make a giant.

llama.cpp cannot be interrupted while it compiles a grammar, and while it samples it may hold the
whole vocabulary against each way to read on: 2 to 5 ms for a way, with 150,000 tokens on a core of
2023. So the ways that a schema keeps open at once are counted before it is passed on.
"""

import itertools
import json
import re
from math import prod
from typing import Any, NoReturn

from lmlite.errors import BadRequest
from lmlite.server.schema_parts import (
    Json,
    alternatives,
    below,
    part_at_once,
    parts,
    reference_of,
    steps_of,
    target_of,
)

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_VALUES = 4000
MAX_COUNT = 1000
MAX_REPEATED = 50_000  # which llama.cpp writes out: 0.4 ms for a thousand
MAX_PATTERN_LENGTH = 256
MAX_WAYS = 128
MAX_TOOL_WAYS = 256  # a tool's lists of values are not shared out as those of answers are
# llama.cpp names each rule after the names that lead to it, and its search in such a name is as
# deep as the name is long.
MAX_NAMES = 2048
MAX_ALL_NAMES = 512 << 10
MAX_REFERENCES = 64  # through which one part leads to another
MAX_PAIRS = 10_000  # of alternatives to compare

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_REPETITION = re.compile(r"\{(\d*)(?:,(\d*))?\}")


def check_size(schema: Json, param: str) -> None:
    """Raises BadRequest for a schema that is too large in any of its sizes."""
    _Size(param).add(schema, MAX_DEPTH, "")
    if len(json.dumps(schema)) > MAX_BYTES:
        raise BadRequest(f"{param} is larger than {MAX_BYTES >> 10} KiB", param=param)


class _Size:
    def __init__(self, param: str) -> None:
        self._param = param
        self._n_values = self._n_names = self._n_repeated = 0

    def _refuse(self, why: str) -> NoReturn:
        raise BadRequest(f"{self._param}{why}", param=self._param)

    def add(self, value: Any, depth_left: int, path: str) -> None:
        """Counts a value and all that is in it; `path` is the names that lead to it."""
        self._n_values += 1
        self._n_names += len(path)
        if depth_left == 0:
            self._refuse(f" nests deeper than {MAX_DEPTH} levels")
        if self._n_values > MAX_VALUES:
            self._refuse(f" has more than {MAX_VALUES:,} values")
        if len(path) > MAX_NAMES or self._n_names > MAX_ALL_NAMES:
            self._refuse(" has names that are too long, or too deep for their length")
        if type(value) is int and abs(value) >= 2**63:
            self._refuse(f"{path} has more than 64 bits")
        if type(value) is list:
            for item in value:
                self.add(item, depth_left - 1, path)
        elif type(value) is dict:
            self._check_counts(value, path)
            for name, item in value.items():
                self.add(item, depth_left - 1, f"{path}.{name}")

    def _check_counts(self, schema: Json, path: str) -> None:
        for name in _COUNTS:
            count = schema.get(name)
            if isinstance(count, int | float):
                if not 0 <= count <= MAX_COUNT:
                    self._refuse(f"{path}.{name} is not from 0 to {MAX_COUNT:,}")
                self._add_repeated(int(count))
        for low, high in (("minItems", "maxItems"), ("minLength", "maxLength")):
            bounds = [schema[name] for name in (low, high) if type(schema.get(name)) is int]
            if bounds != sorted(bounds):
                self._refuse(f"{path}.{low} is greater than {high}")
        pattern = schema.get("pattern")
        if type(pattern) is str:
            self._check_pattern(pattern, f"{path}.pattern")

    def _check_pattern(self, pattern: str, path: str) -> None:
        if len(pattern) > MAX_PATTERN_LENGTH:
            self._refuse(f"{path} is longer than {MAX_PATTERN_LENGTH} characters")
        for low, high in _REPETITION.findall(pattern):
            counts = [int(digits[:9]) for digits in (low, high) if digits]
            if any(count > MAX_COUNT for count in counts) or counts != sorted(counts):
                self._refuse(f"{path} repeats too often")
            self._add_repeated(max(counts, default=0))

    def _add_repeated(self, count: int) -> None:
        self._n_repeated += count
        if self._n_repeated > MAX_REPEATED:
            self._refuse(f" repeats its parts more than {MAX_REPEATED:,} times, all in all")


class Ways:
    """The ways to read on that a grammar may keep open at once."""

    def __init__(self, root: Json, param: str, of_patterns: dict[str, int] | None = None) -> None:
        """`of_patterns`: the ways of each pattern; None to guess them from its counts."""
        self._root, self._param, self._of_patterns = root, param, of_patterns
        self._known: dict[str, int] = {}  # by reference; 1 while it is counted
        self._n_open = 0  # references that are followed now
        self._n_pairs = 0  # of alternatives that were compared

    def check(self, most: int = MAX_WAYS) -> None:
        """Raises BadRequest for too many."""
        if self._of(self._root) > most:
            self._refuse(
                f"leaves more than {most} ways open at once: it has too many alternatives, values "
                "or optional properties"
            )
        leads_to = {ref: self._references(ref) for ref in self._known}
        for ref in self._known:
            self._check_recursion(ref, leads_to)

    def _refuse(self, why: str) -> NoReturn:
        raise BadRequest(f"{self._param} {why}", param=self._param)

    def _of(self, node: Any) -> int:
        if type(node) is not dict:
            return 1
        ref = reference_of(node)
        if ref is not None:
            return self._of_reference(ref)
        several = alternatives(node)
        if several != [node]:
            return sum(map(self._of, several))
        if type(node.get("enum")) is list:
            return len(node["enum"])
        if type(node.get("pattern")) is str:
            return self._of_pattern(node["pattern"])
        properties, required, types = (
            len(value) if isinstance(value, dict | list) else 0
            for value in (node.get("properties"), node.get("required"), node.get("type"))
        )
        n_optional = max(properties - required, 0)
        inner = list(map(self._of, parts(node)))
        # What allOf names llama.cpp puts into one object.
        most = sum(inner) if "allOf" in node else max(inner, default=_of_digits(node))
        return (n_optional + most) * max(types, 1)

    def _of_reference(self, ref: str) -> int:
        if ref not in self._known:
            target = target_of(self._root, steps_of(ref))
            self._n_open += 1
            if target is None or self._n_open > MAX_REFERENCES:
                self._refuse(f"has a $ref to {ref:.80}, which is not there or too far away")
            self._known[ref] = 1
            self._known[ref] = self._of(target)
            self._n_open -= 1
        return self._known[ref]

    def _of_pattern(self, pattern: str) -> int:
        if self._of_patterns is not None:
            return self._of_patterns[pattern]
        counts = (filter(None, found) for found in _REPETITION.findall(pattern))
        return prod(max(map(int, each), default=1) or 1 for each in counts)

    def _references(self, ref: str) -> set[str]:
        """All that a reference leads to, itself if it holds itself."""
        found: set[str] = set()
        todo = [ref]
        while todo:
            for node in below(target_of(self._root, steps_of(todo.pop()))):
                other = reference_of(node)
                if other is not None and other not in found:
                    found.add(other)
                    todo.append(other)
        return found

    def _check_recursion(self, ref: str, leads_to: dict[str, set[str]]) -> None:
        """Alternatives that hold each other double with each level, unless they part at once."""
        if ref not in leads_to[ref]:
            return
        for node in below(target_of(self._root, steps_of(ref))):
            several = alternatives(node)
            holds = [
                any(ref == other or ref in leads_to.get(other, ())
                    for other in filter(None, map(reference_of, below(each))))
                for each in several
            ]  # fmt: skip
            for i, j in itertools.combinations(range(len(several)), 2):
                if holds[i] or holds[j]:
                    self._check_pair(several[i], several[j])

    def _check_pair(self, a: Any, b: Any) -> None:
        self._n_pairs += 1
        if self._n_pairs > MAX_PAIRS or not part_at_once(a, b, self._root):
            self._refuse(
                "cannot be honoured: in a schema that holds itself, those of anyOf have to begin "
                "with different properties, or different values of one"
            )


def _of_digits(node: Json) -> int:
    """A number may end with each digit; bounds are alternatives for each number of digits."""
    if "minimum" in node or "maximum" in node:
        return 8
    return 4 if node.get("type") in ("integer", "number") else 1
