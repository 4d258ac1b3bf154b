r"""A regular expression of a JSON schema -> one that llama.cpp makes the right grammar of.

llama.cpp copies a pattern into its grammar nearly as it stands: a `.` would match the quote that
ends a JSON string, a `\d` is not known. So each character is written here as a class of what may
stand in JSON text, with escapes for the rest, and what remains is groups, `|` and counts. What
cannot be said so is refused with a ValueError. The dialect is ECMA-262's with its `u` flag.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Ranges = list[tuple[int, int]]  # code points, in order, apart from each other

MAX_DEPTH = 32
MAX_COUNT = 1000

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_ESCAPED = {'"': '"', "\\": r"\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACES = [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
           (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]  # fmt: skip
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
_SETS = {"d": [(0x30, 0x39)], "w": _WORD, "s": _SPACES}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_COUNT = re.compile(r"\{([0-9]{1,9})(,?)([0-9]{0,9})\}")
_GROUP = re.compile(r"\((?:\?:|\?<[A-Za-z_]\w*>|(?!\?))", re.ASCII)


@dataclass
class _Part:
    """A part of an expression, and where what it matches may begin and end."""

    text: str
    size: int  # characters that it takes at most, with each count written out
    may_be_empty: bool
    first: list[int]  # numbers of its characters
    last: list[int]


def grammar_pattern(pattern: str) -> tuple[str, int]:
    """(the pattern for llama.cpp, in how many ways at most a text may be read so far).

    Raises ValueError, which says why, for one that no grammar holds.
    """
    text, ways = _Reader(pattern, _in_json).read()
    return f"^{text}$", ways


def raw_pattern(pattern: str) -> tuple[str, int]:
    """The same for a text that is not inside of JSON, in GBNF."""
    return _Reader(pattern, _plain).read()


def literal(text: str) -> str:
    r"""The expression for a text.

    >>> literal("a.b")
    'a\\.b'
    """
    return re.sub(r"[\\^$.*+?()\[\]{}|]", r"\\\g<0>", text)


class _Reader:
    """One pattern, from left to right.

    Two places where the next character may be, with a character in common, mean two ways to read
    a text, and each way is held against the whole vocabulary: so places are noted as in Glushkov's
    construction, each count as a loop.
    """

    def __init__(self, pattern: str, spell: Callable[[Ranges], str]) -> None:
        """`spell` makes the grammar's text of one character."""
        self._spell = spell
        self._text, self._at = pattern, 0
        self._characters: list[Ranges] = []
        self._follow: list[list[int]] = []  # for each character those that may come next
        self._is_ambiguous = False

    def read(self) -> tuple[str, int]:
        parts = [self._search()]
        while self._is_next("|"):
            self._at += 1
            parts.append(self._search())
        if self._at < len(self._text):
            raise ValueError(f"it has a {self._text[self._at]} too many, or in the middle")
        whole = _either(parts)
        places = [whole.first, *self._follow]
        self._is_ambiguous |= any(map(self._overlap, places))
        ways = whole.size if self._is_ambiguous else max(map(len, places))
        return whole.text, max(ways, 1)

    def _overlap(self, place: list[int]) -> bool:
        ranges = sorted(each for character in place for each in self._characters[character])
        return any(a[1] >= b[0] for a, b in itertools.pairwise(ranges))

    def _is_next(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _alternatives(self, depth_left: int) -> _Part:
        if depth_left == 0:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} groups")
        parts = [self._sequence(depth_left)]
        while self._is_next("|"):
            self._at += 1
            parts.append(self._sequence(depth_left))
        return _either(parts)

    def _search(self) -> _Part:
        """An alternative of the whole; where it has no anchor, anything may come."""
        before = [] if self._is_next("^") else [self._anything()]
        self._at += not before
        inner = self._sequence(MAX_DEPTH, ends="|)$")
        behind = [] if self._is_next("$") else [self._anything()]
        self._at += not behind
        return self._joined([*before, inner, *behind])

    def _anything(self) -> _Part:
        part = self._character([(0, _LAST)])
        self._follow[part.last[0]] += part.first
        return _Part(f"{part.text}*", 1, True, part.first, part.last)

    def _sequence(self, depth_left: int, ends: str = "|)") -> _Part:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in ends:
            parts.append(self._repeated(depth_left))
        return self._joined(parts)

    def _joined(self, parts: list[_Part]) -> _Part:
        """The parts one behind the other."""
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

    def _repeated(self, depth_left: int) -> _Part:
        part = self._atom(depth_left)
        low, high, suffix = self._count()
        if (low, high) == (1, 1):
            return part
        if high == 0:
            return _Part("", 0, True, [], [])
        if high != 1:
            if part.may_be_empty and high is None:
                raise ValueError("it repeats without end what may be empty")
            self._is_ambiguous |= part.may_be_empty
            for place in part.last:
                self._follow[place] += part.first
        size = part.size * (high or max(low, 1))
        is_empty = part.may_be_empty or low == 0
        return _Part(part.text + suffix, size, is_empty, part.first, part.last)

    def _count(self) -> tuple[int, int | None, str]:
        """(at least, at most, how the grammar says it)."""
        sign = self._text[self._at : self._at + 1]
        if sign and sign in "*+?":
            self._at += 1
            low, high, suffix = int(sign == "+"), 1 if sign == "?" else None, sign
        elif found := _COUNT.match(self._text, self._at):
            self._at = found.end()
            low = int(found[1])
            high = low if not found[2] else int(found[3]) if found[3] else None
            suffix = f"{{{low},{'' if high is None else high}}}"
        else:
            return 1, 1, ""
        if max(low, high or 0) > MAX_COUNT or (high is not None and low > high):
            raise ValueError(f"its counts have to be from 0 to {MAX_COUNT:,}, the smaller first")
        if self._is_next("?"):
            self._at += 1  # a lazy count matches the same texts
        return low, high, suffix

    def _atom(self, depth_left: int) -> _Part:
        character = self._text[self._at]
        if character == "(":
            return self._group(depth_left)
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

    def _group(self, depth_left: int) -> _Part:
        opening = _GROUP.match(self._text, self._at)
        if opening is None:
            raise ValueError("it has a group that begins with (?")
        self._at = opening.end()
        part = self._alternatives(depth_left - 1)
        if not self._is_next(")"):
            raise ValueError("it has a ( that is not closed")
        self._at += 1
        part.text = f"({part.text})"
        return part

    def _class(self) -> Ranges:
        is_inverted = self._is_next("^")
        self._at += is_inverted
        found: Ranges = []
        while not self._is_next("]"):
            low = self._class_item()
            if self._is_next("-") and not self._is_next("-]"):
                self._at += 1
                high = self._class_item()
                is_range = len(low) == len(high) == 1 and low[0][0] == low[0][1] <= high[0][0]
                if not is_range or high[0][0] != high[0][1]:
                    raise ValueError("it has a class with a range that is none")
                low = [(low[0][0], high[0][1])]
            found += low
        self._at += 1
        return _inverted(found) if is_inverted else found

    def _class_item(self) -> Ranges:
        if self._at >= len(self._text):
            raise ValueError("it has a [ that is not closed")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return [(ord(character), ord(character))]
        if self._is_next("b"):
            self._at += 1
            return [(8, 8)]
        return self._escape()

    def _escape(self) -> Ranges:
        """What comes after a backslash."""
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
        if letter in _CONTROLS:
            return [(_CONTROLS[letter], _CONTROLS[letter])]
        if not letter or letter.isalnum():
            raise ValueError(f"it has a \\{letter} that no grammar holds")
        return [(ord(letter), ord(letter))]

    def _character(self, ranges: Ranges) -> _Part:
        self._characters.append(_union(ranges))
        self._follow.append([])
        number = len(self._follow) - 1
        return _Part(self._spell(self._characters[-1]), 1, False, [number], [number])


def _either(parts: list[_Part]) -> _Part:
    return _Part(
        "|".join(part.text for part in parts),
        sum(part.size for part in parts),
        any(part.may_be_empty for part in parts),
        [place for part in parts for place in part.first],
        [place for part in parts for place in part.last],
    )


def _union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: Ranges = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _inverted(ranges: Ranges) -> Ranges:
    edges = [(-1, -1), *_union(ranges), (_LAST + 1, _LAST + 1)]
    pairs = ((a[1] + 1, b[0] - 1) for a, b in itertools.pairwise(edges))
    return [(low, high) for low, high in pairs if low <= high]


def _in_json(ranges: Ranges) -> str:
    """One character as JSON text may spell it: as it is, or behind a backslash."""
    never = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), _SURROGATES]
    plain = _inverted(_union([*_inverted(ranges), *never]))
    escaped = [
        letter
        for character, letter in _ESCAPED.items()
        if any(low <= ord(character) <= high for low, high in ranges)
    ]
    spelled = [f"[{''.join(map(_range, plain))}]"] if plain else []
    spelled += [rf"[\\][{''.join(escaped)}]"] if escaped else []
    spelled += _control_escapes(ranges)
    if not spelled:
        raise ValueError("it has a class of which JSON text has no character")
    return spelled[0] if plain and len(spelled) == 1 else f"({'|'.join(spelled)})"


def _plain(ranges: Ranges) -> str:
    found = _inverted(_union([*_inverted(ranges), _SURROGATES]))
    if not found:
        raise ValueError("it has a class without a character")
    return f"[{''.join(map(_range, found))}]"


def _control_escapes(ranges: Ranges) -> list[str]:
    """The control characters that JSON text can only spell by their numbers."""
    codes = [code for low, high in ranges for code in range(low, min(high, 0x1F) + 1)]
    digits = [f"{code:02x}" for code in codes if chr(code) not in _ESCAPED]
    rows = {row: "".join(each[1] for each in digits if each[0] == row) for row in "01"}
    return [
        rf"[\\][u][0][0][{row}][{''.join(sorted({*last, *last.upper()}))}]"
        for row, last in rows.items()
        if last
    ]


def _range(ends: tuple[int, int]) -> str:
    low, high = map(_spelled, ends)
    return low if low == high else f"{low}-{high}"


def _spelled(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\U{code:08X}"
