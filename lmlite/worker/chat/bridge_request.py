"""What the bridge is asked for: messages and options in OpenAI's form. Pure."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

from lmlite.messages import ChatMessage, ChatOptions

Json = dict[str, Any]


def request_of(messages: Sequence[ChatMessage], options: ChatOptions) -> Json:
    """What the bridge is asked for, in OpenAI's form."""
    request: Json = {
        "messages": [_as_json(message) for message in messages],
        "enable_thinking": options.thinks,
        "reasoning": options.separate_reasoning,
    }
    if options.tools:
        request["tools"] = list(options.tools)
        if options.tool_schemas:
            request["schemas"] = list(options.tool_schemas)
        request["tool_choice"] = options.tool_choice
        if options.parallel_tool_calls is not None:
            request["parallel_tool_calls"] = options.parallel_tool_calls
    if options.json_schema is not None:
        request["json_schema"] = options.json_schema
    if options.template_kwargs is not None:
        request["kwargs"] = options.template_kwargs
    return request


def with_pictures(request: Json, messages: Sequence[ChatMessage], mark: str) -> Json:
    """The request with a mark and a number in its contents for each picture; itself without."""
    if not any(message.images for message in messages):
        return request
    shown, number = [], 0
    for message, body in zip(messages, request["messages"], strict=True):
        parts, end = [], 0
        for image in message.images:
            parts += [message.content[end : image.at], f"{mark}{number}{mark}"]
            number, end = number + 1, image.at
        shown.append(body | {"content": "".join([*parts, message.content[end:]])})
    return request | {"messages": shown}


def narrowed(request: Json, options: ChatOptions | None) -> Json:
    """The request with the only tools that may be called; itself when any may be."""
    if options is None or not options.tool_names:
        return request
    is_wanted = [tool["function"]["name"] in options.tool_names for tool in request["tools"]]
    lists = {key: request[key] for key in ("tools", "schemas") if key in request}
    return request | {key: list(compress(each, is_wanted)) for key, each in lists.items()}


def _as_json(message: ChatMessage) -> Json:
    body: Json = {"role": message.role, "content": message.content}
    if message.name is not None:
        body["name"] = message.name
    if message.reasoning is not None:
        body["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function",
             "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]  # fmt: skip
    return body
