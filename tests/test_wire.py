"""Heads are read strictly, JSON is bounded, and what is written is exact."""

import contextlib
import json
from typing import Any

import pytest

from lmlite.errors import ApiError, BadRequest, Forbidden
from lmlite.server import wire

GOOD = (
    b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: localhost:1234\r\nContent-Length: 2\r\n\r\n"
)


def head(*lines: str, first: str = "POST /x HTTP/1.1", host: str = "Host: localhost") -> bytes:
    return "\r\n".join([first, *filter(None, [host]), *lines, "", ""]).encode("latin-1")


def refusal(data: bytes, max_bytes: int = 1000) -> int:
    """The status with which a head is refused; 0 when it is not."""
    try:
        found = wire.parse_head(data)
        wire.check_host(found, wire.LOOPBACK_HOSTS)
        wire.check_origin(found)
        wire.body_length(found, max_bytes)
        if found.method == "POST":
            wire.check_content_type(found)
    except ApiError as err:
        return err.status
    return 0


# ---- heads ---------------------------------------------------------------------------------


def test_a_head_is_read() -> None:
    found = wire.parse_head(GOOD)
    assert (found.method, found.path, found.version) == ("POST", "/v1/chat/completions", (1, 1))
    assert found.target == "/v1/chat/completions?x=1"
    assert found.headers == {"host": "localhost:1234", "content-length": "2"}


def test_a_path_is_percent_decoded_without_its_query() -> None:
    found = wire.parse_head(head(first="GET /v1/models/a%2Fb?q=%20 HTTP/1.1"))
    assert found.path == "/v1/models/a/b"


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
def test_a_connection_is_kept_as_the_version_says(
    version: str, connection: str | None, expected: bool
) -> None:
    lines = [f"Connection: {connection}"] if connection else []
    assert wire.parse_head(head(*lines, first=f"GET / HTTP/{version}")).keep_alive is expected


JSON = "Content-Type: application/json"
PROBES: list[tuple[str, bytes, int]] = [
    ("a good one", head("Content-Length: 2", JSON), 0),
    ("JSON with a charset", head("Content-Length: 2", f"{JSON}; charset=utf-8"), 0),
    ("repeated harmless headers", head("Content-Length: 2", JSON, "X: 1", "X: 2"), 0),
    ("a header hidden behind a bare CR", head("Visible: a\rAuthorization: Bearer x"), 400),
    ("a bare LF", head("A: b\nContent-Length: 5"), 400),
    ("only LFs", b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    ("a header without a colon", head("nonsense", "Content-Length: 5"), 400),
    ("a space before the colon", head("Content-Length : 5"), 400),
    ("a folded header", head("A: b", " continued"), 400),
    ("an empty header name", head(": x"), 400),
    ("two lengths that differ", head("Content-Length: 5", "Content-Length: 6", JSON), 400),
    ("two lengths that agree", head("Content-Length: 5", "Content-Length: 5", JSON), 400),
    ("a length with a sign", head("Content-Length: +2", JSON), 400),
    ("a length with an underscore", head("Content-Length: 0_2", JSON), 400),
    ("a length in letters", head("Content-Length: abc", JSON), 400),
    ("a length in another script", head("Content-Length: \u00b2", JSON), 400),
    ("a length of 5,000 digits", head("Content-Length: " + "9" * 5000, JSON), 400),
    ("a negative length", head("Content-Length: -1", JSON), 400),
    ("an empty length", head("Content-Length:", JSON), 400),
    ("two lengths in one header", head("Content-Length: 2, 2", JSON), 400),
    ("a length of 16 GB", head("Content-Length: 16000000000", JSON), 413),
    ("one byte over the cap", head("Content-Length: 1001", JSON), 413),
    ("exactly the cap", head("Content-Length: 1000", JSON), 0),
    ("no length", head(JSON), 411),
    ("a chunked body", head("Transfer-Encoding: chunked", JSON), 411),
    ("a chunked body with a length", head("Transfer-Encoding: chunked", "Content-Length: 5"), 411),
    ("an expectation with 99 GB", head("Content-Length: 99000000000", "Expect: 100-continue"), 413),
    ("another expectation", head("Content-Length: 2", "Expect: coffee", JSON), 417),
    ("a compressed body", head("Content-Length: 2", "Content-Encoding: gzip", JSON), 415),
    ("a body of another type", head("Content-Length: 2", "Content-Type: text/plain"), 415),
    ("a form", head("Content-Length: 2", "Content-Type: application/x-www-form-urlencoded"), 415),
    ("JSON in another charset", head("Content-Length: 2", f"{JSON}; charset=utf-16"), 415),
    ("no type", head("Content-Length: 2"), 415),
    ("no host", head(host=""), 400),
    ("no host in HTTP/1.0", head(host="", first="GET / HTTP/1.0"), 0),
    ("two hosts", head("Host: localhost"), 400),
    ("an absolute target", head(first="GET http://localhost/ HTTP/1.1"), 400),
    ("a target that is no path", head(first="GET v1 HTTP/1.1"), 400),
    ("OPTIONS *", head(first="OPTIONS * HTTP/1.1"), 0),
    ("GET *", head(first="GET * HTTP/1.1"), 400),
    ("a NUL in the target", head(first="GET /\x00 HTTP/1.1"), 400),
    ("an ESC in a value", head("A: \x1b[2J"), 400),
    ("a DEL in a value", head("A: \x7f"), 400),
    ("a target beyond ASCII", head(first="GET /\u00e9 HTTP/1.1"), 400),
    ("a fragment in the target", head(first="GET /#x HTTP/1.1"), 400),
    ("HTTP/0.9", b"GET /\r\n\r\n", 400),
    ("HTTP/2.0", head(first="GET / HTTP/2.0"), 505),
    ("HTTP/1.2", head(first="GET / HTTP/1.2"), 505),
    ("HTTP/1.10", head(first="GET / HTTP/1.10"), 400),
    ("a version in lower case", head(first="GET / http/1.1"), 400),
    ("two spaces", head(first="GET  / HTTP/1.1"), 400),
    ("a tab", head(first="GET\t/ HTTP/1.1"), 400),
    ("a method with a bracket", head(first="G(T / HTTP/1.1"), 400),
    ("an empty line first", b"\r\n" + GOOD, 400),
    ("only an empty line", b"\r\n\r\n", 400),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("a request line over 4 KiB", head(first="GET /" + "a" * 4096 + " HTTP/1.1"), 431),
    ("a head over 16 KiB", head("A: " + "a" * 16384), 431),
    ("65 headers", head(*(f"A{i}: b" for i in range(64))), 431),
    ("64 headers", head(*(f"A{i}: b" for i in range(63)), first="GET / HTTP/1.1"), 0),
    ("a foreign host", head(host="Host: evil.example"), 403),
    ("a host that looks like ours", head(host="Host: localhost.evil.com"), 403),
    ("an address in a name", head(host="Host: 127.0.0.1.nip.io"), 403),
    ("0.0.0.0", head(host="Host: 0.0.0.0:1234"), 403),
    ("a path in the host", head(host="Host: localhost/v1/models?"), 400),
    ("user and host", head(host="Host: a@localhost"), 400),
    ("a trailing dot", head(host="Host: localhost."), 403),
    ("a mapped address", head(host="Host: [::ffff:7f00:1]"), 403),
    ("IPv6", head(first="GET / HTTP/1.1", host="Host: [::1]:1234"), 0),
    ("upper case", head(first="GET / HTTP/1.1", host="Host: LOCALHOST"), 0),
    ("a foreign page", head("Origin: https://evil.example", first="GET / HTTP/1.1"), 403),
    ("a sandboxed page", head("Origin: null", first="GET / HTTP/1.1"), 403),
    ("our own page", head("Origin: http://localhost:3000", first="GET / HTTP/1.1"), 0),
    ("a foreign image tag", head("Sec-Fetch-Site: cross-site", first="GET / HTTP/1.1"), 403),
]


@pytest.mark.parametrize(("data", "status"), [p[1:] for p in PROBES], ids=[p[0] for p in PROBES])
def test_a_head_is_accepted_or_refused_with(data: bytes, status: int) -> None:
    assert refusal(data) == status


@pytest.mark.parametrize(
    ("host", "any_address", "is_refused"),
    [
        ("192.168.1.5:1234", False, True),
        ("192.168.1.5:1234", True, False),
        ("[fe80::1]", True, False),
        ("evil.example", True, True),
        ("192.168.1.5.nip.io", True, True),
        ("1921681005", True, True),
        ("localhost", True, False),
    ],
)
def test_a_server_that_others_may_reach_answers_to_addresses_but_not_to_names(
    host: str, any_address: bool, is_refused: bool
) -> None:
    found = wire.parse_head(head(host=f"Host: {host}"))
    try:
        wire.check_host(found, wire.LOOPBACK_HOSTS, any_address)
    except Forbidden:
        assert is_refused
    else:
        assert not is_refused


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
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\udc00":1}', "surrogate"),
        (b'{"a":["\\uD83D x"]}', "surrogate"),
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


def test_every_depth_is_read_or_refused_also_where_only_the_second_look_fails() -> None:
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


def test_a_reply_head_is_exact() -> None:
    assert wire.reply_head(404, [("Content-Length", "2")]) == (
        b"HTTP/1.1 404 Not Found\r\nServer: lmlite\r\nContent-Length: 2\r\n\r\n"
    )


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\x00b"])
def test_a_header_value_cannot_begin_another_header(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        wire.reply_head(200, [("X-Request-Id", value)])
