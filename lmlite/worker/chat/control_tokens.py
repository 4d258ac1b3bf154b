"""Breaks control tokens that a text spells, or could spell once a template is done with it.

Pure: strings in, strings out. A mark is a character that occurs nowhere else. It goes into
each control token, and to each end of a text at which more text could complete one. A
template may trim a text, cut it, take words out of it, change its case, or read it as JSON:
what could be an end after that is one here. Too many marks do no harm, as those that turn
out not to be needed are dropped from the prompt.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

_QUOTED = r"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""
_CUT_AT_WORD = re.compile(rf"(?:split|partition|replace|strip)\(\s*{_QUOTED}")
_CUT_AT_NAME = re.compile(r"(?:split|partition|replace|strip)\(\s*([A-Za-z_]\w*)")
_ENDS_WRITTEN = re.compile(r"""\s*(?:['"]|\{[{%#])""")
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)+)"', re.DOTALL)
_JSON_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)|(.)", re.DOTALL)


class Breaker:
    """Knows a vocabulary's control tokens, and the template that the texts are for."""

    def __init__(self, control_texts: Sequence[str], source: str = "") -> None:
        # A token of one character cannot be broken; no known model has one that is printable.
        exact = [text for text in control_texts if len(text) > 1]
        controls = sorted({_lower(text) for text in exact})
        self._exact, self._controls = _by_first_letter(exact), _by_first_letter(controls)
        self._beginnings = {text[:n] for text in controls for n in range(1, len(text))}
        self._endings = {text[n:] for text in controls for n in range(1, len(text))}
        self._longest = max(map(len, controls), default=0)
        self._opened = tuple(_opened_by(source, controls, self._beginnings))
        cuts = sorted(_cut_words(source), key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, cuts))) if cuts else None

    def broken(self, text: str, mark: str) -> str:
        """The text with a mark inside each control token, and at an end that could complete one.

        >>> Breaker(["<|end|>"]).broken("a <|end|> b <|en ", "~")
        'a <~|end|> b <|en~ '
        """
        places = self._places(text)
        if text.lstrip()[:1] in ('"', "{", "["):
            places |= self._places_in_strings(text)  # llama.cpp reads some contents as JSON
        return _marked(text, places, mark)

    def broken_json(self, text: str, mark: str) -> str:
        """JSON with the marks that its strings and names need, and still JSON.

        >>> Breaker(["]~b]"]).broken_json('["]"]', "*")
        '["*]*"]'
        """
        return _marked(text, self._places_in_strings(text), mark)

    def parts(self, prompt: str, mark: str) -> list[str]:
        """The prompt, cut at those marks only that keep a control token from being spelled.

        >>> Breaker(["<|end|>"]).parts("a~ <~|end|>", "~")
        ['a <', '|end|>']
        """
        pieces = prompt.split(mark)
        if len(pieces) == 1:
            return pieces
        whole = "".join(pieces)
        ends: list[int] = []
        for piece in pieces[:-1]:
            ends.append(len(piece) + (ends[-1] if ends else 0))
        needed = {0, len(whole)}
        for begin, end in _found(whole, self._exact):
            inside = slice(bisect_right(ends, begin), bisect_right(ends, end - 1))
            needed.update(ends[inside])
        borders = sorted(needed)
        return [whole[a:b] for a, b in pairwise(borders)]

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
        """Where marks go: the second character of a token, and ends."""
        letters, begins = _lower(text), list(range(len(text) + 1)) if self._cuts else None
        places: set[int] = set()
        while True:
            found = {begin + 1 for begin, _ in _found(letters, self._controls)}
            cuts = list(self._cuts.finditer(letters)) if self._cuts else []
            borders = [0, *(place for cut in cuts for place in cut.span()), len(letters)]
            for begin, end in zip(borders[::2], borders[1::2], strict=True):
                found |= set(self._open_ends(letters, begin, end))
            places |= found if begins is None else {begins[place] for place in found}
            if begins is None or not cuts:
                return places
            # What is left when the words are taken out may spell a token, or such a word again.
            kept = [(begin, end) for begin, end in zip(borders[::2], borders[1::2], strict=True)]
            letters = "".join(letters[begin:end] for begin, end in kept)
            begins = [begins[i] for begin, end in kept for i in range(begin, end)] + begins[-1:]

    def _open_ends(self, text: str, begin: int, end: int) -> Iterator[int]:
        """The ends of this piece at which more text could complete a token."""
        piece = text[begin:end]
        bare_begin = begin + len(piece) - len(piece.lstrip())
        bare_end = max(bare_begin, begin + len(piece.rstrip()))
        for first, last in {(begin, end), (bare_begin, bare_end)}:
            if first == last:
                continue  # a template may ask whether there is a text at all
            reach = range(1, min(self._longest, last - first + 1))  # lengths of parts of tokens
            if any(text[first : first + n] in self._endings for n in reach) or (
                len(reach) == last - first and self._is_opened(text[first:last])
            ):
                yield first
            if any(text[last - n : last] in self._beginnings for n in reach):
                yield last

    def _is_opened(self, text: str) -> bool:
        return any(text in rest for rest in self._opened)


def _marked(text: str, places: set[int], mark: str) -> str:
    pieces, end = [], 0
    for place in sorted(places):
        pieces += [text[end:place], mark]
        end = place
    return "".join(pieces) + text[end:]


def _lower(text: str) -> str:
    """Letters A to Z in lower case, as llama.cpp's Jinja knows no others."""
    return text.translate(_LOWER)


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _by_first_letter(controls: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for control in controls:
        groups.setdefault(control[0], []).append(control)
    return groups


def _found(text: str, controls: dict[str, list[str]]) -> Iterator[tuple[int, int]]:
    """(begin, end) of every spelling of every token, those that overlap too."""
    # Most texts have none of the few letters that tokens begin with.
    for control in (each for first in controls if first in text for each in controls[first]):
        begin = text.find(control)
        while begin >= 0:
            yield begin, begin + len(control)
            begin = text.find(control, begin + 1)


def _json_letters(string: str) -> tuple[str, list[int]]:
    """What a JSON string says, and where in it each letter begins (and the string ends)."""
    found = list(_JSON_LETTER.finditer(string))
    letters = "".join(chr(int(m[1], 16)) if m[1] else m[2] or m[3] for m in found)
    return letters, [*(m.start() for m in found), len(string)]


def _cut_words(source: str) -> set[str]:
    """The words at which a template cuts texts, or which it takes out of them."""
    words = {a or b for a, b in _CUT_AT_WORD.findall(source)}
    for name in set(_CUT_AT_NAME.findall(source)):
        words |= {a or b for a, b in re.findall(rf"set\s+{name}\s*=\s*{_QUOTED}", source)}
    return {_lower(word).replace("\\n", "\n") for word in words} - {""}


def _opened_by(source: str, controls: Sequence[str], beginnings: set[str]) -> Iterator[str]:
    """What is left of tokens that the template begins to write in front of something else.

    A template that writes '<' + name + '>' makes the token <think> of the name think.
    """
    longest = max(map(len, beginnings), default=0)
    written: set[str] = set()
    for end in _ENDS_WRITTEN.finditer(_lower(source)):
        before = end.string[max(0, end.start() - longest) : end.start()]
        written |= {before[n:] for n in range(len(before))} & beginnings
    for control in controls:
        for n in range(1, len(control)):
            if control[:n] in written:
                yield control[n:]
