"""Limits on a client's JSON schema, so that neither reading it nor using its grammar takes long.

llama.cpp cannot be interrupted while it compiles a grammar. While it samples, it may compare the
whole vocabulary with each way in which the text may continue: 2 to 5 ms for each way, with 150,000
tokens on a core of 2023. So the ways that may be open at once are counted before llama.cpp gets
the schema. The time of these checks depends only on the size of the schema.
"""

import re
from typing import Any, NoReturn

from lmlite.server.forms.parts import Json, parts

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_VALUES = 4000
MAX_COUNT = 1000  # items of an array
MAX_LENGTH = 100_000  # characters of a string
MAX_PATTERN_LENGTH = 256
MAX_WAYS = 128
MAX_TOOL_WAYS = 256  # more, because long enums in tools do not share beginnings as in answers
# llama.cpp names each rule after the properties that lead to it, and searches such a name with a
# recursion for each character.
MAX_PATH = 2048
MAX_REFERENCES = 64  # references in a chain
MAX_NOTED = 20  # noted parts of one schema

_ROOM = {"values": MAX_VALUES, "paths": 512 << 10, "n_bytes": 512 << 10, "repeated": 50_000}
ROOM_OF_TOOLS = _ROOM | {kind: 4 * _ROOM[kind] for kind in ("values", "paths")}  # for all tools
_TOO_MUCH = {
    "values": f"has more than {MAX_VALUES:,} values",
    "paths": "has names that are too long, or too deep for their length",
    "n_bytes": "has too long lists of values or patterns",
    "repeated": f"repeats its parts more than {_ROOM['repeated']:,} times, all in all",
}  # "repeated": llama.cpp expands repetitions, which takes 0.4 ms for a thousand parts
_REPETITION = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class Unheld(Exception):
    """A part of a schema that no grammar can enforce: its path from the root, and the reason."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Reading:
    """The state that the readers of one schema share: its root, limits, and dropped parts."""

    def __init__(self, root: Any, is_strict: bool, shared: dict[str, int] | None = None) -> None:
        """Strict: the first part that cannot be enforced raises Unheld. Else it is noted.

        `shared`: the limits that this schema shares with other schemas.
        """
        self.root, self.is_strict = root, is_strict
        self.noted: dict[str, str] = {}  # reasons by path
        self.ways: dict[str, int] = {}  # number of ways to continue a text, by its pattern
        self._rooms = [dict(_ROOM), *([] if shared is None else [shared])]

    def refuse(self, path: str, why: str) -> NoReturn:
        """Raises Unheld: the value that this part belongs to cannot be enforced."""
        raise Unheld(path, why)

    def drop(self, path: str, why: str) -> None:
        """Notes that a part is dropped. Raises Unheld if the reading is strict."""
        if self.is_strict:
            self.refuse(path, why)
        self.note(path, why)

    def note(self, path: str, why: str) -> None:
        """Notes that a part is dropped."""
        if len(self.noted) < MAX_NOTED:
            self.noted.setdefault(path, why)

    def counts(self, schema: Json, what: str, most: int, path: str) -> tuple[int, int | None]:
        """The values of min<what> and max<what>, such as minItems; they may be up to `most`."""
        found = {}
        for key in (f"min{what}", f"max{what}"):
            value = schema.get(key, 0)
            if type(value) not in (int, float) or value != value // 1:
                self.drop(f"{path}.{key}", "is not a whole number")
            elif not 0 <= value <= most:
                self.drop(f"{path}.{key}", f"is not from 0 to {most:,}")
            elif key in schema:
                found[key] = int(value)
        low, high = found.get(f"min{what}", 0), found.get(f"max{what}")
        if high is not None and low > high:
            self.drop(f"{path}.min{what}", f"is greater than max{what}")
            return 0, None
        return low, high

    def take(self, path: str, **amounts: int) -> None:
        """Subtracts amounts from what the limits leave. Raises Unheld if a limit is exceeded."""
        if len(path) > MAX_PATH:
            self.refuse(path, _TOO_MUCH["paths"])
        for kind, n in amounts.items():
            for room in self._rooms:
                if room[kind] < n:
                    self.refuse(path, _TOO_MUCH[kind])
        for room in self._rooms:
            for kind, n in amounts.items():
                room[kind] -= n


def n_values(schema: Any, most: int, most_levels: int) -> int:
    """The number of JSON values in a schema, at any depth.

    Raises ValueError for more than `most` values or `most_levels` levels.
    """
    n_found, levels, level = 0, 0, [schema]
    while level:
        n_found, levels = n_found + len(level), levels + 1
        if n_found > most:
            raise ValueError(f"has more than {most:,} values")
        if levels > most_levels:
            raise ValueError(f"nests deeper than {most_levels} levels")
        level = [inner for each in level if type(each) in (dict, list)
                 for inner in (each.values() if type(each) is dict else each)]  # fmt: skip
    return n_found


def repetitions(pattern: str) -> int:
    """The number of parts to which llama.cpp expands the repetitions in a pattern.

    >>> repetitions("^[a]{2,5}[b]{3}$")
    8
    """
    return sum(
        max((int(digits) for digits in each if digits), default=0)
        for each in _REPETITION.findall(pattern)
    )


class Ways:
    """Counts the ways to continue a text that a rewritten schema's grammar keeps open at once."""

    def __init__(self, targets: dict[str, Json], of_patterns: dict[str, int]) -> None:
        """`targets`: the target of each $ref. `of_patterns`: the number of ways by pattern."""
        self._targets, self._of_patterns = targets, of_patterns
        self._known: dict[str, int] = {}  # by reference; 1 while the reference is being counted
        self._n_open = 0  # references that are being followed

    def of(self, node: Json) -> int:
        """The number of ways in a part of the schema."""
        if "$ref" in node:
            return self._of_reference(node["$ref"])
        if "anyOf" in node:
            return sum(map(self.of, node["anyOf"]))
        if "enum" in node:
            return len(node["enum"])
        if "pattern" in node:
            return self._of_patterns[node["pattern"]]
        if inner := parts(node):
            n_optional = len(node.get("properties", ())) - len(node.get("required", ()))
            return max(n_optional, 0) + max(map(self.of, inner))
        # A number may end after each digit. Bounds add alternatives for each number of digits.
        if "minimum" in node or "maximum" in node:
            return 8
        return 4 if node.get("type") in ("integer", "number") else 1

    def _of_reference(self, ref: str) -> int:
        if ref not in self._known:
            if self._n_open == MAX_REFERENCES:
                return MAX_TOOL_WAYS + 1  # too many
            self._n_open += 1
            self._known[ref] = 1
            self._known[ref] = self.of(self._targets[ref])
            self._n_open -= 1
        return self._known[ref]
