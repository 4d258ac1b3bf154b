"""`lmlite mcp` over its standard input and output, message by message."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.cli import mcp
from tests import REPOSITORY
from tests.support.house import House, until
from tests.support.server_process import RunningServer


class Program:
    """A program that has started `lmlite mcp`."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmlite", "mcp", "--url", url],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def tell(self, method: str, **params: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def send(self, request_id: Any, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        self.write(json.dumps(message).encode())

    def ask(self, request_id: Any, method: str, **params: Any) -> Any:
        self.send(request_id, method, **params)
        answer = self.read()
        assert (answer.pop("jsonrpc"), answer.pop("id")) == ("2.0", request_id)
        return answer.get("result") or answer

    def call(self, name: str, **arguments: Any) -> Any:
        return self.ask(name, "tools/call", name=name, arguments=arguments)

    def end(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(20)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as server:
        yield server


@pytest.fixture
def program(server: RunningServer) -> Iterator[Program]:
    program = Program(server.url)
    yield program
    assert program.end() == 0


@pytest.mark.parametrize(
    ("asked", "answered"),
    [*((version, version) for version in mcp.VERSIONS), ("1999-01-01", "2025-11-25"),
     (None, "2025-11-25")],
)  # fmt: skip
def test_a_version_that_both_know_is_agreed_on(
    program: Program, asked: str | None, answered: str
) -> None:
    found = program.ask(0, "initialize", protocolVersion=asked, capabilities={}, clientInfo={})
    assert found["protocolVersion"] == answered
    assert found["capabilities"] == {"tools": {}}
    assert found["serverInfo"]["name"] == "lmlite"
    program.tell("notifications/initialized")
    assert program.ask("x", "ping") == {"result": {}}


def test_the_tools_are_listed_with_their_arguments(program: Program) -> None:
    tools = {tool["name"]: tool for tool in program.ask(1, "tools/list")["tools"]}
    assert list(tools) == ["chat", "embed", "list_models"]
    assert tools["chat"]["inputSchema"]["required"] == ["prompt"]
    assert list(tools["embed"]["inputSchema"]["properties"]) == ["texts", "model"]


def test_a_chat_is_answered(program: Program, server: RunningServer) -> None:
    whole = server.chat("Say hello")["choices"][0]["message"]["content"]
    found = program.call("chat", prompt="Say hello", temperature=0)
    assert found == {"content": [{"type": "text", "text": whole}]}
    cut = program.call("chat", prompt="Count from 1 to 10.", max_tokens=2, system="Be brief.")
    assert cut["content"][1]["text"].startswith("(the answer is cut")


def test_texts_become_vectors(program: Program, server: RunningServer) -> None:
    rows = server.post("/v1/embeddings", input=["a", "b"]).json["data"]
    found = program.call("embed", texts=["a", "b"])
    assert found["structuredContent"] == {"embeddings": [row["embedding"] for row in rows]}
    assert json.loads(found["content"][0]["text"]) == found["structuredContent"]


def test_the_models_are_listed(program: Program) -> None:
    (model,) = program.call("list_models")["structuredContent"]["models"]
    assert model["id"] == "tiny"


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("chat", {}, "prompt is missing"),
        ("chat", {"prompt": 1}, "prompt is of type string"),
        ("chat", {"prompt": "a", "max_tokens": True}, "max_tokens is of type integer"),
        ("chat", {"prompt": "a", "x": 1}, "there is no argument x; there are prompt, system, model,"
         " max_tokens, temperature"),
        ("chat", {"prompt": "a", "max_tokens": -5}, None),
        ("chat", {"prompt": "a", "model": "b"}, None),
        ("embed", {"texts": "a"}, "texts is of type array"),
        ("list_models", {"x": 1}, "there is no argument x; there are none"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_tool_is_told_to_the_model(
    program: Program, name: str, arguments: Any, sentence: str | None
) -> None:
    found = program.call(name, **arguments)
    assert found["isError"] is True
    (content,) = found["content"]
    assert sentence is None or content["text"] == sentence
    assert program.ask(2, "ping") == {"result": {}}


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", mcp.PARSE_ERROR, None),
        (b"[" * 100_000, mcp.PARSE_ERROR, None),
        (b"\xff", mcp.PARSE_ERROR, None),
        (b"[]", mcp.INVALID_REQUEST, None),
        (b'{"id": 1, "method": "ping"}', mcp.INVALID_REQUEST, None),
        (b'{"jsonrpc": "2.0", "id": [], "method": "ping"}', mcp.INVALID_REQUEST, None),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', mcp.INVALID_REQUEST, None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}', mcp.INVALID_PARAMS, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "server/discover"}', mcp.NO_METHOD, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": [1]}', mcp.NO_METHOD, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}', mcp.INVALID_PARAMS, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}',
         mcp.INVALID_PARAMS, 1),
    ],
)  # fmt: skip
def test_a_wrong_message_gets_the_protocols_error(
    program: Program, line: bytes, code: int, request_id: int | None
) -> None:
    program.write(line)
    answer = program.read()
    assert (answer["id"], answer["error"]["code"]) == (request_id, code)
    assert program.ask(2, "ping") == {"result": {}}


def test_what_asks_for_nothing_gets_no_answer(program: Program) -> None:
    program.tell("notifications/roots/list_changed")
    program.tell("notifications/cancelled", requestId="unknown")
    program.tell("notifications/cancelled", requestId=[1])
    program.write(b'{"jsonrpc": "2.0", "id": 1, "result": {}}')
    program.write(b"")
    assert program.ask(2, "ping") == {"result": {}}


def test_a_message_that_is_too_long_is_refused(program: Program) -> None:
    program.write(b'"' + b"x" * mcp.MAX_LINE + b'"')
    assert program.read()["error"]["code"] == mcp.INVALID_REQUEST
    assert program.ask(2, "ping") == {"result": {}}


def test_a_cancelled_call_ends_in_the_server_and_is_not_answered(house: House) -> None:
    program = Program(f"http://127.0.0.1:{house.port}")
    program.send(1, "tools/call", name="chat", arguments={"prompt": "hang"})
    until(lambda: house.server.n_active == 1)
    program.send(1, "tools/call", name="list_models")
    assert program.read()["error"]["message"] == "this id is in use"
    program.tell("notifications/cancelled", requestId=1)
    until(lambda: house.server.n_active == 0)
    until(lambda: " 499 " in house.lines.getvalue())
    assert program.call("list_models")["structuredContent"]["models"]
    assert program.end() == 0


def test_the_end_of_the_input_ends_the_calls(house: House) -> None:
    program = Program(f"http://127.0.0.1:{house.port}")
    program.send(1, "tools/call", name="chat", arguments={"prompt": "hang"})
    until(lambda: house.server.n_active == 1)
    assert program.end() == 0
    until(lambda: house.server.n_active == 0)


def test_a_server_that_does_not_run_is_told_and_may_come_later(tmp_path: Any) -> None:
    url = f"unix:{tmp_path}/lmlite.sock"
    program = Program(url)
    found = program.call("chat", prompt="Hi")
    assert found["isError"] is True
    text = f"no server listens at {url}; start one with lmlite serve"
    assert found["content"][0]["text"] == text
    assert program.end() == 0
