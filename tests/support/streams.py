"""Builds a whole answer from the pieces of a stream, checks each piece, and compares answers.

For chats, completions and Anthropic's messages. `response_events.py` does this for responses.
"""

import json
import math
from typing import Any

Json = dict[str, Any]

TOLERANCE = 0.05  # of a log-probability: a cached prompt was computed in a different batch


def folded_chunks(chunks: list[Json]) -> Json:
    """The choices, and the usage if it was sent, as in a whole answer."""
    found: dict[int, Json] = {}
    whole: Json = {}
    for chunk in chunks:
        if not chunk["choices"]:
            whole["usage"] = chunk["usage"]
        for piece in chunk["choices"]:
            index = piece["index"]
            if index not in found:
                found[index] = _begun(piece)
            _lengthen(found[index], piece)
    assert [choice["finish_reason"] is not None for choice in found.values()] == [True] * len(found)
    return whole | {"choices": [found[index] for index in sorted(found)]}


def _begun(piece: Json) -> Json:
    choice: Json = {"index": piece["index"], "finish_reason": None, "logprobs": None}
    if "text" in piece:
        return choice | {"text": ""}
    assert piece["delta"] == {"role": "assistant", "content": ""}
    return choice | {"message": {"role": "assistant", "content": None, "refusal": None}}


def _lengthen(choice: Json, piece: Json) -> None:
    assert choice["finish_reason"] is None, "nothing follows the end of a choice"
    choice["finish_reason"] = piece["finish_reason"]
    if piece["logprobs"] is not None:
        _lengthen_logprobs(choice, piece["logprobs"])
    if "text" in piece:
        choice["text"] += piece["text"]
        return
    delta, message = piece["delta"], choice["message"]
    for field in ("content", "reasoning_content"):
        if field in delta:
            message[field] = (message.get(field) or "") + delta[field]
    for call in delta.get("tool_calls", []):
        _lengthen_call(message.setdefault("tool_calls", []), call)


def _lengthen_call(calls: list[Json], piece: Json) -> None:
    """Adds a piece. Id, type and name come once, in the first piece; the index in each piece."""
    if piece["index"] == len(calls):
        assert set(piece) == {"index", "id", "type", "function"}
        assert set(piece["function"]) == {"name", "arguments"}
        calls.append({"id": piece["id"], "type": piece["type"],
                      "function": dict(piece["function"])})  # fmt: skip
        return
    assert (set(piece), set(piece["function"])) == ({"index", "function"}, {"arguments"})
    calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]


def _lengthen_logprobs(choice: Json, logprobs: Json) -> None:
    if choice["logprobs"] is None:
        choice["logprobs"] = {}
    for name, entries in logprobs.items():
        held = choice["logprobs"].setdefault(name, None if entries is None else [])
        if entries:
            held.extend(entries)


def unnamed(answer: Json) -> Json:
    """The parts that are equal for the same request: everything except ids, time and cache."""
    choices = [dict(choice) for choice in answer["choices"]]
    for choice in choices:
        if not any((choice["logprobs"] or {}).values()):
            choice["logprobs"] = None  # a stream without tokens has no chunk with log-probabilities
        message = choice.get("message", {})
        if "tool_calls" in message:
            # The content of a message with calls is null, or the text before them.
            assert all(call["id"].startswith("call_") for call in message["tool_calls"])
            calls = [{**call, "id": ""} for call in message["tool_calls"]]
            content = message["content"] or None
            choice["message"] = message | {"tool_calls": calls, "content": content}
    usage = {key: value for key, value in answer.get("usage", {}).items()
             if key != "prompt_tokens_details"}  # fmt: skip
    return {"choices": choices, "usage": usage}


def typed_events(data: bytes) -> list[Any]:
    """The data of a stream's events. Checks that each event's name is its type; skips comments."""
    found = []
    for event in data.decode().removesuffix("\n\n").split("\n\n"):
        if event.startswith(":"):
            continue
        name, line = event.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def folded_message(events: list[Json]) -> Json:
    """Anthropic's message, as a client builds it from a stream."""
    (message,) = [event["message"] for event in events if event["type"] == "message_start"]
    arguments: dict[int, str] = {}
    for event in events:
        match event:
            case {"type": "content_block_start"}:
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta"} as delta}:
                index = event["index"]
                arguments[index] = arguments.get(index, "") + delta["partial_json"]
                message["content"][index]["input"] = None  # complete only at the end
            case {"type": "content_block_delta", "delta": delta}:
                field = delta["type"].removesuffix("_delta")
                message["content"][event["index"]][field] += delta[field]
            case {"type": "message_delta"}:
                message |= event["delta"]
                message["usage"] |= event["usage"]
    for index, pieces in arguments.items():
        message["content"][index]["input"] = _as_far_as_known(pieces)
    return message  # type: ignore[no-any-return]


def _as_far_as_known(arguments: str) -> Any:
    """The arguments as an object; as text if they were cut short."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def agree(a: Any, b: Any) -> bool:
    """Equality, except for the last digits of numbers and the choice of unlikely tokens."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, abs_tol=TOLERANCE)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(
            agree(a[key], b[key]) for key in a if key != "top_logprobs"
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(agree, a, b))
    return bool(a == b)
