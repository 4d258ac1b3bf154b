"""Reads the part of YAML 1.2 that model.yaml files use, and refuses the rest. Pure.

Read: block mappings and sequences, plain and quoted scalars of one or more lines, `|` and `>`
scalars, flow lists and mappings of one line, comments, and one `---` at the start. Not read:
anchors, aliases, tags, merge and complex keys, tabs as indentation, duplicate keys, more documents.
Keys are always text. The time is linear in the size of the text.
"""

import math
import re
from typing import Any, NoReturn

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 50_000
MAX_DIGITS = 64  # characters of a number

_CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None,
              "true": True, "True": True, "TRUE": True,
              "false": False, "False": False, "FALSE": False}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_DOCUMENT = re.compile(r"(---|\.\.\.)(?=[ \t]|$)")
_DASH = re.compile(r"-( +|$)")
_COLON = re.compile(r":(?=[ \t]|$)")
_COMMENT = re.compile(r"(^|[ \t])#")
_HEADER = re.compile(r"([|>])([-+]?)([1-9]?)([-+]?)(?:[ \t]+#.*)?")
_FLOW_TEXT = re.compile(r"(?:[^\[\]{},:# \t]|:(?![ \t,\[\]{}]|$)|(?<![ \t])#|[ \t]+(?![ \t#]))+")
_BLANKS = re.compile(r"[ \t]*")

_BODIES = {'"': re.compile(r'(?:[^"\\]|\\.|\\$)*'), "'": re.compile("(?:[^']|'')*")}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_ESCAPES = {"0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f",
            "r": "\r", "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85",
            "_": "\xa0", "L": "\u2028", "P": "\u2029", "\t": "\t"}  # fmt: skip
_NOT_READ = {"&": "anchors (&)", "*": "aliases (*)", "!": "tags (!)", "%": "directives (%)",
             "?": "complex keys (?)", "@": "texts that begin with @",
             "`": "texts that begin with `"}  # fmt: skip


class YamlError(ValueError):
    """A text that is no YAML, or more than this reader reads. Tells the line."""


def read_yaml(text: str) -> Any:
    """The value of a document: dict, list, str, int, float, bool or None. Raises YamlError.

    >>> read_yaml("key: a/b  # the first")
    {'key': 'a/b'}
    """
    return _Reader(text).document()


class _Reader:
    """The lines of a text, and the number of the line that is read next."""

    def __init__(self, text: str) -> None:
        self._at = 0  # index of the line
        self._n_values = 0
        if len(text) > MAX_CHARACTERS:
            raise YamlError(f"the text has more than {MAX_CHARACTERS:,} characters")
        self._lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")

    def document(self) -> Any:
        for at, line in enumerate(self._lines):
            if _UNPRINTABLE.search(line):
                self._refuse("a character that cannot be printed", at)
        if self._peek(is_first=True) == (0, "---"):
            self._at += 1
        value = self._block(0, 0)
        if self._peek() is not None:
            self._refuse("the line belongs to nothing above it: check its indentation")
        return value

    def _refuse(self, message: str, at: int | None = None) -> NoReturn:
        raise YamlError(f"line {(self._at if at is None else at) + 1}: {message}")

    def _peek(self, *, is_first: bool = False) -> tuple[int, str] | None:
        """Indentation and content of the next line that is neither blank nor a comment."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            content = line.lstrip(" ").rstrip(" \t")
            if content.lstrip("\t")[:1] not in ("", "#"):
                if content[0] == "\t":
                    self._refuse("a tab in the indentation")
                indent = len(line) - len(line.lstrip(" "))
                if indent == 0 and (marker := _DOCUMENT.match(content)):
                    after = content[marker.end() :].lstrip(" \t")
                    if is_first and marker[1] == "---" and after[:1] in ("", "#"):
                        return 0, "---"
                    self._refuse(f"{marker[1]} is only read alone at the start: one document only")
                return indent, content
            self._at += 1
        return None

    # ---- blocks ----------------------------------------------------------------------------

    def _block(self, least: int, depth: int) -> Any:
        """The value in the next lines if they are indented by at least so much, else None."""
        line = self._peek()
        if line is None or line[0] < least:
            return None
        indent, content = line
        if _DASH.match(content):
            return self._sequence(indent, depth)
        if self._key(content) is not None:
            return self._mapping(indent, depth)
        return self._scalar(content, least, depth)

    def _count(self, depth: int) -> None:
        self._n_values += 1
        if self._n_values > MAX_VALUES:
            self._refuse(f"the text has more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            self._refuse(f"more than {MAX_DEPTH} levels")

    def _sequence(self, indent: int, depth: int) -> list[Any]:
        items = []
        while (line := self._peek()) is not None and line[0] >= indent:
            dash = _DASH.match(line[1]) if line[0] == indent else None
            if dash is None:
                if line[0] == indent and self._key(line[1]) is not None:
                    break  # the next key of a mapping whose value is this sequence
                self._refuse("the line is not an item of the list above it")
            # What follows the dash is read as if it stood on a line of its own.
            self._lines[self._at] = " " * (indent + dash.end()) + line[1][dash.end() :]
            self._count(depth + 1)
            items.append(self._block(indent + 1, depth + 1))
        return items

    def _mapping(self, indent: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (line := self._peek()) is not None and line[0] >= indent:
            if line[0] > indent:
                self._refuse("the line is indented more than the key above it")
            if _DASH.match(line[1]):
                break
            pair = self._key(line[1])
            if pair is None:
                self._refuse("the line has no key: key: value")
            key, value = pair
            if key in found:
                self._refuse(f"the key {key} appears twice")
            found[key] = self._value(value, indent, depth + 1)
        return found

    def _value(self, text: str, indent: int, depth: int) -> Any:
        """The value of a key: in the rest of its line, or in the next lines."""
        self._count(depth)
        if text[:1] not in ("", "#"):
            return self._scalar(text, indent + 1, depth)
        self._at += 1
        line = self._peek()
        # The items of a list may be indented like the key.
        has_list = line is not None and line[0] == indent and _DASH.match(line[1])
        return self._block(indent if has_list else indent + 1, depth)

    def _key(self, content: str) -> tuple[str, str] | None:
        """A line's key, and what follows its colon; None if the line has no key."""
        if content[0] in _BODIES:
            end = _BODIES[content[0]].match(content, 1).end()  # type: ignore[union-attr]
            colon = _COLON.match(content, _BLANKS.match(content, end + 1).end())  # type: ignore[union-attr]
            if content[end : end + 1] != content[0] or colon is None:
                return None
            key = self._unquoted([content[1:end]], content[0])
        else:
            colon = _COLON.search(content)
            comment = _COMMENT.search(content)
            if (
                content[0] in "[{|>"
                or colon is None
                or (comment and comment.start() < colon.start())
            ):
                return None
            key = content[: colon.start()].rstrip(" \t")
            self._check_start(content)
            if key == "<<":
                self._refuse("merge keys (<<) are not read")
        return key, content[colon.end() :].lstrip(" \t")

    # ---- scalars ---------------------------------------------------------------------------

    def _scalar(self, text: str, least: int, depth: int) -> Any:
        """The value that begins with this text, which ends the current line."""
        if text[0] in _BODIES:
            return self._quoted(text, least)
        if text[0] in "|>":
            return self._literal(text, least)
        if text[0] in "[{":
            value, end = self._flow(text, 0, depth)
            self._check_end(text[end:])
            self._at += 1
            return value
        return self._plain(text, least)

    def _check_start(self, text: str) -> None:
        first = text[0]
        if first in "?-:" and text[1:2] not in ("", " ", "\t"):
            return
        if first in _NOT_READ:
            self._refuse(f"{_NOT_READ[first]} are not read: texts like this need quotes")
        if first in "-:,[]{}|>#":
            self._refuse(f"a text that begins with {first} needs quotes")

    def _check_end(self, text: str) -> None:
        rest = text.lstrip(" \t")
        if rest and not (rest[0] == "#" and rest != text):
            self._refuse(f"{rest[:40]} after the end of the value")

    def _plain(self, text: str, least: int) -> Any:
        self._check_start(text)
        lines, began = [], self._at
        while True:
            comment = _COMMENT.search(text)
            lines.append(text[: comment.start()].rstrip(" \t") if comment else text)
            if _COLON.search(lines[-1]):
                self._refuse("a text with a colon and a space needs quotes")
            n_before = self._at
            self._at += 1
            if comment:
                break
            while self._at < len(self._lines) and not self._lines[self._at].strip(" \t"):
                self._at += 1
            if self._at == len(self._lines) or self._lines[self._at].lstrip(" \t")[0] == "#":
                break
            line = self._peek()
            if line is None or line[0] < least:
                break
            lines += [""] * (self._at - n_before - 1)
            text = line[1]
        return _folded(lines) if len(lines) > 1 else self._plain_value(lines[0], began)

    def _plain_value(self, text: str, at: int) -> Any:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text[0] not in "0123456789+-.":
            return text
        if not (integer := _INTEGER.fullmatch(text)) and not _FLOAT.fullmatch(text):
            if _NON_FINITE.fullmatch(text):
                self._refuse(f"{text} is not a number that can be used", at)
            return text
        if len(text) > MAX_DIGITS:
            self._refuse("a number with too many digits", at)
        if integer:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if not math.isfinite(number := float(text)):
            self._refuse(f"{text} is too large", at)
        return number

    def _quoted(self, text: str, least: int) -> str:
        quote, began = text[0], self._at
        parts, text = [], text[1:]
        while (end := _BODIES[quote].match(text).end()) == len(text):  # type: ignore[union-attr]
            if quote == '"' and re.search(r"\\[ \t]+$", self._lines[self._at]):
                self._refuse("a backslash before a space at the end of a line")
            parts.append(text)
            self._at += 1
            if self._at == len(self._lines):
                self._refuse(f"the text in {quote} has no end", began)
            line = self._lines[self._at]
            text = line.strip(" \t")
            if text and (_DOCUMENT.match(line) or len(line) - len(line.lstrip(" ")) < least):
                self._refuse(f"the text in {quote} has no end before this line")
        self._check_end(text[end + 1 :])
        value = self._unquoted([*parts, text[:end]], quote)
        self._at += 1
        return value

    def _unquoted(self, lines: list[str], quote: str) -> str:
        if quote == "'":
            return _folded(lines).replace("''", "'")
        pieces = [""]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            # A backslash at the end of a line joins it to the next without a space.
            is_open = (len(line) - len(line.rstrip("\\"))) % 2 == 1
            pieces[-1] += line[:-1] if is_open else line
            if not (is_open and following):
                pieces.append("")
        text = _ESCAPE.sub(self._unescaped, _folded(pieces[:-1]))
        try:  # JSON writes a character beyond U+FFFF as two
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse("half a character in a text")

    def _unescaped(self, match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) == 1 or (number := int(code[1:], 16)) > 0x10FFFF:
            self._refuse(f"\\{code} is not an escape sequence")
        return chr(number)

    def _literal(self, text: str, least: int) -> str:
        """A text after | or >: its lines are those that are indented more than its parent."""
        header = _HEADER.fullmatch(text)
        if header is None or (header[2] and header[4]):
            self._refuse(f"{text[:40]} is not the start of a text in lines: | or > with - or +")
        indent = max(least - 1, 0) + int(header[3]) if header[3] else None
        lines = self._lines_of_literal(least, indent)
        n_text = next((n for n in range(len(lines), 0, -1) if lines[n - 1]), 0)
        kept, n_blank = lines[:n_text], len(lines) - n_text
        if header[1] == "|":
            body = "\n".join(kept)
        else:
            n_lead = next((n for n, line in enumerate(kept) if line), 0)
            body = "\n" * n_lead + _folded(kept[n_lead:], keeps_indented=True)
        chomp = header[2] or header[4]
        if self._at == len(self._lines) and n_blank:  # the last line of a file has no end
            n_blank -= 1
        if chomp == "+":
            return body + "\n" * (n_blank + bool(kept))
        return body + "\n" if kept and not chomp else body

    def _lines_of_literal(self, least: int, indent: int | None) -> list[str]:
        """Lines without their indentation. None: it is that of the first line with text."""
        lines: list[str] = []
        self._at += 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            n_spaces = len(line) - len(line.lstrip(" "))
            if n_spaces < len(line):
                if n_spaces < (least if indent is None else indent):
                    break
                if indent is None:
                    indent = n_spaces
                    if any(len(blank) > indent for blank in lines):
                        self._refuse("a blank line above is indented more than the text")
                    lines = [""] * len(lines)
            lines.append(line[indent or 0 :])
            self._at += 1
        return lines if indent is not None else [""] * len(lines)

    # ---- lists and mappings of one line ----------------------------------------------------

    def _flow(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        """A value within brackets, and where it ends."""
        first = text[at : at + 1]
        if first == "[":
            return self._flow_list(text, at, depth)
        if first == "{":
            return self._flow_mapping(text, at, depth)
        if first in _BODIES:
            return self._flow_quoted(text, at)
        plain = _FLOW_TEXT.match(text, at)
        if plain is None:
            self._refuse("a list or a mapping in brackets ends in its line and has no empty item")
        self._check_start(plain[0])
        return self._plain_value(plain[0].rstrip(" \t"), self._at), plain.end()

    def _flow_quoted(self, text: str, at: int) -> tuple[str, int]:
        end = _BODIES[text[at]].match(text, at + 1).end()  # type: ignore[union-attr]
        if text[end : end + 1] != text[at]:
            self._refuse("a text in quotes within brackets ends in its line")
        return self._unquoted([text[at + 1 : end]], text[at]), end + 1

    def _flow_list(self, text: str, at: int, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        at = self._skip(text, at + 1)
        while text[at : at + 1] != "]":
            self._count(depth + 1)
            item, at = self._flow(text, at, depth + 1)
            items.append(item)
            at = self._separator(text, at, "]")
        return items, at + 1

    def _flow_mapping(self, text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at = self._skip(text, at + 1)
        while text[at : at + 1] != "}":
            self._count(depth + 1)
            if text[at : at + 1] in _BODIES:
                key, at = self._flow_quoted(text, at)
            else:
                plain = _FLOW_TEXT.match(text, at)
                key = plain[0].rstrip(" \t") if plain else ""
                if plain is None or key == "<<":
                    self._refuse("a mapping in braces ends in its line and has plain keys")
                self._check_start(key)
                at = plain.end()
            at = self._skip(text, at)
            if text[at : at + 1] != ":":
                self._refuse(f"the key {key[:40]} has no value")
            if key in found:
                self._refuse(f"the key {key} appears twice")
            at = self._skip(text, at + 1)
            if text[at : at + 1] in (",", "}"):
                found[key] = None
            else:
                found[key], at = self._flow(text, at, depth + 1)
            at = self._separator(text, at, "}")
        return found, at + 1

    def _skip(self, text: str, at: int) -> int:
        return _BLANKS.match(text, at).end()  # type: ignore[union-attr]

    def _separator(self, text: str, at: int, end: str) -> int:
        """The start of the next item, or of the end. An item ends with a comma or the end."""
        at = self._skip(text, at)
        if text[at : at + 1] == ",":
            return self._skip(text, at + 1)
        if text[at : at + 1] != end:
            self._refuse(f"a comma or {end} is missing: brackets end in their line")
        return at


def _folded(lines: list[str], *, keeps_indented: bool = False) -> str:
    """Joins lines with spaces; each blank line between becomes a line break.

    `keeps_indented`: a line that begins with a space keeps the line breaks around it.
    """
    pieces: list[str] = []
    n_blank, is_kept = 0, False
    for i, line in enumerate(lines):
        if not line and 0 < i < len(lines) - 1:
            n_blank += 1
            continue
        was_kept, is_kept = is_kept, keeps_indented and line[:1] in (" ", "\t")
        if i > 0:
            breaks = n_blank + (was_kept or is_kept)
            pieces.append("\n" * breaks or " ")
        pieces.append(line)
        n_blank = 0
    return "".join(pieces)
