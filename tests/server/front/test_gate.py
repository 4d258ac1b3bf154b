"""Hosts, web pages and keys: which requests are let in, and what browsers are told."""

import hmac
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ApiError
from lmlite.server.front.gate import LOOPBACK_GATE, Gate, is_host, is_origin
from lmlite.server.front.keys import VARIABLE, is_known, read_keys
from lmlite.server.front.wire import body_length, parse_head
from tests import REPOSITORY
from tests.support.house import CHAT, WAIT_S, House
from tests.support.raw_requests import get, post
from tests.support.server_process import START_S, RunningServer

APP, OTHER = "https://app.example", "https://evil.example"
DEV = "http://localhost:3000"
KEY, SECOND = b"0123456789abcdef", b"sk-second-key-of-many"
OPEN = Gate(LOOPBACK_GATE.hosts | {"my.lan"}, any_address=True, keys=(KEY, SECOND))
KEYED = Gate(keys=(KEY,))
LOCAL_NAMES = ("host.docker.internal", "Host.Docker.Internal:1234", "host.containers.internal",
               "board.local", "My-Board.local:80", "a.b.local")  # fmt: skip
FOREIGN_NAMES = ("evil.internal", "evil.docker.internal", "host.docker.internal.evil.example",
                 "host.a.b.internal", "host..internal", "evil.local.example", "evil-local",
                 ".local", "local", "a..local", "board.local.",
                 "host.docker.internal.")  # fmt: skip
EXPOSED = "Retry-After, X-Ignored-Params, X-Ignored-Schema, X-Prefix-Key, X-Request-Id"
CORS = Gate(origins=frozenset({APP, DEV}))
EXTENSION = "chrome-extension://abcdefghijklmnop"
PATTERNS = Gate(origins=frozenset({"chrome-extension://*", "app://*"}))
SANDBOX = Gate(origins=frozenset({"null"}), keys=(KEY,))
ALL = Gate(origins=frozenset({"*"}), keys=(KEY,))


def status(gate: Gate, *lines: str, first: str = "GET /v1/models HTTP/1.1", **more: str) -> int:
    """What the gate makes of a request: 200, or why not."""
    head = parse_head(get(*lines, first=first, **more))
    try:
        gate.check(head)
        if head.method != "OPTIONS":
            gate.check_key(head)
            body_length(head, 1000)
    except ApiError as err:
        return err.status
    return 200


# ---- browsers --------------------------------------------------------------------------------

OPTIONS = "OPTIONS /v1/chat/completions HTTP/1.1"
JSON, TEXT = "Content-Type: application/json", "Content-Type: text/plain"
# (gate, host, method, its other headers, status)
PAGES: list[tuple[Gate, str, str, list[str], int]] = [
    # A page whose name was made to lead here, and names that look like ours.
    (LOOPBACK_GATE, "localhost:1234", "GET", [], 200),
    (LOOPBACK_GATE, "127.0.0.1", "GET", [], 200),
    (LOOPBACK_GATE, "[::1]:1234", "GET", [], 200),
    (LOOPBACK_GATE, "evil.example:1234", "GET", [], 403),
    (LOOPBACK_GATE, "evil.example", "POST", [JSON, "Origin: http://evil.example"], 403),
    (LOOPBACK_GATE, "localhost.evil.com", "GET", [], 403),
    (LOOPBACK_GATE, "127.0.0.1.nip.io", "GET", [], 403),
    (LOOPBACK_GATE, "localhost.", "GET", [], 403),
    (LOOPBACK_GATE, "0.0.0.0:1234", "GET", [], 403),
    (LOOPBACK_GATE, "[::]:1234", "GET", [], 403),
    (LOOPBACK_GATE, "[::ffff:7f00:1]", "GET", [], 403),
    (LOOPBACK_GATE, "192.168.1.5", "GET", [], 403),
    (LOOPBACK_GATE, "127.1", "GET", [], 403),
    (LOOPBACK_GATE, "localhost/v1/models?", "GET", [], 400),
    (LOOPBACK_GATE, "user@localhost", "GET", [], 400),
    (LOOPBACK_GATE, "localhost:1234@evil.example", "GET", [], 400),
    (LOOPBACK_GATE, "localhost#evil.example", "GET", [], 400),
    (LOOPBACK_GATE, "localhost\\evil.example", "GET", [], 400),
    # Pages of other origins, another port of this machine included.
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: http://localhost:1234"], 200),
    (LOOPBACK_GATE, "localhost:1234", "POST", [JSON, "Origin: http://LOCALHOST:1234"], 200),
    (LOOPBACK_GATE, "localhost", "POST", [JSON, "Origin: https://localhost"], 200),
    (LOOPBACK_GATE, "localhost:1234", "GET", [f"Origin: {DEV}"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: http://127.0.0.1:1234"], 403),
    (LOOPBACK_GATE, "localhost:1234", "POST", [JSON, f"Origin: {OTHER}"], 403),
    (LOOPBACK_GATE, "localhost:1234", "POST", [TEXT, f"Origin: {OTHER}"], 403),
    (LOOPBACK_GATE, "localhost:1234", "OPTIONS", [f"Origin: {OTHER}"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: null"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin:"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: http://localhost:1234.evil.example"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: http://a@localhost:1234"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Origin: file://localhost:1234"], 403),
    # Forms and images, which need no permission to be sent.
    (LOOPBACK_GATE, "localhost:1234", "POST", [TEXT], 415),
    (LOOPBACK_GATE, "localhost:1234", "POST", ["Content-Type: multipart/form-data"], 415),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: cross-site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "POST", [JSON, "Sec-Fetch-Site: cross-site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: same-site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "POST", [JSON, "Sec-Fetch-Site: same-site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "HEAD", ["Sec-Fetch-Site: same-site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: Cross-Site"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site:"], 403),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: none, same-site"], 403),
    (CORS, "localhost:1234", "GET", ["Sec-Fetch-Site: same-site"], 403),
    (CORS, "localhost:1234", "GET", ["Sec-Fetch-Site: same-site", f"Origin: {DEV}"], 200),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: none"], 200),
    (LOOPBACK_GATE, "localhost:1234", "GET", ["Sec-Fetch-Site: same-origin"], 200),
    # Origins that are in the list, to the letter.
    (CORS, "localhost:1234", "POST", [JSON, f"Origin: {APP}", "Sec-Fetch-Site: cross-site"], 200),
    (CORS, "localhost:1234", "OPTIONS", [f"Origin: {DEV}"], 200),
    (CORS, "localhost:1234", "GET", ["Origin: http://app.example"], 403),
    (CORS, "localhost:1234", "GET", [f"Origin: {APP}:8443"], 403),
    (CORS, "localhost:1234", "GET", [f"Origin: {APP}."], 403),
    (CORS, "localhost:1234", "GET", [f"Origin: {APP}, {APP}"], 403),
    (CORS, "localhost:1234", "GET", [f"Origin: {OTHER}"], 403),
    (CORS, "localhost:1234", "GET", ["Origin: null"], 403),
    (CORS, "evil.example", "GET", [f"Origin: {APP}"], 403),
    (CORS, "localhost:1234", "POST", [TEXT, f"Origin: {APP}"], 415),
    # Origins that are in the list by a pattern.
    (PATTERNS, "localhost:1234", "POST", [JSON, f"Origin: {EXTENSION}"], 200),
    (PATTERNS, "localhost:1234", "GET", ["Origin: app://obsidian.md"], 200),
    (PATTERNS, "localhost:1234", "GET", ["Origin: moz-extension://abcdef"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: chrome-extension://"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: chrome-extension://*"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: chrome-extension://a/b"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: Chrome-Extension://abcdef"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: https://chrome-extension"], 403),
    (PATTERNS, "localhost:1234", "GET", [f"Origin: {OTHER}"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Origin: null"], 403),
    (PATTERNS, "localhost:1234", "GET", ["Sec-Fetch-Site: cross-site"], 403),
    (SANDBOX, "localhost:1234", "OPTIONS", ["Origin: null"], 200),
    (SANDBOX, "localhost:1234", "GET", ["Origin: null"], 401),
    (SANDBOX, "localhost:1234", "GET", ["Origin: null", f"X-Api-Key: {KEY.decode()}"], 200),
    (SANDBOX, "localhost:1234", "GET", [f"Origin: {OTHER}"], 403),
    (SANDBOX, "localhost:1234", "GET", ["Origin: null://a"], 403),
    (ALL, "localhost:1234", "OPTIONS", [f"Origin: {OTHER}"], 200),
    (ALL, "localhost:1234", "OPTIONS", ["Origin: null"], 200),
    (ALL, "localhost:1234", "GET", [f"Origin: {OTHER}"], 401),
    (ALL, "localhost:1234", "GET", [f"Origin: {OTHER}", f"X-Api-Key: {KEY.decode()}"], 200),
    (ALL, "localhost:1234", "GET", ["Origin: *"], 403),
    (ALL, "localhost:1234", "GET", ["Origin:"], 403),
    (ALL, "localhost:1234", "GET", ["Origin: https://a\x85b.example"], 403),
    (ALL, "evil.example", "GET", [f"Origin: {OTHER}"], 403),
    (ALL, "localhost:1234", "GET", ["Sec-Fetch-Site: cross-site"], 403),
    # A server that other machines reach has addresses, and the names that it was given.
    (OPEN, "192.168.1.5:1234", "OPTIONS", [], 200),
    (OPEN, "[fe80::1]", "OPTIONS", [], 200),
    (OPEN, "MY.lan:1234", "OPTIONS", [], 200),
    (OPEN, "evil.example", "OPTIONS", [], 403),
    (OPEN, "192.168.1.5.nip.io", "OPTIONS", [], 403),
    (OPEN, "3232235781", "OPTIONS", [], 403),
    (OPEN, "0.0.0.0:1234", "OPTIONS", [], 403),
    (OPEN, "[::]", "OPTIONS", [], 403),
    # What containers and neighbours call this machine, where a key is asked for.
    *((KEYED, name, "OPTIONS", [], 200) for name in LOCAL_NAMES),
    *((OPEN, name, "OPTIONS", [], 200) for name in LOCAL_NAMES),
    *((LOOPBACK_GATE, name, "OPTIONS", [], 403) for name in LOCAL_NAMES),
    *((KEYED, name, "OPTIONS", [], 403) for name in FOREIGN_NAMES),
    (KEYED, "board.local:1234", "GET", ["Origin: http://board.local:1234"], 401),
    (KEYED, "board.local:1234", "GET", ["Origin: http://other.local:1234"], 403),
    (KEYED, "192.168.1.5", "OPTIONS", [], 403),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "host", "method", "lines", "expected"), PAGES)
def test_a_browser_is_let_in_or_kept_out(
    gate: Gate, host: str, method: str, lines: list[str], expected: int
) -> None:
    first = f"{method} /v1/chat/completions HTTP/1.1"
    lines = [*lines, "Content-Length: 2"] if method == "POST" else lines
    assert status(gate, *lines, first=first, host=host) == expected


def headers(gate: Gate, *lines: str, first: str = OPTIONS) -> dict[str, str]:
    head = parse_head(get(*lines, first=first))
    return dict(gate.headers(head) + gate.preflight_headers(head))


def test_without_listed_origins_no_headers_for_browsers_are_sent() -> None:
    assert headers(LOOPBACK_GATE, f"Origin: {APP}") == {}


def test_only_pages_of_listed_origins_may_ask_and_read() -> None:
    told = {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Expose-Headers": EXPOSED,
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": "Authorization, *",
        "Access-Control-Max-Age": "600",
    }
    assert headers(CORS, f"Origin: {APP}") == told
    assert headers(CORS, f"Origin: {OTHER}") == headers(CORS) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    ("gate", "origin"),
    [(PATTERNS, EXTENSION), (SANDBOX, "null"), (ALL, OTHER), (ALL, "null"), (ALL, DEV)],
)
def test_a_page_that_a_pattern_lets_in_gets_its_own_origin_back(gate: Gate, origin: str) -> None:
    told = headers(gate, f"Origin: {origin}", "Access-Control-Request-Private-Network: true")
    assert (told["Access-Control-Allow-Origin"], told["Vary"]) == (origin, "Origin")
    assert told["Access-Control-Allow-Private-Network"] == "true"
    assert headers(gate, "Origin: https://a, https://b") == {"Vary": "Origin"}


def test_only_listed_pages_may_reach_a_private_network() -> None:
    asks = "Access-Control-Request-Private-Network: true"
    name = "Access-Control-Allow-Private-Network"
    assert headers(CORS, f"Origin: {APP}", asks)[name] == "true"
    for gate, origin in ((CORS, OTHER), (CORS, "null"), (LOOPBACK_GATE, APP)):
        assert name not in headers(gate, f"Origin: {origin}", asks)
    assert name not in headers(CORS, f"Origin: {APP}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (APP, True),
        (DEV, True),
        ("http://[::1]:3000", True),
        ("app://obsidian.md", True),
        ("chrome-extension://abcdef", True),
        ("chrome-extension://*", True),
        ("vscode-webview://*", True),
        ("null", True),
        ("*", True),
        ("**", False),
        ("://*", False),
        ("http://*", False),
        ("https://*", False),
        ("*://*", False),
        ("chrome-extension://*:1", False),
        ("Chrome-Extension://*", False),
        ("https://*.example", False),
        ("https://app.example/", False),
        ("https://app.example/path", False),
        ("https://App.example", False),
        ("https://app.example:443", False),
        ("http://app.example:80", False),
        ("app.example", False),
        ("https://a@app.example", False),
        ("https://app.example, https://b.example", False),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(text: str, expected: bool) -> None:
    assert is_origin(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my.lan", True),
        ("host.docker.internal", True),
        ("192.168.1.5", True),
        ("[fe80::1]", True),
        ("my.lan:1234", False),
        ("http://my.lan", False),
        ("*", False),
        ("", False),
        ("0.0.0.0", False),
        ("[::]", False),
    ],
)
def test_an_allowed_host_has_no_port_and_means_one_machine(text: str, expected: bool) -> None:
    assert is_host(text) is expected


# ---- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], 401),
        (["Authorization: Bearer 0123456789abcdef"], 200),
        (["Authorization: bearer   sk-second-key-of-many"], 200),
        (["X-Api-Key: sk-second-key-of-many"], 200),
        (["Authorization: Bearer wrong", "X-Api-Key: 0123456789abcdef"], 200),
        (["Authorization: Bearer 0123456789abcdef", "X-Api-Key: wrong"], 200),
        (["Authorization: Bearer 0123456789abcde"], 401),
        (["Authorization: Bearer 0123456789abcdef0"], 401),
        (["Authorization: Bearer 0123456789ABCDEF"], 401),
        (["Authorization: Bearer"], 401),
        (["Authorization: Bearer "], 401),
        (["Authorization: 0123456789abcdef"], 401),
        (["Authorization: Basic 0123456789abcdef"], 401),
        (["Authorization: Bearer 0123456789abcdef, sk-second-key-of-many"], 401),
        (["Authorization: Bearer caf\u00e9-\u00ff\u00e9-not-a-key"], 401),
        (["X-Api-Key:"], 401),
        (["X-Api-Key: 0123456789abcdef", "X-Api-Key: 0123456789abcdef"], 401),
        (["Cookie: key=0123456789abcdef"], 401),
    ],
)
def test_a_request_needs_one_of_the_keys(lines: list[str], expected: int) -> None:
    assert status(OPEN, *lines) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/health", 200),
        ("/health?x=1", 200),
        ("/health/", 401),
        ("//health", 401),
        ("/Health", 401),
        ("/%68ealth", 401),
        ("/health%3f", 401),
        ("/health;x", 401),
        ("/x/../health", 401),
        ("/v1/models?/health", 401),
        ("/v1/models", 401),
        ("/metrics", 401),
        ("/log/stream", 401),
        ("/nothing", 401),
        ("/", 401),
    ],
)
def test_without_a_key_only_the_exact_path_of_health_is_open(target: str, expected: int) -> None:
    assert status(OPEN, first=f"GET {target} HTTP/1.1") == expected


def test_a_browser_asks_before_it_shows_a_key() -> None:
    assert status(OPEN, first=OPTIONS) == 200


def test_a_server_without_keys_asks_for_none() -> None:
    assert status(LOOPBACK_GATE) == status(LOOPBACK_GATE, "Authorization: Bearer lm-studio") == 200


def test_an_offered_key_is_compared_with_every_key_even_after_a_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(
        "lmlite.server.front.keys.hmac", type("Spy", (), {"compare_digest": compare})
    )
    assert is_known(KEY, (KEY, SECOND))
    assert compared == [KEY, SECOND]
    compared.clear()
    assert status(OPEN, f"X-Api-Key: {KEY.decode()}", "Authorization: Bearer x") == 200
    assert compared == [KEY, SECOND] * 2


def test_keys_come_from_a_file_and_the_environment_where_they_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("first-key-0123456\r\n\n  second-key-012345 ,third-key-0123456\n")
    monkeypatch.setenv(VARIABLE, "fourth-key-012345,fifth-key-0123456")
    assert read_keys(str(path)) == (
        b"first-key-0123456", b"second-key-012345", b"third-key-0123456",
        b"fourth-key-012345", b"fifth-key-0123456",
    )  # fmt: skip
    assert VARIABLE not in os.environ
    assert read_keys(None) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        (" \n,\n", "holds no key"),
        ("0123456789abcde", "is not of 16 or more letters, digits and signs"),
        ("0123456789abcdef\nshort", "is not of 16 or more letters, digits and signs"),
        ("0123456789 abcdef", "is not of 16 or more letters, digits and signs"),
        ("0123456789abcdef\u00e9", "is not of 16 or more letters, digits and signs"),
        ("0123456789abcdef\x00", "is not of 16 or more letters, digits and signs"),
    ],
)
def test_malformed_keys_are_refused_by_a_message_that_does_not_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_keys(str(path))
    assert str(path) in str(caught.value)
    assert not any(word in str(caught.value) for word in ("0123", "short"))
    if "\x00" not in text:
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(ValueError, match=f"{VARIABLE} .*"):
            read_keys(None)


def test_a_key_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the keys in .*none cannot be read: .*No such file"):
        read_keys(str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"the keys in .*bytes cannot be read"):
        read_keys(str(tmp_path / "bytes"))


# ---- over HTTP -------------------------------------------------------------------------------

GUARDED = Gate(origins=frozenset({APP}), keys=(KEY,))
MESSAGES = "/v1/messages"
BEARER = {"Authorization": f"Bearer {KEY.decode()}"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes


def ask(house: House, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    with closing(house.connect()) as connection:
        data = None if body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            sent["Content-Type"] = "application/json"
        connection.request(method, path, data, sent)
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read())


def test_without_a_key_health_tells_only_the_status(open_house: Any) -> None:
    house = open_house(gate=GUARDED)
    chat = {"messages": [{"role": "user", "content": "echo x"}]}
    for method, path, body in (
        ("GET", "/v1/models", None), ("GET", "/metrics", None), ("GET", "/log/stream", None),
        ("POST", CHAT, chat), ("GET", "/nothing", None), ("HEAD", "/v1/models", None),
        ("POST", "/v1/models", {}),
    ):  # fmt: skip
        reply = ask(house, method, path, body)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert house.get("/health") == (200, {"status": "ready"})
    assert ask(house, "POST", CHAT, chat, **BEARER).status == 200
    assert ask(house, "GET", "/nothing", **BEARER).status == 404


def test_only_clients_with_a_key_are_told_why_a_model_does_not_load(open_house: Any) -> None:
    house = open_house("broken", gate=GUARDED)
    house.supervisor.wait_until_settled(WAIT_S)
    assert house.get("/health") == (503, {"status": "failed"})
    assert house.get("/health", **BEARER)[1]["reason"] == "llama.cpp cannot load fake.gguf"


def test_the_error_for_a_missing_key_has_the_form_of_the_api(open_house: Any) -> None:
    house = open_house(gate=GUARDED)
    message = "this server asks for a key: Authorization: Bearer KEY"
    assert json.loads(ask(house, "GET", "/v1/models").body) == {
        "error": {"message": message, "type": "invalid_request_error", "param": None,
                  "code": "invalid_api_key"}
    }  # fmt: skip
    body = json.loads(ask(house, "POST", MESSAGES, {}).body)
    assert body["error"] == {"type": "authentication_error", "message": message}


def test_the_log_never_shows_keys(open_house: Any) -> None:
    house = open_house(gate=GUARDED)
    key, wrong = KEY.decode(), "fedcba9876543210"
    ask(house, "GET", f"/v1/models?key={key}", **BEARER)
    ask(house, "GET", f"/v1/models?key={wrong}", X_Api_Key=wrong)
    ask(house, "GET", "/v1/models", Authorization=f"Bearer {wrong}")
    house.exchange(f"GET /v1/models HTTP/1.1\r\nAuthorization {key}\r\n\r\n".encode())
    text = "\n".join(house.logged(4))
    assert key not in text
    assert wrong not in text


def test_a_listed_page_may_read_every_reply_errors_and_streams_included(
    open_house: Any,
) -> None:
    house = open_house(gate=GUARDED)
    chat = {"messages": [{"role": "user", "content": "echo x"}]}
    replies = [
        ask(house, "GET", "/v1/models", Origin=APP),
        ask(house, "GET", "/v1/models", Origin=APP, **BEARER),
        ask(house, "GET", "/nothing", Origin=APP, **BEARER),
        ask(house, "POST", CHAT, {}, Origin=APP, **BEARER),
        ask(house, "POST", CHAT, chat, Origin=APP, **BEARER),
        ask(house, "POST", CHAT, {**chat, "stream": True}, Origin=APP, **BEARER),
    ]
    assert [reply.status for reply in replies] == [401, 200, 404, 400, 200, 200]
    for reply in replies:
        assert reply.headers["Access-Control-Allow-Origin"] == APP
        assert reply.headers["Vary"] == "Origin"
        assert reply.headers["Access-Control-Allow-Credentials"] is None


def test_a_foreign_page_is_refused_before_anything_is_done(open_house: Any) -> None:
    house = open_house(gate=GUARDED)
    chat = {"messages": [{"role": "user", "content": "echo x"}]}
    for origin in (OTHER, "null"):
        reply = ask(house, "POST", CHAT, chat, Origin=origin, **BEARER)
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (403, None)
        reply = ask(house, "OPTIONS", CHAT, Origin=origin)
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (403, None)
    # Its body is not waited for.
    head = post(
        "Content-Length: 1000", "Content-Type: application/json", f"Origin: {OTHER}", body=b""
    )
    assert house.exchange(head).startswith(b"HTTP/1.1 403 ")


def test_a_browser_is_told_what_a_listed_page_may_send(open_house: Any) -> None:
    house = open_house(gate=GUARDED)
    reply = ask(house, "OPTIONS", CHAT, Origin=APP, Access_Control_Request_Method="POST",
                Access_Control_Request_Private_Network="true")  # fmt: skip
    assert (reply.status, reply.body) == (204, b"")
    told = {name: value for name, value in reply.headers.items() if name.startswith("Access-")}
    assert told == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Expose-Headers": EXPOSED,
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": "Authorization, *",
        "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Private-Network": "true",
    }
    assert reply.headers["Allow"] == "POST, OPTIONS"


# ---- the command line ------------------------------------------------------------------------


def serve(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lmlite", "serve", "--port", "0", *arguments],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=START_S,
    )  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_others_could_reach_does_not_start_without_a_key(host: str) -> None:
    done = serve("--host", host)
    assert (done.returncode, done.stderr) == (
        2,
        "lmlite: other machines would reach this server, so it has to ask for a key: name a file "
        "with --api-key-file, or set LMLITE_API_KEY\n",
    )


@pytest.mark.parametrize(
    ("arguments", "strangers"),
    [
        (["--cors-origin", "*"], "all web pages"),
        (["--cors-origin", "null"], "all web pages"),
        (["--cors-origin", APP, "--cors-origin", "*"], "all web pages"),
        (["--cors-origin", "*", "--host", "0.0.0.0"], "other machines and all web pages"),
    ],
)
def test_a_server_that_every_page_could_use_does_not_start_without_a_key(
    arguments: list[str], strangers: str
) -> None:
    done = serve(*arguments)
    assert (done.returncode, done.stderr) == (
        2,
        f"lmlite: {strangers} would reach this server, so it has to ask for a key: name a file "
        "with --api-key-file, or set LMLITE_API_KEY\n",
    )


def test_a_malformed_key_ends_the_server_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    done = serve(LMLITE_API_KEY="short")
    sentence = "a key in LMLITE_API_KEY is not of 16 or more letters, digits and signs"
    assert (done.returncode, done.stderr) == (2, f"lmlite: {sentence}\n")
    done = serve("--api-key-file", str(tmp_path / "none"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_keys_names_and_origins_of_the_command_line_hold_and_no_worker_sees_a_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY.decode())
    arguments = ("--api-key-file", str(path), "--allow-host", "My.lan", "--cors-origin", "*")
    with RunningServer(*arguments, LMLITE_API_KEY=SECOND.decode()) as server:
        for key in (KEY, SECOND):
            headers = {"X-Api-Key": key.decode(), "Host": "my.lan:80", "Origin": APP}
            reply = server.request("GET", "/v1/models", headers=headers)
            assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, APP)
        assert server.get("/v1/models").status == 401
        assert server.get("/health").json == {"status": "ready"}
        health = server.request("GET", "/health", headers=BEARER).json
        assert health.keys() == {"status", "cpu", "memory"}
        environment = Path(f"/proc/{server.worker_pid()}/environ").read_bytes()
        assert b"PATH=" in environment
        assert SECOND not in environment
        assert b"LMLITE_API_KEY" not in environment
