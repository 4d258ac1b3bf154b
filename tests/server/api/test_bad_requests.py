"""Bad requests: each gets the right status, the four-key error, one log line, and no harm done."""

import base64
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.image_files import RED, png
from tests.support.server_process import RunningServer

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Bad:
    """One bad request and what is wrong with it."""

    name: str
    path: str
    body: Any
    status: int = 400
    param: str | None = None
    code: str | None = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def chat(name: str, param: str | None, code: str | None = None, **body: Any) -> Bad:
    return Bad(name, CHAT, {"messages": HI, **body}, param=param, code=code)


def turn(name: str, param: str, message: Any, code: str | None = None) -> Bad:
    return Bad(name, CHAT, {"messages": [message]}, param=f"messages.[0]{param}", code=code)


def text(name: str, param: str | None, code: str | None = None, **body: Any) -> Bad:
    return Bad(name, TEXT, {"prompt": "Hi", **body}, param=param, code=code)


MISSING = "missing_required_parameter"
RED_DOT = f"data:image/png;base64,{base64.b64encode(png(1, 1, RED)).decode()}"
ROWS = [
    # ---- bodies that are no request
    Bad("an empty body", CHAT, b""),
    Bad("half of JSON", CHAT, b'{"messages": ['),
    Bad("a list", CHAT, b"[]"),
    Bad("a text", CHAT, b'"hello"'),
    Bad("an empty object", CHAT, b"{}", param="messages", code=MISSING),
    Bad("NaN", CHAT, b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}'),
    Bad("infinity", CHAT, b'{"temperature":Infinity}'),
    Bad("a number beyond floats", CHAT, b'{"temperature":1e999}'),
    Bad("a number of 5,000 digits", CHAT, b'{"seed":' + b"1" * 5000 + b"}"),
    Bad("invalid UTF-8", CHAT, b'{"messages":[{"role":"user","content":"\xff\xfe"}]}'),
    Bad("the same key twice", CHAT, b'{"messages":[],"messages":[]}'),
    Bad("100,000 brackets", CHAT, b"[" * 100_000),
    Bad("100,000 objects", CHAT, b'{"a":' * 100_000),
    Bad("a million values", CHAT, b'{"a":[' + b"0," * 999_999 + b"0]}"),
    # ---- HTTP
    Bad("another type", CHAT, b"{}", 415, headers={"Content-Type": "text/plain"}),
    Bad("a compressed body", CHAT, b"{}", 415, headers={"Content-Encoding": "gzip"}),
    Bad("a body over the cap", CHAT, b" " * ((16 << 20) + 1), 413),
    Bad("an unknown route", "/v1/nothing", {}, 404),
    Bad("no route", "/none", None, 404, method="GET"),
    Bad("a GET of what is posted", CHAT, None, 405, code="method_not_supported", method="GET"),
    Bad("a POST of what is got", "/v1/models", {}, 405, code="method_not_supported"),
    Bad("a DELETE", "/v1/models/x", None, 405, code="method_not_supported", method="DELETE"),
    Bad("a method of one's own", "/health", None, 405, code="method_not_supported", method="BREW"),
    Bad("a foreign host", CHAT, {"messages": HI}, 403, headers={"Host": "evil.example"}),
    Bad("a foreign page", CHAT, {"messages": HI}, 403, headers={"Origin": "https://evil.example"}),
    Bad("an unknown model by GET", "/v1/models/nothing", None, 404, "model", "model_not_found",
        "GET"),
    # ---- fields of a chat
    Bad("an unknown model", CHAT, {"model": "gpt-4o", "messages": HI}, 404, "model",
        "model_not_found"),
    chat("a model that is a number", "model", model=5),
    chat("messages that are a text", "messages", messages="hi"),
    chat("no messages", "messages", messages=[]),
    turn("a message that is a text", "", "hi"),
    turn("a message without a role", ".role", {"content": "x"}, MISSING),
    turn("a message of an unknown role", ".role", {"role": "king", "content": "x"}),
    turn("a role that is a list", ".role", {"role": ["user"], "content": "x"}),
    turn("a message without content", ".content", {"role": "user"}, MISSING),
    turn("content that is a number", ".content", {"role": "user", "content": 5}),
    turn("a part that is a text", ".content.[0]", {"role": "user", "content": ["x"]}),
    turn("a part without a type", ".content.[0].type", {"role": "user", "content": [{}]}, MISSING),
    turn("an image that is none", ".content.[0]",
         {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}),
    turn("an image of the assistant", ".content",
         {"role": "assistant", "content": [{"type": "image_url", "image_url": RED_DOT}]},
         "unsupported_content"),
    turn("an image at a web address", ".content.[0]",
         {"role": "user", "content": [{"type": "image_url", "image_url": "https://a.b/c.png"}]}),
    turn("a text part without text", ".content.[0].text",
         {"role": "user", "content": [{"type": "text"}]}, MISSING),
    turn("a text that is a list", ".content.[0].text",
         {"role": "user", "content": [{"type": "text", "text": []}]}),
    turn("a name that is a number", ".name", {"role": "user", "content": "x", "name": 1}),
    chat("a tool without a function", "tools.[0].function", MISSING, tools=[{"type": "function"}]),
    chat("a form of answer that nobody knows", "response_format.type",
         response_format={"type": "xml"}),
    chat("a temperature in words", "temperature", temperature="hot"),
    chat("a temperature that is true", "temperature", temperature=True),
    chat("top_k with a fraction", "top_k", top_k=1.5),
    chat("max_tokens of -2", "max_tokens", max_tokens=-2),
    chat("max_tokens with a fraction", "max_tokens", max_tokens=1.0),
    chat("max_completion_tokens in words", "max_completion_tokens", max_completion_tokens="5"),
    chat("n of 0", "n", n=0),
    chat("n of 1,000", "n", n=1000),
    chat("stream in words", "stream", stream="yes"),
    chat("stream_options that are a list", "stream_options", stream=True, stream_options=[]),
    chat("include_usage in numbers", "stream_options.include_usage", stream=True,
         stream_options={"include_usage": 1}),
    chat("stop that is a number", "stop", stop=5),
    chat("a stop list with a null", "stop", stop=["a", None]),
    chat("17 stop strings", "stop", stop=["x"] * 17),
    chat("repeat_penalty of 0", "repeat_penalty", repeat_penalty=0),
    chat("a seed in words", "seed", seed="lucky"),
    chat("a seed beyond 64 bits", "seed", seed=2**64),
    chat("logit_bias that is a list", "logit_bias", logit_bias=[1]),
    chat("logit_bias of a word", "logit_bias", logit_bias={"hello": 1}),
    chat("logit_bias of a token that does not exist", "logit_bias",
         logit_bias={"99999999": 1}),
    chat("logprobs that are a number", "logprobs", logprobs=1),
    chat("top_logprobs without logprobs", "top_logprobs", top_logprobs=2),
    chat("top_logprobs of 21", "top_logprobs", logprobs=True, top_logprobs=21),
    chat("a prompt longer than the context", "messages", "context_length_exceeded",
         messages=[{"role": "user", "content": "word " * 9000}]),
    # ---- completions
    Bad("no prompt", TEXT, {}, param="prompt", code=MISSING),
    text("a prompt that is a number", "prompt", prompt=5),
    text("an empty list of prompts", "prompt", prompt=[]),
    text("a mixed list", "prompt", prompt=["a", 5]),
    text("an empty list of tokens", "prompt", prompt=[[]]),
    text("an empty prompt", "prompt", prompt=""),
    text("a negative token", "prompt", prompt=[-1]),
    text("a token that does not exist", "prompt", prompt=[5, 99999999]),
    text("a token that is true", "prompt", prompt=[True]),
    text("300 prompts", "prompt", prompt=["a"] * 300),
    text("logprobs of 6", "logprobs", logprobs=6),
    text("echo in words", "echo", echo="yes"),
    text("best_of", "best_of", "unsupported_best_of", best_of=3),
    text("a suffix for a vocabulary without tokens for it", "suffix", "unsupported_feature",
         suffix="end"),
    text("a suffix that is a list", "suffix", suffix=["end"]),
    text("a long prompt", "prompt", "context_length_exceeded", prompt=[1] * 5000),
    # ---- embeddings
    Bad("no input", EMBED, {}, param="input", code=MISSING),
    Bad("an empty input", EMBED, {"input": ""}, param="input"),
    Bad("an empty input among others", EMBED, {"input": ["a", ""]}, param="input"),
    Bad("no inputs", EMBED, {"input": []}, param="input"),
    Bad("a token beyond the vocabulary", EMBED, {"input": [99999999]}, param="input"),
    Bad("2,049 inputs", EMBED, {"input": ["a"] * 2049}, param="input"),
    Bad("an unknown encoding", EMBED, {"input": "a", "encoding_format": "hex"},
        param="encoding_format"),
    Bad("no dimensions", EMBED, {"input": "a", "dimensions": 0}, param="dimensions"),
    Bad("too many dimensions", EMBED, {"input": "a", "dimensions": 10**6}, param="dimensions"),
    Bad("a long input", EMBED, {"input": ["a", "word " * 9000]}, param="input",
        code="context_length_exceeded"),
    Bad("an unknown source of logs", "/log/stream?source=x", None, param="source", method="GET"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def test_the_table_is_long_enough_and_names_each_row_once() -> None:
    assert len(ROWS) >= 60
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("bad", ROWS, ids=[row.name for row in ROWS])
def test_a_bad_request_is_refused(server: RunningServer, bad: Bad) -> None:
    answer = server.request(bad.method, bad.path, bad.body, bad.headers)
    assert answer.status == bad.status, answer.body
    assert answer.headers["content-type"] == "application/json"
    error = answer.error
    assert (error["param"], error["code"]) == (bad.param, bad.code)
    assert error["message"]
    assert "Traceback" not in error["message"]
    where = bad.path.partition("?")[0]
    server.wait_for_log(rf"INFO    {bad.method} {where} {bad.status} \d+ ms(, 1 prompt tokens)?$")


def test_after_all_of_them_the_server_works_and_printed_one_line_each(
    server: RunningServer,
) -> None:
    assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"
    assert all(" INFO " in line for line in server.log), server.log
    assert len(server.log) <= len(ROWS) + 2


def test_the_index_of_an_input_that_is_too_long_is_named(server: RunningServer) -> None:
    answer = server.post(EMBED, input=["a", "b", "word " * 9000])
    assert "tokens. Input 2 is too long. " in answer.error["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "é" * 65_537}]},
            "your messages resulted in 2049 tokens. ",
        ),
        (TEXT, {"prompt": " " * 131_074}, "your prompt resulted in 2049 tokens. "),
        (
            EMBED,
            {"input": ["a", "é" * 65_537]},
            "your input resulted in 2049 tokens. Input 1 is too long. ",
        ),
    ],
    ids=["chat", "text", "embedding"],
)
def test_a_text_that_no_context_holds_is_refused_by_its_bytes(
    server: RunningServer, path: str, body: dict[str, Any], words: str
) -> None:
    answer = server.post(path, **body)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["message"] == (
        f"This model's maximum context length is 2048 tokens. However, {words}"
        "That is the least that 131074 bytes can be. Shorten the prompt: this model was trained "
        "for 2048 tokens (see --rope-scaling)."
    )


def test_the_right_methods_are_listed_with_a_405(server: RunningServer) -> None:
    assert server.get(CHAT).headers["allow"] == "POST, OPTIONS"
    assert server.post("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    for path in (CHAT, "/nothing"):
        unknown = server.request("BREW", path)
        assert (unknown.status, unknown.headers["allow"]) == (
            405,
            "GET, HEAD, POST, DELETE, OPTIONS",
        )


# ---- bytes that no client library would send -------------------------------------------------


def raw(server: RunningServer, data: bytes, ends: bool = True) -> bytes:
    """What the server answers to these bytes, to the end of the connection.

    Without `ends` it is the server that has to end it.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: localhost",
             b"Content-Type: application/json", *headers]  # fmt: skip
    return b"\r\n".join([*lines, b"", body])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (post(b"{}"), 411),
        (post(b"5;\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"), 400),
        (post(b"", b"Content-Length: 99000000000", b"Expect: 100-continue"), 413),
        (post(b"{}", b"Content-Length: 2", b"Expect: coffee"), 417),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nVisible: a\rEvil: b\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 431),
    ],
)
def test_malformed_bytes_get_a_status_and_the_connection_ends(
    server: RunningServer, data: bytes, status: int
) -> None:
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert b"Connection: close" in head


def test_a_refused_body_is_not_taken_for_the_next_request(server: RunningServer) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    length = b"Content-Length: %d" % len(smuggled)
    data = post(smuggled, length).replace(b"application/json", b"text/plain")
    assert raw(server, data).count(b"HTTP/1.1 ") == 1


def test_a_body_cut_short_is_not_answered_as_if_whole(server: RunningServer) -> None:
    assert raw(server, post(b'{"prompt": "Hi"}', b"Content-Length: 100")) == b""


def test_two_requests_on_one_connection_are_both_answered(server: RunningServer) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(server, one + one).count(b'{"status":"ready"') == 2


def test_a_client_that_asks_first_is_told_to_go_on(server: RunningServer) -> None:
    body = b'{"prompt": "Hi", "max_tokens": 1}'
    length = b"Content-Length: %d" % len(body)
    data = post(body, length, b"Expect: 100-continue", b"Connection: close")
    answer = raw(server, data, ends=False)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_head_and_options_are_answered_without_a_body(server: RunningServer) -> None:
    head = server.request("HEAD", "/v1/models")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    options = server.request("OPTIONS", CHAT)
    assert (options.status, options.body) == (204, b"")
    assert options.headers["allow"] == "POST, OPTIONS"
    everything = server.request("OPTIONS", "*")
    assert (everything.status, everything.headers["allow"]) == (204, "OPTIONS")
    watched = server.request("HEAD", "/log/stream")
    assert (watched.status, watched.body) == (200, b"")


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(server: RunningServer) -> None:
    body = b'{"prompt": "Hi", "max_tokens": 1, "stream": true}'
    data = post(body, b"Content-Length: %d" % len(body)).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, events = raw(server, data, ends=False).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")
