"""Bytes of request heads, HTTP chunks, SSE events and JSON; pure functions, no sockets.

Reading is strict, after RFC 9112. Bytes that another parser might read differently are refused, so
that client, proxies and this server agree where a request ends. Every refusal is an ApiError.
"""

import json
import math
import re
import urllib.parse
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from lmlite.errors import (
    BadRequest,
    BodyTooLarge,
    ExpectationFailed,
    HeadTooLarge,
    LengthRequired,
    UnsupportedMediaType,
    VersionNotSupported,
)
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rf"({_TOKEN.pattern}) ([^ ]*) HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(r"http://(?P<host>[^/?@]+)(?P<path>[^?]*)(?P<query>.*)", re.IGNORECASE)
_CONTENT_TYPE = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# Headers that may come only once, because parsers differ on which of two values counts.
_SINGLE = {"host", "content-length", "content-type", "transfer-encoding", "authorization"}


# ---- reading a head ------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The request line and headers of one request."""

    method: str
    target: str
    version: tuple[int, int]
    headers: dict[str, str]  # names in lower case; values of repeated ones joined by commas

    @cached_property
    def path(self) -> str:
        """The target without its query, percent-decoded."""
        return urllib.parse.unquote(self.target.partition("?")[0], errors="replace")

    @property
    def keep_alive(self) -> bool:
        """Whether the client means to send another request on this connection."""
        options = {word.strip() for word in self.headers.get("connection", "").lower().split(",")}
        return "close" not in options if self.version >= (1, 1) else "keep-alive" in options

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for status 100 before its body; not in HTTP/1.0."""
        return "expect" in self.headers and self.version >= (1, 1)


def parse_head(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Head:
    """The head in `data`, which includes the empty line. Raises an ApiError if malformed."""
    if len(data) > limits.max_head:
        raise HeadTooLarge(f"the request's head is over {limits.max_head:,} bytes")
    if not data.endswith(b"\r\n\r\n"):
        raise BadRequest("the request's head does not end")
    first, *lines = split_lines(data[:-4])
    method, target, version = _parse_request_line(first, limits.max_request_line)
    headers = parse_headers(lines, limits.max_headers)
    if version >= (1, 1) and "host" not in headers:
        raise BadRequest("the request has no Host header")
    return Head(method, _origin_form(method, target, headers), version, headers)


def split_lines(data: bytes) -> list[str]:
    """Lines of a head. Raises BadRequest for characters that some parsers take as a line end."""
    lines = data.decode("latin-1").split("\r\n")
    if any(map(_CONTROL.search, lines)):
        raise BadRequest("the request has a control character or a bare line break")
    return lines


def _parse_request_line(line: str, max_bytes: int) -> tuple[str, str, tuple[int, int]]:
    if len(line) > max_bytes:
        raise HeadTooLarge(f"the request line is over {max_bytes:,} bytes")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest("the request line is not: METHOD TARGET HTTP/1.1")
    method, target, version = match[1], match[2], (int(match[3]), int(match[4]))
    if version not in ((1, 0), (1, 1)):
        raise VersionNotSupported("this server speaks HTTP/1.0 and HTTP/1.1")
    is_path = target.startswith("/") or _ABSOLUTE.fullmatch(target)
    if not (is_path or (target == "*" and method == "OPTIONS")):
        raise BadRequest("the request's target is not a path")
    if not target.isascii() or "\t" in target or "#" in target:
        raise BadRequest("the request's target has a character that must be percent-encoded")
    return method, target, version


def _origin_form(method: str, target: str, headers: dict[str, str]) -> str:
    """The target without a host, which clients include if they use this server as a proxy.

    Raises BadRequest if the Host header names a different host.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return target
    if headers.setdefault("host", match["host"]).lower() != match["host"].lower():
        raise BadRequest("the request's target and its Host header name different servers")
    if method == "OPTIONS" and not match["path"] and not match["query"]:
        return "*"
    return f"{match['path'] or '/'}{match['query']}"


def parse_headers(lines: list[str], most: int) -> dict[str, str]:
    """Header values by lower-case name. Raises an ApiError for malformed or repeated headers."""
    if len(lines) > most:
        raise HeadTooLarge(f"the request has over {most} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # Refuses a space before the colon, and a line that continues the previous line.
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest("a header is not: Name: value")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _SINGLE:
                raise BadRequest(f"the request has two {name} headers")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


# ---- bodies --------------------------------------------------------------------------------


def body_length(head: Head, max_bytes: int) -> int | None:
    """Bytes of body that follow the head, 0 without a body; None for a body in chunks.

    Raises an ApiError. Types other than JSON are refused: web pages can send them to any server
    without a preflight request.
    """
    n_bytes = None if "transfer-encoding" in head.headers else _content_length(head)
    if n_bytes is None:
        _check_transfer_encoding(head)
    elif n_bytes > max_bytes:
        raise BodyTooLarge(f"the body is over {max_bytes:,} bytes")
    content_type = head.headers.get("content-type", "").strip()
    if head.method == "POST" and not _CONTENT_TYPE.fullmatch(content_type):
        found = content_type[:100] or "none"
        raise UnsupportedMediaType("the request needs the header Content-Type: application/json "
                                   f"(curl -H, wget --header); it has {found}")  # fmt: skip
    if head.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, not compressed")
    if head.headers.get("expect", "100-continue").lower() != "100-continue":
        raise ExpectationFailed("the only expectation that this server knows is 100-continue")
    return n_bytes


def _content_length(head: Head) -> int:
    text = head.headers.get("content-length")
    if text is None:
        if head.method == "POST":
            raise LengthRequired("the request has no Content-Length, and its body no chunks")
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadRequest("Content-Length is not a number")
    return int(text)


def _check_transfer_encoding(head: Head) -> None:
    """Refuses all but one way to mark the end of a body, because parsers might disagree."""
    if "content-length" in head.headers:
        raise BadRequest("the request has both a Content-Length and a Transfer-Encoding")
    if head.version < (1, 1):
        raise BadRequest("HTTP/1.0 knows no Transfer-Encoding")
    if head.headers["transfer-encoding"].lower() != "chunked":
        raise BadRequest("the only Transfer-Encoding that this server knows is chunked")


# ---- JSON ----------------------------------------------------------------------------------


def parse_json(
    body: bytes,
    max_values: int = DEFAULT_LIMITS.max_values,
    list_field: str | None = None,
) -> dict[str, Any]:
    """The JSON object in a request's body, with finite numbers and whole characters.

    A list is refused, unless it stands for the field `list_field`.
    Raises BadRequest. The number of values is limited: a megabyte of brackets would take twenty
    megabytes, and block every other thread.
    """
    if sum(map(body.count, (b"[", b"{", b","))) > max_values:
        raise BadRequest(f"the body has more than {max_values:,} values")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}"
        raise BadRequest(f"the body is not valid JSON, at {where}") from None
    except ValueError:  # Python limits the digits of an integer
        raise BadRequest("the body has a number of too many digits") from None
    if type(value) is list and list_field is not None:
        value = {list_field: value}
    if type(value) is not dict:
        raise BadRequest("the body is not a JSON object")
    return _in_whole_characters(value) if "\\ud" in text or "\\uD" in text else value


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadRequest("the body has a number that is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("the body has an object with the same key twice")
    return found


def _in_whole_characters(value: dict[str, Any]) -> dict[str, Any]:
    """Replaces halves of emojis: in JavaScript an emoji is two characters, so clients cut some."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # reading allows slightly deeper nesting
        raise BadRequest("the body is nested too deeply") from None
    whole = whole_characters(text)
    found: dict[str, Any] = value if whole == text else json.loads(whole)
    return found


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. Raises ValueError for NaN and infinity, which are not JSON."""
    return _to_text(value).encode()


# ---- server-sent events --------------------------------------------------------------------

SSE_DONE = b"data: [DONE]\n\n"


def sse_event(payload: bytes) -> bytes:
    """An event whose data is one line of JSON."""
    return b"data: %b\n\n" % payload


def sse_comment(text: str) -> bytes:
    """A line that clients skip. It keeps proxies and clients from giving up."""
    assert "\n" not in text, "a line break would end the comment"
    return f": {text}\n\n".encode()


# ---- replies -------------------------------------------------------------------------------

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # may be sent before a reply, even several times
LAST_HTTP_CHUNK = b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    """A chunk of a chunked body."""
    assert data, "an empty chunk would end the body"
    return b"%x\r\n%b\r\n" % (len(data), data)
