"""Messages and options -> a request to the native bridge, in OpenAI's form. Pure."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

from lmlite.messages import ChatMessage, ChatOptions

Json = dict[str, Any]


def request_of(messages: Sequence[ChatMessage], options: ChatOptions) -> Json:
    """The request in the format that lml_chat_render takes (native/bridge.h)."""
    request: Json = {
        "messages": [_message_json(message) for message in messages],
        "enable_thinking": options.thinks,
        "reasoning": options.separate_reasoning,
        "json_schema": options.json_schema,
        "kwargs": options.template_kwargs,
    }
    if options.tools:
        request |= {
            "tools": list(options.tools),
            "schemas": list(options.tool_schemas) or None,
            "tool_choice": options.tool_choice,
            "parallel_tool_calls": options.parallel_tool_calls,
        }
    return _given(request)


def with_pictures(request: Json, messages: Sequence[ChatMessage], marker: str) -> Json:
    """The request with each picture's number, between two markers, at its place in the content."""
    if not any(message.images for message in messages):
        return request
    shown, number = [], 0
    for message, body in zip(messages, request["messages"], strict=True):
        parts, end = [], 0
        for image in message.images:
            parts += [message.content[end : image.at], f"{marker}{number}{marker}"]
            number, end = number + 1, image.at
        shown.append(body | {"content": "".join([*parts, message.content[end:]])})
    return request | {"messages": shown}


def narrowed(request: Json, options: ChatOptions | None) -> Json:
    """The request with only those tools that the options allow to call."""
    if options is None or not options.tool_names:
        return request
    is_wanted = [tool["function"]["name"] in options.tool_names for tool in request["tools"]]
    lists = {key: request[key] for key in ("tools", "schemas") if key in request}
    return request | {key: list(compress(each, is_wanted)) for key, each in lists.items()}


def _message_json(message: ChatMessage) -> Json:
    calls = [
        {"id": call.id, "type": "function",
         "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]  # fmt: skip
    return _given({
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
        "tool_calls": calls or None,
    })  # fmt: skip


def _given(body: Json) -> Json:
    return {key: value for key, value in body.items() if value is not None}
