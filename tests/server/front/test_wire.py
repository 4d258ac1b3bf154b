"""Reading of heads, bounds of JSON, and exact bytes of what is written."""

import contextlib
import json
from typing import Any

import pytest

from lmlite.errors import BadRequest, UnsupportedMediaType
from lmlite.server.front import wire
from tests.support.raw_requests import get

GOOD = (
    b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: localhost:1234\r\nContent-Length: 2\r\n\r\n"
)


# ---- heads ---------------------------------------------------------------------------------


def test_a_head_is_read() -> None:
    found = wire.parse_head(GOOD)
    assert (found.method, found.path, found.version) == ("POST", "/v1/chat/completions", (1, 1))
    assert found.target == "/v1/chat/completions?x=1"
    assert found.headers == {"host": "localhost:1234", "content-length": "2"}


def test_a_path_is_percent_decoded_without_its_query() -> None:
    found = wire.parse_head(get(first="GET /v1/models/a%2Fb?q=%20 HTTP/1.1"))
    assert found.path == "/v1/models/a/b"


@pytest.mark.parametrize(
    ("first", "target"),
    [
        ("GET http://localhost/a?b=http://c/ HTTP/1.1", "/a?b=http://c/"),
        ("GET http://localhost HTTP/1.1", "/"),
        ("GET http://localhost?a HTTP/1.1", "/?a"),
        ("GET http://localhost//a HTTP/1.1", "//a"),
        ("OPTIONS http://localhost HTTP/1.1", "*"),
        ("OPTIONS http://localhost/ HTTP/1.1", "/"),
        ("OPTIONS * HTTP/1.1", "*"),
    ],
)
def test_an_absolute_target_is_read_like_a_path(first: str, target: str) -> None:
    assert wire.parse_head(get(first=first)).target == target


def test_a_host_in_the_target_stands_for_a_missing_host_header() -> None:
    head = wire.parse_head(get(first="GET http://evil.example:1/a HTTP/1.0", host=""))
    assert (head.headers, head.target) == ({"host": "evil.example:1"}, "/a")


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive, Close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
    ],
)
def test_whether_a_connection_is_kept_depends_on_the_version(
    version: str, connection: str | None, expected: bool
) -> None:
    lines = [f"Connection: {connection}"] if connection else []
    assert wire.parse_head(get(*lines, first=f"GET / HTTP/{version}")).keep_alive is expected


def test_a_head_without_an_end_is_refused() -> None:
    with pytest.raises(BadRequest, match="the request's head does not end"):
        wire.parse_head(GOOD[:-2])


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], "none"),
        (["Content-Type: application/x-www-form-urlencoded"], "application/x-www-form-urlencoded"),
        ([f"Content-Type: {'a' * 200}"], "a" * 100),
    ],
)
def test_a_body_of_another_type_is_refused_with_the_header_to_send(
    lines: list[str], found: str
) -> None:
    head = wire.parse_head(get("Content-Length: 2", *lines, first="POST / HTTP/1.1"))
    with pytest.raises(UnsupportedMediaType) as caught:
        wire.body_length(head, 100)
    assert caught.value.message == (
        "the request needs the header Content-Type: application/json (curl -H, wget --header); "
        f"it has {found}"
    )


# ---- JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":1}x', "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":Infinity}', "Infinity is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a":1,"a":2}', "the same key twice"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 300_000 + b"0]}", "more than 500,000 values"),
    ],
)
def test_json_that_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        wire.parse_json(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a":"\\ud800"}', {"a": "\ufffd"}),
        (b'{"\\udc00":1.5}', {"\ufffd": 1.5}),
        (b'{"a":["cut \\uD83D", "\\uDE00 cut"]}', {"a": ["cut \ufffd", "\ufffd cut"]}),
        (b'{"a":"\\ud83d\\ud83d\\ude00\\ude00"}', {"a": "\ufffd\U0001f600\ufffd"}),
    ],
)
def test_half_of_an_emoji_becomes_the_replacement_character(body: bytes, value: object) -> None:
    assert wire.parse_json(body) == value


def test_json_of_any_depth_is_read_or_refused_even_if_only_the_second_pass_fails() -> None:
    for depth in range(900, 1000):
        body = b'{"e":"\\ud83d\\ude00","a":' + b"[" * depth + b"]" * depth + b"}"
        with contextlib.suppress(BadRequest):
            wire.parse_json(body)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": None}, {"a": "\ud83d\ude00"}, {"a": "\u0000é日"}, {"a": [1, 2.5, True, {"b": []}]}],
)
def test_json_that_is_read(value: Any) -> None:
    assert wire.parse_json(json.dumps(value).encode()) == json.loads(json.dumps(value))


def test_written_json_is_compact_utf8_without_nan() -> None:
    assert wire.to_json({"a": ["é", 1, None]}) == '{"a":["é",1,null]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.to_json(float("nan"))


# ---- what is written -----------------------------------------------------------------------


def test_events_and_comments_end_with_an_empty_line() -> None:
    assert wire.sse_event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert wire.sse_comment("queued 2") == b": queued 2\n\n"
    assert wire.SSE_DONE == b"data: [DONE]\n\n"


def test_a_chunk_has_its_length_in_hexadecimal() -> None:
    assert wire.http_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert wire.LAST_HTTP_CHUNK == b"0\r\n\r\n"
    with pytest.raises(AssertionError):
        wire.http_chunk(b"")
