"""Anthropic's request JSON -> that of a chat, which `openai_requests.py` reads.

POST /v1/messages asks for what POST /v1/chat/completions does, in other words: each function
here turns one of its fields into the chat's. What could be wrong in a field that has another
name or form there is checked here first, so that every error names what the client wrote.
Pure. The formats are those of the types in Anthropic's Python package.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.anthropic.blocks import (
    BLOCKS_OF,
    RESULT_BLOCKS,
    Block,
    block_parts,
    of_kind,
    parts,
    read_blocks,
    required_string,
    system_text,
    unread_blocks,
)
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.requests import EFFORTS, called_name, tool_name
from lmlite.server.api.dry_run import planned
from lmlite.server.api.fields import Body, boolean, integer, required, string, typed
from lmlite.server.api.openai.requests import parse_chat, stop_strings
from lmlite.server.api.responses.requests import own_names
from lmlite.server.api.sampling import MAX_INT, NAMES
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

_SAME = {
    "model",
    "stream",
    "seed",
    "logit_bias",
    "stop_in_reasoning",
    *NAMES,
    "ignore_eos",
    "min_tokens",
}  # mean what they mean in a chat
_INERT = {"metadata", "cache_control"}  # every prompt is cached as far as memory goes
MESSAGE_FIELDS = {*_SAME, *_INERT, "max_tokens", "messages", "system", "tools", "tool_choice",
                  "stop_sequences", "thinking", "output_config"}  # fmt: skip

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_message(body: Body, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/messages. Raises BadRequest."""
    required(body, "max_tokens")
    return _parse(body, defaults)


def parse_count(body: Body, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/messages/count_tokens, as a call that only plans. Raises BadRequest."""
    return planned(_parse(body, defaults))


def _parse(body: Body, defaults: Defaults) -> Call:
    chat = chat_body(body, defaults.limits)
    with own_names(_own_names(chat)):
        call = parse_chat(chat, defaults)
    others = {*call.ignored, *unread_blocks(body)}
    return replace(call, ignored=ignored_fields(body, MESSAGE_FIELDS, others))


def chat_body(body: Body, limits: Limits = DEFAULT_LIMITS) -> Body:
    """The body of POST /v1/chat/completions that asks for the same. Raises BadRequest."""
    same = {name: value for name, value in body.items() if name in _SAME}
    return {
        **same,
        "max_tokens": integer(body, "max_tokens", 0, MAX_INT),
        "messages": _messages(body),
        "tools": [_tool(tool, f"tools.{i}") for i, tool in enumerate(_list(body, "tools"))],
        **_tool_choice(body),
        "stop": list(stop_strings(body, "stop_sequences", limits)),
        "reasoning_effort": _effort(body),
        "response_format": _response_format(body),
    }


def _own_names(chat: Body) -> dict[str, str]:
    """What those parts are called here that a chat's parser reads: by their names there."""
    images = {
        f"messages.[{i}].content.[{j}]": part["path"]
        for i, turn in enumerate(chat["messages"])
        for j, part in enumerate(turn["content"])
        if type(part) is dict and "path" in part
    }
    schemas = {
        f"tools.[{i}].function.parameters": f"tools.{i}.input_schema"
        for i in range(len(chat["tools"]))
    }
    return images | schemas | {"response_format.json_schema": "output_config.format"}


# ---- messages ------------------------------------------------------------------------------


def _messages(body: Body) -> list[Body]:
    required(body, "messages")
    messages = _list(body, "messages")
    if not messages:
        raise BadRequest("messages has no message", param="messages")
    turns: list[Body] = []
    if system := system_text(body.get("system") or "", "system"):
        turns.append({"role": "system", "content": system})
    for i, message in enumerate(messages):
        turns += _turns(message, f"messages.{i}")
    if turns[-1].get("tool_calls"):
        raise BadRequest("the last message calls tools: send their results", param="messages")
    return turns


def _turns(message: Any, path: str) -> list[Body]:
    """A message as turns of a chat, where each result of a tool is one of its own."""
    if type(message) is not dict:
        raise BadRequest("a message is an object", param=path)
    role = required_string(message, "role", path)
    if role not in BLOCKS_OF:
        raise BadRequest("role is user, assistant or system", param=f"{path}.role")
    content = required(message, "content", f"{path}.content")
    blocks = read_blocks(content, f"{path}.content", BLOCKS_OF[role])
    if role == "assistant":
        return [_assistant_turn(blocks)]
    return _user_turns(blocks) if role == "user" else [_turn("system", blocks)]


def _user_turns(blocks: list[Block]) -> list[Body]:
    """In their order; texts that follow each other are one turn."""
    turns: list[Body] = []
    for block, path in blocks:
        if block["type"] == "tool_result":
            turns.append(_result_turn(block, path))
        elif turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += block_parts(block, path)
        else:
            turns.append({"role": "user", "content": block_parts(block, path)})
    return turns or [{"role": "user", "content": ""}]


def _result_turn(block: Body, path: str) -> Body:
    boolean(block, "is_error", f"{path}.is_error")  # templates have no place for it
    return {
        "role": "tool",
        "tool_call_id": required_string(block, "tool_use_id", path),
        "content": parts(read_blocks(block.get("content") or "", f"{path}.content", RESULT_BLOCKS)),
    }


def _assistant_turn(blocks: list[Block]) -> Body:
    thoughts = [
        required_string(block, "thinking", path) for block, path in of_kind(blocks, "thinking")
    ]
    calls = [_tool_call(block, path) for block, path in of_kind(blocks, "tool_use")]
    turn = _turn("assistant", blocks)
    return {**turn, "reasoning_content": "".join(thoughts), "tool_calls": calls}


def _turn(role: str, blocks: Iterable[Block]) -> Body:
    return {"role": role, "content": parts(blocks)}


def _tool_call(block: Body, path: str) -> Body:
    """A call; its input is text where a client kept what came of half an object."""
    arguments = block.get("input")
    if type(arguments) is not str:
        found = typed(block, "input", dict, "an object", f"{path}.input") or {}
        try:
            arguments = json.dumps(found, ensure_ascii=False)
        except RecursionError:  # a depth that reading just survived
            raise BadRequest("input is nested too deeply", param=f"{path}.input") from None
    function = {"name": called_name(block, f"{path}.name"), "arguments": arguments}
    return {"id": required_string(block, "id", path), "function": function}


# ---- tools, and what the answer may be -----------------------------------------------------


def _tool(tool: Any, path: str) -> Body:
    if type(tool) is not dict:
        raise BadRequest("a tool is an object", param=path)
    if not _is_function(tool):
        return tool  # left out, by the name of its type
    schema = required(tool, "input_schema", f"{path}.input_schema")
    function = {
        "name": tool_name(tool, f"{path}.name"),
        "description": string(tool, "description", f"{path}.description"),
        "parameters": schema,
    }
    return {"type": "function", "function": function}


def _is_function(tool: Body) -> bool:
    """Whether it is the client's own, not one that Anthropic describes to its models or runs."""
    return tool.get("type") in (None, "custom") or "input_schema" in tool


def _tool_choice(body: Body) -> Body:
    """The chat's `tool_choice` and `parallel_tool_calls`."""
    choice = typed(body, "tool_choice", dict, "an object")
    if choice is None:
        return {}
    kind = required_string(choice, "type", "tool_choice")
    path = "tool_choice.disable_parallel_tool_use"
    # Allowed does not mean wanted: whether there are several is then the template's choice.
    is_single = boolean(choice, "disable_parallel_tool_use", path)
    parallel = {"parallel_tool_calls": False} if is_single else {}
    if kind == "tool":
        function = {"name": required_string(choice, "name", "tool_choice")}
        return {"tool_choice": {"type": "function", "function": function}, **parallel}
    if kind not in _CHOICES:
        raise BadRequest("type is auto, any, tool or none", param="tool_choice.type")
    return {"tool_choice": _CHOICES[kind], **parallel}


def _effort(body: Body) -> str | None:
    """How much to think, as a chat's `reasoning_effort`; None: as much as the model does."""
    thinking = typed(body, "thinking", dict, "an object") or {"type": "adaptive"}
    kind = required_string(thinking, "type", "thinking")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise BadRequest("type is enabled, disabled or adaptive", param="thinking.type")
    typed(thinking, "budget_tokens", int, "a whole number", "thinking.budget_tokens")
    path = "output_config.effort"
    effort = string(_output_config(body), "effort", path)
    if effort is not None and effort not in EFFORTS:
        raise BadRequest(f"effort is one of {', '.join(EFFORTS)}", param=path)
    return "none" if kind == "disabled" else effort


def _response_format(body: Body) -> Body | None:
    path = "output_config.format"
    wanted = typed(_output_config(body), "format", dict, "an object", path)
    if wanted is None:
        return None
    if required_string(wanted, "type", path) != "json_schema":
        raise BadRequest("type is json_schema", param=f"{path}.type")
    schema = required(wanted, "schema", f"{path}.schema")
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _output_config(body: Body) -> Body:
    return typed(body, "output_config", dict, "an object") or {}


# ---- fields --------------------------------------------------------------------------------


def _list(body: Body, field: str) -> list[Any]:
    return typed(body, field, list, "a list") or []
