"""Bounds of a JSON schema from a client: it must hold nobody up, neither be nor make a giant.

llama.cpp cannot be interrupted while it compiles a grammar, and while it samples it may hold the
whole vocabulary against each way to read on: 2 to 5 ms for a way, with 150,000 tokens on a core of
2023. So the ways that a schema keeps open at once are counted before it is passed on. Each bound is
itself checked in steps that grow with the schema alone.
"""

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from lmlite.errors import BadRequest
from lmlite.server.forms.parts import Json, alternatives, parts, reference_of, steps_of, target_of

MAX_BYTES = 64 << 10
MAX_REWRITTEN_BYTES = 512 << 10  # lists of values grow when beginnings are shared
MAX_DEPTH = 32
MAX_VALUES = 4000
MAX_COUNT = 1000
MAX_LENGTH = 100_000  # of a text
MAX_REPEATED = 50_000  # which llama.cpp writes out: 0.4 ms for a thousand
MAX_PATTERN_LENGTH = 256
MAX_WAYS = 128
MAX_TOOL_WAYS = 256  # a tool's lists of values are not shared out as those of answers are
# llama.cpp names each rule after the names that lead to it, and its search in such a name is as
# deep as the name is long.
MAX_NAMES = 2048
MAX_ALL_NAMES = 512 << 10
MAX_REFERENCES = 64  # through which one part leads to another

_COUNTS = {"minItems": MAX_COUNT, "maxItems": MAX_COUNT, "minProperties": MAX_COUNT,
           "maxProperties": MAX_COUNT, "minLength": MAX_LENGTH,
           "maxLength": MAX_LENGTH}  # fmt: skip
_REPETITION = re.compile(r"\{(\d*)(?:,(\d*))?\}")


@dataclass
class Room:
    """What the grammar of a schema may still take, of each kind."""

    values: int = MAX_VALUES
    names: int = MAX_ALL_NAMES  # characters of the names that lead to each value
    n_bytes: int = MAX_BYTES
    repeated: int = MAX_REPEATED

    def take(self, values: int = 0, names: int = 0, n_bytes: int = 0, repeated: int = 0) -> bool:
        """Takes that much; False, and nothing, where there is less."""
        left = Room(self.values - values, self.names - names, self.n_bytes - n_bytes,
                    self.repeated - repeated)  # fmt: skip
        if min(vars(left).values()) < 0:
            return False
        vars(self).update(vars(left))
        return True

    def part(self, most: "Room") -> "Room":
        """As much of it as one schema may take."""
        return Room(**{kind: min(n, vars(most)[kind]) for kind, n in vars(self).items()})

    def spend(self, before: "Room", after: "Room") -> None:
        """Takes what was taken of a part."""
        for kind, n in vars(before).items():
            vars(self)[kind] -= n - vars(after)[kind]


def n_values(schema: Any, most: int, most_levels: int) -> int:
    """How many values a schema has that a chat template reads, at any depth.

    Raises ValueError for more than `most`, or more than `most_levels` in each other.
    """
    n_found, levels, level = 0, 0, [schema]
    while level:
        n_found, levels = n_found + len(level), levels + 1
        if n_found > most or levels > most_levels:
            raise ValueError(f"more than {most:,} values, or {most_levels} in each other")
        inner = (each.values() if type(each) is dict else each for each in level
                 if type(each) in (dict, list))  # fmt: skip
        level = [*itertools.chain(*inner)]
    return n_found


def repetitions(pattern: str) -> int:
    """How many parts llama.cpp writes out for the counts in a pattern."""
    found = (
        max((int(n[:9]) for n in each if n), default=0) for each in _REPETITION.findall(pattern)
    )
    return sum(found)


def check_size(schema: Json, param: str) -> None:
    """Raises BadRequest for a schema that is too large in any of its sizes."""
    _Size(param).add(schema, MAX_DEPTH, "")
    if len(json.dumps(schema)) > MAX_BYTES:
        raise BadRequest(f"{param} is larger than {MAX_BYTES >> 10} KiB", param=param)


class _Size:
    def __init__(self, param: str) -> None:
        self._param, self._room = param, Room()

    def _refuse(self, why: str) -> NoReturn:
        raise BadRequest(f"{self._param}{why}", param=self._param)

    def add(self, value: Any, depth_left: int, path: str) -> None:
        """Counts a value and all that is in it; `path` is the names that lead to it."""
        if depth_left == 0:
            self._refuse(f" nests deeper than {MAX_DEPTH} levels")
        if not self._room.take(values=1):
            self._refuse(f" has more than {MAX_VALUES:,} values")
        if len(path) > MAX_NAMES or not self._room.take(names=len(path)):
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
        for name, most in _COUNTS.items():
            count = schema.get(name)
            if isinstance(count, int | float):
                if not 0 <= count <= most:
                    self._refuse(f"{path}.{name} is not from 0 to {most:,}")
                self._add_repeated(min(int(count), MAX_COUNT))
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
        if not self._room.take(repeated=count):
            self._refuse(f" repeats its parts more than {MAX_REPEATED:,} times, all in all")


class Ways:
    """The ways to read on that a grammar may keep open at once.

    For schemas as they are passed on: each $ref is there. Raises ValueError for too many.
    """

    def __init__(self, root: Json, of_patterns: dict[str, int]) -> None:
        self._root, self._of_patterns = root, of_patterns
        self._known: dict[str, int] = {}  # by reference; 1 while it is counted
        self._n_open = 0  # references that are followed now

    def check(self, node: Any, most: int) -> None:
        """Raises ValueError for more than `most`, as far as a part of the schema goes."""
        if self.of(node) > most:
            raise ValueError(
                f"leaves more than {most} ways open at once: it has too many alternatives, values "
                "or optional properties"
            )

    def of(self, node: Any) -> int:
        """How many, for a part of the schema."""
        if type(node) is not dict:
            return 1
        ref = reference_of(node)
        if ref is not None:
            return self._of_reference(ref)
        several = alternatives(node)
        if several != [node]:
            return sum(map(self.of, several))
        if type(node.get("enum")) is list:
            return len(node["enum"])
        if type(node.get("pattern")) is str:
            return self._of_patterns[node["pattern"]]
        n_optional = len(node.get("properties", ())) - len(node.get("required", ()))
        most = max(map(self.of, parts(node)), default=_of_digits(node))
        return max(n_optional, 0) + most

    def _of_reference(self, ref: str) -> int:
        if ref not in self._known:
            self._n_open += 1
            if self._n_open > MAX_REFERENCES:
                raise ValueError("refers too far from one part to another")
            self._known[ref] = 1
            self._known[ref] = self.of(target_of(self._root, steps_of(ref)))
            self._n_open -= 1
        return self._known[ref]


def _of_digits(node: Json) -> int:
    """A number may end with each digit; bounds are alternatives for each number of digits."""
    if "minimum" in node or "maximum" in node:
        return 8
    return 4 if node.get("type") in ("integer", "number") else 1
