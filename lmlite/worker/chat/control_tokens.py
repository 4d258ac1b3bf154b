"""Keeps a client's text from becoming control tokens. Pure: strings in, strings out.

A template writes control tokens as text, so its prompt is tokenized with control tokens parsed.
A user who types `<|im_end|>` would then end the turn. So a marker, a character that occurs nowhere
else, goes into each control token that a client's text spells, and to each end of a text where
other text could complete one. The template renders the marked texts, and the prompt is cut at
those markers that keep a control token apart.

A template may trim a text, cut it, take words out of it, change its case, or read it as JSON.
Whatever could be an end after that gets a marker. Markers that are not needed do no harm.
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

# Words that templates compare, by the field that has them: no client chooses them freely.
_API_WORDS: dict[str, Sequence[str]] = {
    "role": ("system", "user", "assistant", "tool"),
    "type": ("function", "string", "number", "integer", "boolean", "object", "array", "null"),
    "tool_choice": ("auto", "none", "required"),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}
# Names in JSON schemas: a marker would hide such a field from the template.
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
# llama.cpp's Jinja changes the case of these letters only.
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


class ControlTokens:
    """The control tokens of a vocabulary, and what a template could make of parts of them."""

    def __init__(self, texts: Sequence[str], source: str = "") -> None:
        """`texts` are the spellings of the tokens, `source` is that of the template."""
        # A token of one character cannot be cut; no known model has one that is printable.
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
            marked["schemas"] = request["schemas"]  # no model reads them
        if "kwargs" in request:  # variables of the template, which cannot write their names
            marked["kwargs"] = {
                name: self._marked(value, marker, name, _NO_NAMES)
                for name, value in request["kwargs"].items()
            }
        return marked

    def marked(self, text: str, marker: str) -> str:
        """The text with markers in control tokens, and at ends that could be completed to one.

        >>> ControlTokens(["<|end|>"]).marked("a <|end|> b <|en ", "~")
        'a <~|end|> b <|en~ '
        """
        places = self._places(text)
        if text.lstrip()[:1] in ('"', "{", "["):
            places |= self._places_in_strings(text)  # llama.cpp reads some contents as JSON
        return _inserted(text, places, marker)

    def marked_json(self, text: str, marker: str) -> str:
        """JSON with markers in its strings and names only, so that it stays JSON.

        >>> ControlTokens(["]~b]"]).marked_json('["]"]', "*")
        '["*]*"]'
        """
        return _inserted(text, self._places_in_strings(text), marker)

    def parts(self, prompt: str, marker: str) -> list[str]:
        """The prompt, cut at those markers that keep a control token from being spelled.

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
        """A JSON value with markers. `key` is its name in an object.

        `names` are those that the client did not choose in that object; None: all of them.
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
        """Where markers go: in front of the second character of a token, and at ends."""
        letters = _lower(text)
        begins: Sequence[int] = range(len(text) + 1)  # of these letters, in the text
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
            # What is left without those words may spell a token, or such a word again.
            letters = "".join(letters[begin:end] for begin, end in kept)
            begins = [*(begins[i] for begin, end in kept for i in range(begin, end)), begins[-1]]

    def _open_ends(self, text: str, begin: int, end: int) -> Iterator[int]:
        """The ends of this piece, trimmed or not, at which more text could complete a token."""
        piece = text[begin:end]
        bare_begin = begin + len(piece) - len(piece.lstrip())
        bare_end = max(bare_begin, begin + len(piece.rstrip()))
        for first, last in {(begin, end), (bare_begin, bare_end)}:
            if first == last:
                continue  # a template may ask whether there is a text at all
            lengths = range(1, min(self._longest, last - first + 1))  # of parts of tokens
            if any(text[first : first + n] in self._endings for n in lengths) or (
                len(lengths) == last - first
                and any(text[first:last] in rest for rest in self._completed)
            ):
                yield first
            if any(text[last - n : last] in self._beginnings for n in lengths):
                yield last


def _names_below(key: str, names: frozenset[str] | None) -> frozenset[str] | None:
    """The names that the client did not choose in the object that is called `key`."""
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
    """(begin, end) of each spelling of each token, also of those that overlap."""
    # Most texts have none of the few letters that tokens begin with.
    for token in (each for first in tokens if first in text for each in tokens[first]):
        begin = text.find(token)
        while begin >= 0:
            yield begin, begin + len(token)
            begin = text.find(token, begin + 1)


def _json_letters(string: str) -> tuple[str, list[int]]:
    """What a JSON string says, and where in it each letter begins (and the string ends)."""
    found = list(_JSON_LETTER.finditer(string))
    letters = "".join(chr(int(m[1], 16)) if m[1] else m[2] or m[3] for m in found)
    return letters, [*(m.start() for m in found), len(string)]


def _cut_words(source: str) -> set[str]:
    """The words at which a template cuts texts, or which it takes out of them."""
    words: set[str] = set()
    for single, double, name in _CUT.findall(source):
        words.add(single or double)
        words.update(
            a or b for a, b in re.findall(rf"set\s+{name}\s*=\s*{_QUOTED}", source) if name
        )
    return {_lower(word).replace("\\n", "\n") for word in words} - {""}


def _completed_by(source: str, tokens: Iterable[str], beginnings: set[str]) -> set[str]:
    """The rests of tokens whose beginnings the template writes in front of something else.

    A template that writes '<' + name + '>' makes the token <think> of the name think.
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
