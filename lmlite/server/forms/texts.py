"""Texts of a JSON schema: each is held by a pattern that llama.cpp makes the right grammar of."""

import itertools
import math
import os
from typing import Any

from lmlite.server.forms.bounds import MAX_LENGTH, MAX_PATTERN_LENGTH, MAX_WAYS, Room, repetitions
from lmlite.server.forms.faults import Faults
from lmlite.server.forms.parts import Json
from lmlite.server.forms.patterns import grammar_pattern, literal

MAX_LISTED = 16  # texts, before the beginnings that they share are written once
_MAX_WRITTEN_OUT = 64  # characters; more are counted in blocks
_FORMAT_WAYS, _LENGTH_WAYS = 16, 4  # known better than by rule

_DATE = (
    "((([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)|"
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    "02-(0[1-9]|1[0-9]|2[0-8])))"
)
_OFFSET = r"[+\-]([01]\d|2[0-3]):[0-5]\d"
_TIME = rf"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{{1,6}})?(Z|{_OFFSET})"
_ANY_TIME = rf"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|{_OFFSET})"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_HEX = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join((
    f"({_HEX}:){{7}}{_HEX}", f"({_HEX}:){{1,7}}:",
    *(f"({_HEX}:){{1,{7 - n}}}(:{_HEX}){{1,{n}}}" for n in range(1, 7)), f":((:{_HEX}){{1,7}}|:)",
))  # fmt: skip
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,28}[A-Za-z0-9])?"
_ANY_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_IN_PATH = r"([A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_QUERY = rf"(\?({_IN_PATH}|[/?])*)?(#({_IN_PATH}|[/?])*)?"
_N = r"\d{1,6}"  # of a duration, which a model could write without end
_DURATION_TIME = f"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"
# name -> (values that each is one, values among which each one is)
_FORMATS = {
    "date": (_DATE, _DATE),
    "time": (_TIME, _ANY_TIME),
    "date-time": (f"{_DATE}T{_TIME}", f"{_DATE}[Tt ]{_ANY_TIME}"),
    "duration": (
        f"P({_N}W|({_N}D|{_N}M({_N}D)?|{_N}Y({_N}M({_N}D)?)?)({_DURATION_TIME})?|{_DURATION_TIME})",
        r"P(\d+([.,]\d+)?[YMWD])*(T(\d+([.,]\d+)?[HMS])+)?",
    ),
    "uuid": ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
             "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
    "email": (
        r"[A-Za-z0-9]+([.+_\-][A-Za-z0-9]+)*@[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\.[a-z]{2,10}){1,3}",
        "[^]+@[^@]+",
    ),
    "hostname": (rf"{_LABEL}(\.{_LABEL}){{0,7}}", rf"{_ANY_LABEL}(\.{_ANY_LABEL}){{0,126}}\.?"),
    "ipv4": (rf"{_BYTE}(\.{_BYTE}){{3}}", rf"{_BYTE}(\.{_BYTE}){{3}}"),
    "ipv6": (_IPV6, "[0-9a-fA-F:.]{2,45}"),
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.\-]*:(//[A-Za-z0-9]+([.\-][A-Za-z0-9]+)*(:\d{{1,5}})?"
        rf"(/{_IN_PATH}*)*|{_IN_PATH}+(/{_IN_PATH}*)*){_QUERY}",
        r'[A-Za-z][A-Za-z0-9+.\-]*:[^\x00-\x20"<>\\^`{|}]*',
    ),
}  # fmt: skip


class Texts:
    """Reads what one schema says of texts."""

    def __init__(self, faults: Faults, room: Room) -> None:
        self._faults, self._room = faults, room
        self.ways: dict[str, int] = {}  # by pattern

    def node(self, said: Json, path: str) -> Json:
        """What a schema of type string takes. Raises Unheld."""
        low, high = (self._length(said, key, path) for key in ("minLength", "maxLength"))
        has_lengths = bool(low) or high is not None
        for key in (key for key in ("pattern", "format") if key in said):
            others = [other for other in ("format", "minLength", "maxLength")
                      if other != key and other in said]  # fmt: skip
            node = self._pattern_or_format(key, said[key], f"{path}.{key}")
            if node is not None:
                for other in others:
                    self._faults.drop(f"{path}.{other}", f"cannot be honoured beside {key}")
                return node
        if not has_lengths:
            return {"type": "string"}
        if high is not None and high < (low or 0):
            self._faults.drop(f"{path}.minLength", "is greater than maxLength")
            return {"type": "string"}
        key = "minLength" if "minLength" in said else "maxLength"
        return self._held(f"^{_of_length(low or 0, high)}$", f"{path}.{key}", _LENGTH_WAYS)

    def listed(self, texts: list[str], path: str) -> Json:
        """One of these texts. Raises Unheld."""
        if len(texts) <= MAX_LISTED:
            return {"type": "string", "enum": texts}
        try:
            expression = prefix_tree(texts)
        except RecursionError:
            self._faults.refuse(path, "cannot be honoured: too many values begin alike")
        return self._held(f"^{expression}$", path)

    def _pattern_or_format(self, key: str, value: Any, path: str) -> Json | None:
        """None where it is left out."""
        if key == "format":
            if type(value) is str and value in _FORMATS:
                expression = _FORMATS[value][0 if self._faults.is_strict else 1]
                return self._held(f"^({expression})$", path, _FORMAT_WAYS)
            self._faults.drop(path, f"cannot be honoured: it is none of {', '.join(_FORMATS)}")
            return None
        if type(value) is not str:
            self._faults.drop(path, "is not a text")
        elif len(value) > MAX_PATTERN_LENGTH:
            self._faults.drop(path, f"is longer than {MAX_PATTERN_LENGTH} characters")
        else:
            return self._held(value, path)
        return None

    def _held(self, pattern: str, path: str, known_ways: int | None = None) -> Json:
        try:
            text, ways = grammar_pattern(pattern)
        except ValueError as err:
            self._faults.refuse(path, f"cannot be honoured: {err}")
        ways = known_ways or ways
        if ways > MAX_WAYS:
            self._faults.refuse(
                path, f"cannot be honoured: a text may be read in {ways:,} ways at once"
            )
        if not self._room.take(n_bytes=len(text), repeated=repetitions(text)):
            self._faults.refuse(path, "is too much, with the other parts of the schema")
        self.ways[text] = ways
        return {"type": "string", "pattern": text}

    def _length(self, said: Json, key: str, path: str) -> int | None:
        if key not in said:
            return None
        value = said[key]
        if type(value) not in (int, float) or value != value // 1:
            self._faults.drop(f"{path}.{key}", "is not a whole number")
        elif not 0 <= value <= MAX_LENGTH:
            self._faults.drop(f"{path}.{key}", f"is not from 0 to {MAX_LENGTH:,}")
        else:
            return int(value)
        return None


def _of_length(low: int, high: int | None) -> str:
    """The expression for any text of so many characters.

    Not left to llama.cpp, which counts one character twice that is spelled as two escapes.
    """
    return _exactly(low) + ("[^]*" if high is None else _at_most(high - low))


def _exactly(n: int) -> str:
    if n <= _MAX_WRITTEN_OUT:
        return f"[^]{{{n}}}" if n else ""
    size = math.isqrt(n)
    return f"([^]{{{size}}}){{{n // size}}}{_exactly(n % size)}"


def _at_most(n: int) -> str:
    """In blocks, so that what is written out is as long as the root of the count.

    >>> _at_most(100)
    '(([^]{10}){0,9}[^]{0,9}|([^]{10}){10}[^]{0,0})'
    """
    if n <= _MAX_WRITTEN_OUT:
        return f"[^]{{0,{n}}}"
    size = math.isqrt(n)
    block, n_blocks = f"([^]{{{size}}})", n // size
    fewer = f"{block}{{0,{n_blocks - 1}}}[^]{{0,{size - 1}}}"
    return f"({fewer}|{block}{{{n_blocks}}}[^]{{0,{n % size}}})"


def prefix_tree(texts: list[str]) -> str:
    """An expression for these texts, with each beginning that some share written once.

    >>> prefix_tree(["car", "cat", "dog"])
    '(ca(r|t)|dog)'
    """
    begin = os.path.commonprefix(texts)
    rests = sorted({text[len(begin) :] for text in texts})
    groups = [list(group) for _, group in itertools.groupby(rests, key=lambda rest: rest[:1])]
    if len(groups) == 1:
        return literal(begin)
    return f"{literal(begin)}({'|'.join(map(prefix_tree, groups))})"
