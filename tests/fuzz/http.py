"""Feeds thousands of damaged requests to the server's front: raw bytes, and JSON for each endpoint.

    python -m tests.fuzz.http --count 20000 --seed 1            the run; a line for each kind
    python -m tests.fuzz.http bodies --seed 1 --only 42         one mutant of a kind, to look at

`raw` mutants are read without a socket, whole and in parts; `sockets` sends such mutants to a real
server; `bodies` are read by the function of each endpoint. A mutant depends on the seed and its
number alone. Nothing but an answer may come of it: an exception that is no ApiError, a status that
does not fit, a connection that stays open or a thread that stays behind ends the run.
"""

import argparse
import base64
import copy
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from lmlite import frames
from lmlite.errors import ApiError
from lmlite.messages import Request
from lmlite.server.api.call import Call
from lmlite.server.api.responses.requests import ResponseCall
from lmlite.server.api.responses.stored import input_items
from lmlite.server.api.route import WorkerRoute
from lmlite.server.front import wire
from lmlite.server.http import ROUTES
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support import raw_requests
from tests.support.house import opened, until
from tests.support.image_files import RED, png

RAW_STATUSES = {200, 204, 400, 403, 404, 405, 408, 411, 413, 415, 417, 431, 499, 503, 505}
BODY_STATUSES = {400, 413, 415, 422}
PATIENCE_S = 5.0  # to read one body

# ---- raw bytes -----------------------------------------------------------------------------

SNIPPETS = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\xff", b"%", b"%00",
    b"*", b"HTTP/1.1", b"HTTP/2.0", b"GET ", b"GET / HTTP/1.1\r\n", b"Host: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999\r\n", b"Content-Length: 4194304\r\n", b"Connection: close\r\n",
    b"Expect: 100-continue\r\n", b"Origin: null\r\n", b" folded\r\n", b"a" * 5000, b"A: b\r\n" * 70,
    b"0\r\n\r\n", b"1\r\nx\r\n", b"\r\n0\r\n", b"ffffffff\r\n", b"0;a=b\r\n", b";", b"0" * 20,
    b"http://localhost", b"http://",
)  # fmt: skip


def raw_mutant(seed: int, number: int) -> bytes:
    """One row of the table, or two valid requests, with one to five changes."""
    rng = random.Random(f"{seed} raw {number}")
    row, parted = rng.choice(raw_requests.ROWS)[1], in_chunks(rng) + raw_requests.get()
    data = rng.choice((row, parted, raw_requests.GOOD + raw_requests.get()))
    for _ in range(rng.choice((1, 1, 2, 5))):
        data = rng.choice((_flipped, _inserted, _removed, _repeated, _spliced))(rng, data)
    return data


def in_chunks(rng: random.Random) -> bytes:
    """A request whose body comes in one to eight chunks of any sizes."""
    sizes = [rng.randrange(1, 20) for _ in range(rng.randrange(8))]
    return raw_requests.chunked(body=raw_requests.chunks(*sizes))


def _flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at:][:1]) + data[at + 1 :]
    )


def _inserted(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(SNIPPETS) + data[at:]


def _removed(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 1, 2, 8, 200)) :]


def _repeated(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    part = data[at:][: rng.choice((1, 2, 8, 200))]
    return data[:at] + part * rng.choice((2, 3, 30)) + data[at + len(part) :]


def _spliced(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(raw_requests.ROWS)[1]
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def check_raw(seed: int, numbers: Iterable[int]) -> Counter[str]:
    """Reads mutants without a socket. Counts by the first status; 0: no reply."""
    totals: Counter[str] = Counter()
    for number in numbers:
        data = raw_mutant(seed, number)
        found = raw_requests.statuses(data)
        assert set(found) <= RAW_STATUSES, f"{number}: {found}"
        middle = len(data) // 2
        assert raw_requests.statuses(data[:middle], data[middle:]) == found, f"{number}: {found}"
        totals[str(found[0] if found else 0)] += 1
    return totals


def check_sockets(seed: int, numbers: Iterable[int]) -> Counter[str]:
    """Sends mutants to a server, and checks that it is unchanged."""
    totals: Counter[str] = Counter()
    with opened() as house:
        n_threads = threading.active_count()
        for number in numbers:
            answers = raw_requests.answers_of(house.exchange(raw_mutant(seed, number), ends=True))
            found = [status for status, _ in answers]
            assert set(found) <= RAW_STATUSES, f"{number}: {found}"
            totals[str(found[0] if found else 0)] += 1
        until(lambda: house.server.n_connections() == 0)
        until(lambda: threading.active_count() <= n_threads)
        assert house.get("/health") == (200, {"status": "ready"})
        assert " ERROR " not in house.log_text()
        assert house.supervisor.n_started == 1
    return totals


# ---- bodies --------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
DOT = f"data:image/png;base64,{base64.b64encode(png(1, 1, RED)).decode()}"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "x"}'}}
SAMPLING = {
    "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1,
    "timings_per_token": True, "return_progress": True,
    "repeat_last_n": 9, "typical_p": 0.9, "top_n_sigma": 2.0, "xtc_probability": 0.1,
    "xtc_threshold": 0.2, "dynatemp_range": 0.1, "dynatemp_exponent": 1.1, "dry_multiplier": 0.8,
    "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 9, "mirostat": 2,
    "dry_sequence_breakers": [","], "mirostat_tau": 4.0, "mirostat_eta": 0.2,
    "samplers": ["penalties", "dry", "top_k", "temperature"],
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 1, "stop": ["a", "b"],
    "max_tokens": 5, "logit_bias": {"5": 1.5}, "n": 2, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "chat": {
        **SAMPLING,
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "name": "u", "content": [
                {"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": DOT}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        "logprobs": True,
        "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": False, "x": [1]},
        "reasoning_effort": "low", "reasoning": {"max_tokens": 3},
    },
    "completion": {**SAMPLING, "prompt": ["a", "b"], "echo": True, "logprobs": 2,
                   "grammar": 'root ::= "a"', "lora": []},
    "embeddings": {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8},
    "response": {
        "input": [
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": DOT}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "7"},
        ],
        "instructions": "i",
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "max_tokens": 3},
        "max_output_tokens": 5,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "metadata": {"a": "b"},
    },
    "message": {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "t"}, {
                "type": "image", "source": {
                    "type": "base64", "media_type": "image/png", "data": DOT.partition(",")[2]}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "r", "signature": ""},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "x"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "7", "is_error": False}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    },
}  # fmt: skip
BASES["count"] = BASES["message"]
BASES |= {"count a chat": BASES["chat"], "count a response": BASES["response"],
          "apply a template": BASES["chat"]}  # fmt: skip
# What agents send as well, some of it from other servers.
NOTE = "data:text/plain;base64,SGk="
CUSTOM = {"name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}}
FLAT = {"type": "function", "name": "f", "parameters": SCHEMA}
SPACE = {"type": "namespace", "name": "n", "tools": [FLAT, {"type": "custom", **CUSTOM}]}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
BASES |= {
    "agent chat": {
        "messages": [
            {"role": "user", "content": [{"type": "file", "file": {"file_data": NOTE}},
                                         {"type": "input_audio", "input_audio": {"data": "x"}}]},
            {"role": "assistant", "tool_calls": [
                {"id": "c1", "type": "custom", "custom": {"name": "c", "input": "x"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": [
                {"type": "image_url", "image_url": {"url": DOT}}]},
        ],
        "tools": [TOOL, {"type": "custom", "custom": CUSTOM}, {"type": "web_search"}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "custom", "custom": {"name": "c"}}]}},
    },
    "agent response": {
        "input": [
            {"type": "message", "role": "user", "content": [
                {"type": "input_file", "file_data": NOTE},
                {"type": "input_image", "file_id": "i"}]},
            {"type": "additional_tools", "role": "developer", "tools": [SPACE]},
            {"type": "tool_search_call", "call_id": "c1", "arguments": {"city": "x"}},
            {"type": "tool_search_output", "call_id": "c1", "tools": [FLAT, SPACE]},
            {"type": "custom_tool_call", "call_id": "c2", "name": "c", "namespace": "n",
             "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "7"},
            {"type": "local_shell_call", "call_id": "c3", "action": {"command": ["ls"]}},
            {"type": "local_shell_call_output", "call_id": "c3", "output": {"a": "b"}},
            {"type": "web_search_call", "id": "w1", "action": {"query": "x"}},
        ],
        "tools": [FLAT, SPACE, {"type": "custom", **CUSTOM}, {"type": "web_search"},
                  {"type": "tool_search", "execution": "client", "parameters": SCHEMA}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "f", "namespace": "n"},
            {"type": "namespace", "name": "n"}]},
    },
    "agent message": {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s"}, {"type": "tool_addition", "tool": {"name": "f"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "document", "title": "t", "source": {
                    "type": "content", "content": [{"type": "text", "text": "t"}]}},
                {"type": "search_result", "title": "t", "source": "s", "content": [
                    {"type": "text", "text": "t"}]}]},
            {"role": "assistant", "content": [
                {"type": "server_tool_use", "id": "s1", "name": "w", "input": {"query": "x"}},
                {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "x"}]},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [
                {"type": "tool_reference", "tool_name": "f"},
                {"type": "document", "source": PDF}]}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}, {"type": "web_search_1", "name": "w"}],
        "tool_choice": {"type": "auto"},
    },
    "native chat": {
        "input": [{"type": "message", "content": "t"}, {"type": "text", "content": "t"},
                  {"type": "image", "data_url": DOT}],
        "system_prompt": "s", "stream": False, "temperature": 0.5, "max_output_tokens": 5,
        "reasoning": "on", "context_length": 64, "store": True, "integrations": [],
        "previous_response_id": None,
    },
    "tokenize": {"prompt": "a", "content": "b", "add_special_tokens": True, "add_special": False,
                 "parse_special": True, "with_pieces": True, "return_token_strs": True},
    "tokenize a chat": {"messages": [{"role": "user", "content": "t"}],
                        "add_generation_prompt": True, "continue_final_message": False},
    "detokenize": {"tokens": [1, 2]},
    "rerank": {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1,
               "return_documents": True},
    "infill": {**SAMPLING, "input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 5,
               "input_extra": [{"filename": "f", "text": "t"}]},
    "ollama chat": {
        "model": "m:latest", "keep_alive": "5m", "stream": True, "think": "low", "format": SCHEMA,
        "options": {**SAMPLING, "num_predict": -2, "num_ctx": 64}, "truncate": True,
        "tools": [TOOL], "logprobs": True, "top_logprobs": 2, "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "t", "images": [DOT.partition(",")[2]]},
            {"role": "assistant", "content": "", "thinking": "t",
             "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"city": "x"}}}]},
            {"role": "tool", "content": "t", "tool_name": "f", "tool_call_id": "c1"},
        ]},
    "ollama generate": {"prompt": "p", "system": "s", "images": [DOT], "keep_alive": 5,
                        "format": "json", "think": False, "options": {"seed": 1}},
    "ollama raw": {"prompt": "p", "suffix": "s", "raw": True, "keep_alive": "-1", "format": "{}"},
    "ollama embed": {"input": ["a", "b"], "dimensions": 2, "truncate": False},
    "ollama embeddings": {"prompt": "a"},
}  # fmt: skip
PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "response": "/v1/responses",
    "message": "/v1/messages",
    "count": "/v1/messages/count_tokens",
    "count a chat": "/v1/chat/completions/input_tokens",
    "count a response": "/v1/responses/input_tokens",
    "apply a template": "/apply-template",
    "agent chat": "/v1/chat/completions",
    "agent response": "/v1/responses",
    "agent message": "/v1/messages",
    "native chat": "/api/v1/chat",
    "tokenize": "/tokenize",
    "tokenize a chat": "/tokenize",
    "detokenize": "/detokenize",
    "infill": "/infill",
    "rerank": "/v1/rerank",
    "ollama chat": "/api/chat",
    "ollama generate": "/api/generate",
    "ollama raw": "/api/generate",
    "ollama embed": "/api/embed",
    "ollama embeddings": "/api/embeddings",
}
TEXTS = {kind: json.dumps(base) for kind, base in BASES.items()}

NESTED: Any = None
for _ in range(60):
    NESTED = [{"items": NESTED}]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.0, 1.5, -0.0, 1e308, -1e308, 2**31 - 1, 2**31, 2**63, 2**64,
    -(2**63) - 1, 10**400, float("nan"), float("inf"), "", "x", "\0", "caf\u00e9", "\U0001f600",
    "\ud800", "a" * 300, "a" * 70_000, "[" * 5000, '{"a":' * 5000, "auto", "none", "text",
    "function", "json_schema", "user", "assistant", [], {}, [[]], [None], [0] * 300, [""] * 300,
    {"": None},
    {"type": "object"}, {"$ref": "#"}, {"type": ["string", "null"]}, {"enum": [1, "a", None]},
    "data:,", "data:image/png;base64,iVBORw0KGgo=", "https://a.b/c.png", "file:///etc/passwd",
    {"pattern": "^(a+)+$", "type": "string"}, {"anyOf": [{"type": "string"}] * 200}, NESTED,
)  # fmt: skip
NAMES = sorted({name for base in BASES.values() for name in base} | {
    "functions", "audio", "modalities", "best_of", "suffix", "truncation", "background", "user",
    "conversation", "previous_response_id", "parallel_tool_calls", "type", "content", "name",
    "arguments", "$ref", "items", "properties", "enum", "const", "minItems", "format", "unknown",
})  # fmt: skip


def body_mutant(seed: int, number: int, kind: str) -> bytes:
    """The body of a request of this kind, with one to four changes."""
    rng = random.Random(f"{seed} {kind} {number}")
    body = changed(rng, json.loads(TEXTS[kind]))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.9)
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice((_flipped, _inserted, _removed))(rng, data) if rng.random() < 0.1 else data


def changed(rng: random.Random, tree: Any) -> Any:
    """A JSON value with one to four changes; the value itself may be replaced."""
    holder = {"": tree}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if places := _places(holder):
            _change(rng, *rng.choice(places))
    return holder.get("")


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: its container, and its key there."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((holder, key))
        if isinstance(holder[key], dict | list):
            found += _places(holder[key])
    return found


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    """Replaces a value, deletes it, or puts it into another place or shape."""
    value = holder[key]
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [value]
        case 2:
            holder[key] = {rng.choice(NAMES): value}
        case 3 if isinstance(value, dict):
            value[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        case 4 if isinstance(value, list):
            value *= rng.choice((2, 20))
        case 5 if isinstance(holder, dict) and key:
            holder[rng.choice(NAMES)] = holder.pop(key)
        case _:
            holder[key] = copy.deepcopy(rng.choice(VALUES))


def parsers() -> dict[str, Callable[[Any], Call]]:
    """The parser of each kind of body, taken from its route."""
    defaults = replace(NO_DEFAULTS, allows_grammars=True, takes_images=True)

    def parser(path: str) -> Callable[[Any], Call]:
        route = ROUTES.find(path).routes["POST"]
        assert isinstance(route, WorkerRoute)

        def read(body: Any) -> Call:
            call = route.parse(route.shared_form(body), defaults)
            if isinstance(call, ResponseCall):
                json.loads(wire.to_json(input_items(call.input, "resp_1")))
            return call

        return read

    return {kind: parser(path) for kind, path in PATHS.items()}


def check_bodies(seed: int, numbers: Iterable[int]) -> Counter[str]:
    """Parses a mutant of each kind and number; accepted ones must cross the pipe unchanged."""
    totals: Counter[str] = Counter()
    reading = parsers()
    for number in numbers:
        for kind, parse in reading.items():
            data = body_mutant(seed, number, kind)
            began_s = time.monotonic()
            try:
                status = _status_of(parse, data)
            except Exception as err:
                raise AssertionError(f"{kind} {number}: {err!r}") from err
            took_s = time.monotonic() - began_s
            assert status == 200 or status in BODY_STATUSES, f"{kind} {number}: {status}"
            assert took_s < PATIENCE_S, f"{kind} {number}: {took_s:.1f} s"
            totals[f"{kind} {status}"] += 1
    return totals


def _status_of(parse: Callable[[Any], Call], data: bytes) -> int:
    try:
        request = parse(wire.parse_json(data)).request
    except ApiError as err:
        text = wire.to_json(err.body()).decode()
        assert "Traceback" not in text and " object at 0x" not in text, text
        return err.status
    assert frames.decode(frames.encode(request)[4:], Request) == request
    return 200


# ---- the run -------------------------------------------------------------------------------

# The check of each kind of mutants, and its share of --count.
KINDS: dict[str, tuple[Callable[[int, Iterable[int]], Counter[str]], float]] = {
    "raw": (check_raw, 1.0),
    "sockets": (check_sockets, 0.1),
    "bodies": (check_bodies, 0.25),
}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Damaged requests against the server's front.")
    parser.add_argument("kind", nargs="?", choices=list(KINDS), help="all of them, if none")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one mutant, which is shown")
    options = parser.parse_args()
    for kind in [options.kind] if options.kind else KINDS:
        check, share = KINDS[kind]
        numbers = range(int(options.count * share))
        if options.only is not None:
            numbers = range(options.only, options.only + 1)
            shown = [body_mutant(options.seed, options.only, name) for name in BASES]
            shown = shown if kind == "bodies" else [raw_mutant(options.seed, options.only)]
            print(*shown, sep="\n")
        began_s = time.monotonic()
        totals = check(options.seed, numbers)
        counts = ", ".join(f"{name}: {n:,}" for name, n in sorted(totals.items()))
        took_s = time.monotonic() - began_s
        print(f"{kind}, seed {options.seed}: {totals.total():,} in {took_s:.0f} s: {counts}")


if __name__ == "__main__":
    main()
