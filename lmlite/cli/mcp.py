"""`lmlite mcp`: offers the models of a running server as tools, to programs that speak MCP.

The program starts this command, and sends it JSON-RPC 2.0 messages, one per line of standard
input; answers go to standard output. This speaks the revisions of the Model Context Protocol that
begin with `initialize`. Each call is a request to the server at --url, in a thread of its own, and
its cancellation closes the connection, which ends the work in the server.
"""

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
from typing import Any

import lmlite
from lmlite.cli.client import Client, Json
from lmlite.cli.flags import MCP_FLAGS, CommandError, Commands

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # of the protocol
MAX_LINE = 16 << 20  # bytes of a message
MAX_CALLS = 64  # at the same time; the server has a queue of its own
PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602

_MODEL = {"type": "string", "description": "a name from list_models; if absent, the default model"}
_CHAT = {
    "prompt": {"type": "string", "description": "what to ask"},
    "system": {"type": "string", "description": "what the model is told first"},
    "model": _MODEL,
    "max_tokens": {"type": "integer", "description": "most tokens of the answer"},
    "temperature": {"type": "number", "description": "0 for the likeliest answer"},
}
_EMBED = {
    "texts": {"type": "array", "items": {"type": "string"}, "description": "the texts to embed"},
    "model": _MODEL,
}
_KINDS: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "array": list}


def _tool(name: str, description: str, properties: Json, *required: str) -> Json:
    schema = {"type": "object", "properties": properties, "required": list(required),
              "additionalProperties": False}  # fmt: skip
    hints = {"readOnlyHint": True, "openWorldHint": False}
    return {"name": name, "description": description, "inputSchema": schema, "annotations": hints}


TOOLS = {
    tool["name"]: tool
    for tool in (
        _tool("chat", "Ask a local language model, and get its answer.", _CHAT, "prompt"),
        _tool("embed", "Turn texts into vectors whose cosine tells how close they are in meaning.",
              _EMBED, "texts"),
        _tool("list_models", "List the local models, with their types and context sizes.", {}),
    )
}  # fmt: skip


def add_to(commands: Commands) -> None:
    """Declares the command."""
    mcp = commands.add_parser(
        "mcp",
        help="offer the models as tools over MCP",
        description="Offer the models of the server at --url as tools (chat, embed, list_models) "
        "to a program that speaks MCP over standard input and output.",
    )
    mcp.set_defaults(run=run)
    for flag in MCP_FLAGS:
        flag.add_to(mcp)


def run(given: argparse.Namespace) -> int:
    """Answers messages until standard input ends. Raises CommandError."""
    host = Host(Client.of(given))
    while line := sys.stdin.buffer.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = sys.stdin.buffer.readline(MAX_LINE)
            host.refuse(None, INVALID_REQUEST, f"the message is over {MAX_LINE:,} bytes")
        elif line.strip():
            host.take(line)
    return 0


class Host:
    """The program at the other end, and its calls that are running."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()  # guards the calls and standard output
        self._calls: dict[str | int, socket.socket | None] = {}  # None until it is connected

    def take(self, line: bytes) -> None:
        """Reads one message, and answers it unless it is a notification or a tool has to."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self.refuse(None, PARSE_ERROR, "the message is no JSON")
            return
        if type(message) is not dict or message.get("jsonrpc") != "2.0":
            self.refuse(None, INVALID_REQUEST, "a message is one object of JSON-RPC 2.0")
            return
        method, params = message.get("method"), message.get("params", {})
        request_id: Any = message.get("id")
        if "method" not in message:
            return  # an answer; this asks for nothing
        if "id" not in message:
            if method == "notifications/cancelled" and type(params) is dict:
                self._cancel(params.get("requestId"))
        elif type(request_id) not in (str, int):
            self.refuse(None, INVALID_REQUEST, "an id is a text or a whole number")
        elif type(params) is not dict:
            self.refuse(request_id, INVALID_PARAMS, "params is an object")
        else:
            self._answer(request_id, method, params)

    def refuse(self, request_id: str | int | None, code: int, why: str) -> None:
        """Answers with an error of the protocol."""
        self._send({"id": request_id, "error": {"code": code, "message": why}})

    def _answer(self, request_id: str | int, method: object, params: Json) -> None:
        match method:
            case "initialize":
                asked = params.get("protocolVersion")
                result: Json = {
                    "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "lmlite", "version": lmlite.__version__},
                }
            case "ping":
                result = {}
            case "tools/list":
                result = {"tools": list(TOOLS.values())}
            case "tools/call":
                self._call(request_id, params)
                return
            case _:
                self.refuse(request_id, NO_METHOD, "there is no such method")
                return
        self._send({"id": request_id, "result": result})

    # ---- calls -------------------------------------------------------------------------------

    def _call(self, request_id: str | int, params: Json) -> None:
        name, arguments = params.get("name"), params.get("arguments") or {}
        if type(name) is not str or name not in TOOLS or type(arguments) is not dict:
            tools = ", ".join(TOOLS)
            self.refuse(request_id, INVALID_PARAMS, f"name is one of {tools}, arguments an object")
            return
        with self._lock:
            is_taken = request_id in self._calls
            is_full = len(self._calls) >= MAX_CALLS
            if not (is_taken or is_full):
                self._calls[request_id] = None
        if is_taken or is_full:
            why = "this id is in use" if is_taken else f"at most {MAX_CALLS} calls run at a time"
            self.refuse(request_id, INVALID_REQUEST, why)
            return
        threading.Thread(target=self._run, args=(request_id, name, arguments), daemon=True).start()

    def _run(self, request_id: str | int, name: str, arguments: Json) -> None:
        """Calls the tool. What goes wrong is told to the model, which may try again."""
        try:
            result = self._result(request_id, name, arguments)
        except CommandError as err:
            result = {"content": [_text(str(err))], "isError": True}
        except (LookupError, TypeError, ValueError):
            why = f"{self._client.url} does not answer as lmlite does"
            result = {"content": [_text(why)], "isError": True}
        with self._lock:
            is_wanted = request_id in self._calls
            self._calls.pop(request_id, None)
        if is_wanted:
            self._send({"id": request_id, "result": result})

    def _result(self, request_id: str | int, name: str, arguments: Json) -> Json:
        if wrong := _wrong(TOOLS[name]["inputSchema"], arguments):
            raise CommandError(wrong, 1)

        def ask(method: str, path: str, body: Json | None = None) -> Json:
            def connected(sock: socket.socket) -> None:
                self._connected(request_id, sock)

            return self._client.ask(method, path, body, None, connected)

        fields = dict(arguments)
        match name:
            case "chat":
                roles = (("system", fields.pop("system", None)), ("user", fields.pop("prompt")))
                fields["messages"] = [{"role": r, "content": c} for r, c in roles if c is not None]
                (choice,) = ask("POST", "/v1/chat/completions", fields)["choices"]
                content = [_text(choice["message"]["content"] or "")]
                if choice["finish_reason"] == "length":
                    why = "it reached max_tokens, or the context is full"
                    content.append(_text(f"(the answer is cut: {why})"))
                return {"content": content}
            case "embed":
                fields["input"] = fields.pop("texts")
                rows = ask("POST", "/v1/embeddings", fields)["data"]
                return _structured({"embeddings": [row["embedding"] for row in rows]})
            case _:
                return _structured({"models": ask("GET", "/v1/models")["data"]})

    def _connected(self, request_id: str | int, sock: socket.socket) -> None:
        with self._lock:
            if request_id in self._calls:
                self._calls[request_id] = sock
                return
        raise CommandError("cancelled", 1)

    def _cancel(self, request_id: object) -> None:
        """Ends a call, which is then not answered. One that has ended is not an error."""
        if type(request_id) not in (str, int):
            return
        with self._lock:
            sock = self._calls.pop(request_id, None)  # type: ignore[call-overload]
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes its thread

    def _send(self, message: Json) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        # Not sys.stdout: a thread that holds its lock while the process ends would be fatal.
        with self._lock, contextlib.suppress(BrokenPipeError):  # then the input ends, too
            while data:
                data = data[os.write(1, data) :]


def _wrong(schema: Json, arguments: Json) -> str | None:
    """What is wrong with the names and types of arguments; the server checks their values."""
    properties = schema["properties"]
    for name in schema["required"]:
        if name not in arguments:
            return f"{name} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"there is no argument {name}; there are {', '.join(properties) or 'none'}"
        kind = properties[name]["type"]
        if not isinstance(value, _KINDS[kind]) or isinstance(value, bool):
            return f"{name} is of type {kind}"
    return None


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _structured(found: Json) -> Json:
    return {"content": [_text(json.dumps(found))], "structuredContent": found}
