"""Messages of a chat, which each API builds from its own fields. Pure; errors are BadRequest."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmlite.messages import ChatMessage, Image, ToolCall
from lmlite.server.api.chat.content_parts import Piece
from lmlite.server.api.chat.custom_tools import as_arguments
from lmlite.server.api.fields import Field


def message(role: str, pieces: Sequence[Piece], content: Field, **more: Any) -> ChatMessage:
    """A message; the pieces of its content are joined without a separator."""
    text, images = "", list[Image]()
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            images.append(replace(piece, at=len(text)))
    if images and role == "assistant":
        content.unsupported("a message of the assistant has no images")
    return ChatMessage(role, text, images=tuple(images), **more)


def conversation(messages: Sequence[ChatMessage], field: Field) -> tuple[ChatMessage, ...]:
    """The messages, except empty ones of the assistant; at least one must be left."""
    if not messages:
        field.refuse(f"{field.path} is a list of at least one message")
    found = tuple(filter(says_something, messages))
    if not found:
        field.refuse(f"{field.path} has only empty messages of the assistant")
    return found


def says_something(message: ChatMessage) -> bool:
    """False for an empty message of the assistant: its reply was cut off at once."""
    said = message.content or message.reasoning or message.tool_calls
    return message.role != "assistant" or bool(said)


def function_call(call_id: Field, name: Field, arguments: Field) -> ToolCall | None:
    """An earlier call of a function; None if it was cut off before its name.

    The name is not checked, because models invent names. Incomplete arguments stay as they are.
    """
    if not name.value:
        return None
    if type(arguments.value) is dict:
        arguments = arguments.of(json_text(arguments))
    if arguments.value is not None and type(arguments.value) is not str:
        arguments.refuse("arguments is a string")
    text = arguments.value or "{}"
    return ToolCall(call_id.string() or "", name.string() or "", text)


def custom_call(call_id: Field, name: Field, text: Field) -> ToolCall | None:
    """An earlier call of a custom tool, as a call of the function that stands for the tool."""
    if not name.value:
        return None
    arguments = as_arguments(text.string() or "")
    return ToolCall(call_id.string() or "", name.string() or "", arguments)


def json_text(field: Field) -> str:
    """The value as JSON."""
    try:
        return json.dumps(field.value, ensure_ascii=False)
    except RecursionError:  # the parser of bodies accepts deeper nesting
        field.refuse(f"{field.path.rpartition('.')[2]} is nested too deeply")
