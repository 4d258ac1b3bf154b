"""A request handler of `http.server`, whose replies are exact and whose heads cannot be forged."""

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lmlite.server.front.handler import StrictRequestHandler
from lmlite.server.http import Handler
from lmlite.server.server import Server
from tests.support.house import House
from tests.support.raw_requests import get


def test_server_and_handler_are_those_of_http_server() -> None:
    assert issubclass(Server, ThreadingHTTPServer)
    assert issubclass(Handler, BaseHTTPRequestHandler)
    assert all(callable(getattr(Handler, f"do_{name}")) for name in ("GET", "HEAD", "POST"))


def test_a_reply_is_exact_to_the_byte(house: House) -> None:
    answer = house.exchange(get("Connection: close", first="GET /health HTTP/1.1"))
    assert re.fullmatch(
        rb"HTTP/1\.1 200 OK\r\nServer: lmlite\r\n"
        rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
        rb"Content-Type: application/json\r\nContent-Length: 18\r\n"
        rb"X-Request-Id: req-[0-9a-f]{24}\r\nConnection: close\r\n\r\n"
        rb'\{"status":"ready"\}',
        answer,
    )


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\x00b"])
def test_a_header_value_cannot_begin_another_header(value: str) -> None:
    handler = StrictRequestHandler.__new__(StrictRequestHandler)
    handler.reset("req-1")
    with pytest.raises(ValueError, match="control character"):
        handler.send_head(200, [("X-Ignored-Params", value)])
