r"""Rewrites a regular expression of a JSON schema into one that llama.cpp handles correctly.

llama.cpp copies a pattern into its grammar almost unchanged: a `.` would match the quote that ends
a JSON string, and `\d` is not supported. So each character is rewritten to a class of characters
that JSON text allows, and escapes for others. Besides these, only groups, `|` and counts remain.
Anything else raises ValueError. The dialect is ECMA-262's with its `u` flag.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Ranges = list[tuple[int, int]]  # code points, in order, with gaps between them

MAX_DEPTH = 32  # nested groups
MAX_COUNT = 1000

_LAST = 0x10FFFF
_IN_TEXT = [(0, 0xD7FF), (0xE000, _LAST)]  # without surrogates
_IN_JSON = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, _LAST)]  # written unchanged
_BEHIND_BACKSLASHES = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]
_ESCAPED = {0x22: '"', 0x5C: r"\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
_DIGITS = {digit: int(digit, 16) for digit in "0123456789ABCDEFabcdef"}
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACES = [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
           (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]  # fmt: skip
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
_SETS = {"d": [(0x30, 0x39)], "w": _WORD, "s": _SPACES}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_COUNT = re.compile(r"(?:([*+?])|\{([0-9]{1,9})(,?)([0-9]{0,9})\})\??")  # lazy ones match the same
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_GROUP = re.compile(r"\((?:\?:|\?<[A-Za-z_]\w*>|(?!\?))", re.ASCII)


def grammar_pattern(pattern: str) -> tuple[str, int]:
    """(the pattern for llama.cpp, most ways in which the beginning of a text can be read).

    Raises ValueError, with the reason, if no grammar can enforce the pattern.
    """
    text, ways = _Reader(pattern, _in_json).read()
    return f"^{text}$", ways


def raw_pattern(pattern: str) -> tuple[str, int]:
    """The same for a text that is not JSON: the pattern is GBNF."""
    return _Reader(pattern, _plain).read()


def literal(text: str) -> str:
    r"""A regular expression that matches exactly this text.

    >>> literal("a.b")
    'a\\.b'
    """
    return re.sub(r"[\\^$.*+?()\[\]{}|]", r"\\\g<0>", text)


@dataclass
class _Part:
    """A part of an expression, and the places where a matching text may begin and end."""

    text: str
    size: int  # number of characters after expanding counts
    may_be_empty: bool
    first: list[int]  # places: indices of characters of the expression
    last: list[int]


class _Reader:
    """Reads one pattern from left to right.

    If the next character of a text may match two places, the text can be read in two ways, and
    sampling compares each way with the whole vocabulary. To count the ways, places are collected as
    in Glushkov's construction, with each count as a loop.
    """

    def __init__(self, pattern: str, spell: Callable[[Ranges], str]) -> None:
        """`spell` writes a class of characters for the grammar."""
        self._spell = spell
        self._text, self._at, self._depth = pattern, 0, 0
        self._characters: list[Ranges] = []
        self._follow: list[list[int]] = []  # for each place, the places that may come next
        self._is_ambiguous = False

    def read(self) -> tuple[str, int]:
        whole = self._alternatives(self._search)
        if self._at < len(self._text):
            raise ValueError(f"it has a {self._text[self._at]} too many, or in the middle")
        places = [whole.first, *self._follow]
        self._is_ambiguous |= any(map(self._overlap, places))
        ways = whole.size if self._is_ambiguous else max(map(len, places))
        return whole.text, max(ways, 1)

    def _overlap(self, place: list[int]) -> bool:
        ranges = sorted(each for character in place for each in self._characters[character])
        return any(a[1] >= b[0] for a, b in itertools.pairwise(ranges))

    def _skip(self, text: str) -> bool:
        """Skips the text if it comes next. Returns whether it did."""
        is_next = self._text.startswith(text, self._at)
        self._at += len(text) * is_next
        return is_next

    # ---- structure -------------------------------------------------------------------------

    def _alternatives(self, read: Callable[[], _Part]) -> _Part:
        parts = [read()]
        while self._skip("|"):
            parts.append(read())
        return _Part(
            "|".join(part.text for part in parts),
            sum(part.size for part in parts),
            any(part.may_be_empty for part in parts),
            [place for part in parts for place in part.first],
            [place for part in parts for place in part.last],
        )

    def _search(self) -> _Part:
        """An alternative at the top level. Without an anchor, any text may come before or after."""
        before = [] if self._skip("^") else [self._anything()]
        inner = self._sequence(ends="|)$")
        behind = [] if self._skip("$") else [self._anything()]
        return self._joined([*before, inner, *behind])

    def _anything(self) -> _Part:
        part = self._character([(0, _LAST)])
        self._follow[part.last[0]] += part.first
        return _Part(f"{part.text}*", 1, True, part.first, part.last)

    def _sequence(self, ends: str = "|)") -> _Part:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in ends:
            parts.append(self._repeated(self._atom()))
        return self._joined(parts)

    def _joined(self, parts: list[_Part]) -> _Part:
        """The parts, one after the other."""
        whole = _Part("".join(part.text for part in parts), 0, True, [], [])
        for part in parts:
            for place in whole.last:
                self._follow[place] += part.first
            if whole.may_be_empty:
                whole.first = whole.first + part.first
            whole.last = part.last + whole.last if part.may_be_empty else part.last
            whole.may_be_empty &= part.may_be_empty
            whole.size += part.size
        return whole

    def _repeated(self, part: _Part) -> _Part:
        """The part, with the count after it if there is one."""
        found = _COUNT.match(self._text, self._at)
        if found is None:
            return part
        self._at = found.end()
        sign, low, comma, high = found.groups()
        if sign:
            least, most = _SIGNS[sign]
        else:
            least, most = int(low), int(high or low) if high or not comma else None
        if max(least, most or 0) > MAX_COUNT or (most is not None and least > most):
            raise ValueError(f"its counts have to be from 0 to {MAX_COUNT:,}, the smaller first")
        if (least, most) == (1, 1):
            return part
        if most == 0:
            return _Part("", 0, True, [], [])
        if most is None and part.may_be_empty:
            raise ValueError("it repeats without end what may be empty")
        if most != 1:
            self._is_ambiguous |= part.may_be_empty
            for place in part.last:
                self._follow[place] += part.first
        suffix = sign or f"{{{least},{'' if most is None else most}}}"
        is_empty = part.may_be_empty or least == 0
        size = part.size * (most or max(least, 1))
        return _Part(part.text + suffix, size, is_empty, part.first, part.last)

    def _atom(self) -> _Part:
        character = self._text[self._at]
        if character == "(":
            return self._group()
        self._at += 1
        if character == "[":
            return self._character(self._class())
        if character == ".":
            return self._character(_inverted(_LINE_ENDS))
        if character == "\\":
            return self._character(self._escape())
        if character in "^$":
            raise ValueError(f"it has a {character} in the middle")
        if character in "*+?{}]":
            raise ValueError(f"it has a {character} that repeats or ends nothing")
        return self._character([(ord(character), ord(character))])

    def _group(self) -> _Part:
        opening = _GROUP.match(self._text, self._at)
        if opening is None:
            raise ValueError("it has a group that begins with (?")
        self._at = opening.end()
        self._depth += 1
        if self._depth >= MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} groups")
        part = self._alternatives(self._sequence)
        self._depth -= 1
        if not self._skip(")"):
            raise ValueError("it has a ( that is not closed")
        part.text = f"({part.text})"
        return part

    # ---- characters ------------------------------------------------------------------------

    def _character(self, ranges: Ranges) -> _Part:
        self._characters.append(_union(ranges))
        self._follow.append([])
        number = len(self._follow) - 1
        return _Part(self._spell(self._characters[-1]), 1, False, [number], [number])

    def _class(self) -> Ranges:
        is_inverted = self._skip("^")
        found: Ranges = []
        while not self._skip("]"):
            low = self._class_item()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                ends = [*low, *self._class_item()]
                if len(ends) != 2 or any(a != b for a, b in ends) or ends != sorted(ends):
                    raise ValueError("it has a class with a range whose end comes before its start")
                low = [(ends[0][0], ends[1][0])]
            found += low
        return _inverted(found) if is_inverted else found

    def _class_item(self) -> Ranges:
        if self._at >= len(self._text):
            raise ValueError("it has a [ that is not closed")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return [(ord(character), ord(character))]
        return [(8, 8)] if self._skip("b") else self._escape()

    def _escape(self) -> Ranges:
        """The characters that an escape stands for. The backslash is already read."""
        found = _HEX.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
            code = int(found[1] or found[2] or found[3], 16)
            return [(code, code)]
        letter = self._text[self._at : self._at + 1]
        self._at += 1
        if letter.lower() in _SETS:
            ranges = _SETS[letter.lower()]
            return ranges if letter.islower() else _inverted(ranges)
        if not letter or (letter.isalnum() and letter not in _CONTROLS):
            raise ValueError(f"it has a \\{letter} that no grammar can express")
        code = _CONTROLS.get(letter, ord(letter))
        return [(code, code)]


def _union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: Ranges = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _inverted(ranges: Iterable[tuple[int, int]]) -> Ranges:
    edges = [(-1, -1), *_union(ranges), (_LAST + 1, _LAST + 1)]
    pairs = ((a[1] + 1, b[0] - 1) for a, b in itertools.pairwise(edges))
    return [(low, high) for low, high in pairs if low <= high]


def _in_json(ranges: Ranges) -> str:
    """A class of characters as JSON text may write them: unchanged, or as escapes."""
    plain, escaped = _class_of(ranges, _IN_JSON), _shared(ranges, _BEHIND_BACKSLASHES)
    if plain and not escaped:
        return plain
    spelled = [plain] if plain else []
    codes = {code for low, high in escaped for code in range(low, high + 1)}
    letters = "".join(letter for code, letter in _ESCAPED.items() if code in codes)
    spelled += [rf"[\\][{letters}]"] if letters else []
    numbered = codes - _ESCAPED.keys()  # control characters that JSON writes as \uXXXX
    for row in (0, 1):
        last = "".join(digit for digit, n in _DIGITS.items() if 16 * row + n in numbered)
        spelled += [rf"[\\][u][0][0][{row}][{last}]"] if last else []
    if not spelled:
        raise ValueError("it has a class of which JSON text has no character")
    return f"({'|'.join(spelled)})"


def _plain(ranges: Ranges) -> str:
    if not (found := _class_of(ranges, _IN_TEXT)):
        raise ValueError("it has an empty class")
    return found


def _shared(a: Ranges, b: Ranges) -> Ranges:
    """The characters that are in both lists of ranges."""
    return [(max(i, k), min(j, n)) for i, j in a for k, n in b if i <= n and k <= j]


def _class_of(ranges: Ranges, allowed: Ranges) -> str:
    """The GBNF class of those characters in `ranges` that are allowed; "" if it is empty."""
    found = _shared(ranges, allowed)
    spelled = ("-".join(map(_spelled, dict.fromkeys(ends))) for ends in found)
    return f"[{''.join(spelled)}]" if found else ""


def _spelled(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\U{code:08X}"
