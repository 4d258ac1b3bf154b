"""Prevents a client's text from becoming control tokens. Pure: strings in, strings out.

A template writes control tokens as text, so the tokenizer must parse control tokens in the prompt.
Then a user who types `<|im_end|>` would end the turn. To prevent this, a marker is inserted into
each control token that a client's text spells, and at each end of a text that other text could
complete to a control token. A marker is a character that occurs nowhere else. The template renders
the marked texts. Then the prompt is cut at each marker that is inside a control token.

A template may trim a text, cut it, remove words, change its case, or read it as JSON. Each place
that could become an end of a text in this way gets a marker. Unneeded markers do no harm.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, groupby, pairwise
from operator import itemgetter
from typing import Any

Json = dict[str, Any]

# Fixed values of the API, by field. Templates compare them, so they get no markers.
_API_WORDS: dict[str, Sequence[str]] = {
    "role": ("system", "user", "assistant", "tool"),
    "type": ("function", "string", "number", "integer", "boolean", "object", "array", "null"),
    "tool_choice": ("auto", "none", "required"),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}
# Names in JSON schemas. They get no markers, so that templates still find these fields.
_SCHEMA_NAMES = frozenset(
    ("type", "description", "properties", "required", "items", "enum", "additionalProperties",
     "anyOf", "oneOf", "allOf", "default", "title", "format", "nullable", "examples", "$ref",
     "$defs", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern")
)  # fmt: skip
_NO_NAMES: frozenset[str] = frozenset()

_QUOTED = r"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""
_CUT = re.compile(rf"(?:split|partition|replace|strip)\(\s*(?:{_QUOTED}|([A-Za-z_]\w*))")
_ENDS_WRITTEN = re.compile(r"""\s*(?:['"]|\{[{%#])""")
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)+)"', re.DOTALL)
_JSON_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)|(.)", re.DOTALL)
# llama.cpp's Jinja changes the case of ASCII letters only.
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


class ControlTokens:
    """Inserts markers for the control tokens of one vocabulary and one chat template."""

    def __init__(self, texts: Sequence[str], source: str = "") -> None:
        """`texts`: the spellings of the control tokens. `source`: the template's source."""
        # A token of one character cannot be cut. No known model has a printable one.
        exact = [text for text in texts if len(text) > 1]
        lower = {_lower(text) for text in exact}
        self._exact, self._lower = _by_first_letter(exact), _by_first_letter(lower)
        self._beginnings = {text[:n] for text in lower for n in range(1, len(text))}
        self._endings = {text[n:] for text in lower for n in range(1, len(text))}
        self._longest = max(map(len, lower), default=0)
        self._completed = _completed_by(source, lower, self._beginnings)
        cuts = sorted(_cut_words(source), key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, cuts))) if cuts else None

    def marked_request(self, request: Json, marker: str) -> Json:
        """The request with markers in every text and name that the client chose."""
        marked = {key: self._marked(value, marker, key) for key, value in request.items()}
        if "schemas" in request:
            marked["schemas"] = request["schemas"]  # for the grammar only, not in the prompt
        if "kwargs" in request:  # variables; a template cannot write the name of a variable
            marked["kwargs"] = {
                name: self._marked(value, marker, name, _NO_NAMES)
                for name, value in request["kwargs"].items()
            }
        return marked

    def marked(self, text: str, marker: str) -> str:
        """The text with markers in its control tokens and at ends that could become part of one.

        >>> ControlTokens(["<|end|>"]).marked("a <|end|> b <|en ", "~")
        'a <~|end|> b <|en~ '
        """
        places = self._places(text)
        if text.lstrip()[:1] in ('"', "{", "["):
            places |= self._places_in_strings(text)  # llama.cpp may parse such a content as JSON
        return _inserted(text, places, marker)

    def marked_json(self, text: str, marker: str) -> str:
        """JSON with markers in its strings and names only, so that it stays JSON.

        >>> ControlTokens(["]~b]"]).marked_json('["]"]', "*")
        '["*]*"]'
        """
        return _inserted(text, self._places_in_strings(text), marker)

    def parts(self, prompt: str, marker: str) -> list[str]:
        """The prompt without markers, cut at those markers that are inside a control token.

        >>> ControlTokens(["<|end|>"]).parts("a~ <~|end|>", "~")
        ['a <', '|end|>']
        """
        pieces = prompt.split(marker)
        if len(pieces) == 1:
            return pieces
        whole, ends = "".join(pieces), list(accumulate(map(len, pieces[:-1])))
        needed = {0, len(whole)}
        for begin, end in _found(whole, self._exact):
            needed.update(ends[bisect_right(ends, begin) : bisect_right(ends, end - 1)])
        return [whole[a:b] for a, b in pairwise(sorted(needed))]

    def _marked(
        self, value: Any, marker: str, key: str, names: frozenset[str] | None = None
    ) -> Any:
        """A JSON value with markers. `key` is the value's name in its object.

        `names`: names in that object that the client did not choose; None: all names.
        """
        if isinstance(value, list):
            return [self._marked(item, marker, key, names) for item in value]
        if isinstance(value, dict):
            ours = _names_below(key, names)
            return {
                name if ours is None or name in ours else self.marked(name, marker):
                    self._marked(item, marker, name, ours)
                for name, item in value.items()
            }  # fmt: skip
        if not isinstance(value, str) or value in _API_WORDS.get(key, ()):
            return value
        if key == "arguments" and names is None:
            with suppress(ValueError, RecursionError):
                json.loads(value)
                return self.marked_json(value, marker)
        return self.marked(value, marker)

    def _places_in_strings(self, text: str) -> set[int]:
        places: set[int] = set()
        for string in _JSON_STRING.finditer(text):
            if "\\" in string[1]:
                letters, begins = _json_letters(string[1])
                found = {begins[place] for place in self._places(letters)}
            else:
                found = self._places(string[1])
            places |= {string.start(1) + place for place in found}
        return places

    def _places(self, text: str) -> set[int]:
        """Places for markers: before the second character of each token, and at open ends."""
        letters = _lower(text)
        begins: Sequence[int] = range(len(text) + 1)  # the place of each letter in the text
        places: set[int] = set()
        while True:
            found = {begin + 1 for begin, _ in _found(letters, self._lower)}
            cuts = [cut.span() for cut in self._cuts.finditer(letters)] if self._cuts else []
            borders = [0, *chain.from_iterable(cuts), len(letters)]
            kept = list(zip(borders[::2], borders[1::2], strict=True))
            for begin, end in kept:
                found |= set(self._open_ends(letters, begin, end))
            places |= {begins[place] for place in found}
            if not cuts:
                return places
            # After the template has removed those words, the rest may spell a token or a word.
            letters = "".join(letters[begin:end] for begin, end in kept)
            begins = [*(begins[i] for begin, end in kept for i in range(begin, end)), begins[-1]]

    def _open_ends(self, text: str, begin: int, end: int) -> Iterator[int]:
        """The ends of a piece, trimmed or not, where adjacent text could complete a token."""
        piece = text[begin:end]
        bare_begin = begin + len(piece) - len(piece.lstrip())
        bare_end = max(bare_begin, begin + len(piece.rstrip()))
        for first, last in {(begin, end), (bare_begin, bare_end)}:
            if first == last:
                continue  # stays empty: a template may test whether a text is empty
            lengths = range(1, min(self._longest, last - first + 1))  # possible parts of tokens
            if any(text[first : first + n] in self._endings for n in lengths) or (
                len(lengths) == last - first
                and any(text[first:last] in rest for rest in self._completed)
            ):
                yield first
            if any(text[last - n : last] in self._beginnings for n in lengths):
                yield last


def _names_below(key: str, names: frozenset[str] | None) -> frozenset[str] | None:
    """The names that the client did not choose in the object under `key`; see `_marked`."""
    if names is None and key not in ("parameters", "json_schema"):
        return None
    return _NO_NAMES if names is _SCHEMA_NAMES and key in ("properties", "$defs") else _SCHEMA_NAMES


def _inserted(text: str, places: set[int], marker: str) -> str:
    borders = [0, *sorted(places), len(text)]
    return marker.join(text[begin:end] for begin, end in pairwise(borders))


def _lower(text: str) -> str:
    return text.translate(_LOWER)


def _by_first_letter(tokens: Iterable[str]) -> dict[str, list[str]]:
    return {first: list(group) for first, group in groupby(sorted(tokens), itemgetter(0))}


def _found(text: str, tokens: dict[str, list[str]]) -> Iterator[tuple[int, int]]:
    """(begin, end) of each occurrence of each token, including overlapping ones."""
    # Fast path: tokens begin with few different letters, and most texts contain none of these.
    for token in (each for first in tokens if first in text for each in tokens[first]):
        begin = text.find(token)
        while begin >= 0:
            yield begin, begin + len(token)
            begin = text.find(token, begin + 1)


def _json_letters(string: str) -> tuple[str, list[int]]:
    """The decoded letters of a JSON string, and the place of each letter and of the end."""
    found = list(_JSON_LETTER.finditer(string))
    letters = "".join(chr(int(m[1], 16)) if m[1] else m[2] or m[3] for m in found)
    return letters, [*(m.start() for m in found), len(string)]


def _cut_words(source: str) -> set[str]:
    """The words at which a template splits texts, or which it removes from them."""
    words: set[str] = set()
    for single, double, name in _CUT.findall(source):
        words.add(single or double)
        words.update(
            a or b for a, b in re.findall(rf"set\s+{name}\s*=\s*{_QUOTED}", source) if name
        )
    return {_lower(word).replace("\\n", "\n") for word in words} - {""}


def _completed_by(source: str, tokens: Iterable[str], beginnings: set[str]) -> set[str]:
    """The ends of tokens for which the template itself writes the beginning.

    For example, a template that writes '<' + name + '>' turns the name `think` into <think>.
    """
    longest = max(map(len, beginnings), default=0)
    written: set[str] = set()
    for end in _ENDS_WRITTEN.finditer(_lower(source)):
        before = end.string[max(0, end.start() - longest) : end.start()]
        written |= {before[n:] for n in range(len(before))} & beginnings
    rests = {
        token[len(begun) :] for begun in written for token in tokens if token.startswith(begun)
    }
    return rests - {""}
