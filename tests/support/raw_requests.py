"""Raw requests with their expected statuses, and a reader for them without a socket.

A row has all bytes that a client sends on a connection. A request that is refused because of its
head ends the connection, so later requests in the row get no reply.
"""

import re
from collections.abc import Iterable
from typing import Any

from lmlite.errors import ApiError
from lmlite.server.front import wire
from lmlite.server.front.connection import Connection
from lmlite.server.front.gate import LOOPBACK_GATE
from lmlite.server.front.limits import DEFAULT_LIMITS

PATH = "/v1/chat/completions"
BODY = b'{"messages":[{"role":"user","content":"echo \xc3\xa9"}]}'
JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(BODY)}"


def get(*lines: str, first: str = "GET /v1/models HTTP/1.1", host: str = "localhost") -> bytes:
    """A request without a body. `host` is the value of its Host header; "" leaves it out."""
    hosts = [f"Host: {host}"] if host else []
    return "\r\n".join([first, *hosts, *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = BODY, first: str = f"POST {PATH} HTTP/1.1") -> bytes:
    """A request with a body; `lines` are its headers."""
    return get(*lines, first=first) + body


def length(text: str) -> bytes:
    """A request with this Content-Length."""
    return post(f"Content-Length: {text}", JSON)


def typed(text: str) -> bytes:
    """A request with this Content-Type."""
    return post(LENGTH, f"Content-Type: {text}")


CHUNKED = "Transfer-Encoding: chunked"


def chunks(*sizes: int, data: bytes = BODY) -> bytes:
    """Data in chunks of these sizes, then one chunk for the rest, and the last chunk."""
    parts = []
    for size in (*sizes, len(data)):
        parts.append(b"%x\r\n%b\r\n" % (len(data[:size]), data[:size]))
        data = data[size:]
    return b"".join([part for part in parts if part[0] != ord("0")] + [b"0\r\n\r\n"])


def chunked(*lines: str, body: bytes) -> bytes:
    """A request with a body in chunks."""
    return post(CHUNKED, JSON, *lines, body=body)


GOOD = post(LENGTH, JSON)
N_BODY = b"%x" % len(BODY)
FULL_LINE = "GET /v1/models?" + "a" * (4096 - len("GET /v1/models? HTTP/1.1")) + " HTTP/1.1"
FILL = 16384 - len(get("A: "))

# (name, bytes, statuses of the replies)
ROWS: list[tuple[str, bytes, tuple[int, ...]]] = [
    # ---- valid requests
    ("a good one", GOOD, (200,)),
    ("a good one without a body", get(), (200,)),
    ("two in a row", GOOD + get(), (200, 200)),
    ("two in a row, of which the first asks for the end", get("Connection: close") + GOOD, (200,)),
    ("an empty line first", b"\r\n" + GOOD, (200,)),
    ("two empty lines first", b"\r\n\r\n" + GOOD, (200,)),
    ("an empty line behind a body", GOOD + b"\r\n" + get() + b"\r\n\r\n" + get(), (200,) * 3),
    ("an empty line behind chunks", chunked(body=chunks(3)) + b"\r\n" + get(), (200, 200)),
    ("an empty line at the end", GOOD + b"\r\n", (200,)),
    ("a query", get(first="GET /v1/models?a=b&c=%20 HTTP/1.1"), (200,)),
    ("a header in capitals", get("X-LOUD: yes").replace(b"Host", b"HOST"), (200,)),
    ("a header without a value", get("X:"), (200,)),
    ("a header between spaces and tabs", get("X: \t b \t"), (200,)),
    ("a tab in a value", get("X: a\tb"), (200,)),
    ("a value beyond ASCII", get("X: caf\u00e9"), (200,)),
    ("repeated harmless headers", post(LENGTH, JSON, "X: 1", "X: 2"), (200,)),
    ("JSON with a charset", typed("application/json; charset=utf-8"), (200,)),
    ("JSON with a charset in quotes", typed('Application/JSON;CHARSET="UTF-8"'), (200,)),
    ("a body that is not encoded", post(LENGTH, JSON, "Content-Encoding: identity"), (200,)),
    ("a length with zeros in front", length(f"00{len(BODY)}"), (200,)),
    ("an expectation that is met", post(LENGTH, JSON, "Expect: 100-Continue"), (200,)),
    ("a body on a GET, and a request", get("Content-Length: 5") + b"GET /" + get(), (200, 200)),
    ("a GET that says that it has no body", get("Content-Length: 0"), (200,)),
    ("HEAD", get(first="HEAD /v1/models HTTP/1.1"), (200,)),
    ("OPTIONS, and a request", get(first=f"OPTIONS {PATH} HTTP/1.1") + get(), (204, 200)),
    ("OPTIONS *", get(first="OPTIONS * HTTP/1.1"), (204,)),
    ("HTTP/1.0", get(first="GET /v1/models HTTP/1.0"), (200,)),
    ("HTTP/1.0 without a host", get(host="", first="GET /v1/models HTTP/1.0"), (200,)),
    ("HTTP/1.0 that goes on",
     get("Connection: keep-alive", first="GET /v1/models HTTP/1.0") + get(), (200, 200)),
    ("an absolute target", get(first="GET http://localhost/v1/models?a=b HTTP/1.1"), (200,)),
    ("an absolute target in capitals",
     get(first="GET HTTP://LocalHost:1234/v1/models HTTP/1.1", host="localHost:1234"), (200,)),
    ("an absolute target and a body",
     post(LENGTH, JSON, first=f"POST http://localhost{PATH} HTTP/1.1") + get(), (200, 200)),
    ("an absolute target of HTTP/1.0",
     get(first="GET http://localhost/v1/models HTTP/1.0", host=""), (200,)),
    ("OPTIONS of a server", get(first="OPTIONS http://localhost HTTP/1.1"), (204,)),
    ("an upgrade that nobody here knows", get("Connection: Upgrade", "Upgrade: h2c"), (200,)),
    ("a host behind a proxy", get("X-Forwarded-Host: evil.example"), (200,)),
    ("IPv6", get(host="[::1]:1234"), (200,)),
    ("a host in upper case", get(host="LOCALHOST:1234"), (200,)),
    ("our own page", get("Origin: http://localhost"), (200,)),
    ("a request line of 4 KiB", get(first=FULL_LINE), (200,)),
    ("a head of 16 KiB", get("A: " + "a" * FILL), (200,)),
    ("64 headers", get(*(f"A{i}: b" for i in range(63))), (200,)),
    ("a body in chunks", chunked(body=chunks(1, 2, 3)), (200,)),
    ("chunks of one byte", chunked(body=chunks(*[1] * len(BODY))), (200,)),
    ("chunks, and a request", chunked(body=chunks(20)) + get(), (200, 200)),
    ("chunks in other letters",
     post("TRANSFER-ENCODING: \t Chunked ", JSON, body=chunks()), (200,)),
    ("a chunk whose size is in capitals",
     chunked(body=b"%X\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"), (200,)),
    ("a chunk whose size has zeros in front",
     chunked(body=N_BODY.zfill(16) + b"\r\n" + BODY + b"\r\n000\r\n\r\n"), (200,)),
    ("chunks with extensions",
     chunked(body=N_BODY + b';a;b=c \t;d="e;f"\r\n' + BODY + b"\r\n0 ;x=\xe9\r\n\r\n"), (200,)),
    ("chunks with trailers, and a request",
     chunked("Trailer: A, Content-Length",
             body=chunks(5)[:-2] + b"A: b\r\nContent-Length: 9\r\n\r\n") + get(), (200, 200)),
    ("64 trailers", chunked(body=chunks()[:-2] + b"A: b\r\n" * 64 + b"\r\n"), (200,)),
    ("an expectation of chunks", chunked("Expect: 100-continue", body=chunks(9)), (200,)),
    ("a GET in chunks, and a request",
     get(CHUNKED) + chunks(data=b"GET /") + get(), (200, 200)),
    # ---- the request line
    ("three empty lines first", b"\r\n" * 3 + GOOD, (400,)),
    ("three empty lines between two", GOOD + b"\r\n" * 3 + get(), (200, 400)),
    ("an empty line of a bare LF first", b"\n" + GOOD, (400,)),
    ("a bare CR first", b"\r" + GOOD, (400,)),
    ("an empty line of two CRs first", b"\r\r\n" + GOOD, (400,)),
    ("a space in an empty line first", b" \r\n" + GOOD, (400,)),
    ("only an empty line", b"\r\n", ()),
    ("only two empty lines", b"\r\n\r\n", ()),
    ("only four empty lines", b"\r\n" * 4, (400,)),
    ("HTTP/0.9", b"GET /\r\n\r\n", (400,)),
    ("a method alone", b"GET\r\n\r\n", (400,)),
    ("an answer", get(first="HTTP/1.1 200 OK"), (400,)),
    ("a word behind the version", get(first="GET / HTTP/1.1 x"), (400,)),
    ("a space in front", get(first=" GET / HTTP/1.1"), (400,)),
    ("a space behind", get(first="GET / HTTP/1.1 "), (400,)),
    ("two spaces", get(first="GET  / HTTP/1.1"), (400,)),
    ("a tab", get(first="GET\t/ HTTP/1.1"), (400,)),
    ("a space in the target", get(first="GET /a b HTTP/1.1"), (400,)),
    ("a method with a bracket", get(first="G(T / HTTP/1.1"), (400,)),
    ("a method beyond ASCII", get(first="G\u00c9T / HTTP/1.1"), (400,)),
    ("no target", get(first="GET  HTTP/1.1"), (400,)),
    ("a target of another server",
     get(first="GET http://evil.example/v1/models HTTP/1.1"), (400,)),
    ("a target of another server, and its host",
     get(first="GET http://evil.example/v1/models HTTP/1.1", host="evil.example"), (403,)),
    ("a target of this server, and another host",
     get(first="GET http://localhost/v1/models HTTP/1.1", host="evil.example"), (400,)),
    ("a target of another port", get(first="GET http://localhost:1/v1/models HTTP/1.1"), (400,)),
    ("a target of another server, from HTTP/1.0",
     get(first="GET http://evil.example/v1/models HTTP/1.0", host=""), (403,)),
    ("an absolute target without a host",
     get(first="GET http://localhost/v1/models HTTP/1.1", host=""), (400,)),
    ("a target with a user", get(first="GET http://a@localhost/v1/models HTTP/1.1"), (400,)),
    ("a target that names no server", get(first="GET http:///v1/models HTTP/1.1"), (400,)),
    ("a target with a broken port",
     get(first="GET http://localhost:x/v1/models HTTP/1.1", host="localhost:x"), (400,)),
    ("a target of another scheme", get(first="GET https://localhost/v1/models HTTP/1.1"), (400,)),
    ("a target of files", get(first="GET file:///v1/models HTTP/1.1"), (400,)),
    ("an absolute target with a fragment",
     get(first="GET http://localhost/v1/models#x HTTP/1.1"), (400,)),
    ("an authority as the target", get(first="CONNECT localhost:1234 HTTP/1.1"), (400,)),
    ("a target that is no path", get(first="GET v1 HTTP/1.1"), (400,)),
    ("GET *", get(first="GET * HTTP/1.1"), (400,)),
    ("a NUL in the target", get(first="GET /\x00 HTTP/1.1"), (400,)),
    ("a DEL in the target", get(first="GET /\x7f HTTP/1.1"), (400,)),
    ("a target beyond ASCII", get(first="GET /\u00e9 HTTP/1.1"), (400,)),
    ("a fragment in the target", get(first="GET /#x HTTP/1.1"), (400,)),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,)),
    ("HTTP/1.2", get(first="GET / HTTP/1.2"), (505,)),
    ("HTTP/0.9, said", get(first="GET / HTTP/0.9"), (505,)),
    ("HTTP/1.10", get(first="GET / HTTP/1.10"), (400,)),
    ("HTTP/1", get(first="GET / HTTP/1"), (400,)),
    ("a version in lower case", get(first="GET / http/1.1"), (400,)),
    ("another protocol", get(first="GET / RTSP/1.0"), (400,)),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    ("a request line over 4 KiB", get(first=FULL_LINE.replace("?", "?b")), (431,)),
    # ---- methods
    ("a method that nobody here knows", get(first="BREW / HTTP/1.1"), (405,)),
    ("a method in lower case", get(first="get /v1/models HTTP/1.1"), (405,)),
    ("TRACE", get(first="TRACE / HTTP/1.1"), (405,)),
    ("PUT with a body", post(LENGTH, JSON, first=f"PUT {PATH} HTTP/1.1"), (405,)),
    # ---- lines and headers
    ("only LFs", b"GET / HTTP/1.1\nHost: localhost\n\n", ()),
    ("only LFs, and an end", b"GET / HTTP/1.1\nHost: localhost\r\n\r\n", (400,)),
    ("a bare LF", get("A: b\nContent-Length: 5"), (400,)),
    ("a bare CR", get("Visible: a\rAuthorization: Bearer x"), (400,)),
    ("a CR too many", get("A: b\r"), (400,)),
    ("a header without a colon", get("nonsense", LENGTH), (400,)),
    ("a space before the colon", post(f"Content-Length : {len(BODY)}", JSON), (400,)),
    ("a tab before the colon", post(f"Content-Length\t: {len(BODY)}", JSON), (400,)),
    ("a space before the name", get(" A: b"), (400,)),
    ("a folded header", get("A: b", " continued"), (400,)),
    ("a header folded with a tab", get("A: b", "\tcontinued"), (400,)),
    ("a first header that is folded", get(" Host: localhost", host=""), (400,)),
    ("an empty header name", get(": x"), (400,)),
    ("a header name beyond ASCII", get("H\u00f6st: x"), (400,)),
    ("a header name with a bracket", get("A(b): x"), (400,)),
    ("a NUL in a name", get("A\x00: x"), (400,)),
    ("a NUL in a value", get("A: x\x00y"), (400,)),
    ("an ESC in a value", get("A: \x1b[2J"), (400,)),
    ("a DEL in a value", get("A: \x7f"), (400,)),
    ("a vertical tab in a value", get("A: a\x0bb"), (400,)),
    ("65 headers", get(*(f"A{i}: b" for i in range(64))), (431,)),
    ("a head over 16 KiB", get("A: " + "a" * (FILL + 1)), (431,)),
    ("a head that never ends", b"A: b\r\n" * 3000, (431,)),
    ("20,000 NULs", b"\x00" * 20_000, (431,)),
    # ---- hosts
    ("no host", get(host=""), (400,)),
    ("an empty host", get("Host:", host=""), (400,)),
    ("two hosts", get("Host: localhost"), (400,)),
    ("two hosts in one", get(host="localhost, localhost"), (400,)),
    ("a path in the host", get(host="localhost/v1/models?"), (400,)),
    ("user and host", get(host="a@localhost"), (400,)),
    ("a port without digits", get(host="localhost:"), (400,)),
    ("a port in letters", get(host="localhost:http"), (400,)),
    ("a port of six digits", get(host="localhost:123456"), (400,)),
    ("half of an IPv6 address", get(host="[::1"), (400,)),
    ("IPv6 without brackets", get(host="::1"), (400,)),
    ("a host in percent", get(host="loc%61lhost"), (400,)),
    ("a host beyond ASCII", get(host="l\u00f6calhost"), (400,)),
    ("a foreign host", get(host="evil.example"), (403,)),
    ("a host that looks like ours", get(host="localhost.evil.com"), (403,)),
    ("an address in a name", get(host="127.0.0.1.nip.io"), (403,)),
    ("0.0.0.0", get(host="0.0.0.0:1234"), (403,)),
    ("an address in one number", get(host="2130706433"), (403,)),
    ("another address of this machine", get(host="127.0.0.2"), (403,)),
    ("a trailing dot", get(host="localhost."), (403,)),
    ("a mapped address", get(host="[::ffff:7f00:1]"), (403,)),
    # ---- pages
    ("a foreign page", get("Origin: https://evil.example"), (403,)),
    ("a page in a sandbox", get("Origin: null"), (403,)),
    ("two origins", get("Origin: http://localhost", "Origin: https://evil.example"), (403,)),
    ("a foreign image tag", get("Sec-Fetch-Site: cross-site"), (403,)),
    ("another port's image tag", get("Sec-Fetch-Site: same-site"), (403,)),
    # ---- headers about the body
    ("no length", post(JSON), (411,)),
    ("chunks and a length", chunked(LENGTH, body=chunks()), (400,)),
    ("chunks and no length that is said", chunked("Content-Length: 0", body=chunks()), (400,)),
    ("chunks of HTTP/1.0",
     post(CHUNKED, JSON, body=chunks(), first=f"POST {PATH} HTTP/1.0"), (400,)),
    ("a GET of HTTP/1.0 in chunks",
     get(CHUNKED, first="GET /v1/models HTTP/1.0") + chunks(), (400,)),
    ("chunks in other words", post("Transfer-Encoding: xchunked", JSON, body=chunks()), (400,)),
    ("chunks in quotes", post('Transfer-Encoding: "chunked"', JSON, body=chunks()), (400,)),
    ("chunks with a parameter", post(f"{CHUNKED};a=b", JSON, body=chunks()), (400,)),
    ("chunks behind a comma", post("Transfer-Encoding: ,chunked", JSON, body=chunks()), (400,)),
    ("chunks behind a vertical tab",
     post("Transfer-Encoding: \x0bchunked", JSON, body=chunks()), (400,)),
    ("compressed chunks", post("Transfer-Encoding: gzip, chunked", JSON, body=chunks()), (400,)),
    ("chunks that are compressed",
     post("Transfer-Encoding: chunked, gzip", JSON, body=chunks()), (400,)),
    ("chunks of chunks",
     post("Transfer-Encoding: chunked, chunked", JSON, body=chunks()), (400,)),
    ("a transfer as it is", post("Transfer-Encoding: identity", JSON), (400,)),
    ("a transfer as it is, with a length",
     post("Transfer-Encoding: identity", LENGTH, JSON), (400,)),
    ("an empty transfer", post("Transfer-Encoding:", JSON, body=chunks()), (400,)),
    ("two transfers", post(CHUNKED, CHUNKED, JSON, body=chunks()), (400,)),
    ("two transfers, of which one is as it is",
     post(CHUNKED, "Transfer-Encoding: identity", JSON, body=chunks()), (400,)),
    ("a folded transfer",
     post("Transfer-Encoding:", " chunked", JSON, body=chunks()), (400,)),
    ("a space before the transfer's colon",
     post("Transfer-Encoding : chunked", JSON, body=chunks()), (400,)),
    ("two lengths that differ", post(LENGTH, "Content-Length: 6", JSON), (400,)),
    ("two lengths that agree", post(LENGTH, LENGTH, JSON), (400,)),
    ("a length with a sign", length(f"+{len(BODY)}"), (400,)),
    ("a length with an underscore", length("0_2"), (400,)),
    ("a length in letters", length("abc"), (400,)),
    ("a length in another script", length("\u00b2"), (400,)),
    ("a length in base 16", length("0x10"), (400,)),
    ("a length with a point", length("2.0"), (400,)),
    ("a length with an exponent", length("1e1"), (400,)),
    ("a length of 5,000 digits", length("9" * 5000), (400,)),
    ("a length of 20 zeros", length("0" * 20), (400,)),
    ("a negative length", length("-1"), (400,)),
    ("an empty length", length(""), (400,)),
    ("two lengths in one header", length("2, 2"), (400,)),
    ("a length of 16 GB", length("16000000000"), (413,)),
    ("a length of a quintillion", length("9" * 19), (413,)),
    ("one byte over the cap", length(f"{(4 << 20) + 1}"), (413,)),
    ("a GET with 16 GB", get("Content-Length: 16000000000"), (413,)),
    ("a GET with more than a head", get("Content-Length: 16385") + b"x" * 16385, (413,)),
    ("OPTIONS with more than a head",
     get("Content-Length: 16385", first="OPTIONS /v1/models HTTP/1.1") + b"x" * 16385, (413,)),
    ("an expectation with 99 GB",
     post("Content-Length: 99000000000", "Expect: 100-continue"), (413,)),
    ("no type", post(LENGTH), (415,)),
    ("an empty type", typed(""), (415,)),
    ("plain text", typed("text/plain"), (415,)),
    ("plain text that is called JSON", typed("text/plain; application/json"), (415,)),
    ("a form", typed("application/x-www-form-urlencoded"), (415,)),
    ("a form with files", typed("multipart/form-data; boundary=x"), (415,)),
    ("JSON in another charset", typed("application/json; charset=utf-16"), (415,)),
    ("almost JSON", typed("application/jsonl"), (415,)),
    ("two types in one", typed("application/json, text/plain"), (415,)),
    ("two types", post(LENGTH, JSON, JSON), (400,)),
    ("a compressed body", post(LENGTH, JSON, "Content-Encoding: gzip"), (415,)),
    ("a body compressed twice", post(LENGTH, JSON, "Content-Encoding: br, gzip"), (415,)),
    ("another expectation", post(LENGTH, JSON, "Expect: coffee"), (417,)),
    ("chunks of another type",
     post(CHUNKED, "Content-Type: text/plain", body=chunks()) + get(), (415,)),
    ("compressed data in chunks", chunked("Content-Encoding: gzip", body=chunks()), (415,)),
    # ---- chunks
    ("no chunk, and a request", chunked(body=chunks(data=b"")) + get(), (400, 200)),
    ("chunks of what is not JSON, and a request",
     chunked(body=chunks(data=b"\r\n0\r\n\r\n")) + get(), (400, 200)),
    *((f"a chunk whose size is {size!r}",
       chunked(body=size.replace(b"N", N_BODY) + b"\r\n" + BODY + b"\r\n0\r\n\r\n") + get(), (400,))
      for size in (b"", b" ", b"0xN", b"+N", b"-N", b"-0", b"0 N", b" N", b"N ", b"\tN", b"0_N",
                   b"N,", b"N a", b"g", b"\xb2", b'"N"', b"\0N", b"N\0", b"N;\0", b"N;\x7f",
                   b"N;\r", b"N;a\rb", b"N\r", b"N\r;", b"0" * 17, b"f" * 17, b"N;" + b"a" * 5000)),
    ("a chunk of 16 digits", chunked(body=b"f" * 16 + b"\r\n"), (413,)),
    ("a chunk one byte over the cap", chunked(body=b"400001\r\n"), (413,)),
    ("chunks one byte over the cap",
     chunked(body=N_BODY + b"\r\n" + BODY + b"\r\n%x\r\n" % ((4 << 20) + 1 - len(BODY))), (413,)),
    ("a GET in chunks with more than a head", get(CHUNKED) + b"4001\r\n", (413,)),
    ("a size with a bare LF", chunked(body=chunks().replace(b"\r\n", b"\n", 1)) + get(), (400,)),
    ("an extension with a bare LF",
     chunked(body=N_BODY + b";\n" + BODY + b"\r\n0\r\n\r\n") + get(), (400,)),
    ("a chunk with a bare LF behind it",
     chunked(body=N_BODY + b"\r\n" + BODY + b"\n0\r\n\r\n") + get(), (400,)),
    ("a chunk with a bare CR behind it",
     chunked(body=N_BODY + b"\r\n" + BODY + b"\r0\r\n\r\n") + get(), (400,)),
    ("a chunk with nothing behind it",
     chunked(body=N_BODY + b"\r\n" + BODY + b"0\r\n\r\n") + get(), (400,)),
    ("a chunk that is longer than its size",
     chunked(body=N_BODY + b"\r\n" + BODY + b"x\r\n0\r\n\r\n") + get(), (400,)),
    ("a chunk that is shorter than its size",
     chunked(body=N_BODY + b"\r\n" + BODY[1:] + b"\r\n0\r\n\r\n") + get(), (400,)),
    ("an empty line between chunks",
     chunked(body=N_BODY + b"\r\n" + BODY + b"\r\n\r\n0\r\n\r\n") + get(), (400,)),
    ("an end with a bare LF", chunked(body=chunks()[:-2] + b"\n") + get(), (400,)),
    ("an end with a bare CR", chunked(body=chunks()[:-2] + b"\r\r\n") + get(), (400,)),
    ("a request in place of the end", chunked(body=chunks()[:-2]) + get(), (400,)),
    ("a trailer without a colon", chunked(body=chunks()[:-2] + b"A\r\n\r\n") + get(), (400,)),
    ("a trailer with a space before the colon",
     chunked(body=chunks()[:-2] + b"A : b\r\n\r\n") + get(), (400,)),
    ("a folded trailer", chunked(body=chunks()[:-2] + b"A: b\r\n c\r\n\r\n") + get(), (400,)),
    ("a trailer with a bare LF", chunked(body=chunks()[:-2] + b"A: b\nC: d\r\n\r\n"), (400,)),
    ("a NUL in a trailer", chunked(body=chunks()[:-2] + b"A: \0\r\n\r\n"), (400,)),
    ("65 trailers", chunked(body=chunks()[:-2] + b"A: b\r\n" * 65 + b"\r\n"), (431,)),
    ("a trailer that never ends", chunked(body=chunks()[:-2] + b"A" * 5000), (400,)),
    ("more beside the data than it may have",
     get(CHUNKED) + b"1;%b\r\nx\r\n" % (b"a" * 4000) * 5, (400,)),
    ("a body that is no chunks", chunked(body=BODY), (400,)),
    ("a size that begins wrong", chunked(body=b"0x"), (400,)),
    ("a size that goes on too long", chunked(body=b"0" * 17), (400,)),
    ("a size with a space that is cut short", chunked(body=b"5 "), ()),
    ("an extension that is cut short", chunked(body=b"5 ;a\r"), ()),
    ("chunks that are cut short", chunked(body=chunks()[:-1]), ()),
    ("a chunk that is cut short", chunked(body=chunks()[:9]), ()),
    ("a size that is cut short", chunked(body=b"3"), ()),
    ("a byte behind the chunks", chunked(body=chunks(4)) + b"x", (200,)),
    # ---- bodies
    ("a body that is cut short", GOOD[:-1], ()),
    ("a head that is cut short", get()[:-1], ()),
    ("nothing at all", b"", ()),
    ("a byte behind the body", GOOD + b"x", (200,)),
    ("a request behind a body of another type", typed("text/plain") + get(), (415,)),
    ("an empty body, and a request", length("0").removesuffix(BODY) + get(), (400, 200)),
    ("half of JSON, and a request",
     post("Content-Length: 2", JSON, body=b'{"') + get(), (400, 200)),
    ("UTF-8 that is none, and a request",
     post("Content-Length: 9", JSON, body=b'{"a":"\xff"}') + get(), (400, 200)),
    ("a body that spells the end of a head, and a request",
     post("Content-Length: 4", JSON, body=b"\r\n\r\n") + get(), (400, 200)),
]  # fmt: skip


class Line:
    """A fake socket that delivers these parts, and then ends."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = [part for part in parts if part][::-1]

    def recv(self, n_bytes: int) -> bytes:
        part = self._parts.pop() if self._parts else b""
        if len(part) > n_bytes:
            self._parts.append(part[n_bytes:])
        return part[:n_bytes]

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def setsockopt(self, *_: Any) -> None:
        """Does nothing."""


def statuses(*parts: bytes) -> tuple[int, ...]:
    """The statuses for bytes that arrive in these parts, as if every path had a route."""
    line: Any = Line(parts)
    connection, found = Connection(line, DEFAULT_LIMITS), []
    while True:
        try:
            data = connection.read_head()
            if data is None:
                break
            head = wire.parse_head(data)
            LOOPBACK_GATE.check(head)
            most = DEFAULT_LIMITS.max_body if head.method == "POST" else DEFAULT_LIMITS.max_head
            n_body = wire.body_length(head, most)
            body = connection.read_chunks(most) if n_body is None else connection.read_body(n_body)
        except ApiError as err:
            found.append(err.status)
            break
        except ConnectionError:
            break
        found.append(STATUS_OF.get(head.method) or status_of_body(body))
        if not head.keep_alive:
            break
    return tuple(found)


STATUS_OF = {"GET": 200, "HEAD": 200, "OPTIONS": 204}


def status_of_body(body: bytes) -> int:
    try:
        wire.parse_json(body)
    except ApiError as err:
        return err.status
    return 200


def answers_of(data: bytes) -> list[tuple[int, bytes]]:
    """The status and the Connection header of each reply."""
    data = data.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    found = re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z].*?\r\nConnection: (\S+)\r\n", data, re.DOTALL)
    return [(int(status), connection) for status, connection in found]
