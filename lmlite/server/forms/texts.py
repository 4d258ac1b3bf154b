"""Strings of a JSON schema: rewritten to patterns from which llama.cpp makes a correct grammar."""

import itertools
import math
import os
from typing import Any

from lmlite.server.forms.bounds import (
    MAX_LENGTH,
    MAX_PATTERN_LENGTH,
    MAX_WAYS,
    Reading,
    repetitions,
)
from lmlite.server.forms.parts import Json
from lmlite.server.forms.patterns import grammar_pattern, literal

MAX_LISTED = 16  # texts in an enum; a longer list becomes a pattern that shares beginnings
_MAX_WRITTEN_OUT = 64  # characters; longer lengths are counted in blocks
_FORMAT_WAYS, _LENGTH_WAYS = 16, 4  # known numbers; the computed ones would be too high

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
_N = r"\d{1,6}"  # limited, so that a model cannot write digits without end
_DURATION_TIME = f"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"
# name -> (a pattern that matches only valid texts, a pattern that matches all valid texts)
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


def text_node(schema: Json, reading: Reading, path: str) -> Json:
    """Rewrites a schema of type string. Raises Unheld."""
    for key in (key for key in ("pattern", "format") if key in schema):
        expression, n_ways = _expression(key, schema[key], reading, f"{path}.{key}")
        if expression:
            node = _matching(expression, reading, f"{path}.{key}", n_ways)
            for other in ("format", "minLength", "maxLength"):
                if other in schema and other != key:
                    reading.drop(f"{path}.{other}", f"cannot be honoured beside {key}")
            return node
    low, high = reading.counts(schema, "Length", MAX_LENGTH, path)
    if not low and high is None:
        return {"type": "string"}
    key = "minLength" if "minLength" in schema else "maxLength"
    return _matching(f"^{_any_text(low, high)}$", reading, f"{path}.{key}", _LENGTH_WAYS)


def listed_texts(texts: list[str], reading: Reading, path: str) -> Json:
    """A schema that allows exactly these texts. Raises Unheld."""
    if len(texts) <= MAX_LISTED:
        return {"type": "string", "enum": texts}
    try:
        expression = prefix_tree(texts)
    except RecursionError:
        reading.refuse(path, "cannot be honoured: too many values begin alike")
    return _matching(f"^{expression}$", reading, path)


def _expression(key: str, value: Any, reading: Reading, path: str) -> tuple[str, int]:
    """(a pattern, its number of ways or 0 if unknown). The pattern is "" if it is left out."""
    if key == "format":
        if type(value) is str and value in _FORMATS:
            return f"^({_FORMATS[value][0 if reading.is_strict else 1]})$", _FORMAT_WAYS
        reading.drop(path, f"cannot be honoured: it is not one of {', '.join(_FORMATS)}")
    elif type(value) is not str:
        reading.drop(path, "is not a text")
    elif len(value) > MAX_PATTERN_LENGTH:
        reading.drop(path, f"is longer than {MAX_PATTERN_LENGTH} characters")
    else:
        return value, 0
    return "", 0


def _matching(expression: str, reading: Reading, path: str, n_ways: int = 0) -> Json:
    try:
        text, counted = grammar_pattern(expression)
    except ValueError as err:
        reading.refuse(path, f"cannot be honoured: {err}")
    n_ways = n_ways or counted
    if n_ways > MAX_WAYS:
        reading.refuse(path, f"cannot be honoured: a text may be read in {n_ways:,} ways at once")
    reading.take(path, n_bytes=len(text), repeated=repetitions(text))
    reading.ways[text] = n_ways
    return {"type": "string", "pattern": text}


def _any_text(low: int, high: int | None) -> str:
    """The pattern of any text of `low` to `high` characters.

    llama.cpp's own rule counts a character that is written as two escapes twice.
    """
    return _characters(low) + ("[^]*" if high is None else _characters(high - low, "0,"))


def _characters(n: int, low: str = "") -> str:
    """The pattern of n characters or, if `low` is "0,", of up to n characters.

    It counts in blocks, so that llama.cpp expands it to about sqrt(n) elements, not n.

    >>> _characters(100, "0,")
    '([^]{10}){0,9}[^]{0,10}'
    """
    if n <= _MAX_WRITTEN_OUT:
        return f"[^]{{{low}{n}}}"
    size = math.isqrt(n)
    n_blocks = (n - size + 1) // size  # leaves enough characters to reach any length
    return f"([^]{{{size}}}){{{low}{n_blocks}}}[^]{{{low}{n - n_blocks * size}}}"


def prefix_tree(texts: list[str]) -> str:
    """A pattern of these texts in which each shared beginning is written only once.

    >>> prefix_tree(["car", "cat", "dog"])
    '(ca(r|t)|dog)'
    """
    begin = os.path.commonprefix(texts)
    rests = sorted({text[len(begin) :] for text in texts})
    groups = [list(group) for _, group in itertools.groupby(rests, key=lambda rest: rest[:1])]
    if len(groups) == 1:
        return literal(begin)
    return f"{literal(begin)}({'|'.join(map(prefix_tree, groups))})"
