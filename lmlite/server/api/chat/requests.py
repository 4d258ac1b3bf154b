"""The parts of a chat request: messages, tools, and the form that the answer is to have.

Pure. Each error names the field that is wrong; what is left out gets its default here.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.errors import BadRequest, MissingParameter
from lmlite.messages import ChatMessage, ChatOptions, Image, ToolCall
from lmlite.server.api.chat.answer_forms import parse_form
from lmlite.server.api.chat.content_parts import is_image, part_text, unread_parts
from lmlite.server.api.chat.custom_tools import as_arguments, as_function
from lmlite.server.api.chat.images import ImageReader
from lmlite.server.api.chat.tool_choice import parse_tool_choice
from lmlite.server.api.fields import Body, boolean, required, string, typed, unsupported
from lmlite.server.forms.bounds import n_values
from lmlite.server.forms.schemas import ToolSchemas, UnheldPart
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
         "tool": "tool"}  # fmt: skip
MAX_TOOLS = 512
# What a template is to read of all tools: 2 ms for a value, and its square for a level, at most.
MAX_TOLD_VALUES, MAX_TOLD_LEVELS = 12_000, 400
TOOL_TYPES = ("function", "custom")  # others are left out
TEXT = {"type": "text"}  # the format of a custom tool's input that asks for nothing
MAX_KWARGS_BYTES = 16 << 10
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_NO_PARAMETERS = {"type": "object", "properties": {}}
# Names of tools stand in grammars: nothing that could end a string there.
MAX_NAME = 128
_TOOL_NAME = re.compile(rf"[\w.:/-]{{1,{MAX_NAME}}}", re.ASCII)


# ---- messages ------------------------------------------------------------------------------


def parse_messages(
    messages: Any, takes_images: bool, limits: Limits = DEFAULT_LIMITS
) -> tuple[ChatMessage, ...]:
    """The turns of a conversation, without those that are empty. Raises BadRequest."""
    if type(messages) is not list or not messages:
        raise BadRequest("messages is a list of at least one message", param="messages")
    reader = ImageReader(takes_images, limits)
    turns = [_message(message, f"messages.[{i}]", reader) for i, message in enumerate(messages)]
    if not any(map(says_something, turns)):
        raise BadRequest("messages has only empty messages of the assistant", param="messages")
    return tuple(filter(says_something, turns))


def says_something(message: ChatMessage) -> bool:
    """False for an answer that ended before it began."""
    said = message.content or message.reasoning or message.tool_calls
    return message.role != "assistant" or bool(said)


def _message(message: Any, path: str, reader: ImageReader) -> ChatMessage:
    if type(message) is not dict:
        raise BadRequest("a message is an object", param=path)
    role = required(message, "role", f"{path}.role")
    if role == "function":
        unsupported(f"{path}.role", "functions are not supported: send their results as tools")
    if type(role) is not str or role not in ROLES:
        raise BadRequest(f"role is one of {', '.join(ROLES)}", param=f"{path}.role")
    if message.get("function_call"):
        unsupported(f"{path}.function_call", "function_call is not supported: send tool_calls")
    content = message.get("content")
    if content is None and role not in ("assistant", "tool"):  # tools may have nothing to say
        raise MissingParameter("the message has no content", param=f"{path}.content")
    text, images = _content(content, f"{path}.content", reader, is_result=role == "tool")
    if images and role == "assistant":
        unsupported(f"{path}.content", "a message of the assistant has no images")
    reasoning = string(message, "reasoning_content", f"{path}.reasoning_content")
    return ChatMessage(
        ROLES[role],
        text,
        string(message, "name", f"{path}.name"),
        reasoning if reasoning and role == "assistant" else None,
        _tool_calls(message, path) if role == "assistant" else (),
        string(message, "tool_call_id", f"{path}.tool_call_id") if role == "tool" else None,
        images,
    )


def _content(
    content: Any, path: str, reader: ImageReader, is_result: bool
) -> tuple[str, tuple[Image, ...]]:
    """A message's text and images. Parts follow each other, with nothing added in between.

    What a tool has shown and nobody can look at is told: as an error it would come again in each
    later turn, and end the conversation.
    """
    if content is None or type(content) is str:
        return content or "", ()
    if type(content) is not list:
        raise BadRequest("content is a string or a list of parts", param=path)
    text, images = "", []
    for i, part in enumerate(content):
        part_path = f"{path}.[{i}]"
        if type(part) is not dict:
            raise BadRequest("a content part is an object", param=part_path)
        required(part, "type", f"{part_path}.type")
        if not is_image(part):
            text += part_text(part, part_path)
            continue
        try:
            images.append(Image(reader.read(part, part_path), len(text), part_path))
        except BadRequest:
            if not is_result:
                raise
            text += part_text(part, part_path)
    return text, tuple(images)


def _tool_calls(message: Body, path: str) -> tuple[ToolCall, ...]:
    calls = typed(message, "tool_calls", list, "a list", f"{path}.tool_calls") or []
    read = (_tool_call(call, f"{path}.tool_calls.[{i}]") for i, call in enumerate(calls))
    return tuple(filter(None, read))


def _tool_call(call: Any, path: str) -> ToolCall | None:
    """None for a call that was cut before its name; one that was cut later has half a JSON."""
    if type(call) is not dict:
        raise BadRequest("a tool call is an object", param=path)
    if call.get("type") == "custom":
        return _custom_call(call, path)
    function = typed(call, "function", dict, "an object", f"{path}.function") or {}
    if not function.get("name"):
        return None
    arguments = function.get("arguments")
    if type(arguments) is dict:
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif arguments is not None and type(arguments) is not str:
        raise BadRequest("arguments is a string", param=f"{path}.function.arguments")
    call_id = string(call, "id", f"{path}.id") or ""
    return ToolCall(call_id, called_name(function, f"{path}.function.name"), arguments or "{}")


def _custom_call(call: Body, path: str) -> ToolCall | None:
    custom = typed(call, "custom", dict, "an object", f"{path}.custom") or {}
    if not custom.get("name"):
        return None
    text = string(custom, "input", f"{path}.custom.input") or ""
    call_id = string(call, "id", f"{path}.id") or ""
    return ToolCall(call_id, called_name(custom, f"{path}.custom.name"), as_arguments(text))


def tool_name(function: Body, path: str) -> str:
    """The name of a tool, which stands at `path`. Raises BadRequest."""
    name = required(function, "name", path)
    if type(name) is not str or not _TOOL_NAME.fullmatch(name):
        raise BadRequest("a tool's name has 1 to 128 letters, digits, _ . : / or -", param=path)
    return name


def called_name(call: Body, path: str) -> str:
    """The name in an earlier call: any, as models make names up. "" for none."""
    return string(call, "name", path) or ""


# ---- what the answer may be ----------------------------------------------------------------


def parse_options(body: Body) -> tuple[ChatOptions, tuple[UnheldPart, ...]]:
    """(tools, structured output and reasoning, what of their schemas cannot be held)."""
    try:
        return _options(body)
    except RecursionError:  # a depth that reading just survived
        raise BadRequest("tools or a response_format nest too deep", param="tools") from None


def _options(body: Body) -> tuple[ChatOptions, tuple[UnheldPart, ...]]:
    tools = _tools(body)
    names = [tool["function"]["name"] for tool in tools]
    choice, allowed = parse_tool_choice(body.get("tool_choice"), names)
    thinks, kwargs = _template_kwargs(body)
    form, unheld = parse_form(body)
    room = ToolSchemas()
    held = [room.widened(_parameters(tool), tool["function"]["name"]) for tool in tools]
    told = [_as_told(tool) for tool in tools]
    options = ChatOptions(
        tools=tuple(told),
        tool_choice=choice,  # type: ignore[arg-type]
        tool_names=allowed,
        parallel_tool_calls=_parallel(body),
        json_schema=form,
        thinks=thinks,
        template_kwargs=kwargs,
        stop_in_reasoning=boolean(body, "stop_in_reasoning"),
        tool_schemas=tuple(each.schema for each in held),
    )
    return options, (*unheld, *itertools.chain(*(each.unheld for each in held)))


def _tools(body: Body) -> list[Body]:
    tools = typed(body, "tools", list, "a list") or []
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools has more than {MAX_TOOLS} tools", param="tools")
    found, n_left = [], MAX_TOLD_VALUES
    for i, tool in enumerate(tools):
        path = f"tools.[{i}]"
        if type(tool) is not dict:
            raise BadRequest("a tool is an object", param=path)
        if required(tool, "type", f"{path}.type") in TOOL_TYPES:
            found.append(_tool(tool, path))
            n_left -= _n_values(found[-1], n_left, f"{path}.{tool['type']}.parameters")
    return found


def _n_values(tool: Body, n_left: int, path: str) -> int:
    """How much a template has to read of a tool, of what is left for all."""
    try:
        return n_values(tool["function"]["parameters"], n_left, MAX_TOLD_LEVELS)
    except ValueError:
        why = f"more than {MAX_TOLD_VALUES:,} values, or {MAX_TOLD_LEVELS} in each other"
        raise BadRequest(f"{path}: the schemas of all tools have {why}", param=path) from None


def _tool(tool: Body, path: str) -> Body:
    """A tool with the fields that templates know; frameworks add others."""
    kind = tool["type"]
    path = f"{path}.{kind}"
    function = required(tool, kind, path)
    if type(function) is not dict:
        raise BadRequest(f"{kind} is an object", param=path)
    if kind == "custom":
        function = as_function(function, path)
    parameters = function.get("parameters")
    if parameters == []:  # PHP's way to write an empty object
        parameters = {}
    if parameters is not None and type(parameters) not in (dict, bool):
        where = f"{path}.parameters"
        raise BadRequest(f"{where} is not a JSON schema", param=where)
    return {
        "type": "function",
        "function": {
            "name": tool_name(function, f"{path}.name"),
            "description": string(function, "description", f"{path}.description") or "",
            "parameters": parameters,
        },
    }


def _parameters(tool: Body) -> Any:
    """The schema of a tool's arguments; of none at all where it has no schema."""
    parameters = tool["function"]["parameters"]
    return _NO_PARAMETERS | {"additionalProperties": False} if parameters is None else parameters


def _as_told(tool: Body) -> Body:
    """The tool as templates read it: its schema as it came, if it is an object."""
    parameters = tool["function"]["parameters"]
    told = parameters if type(parameters) is dict and parameters else _NO_PARAMETERS
    return tool | {"function": tool["function"] | {"parameters": told}}


def left_out(body: Body, messages: Iterable[ChatMessage] = ()) -> Iterator[str]:
    """What a chat has beside what is read of it, which `messages` are: names for it."""
    shown = {image.path for message in messages for image in message.images}
    yield from unread_parts(body["messages"], shown)
    for tool in body.get("tools") or ():
        if tool["type"] not in TOOL_TYPES:
            yield f"tools.{tool['type']}"
        elif tool["type"] == "custom" and (tool["custom"].get("format") or TEXT) != TEXT:
            yield f"tools.{tool['custom']['name']}.format"


def custom_tools(body: Body) -> frozenset[str]:
    """The names of the custom tools of a chat whose fields have been checked."""
    tools = body.get("tools") or ()
    return frozenset(tool["custom"]["name"] for tool in tools if tool["type"] == "custom")


def _parallel(body: Body) -> bool | None:
    return None if body.get("parallel_tool_calls") is None else boolean(body, "parallel_tool_calls")


def _template_kwargs(body: Body) -> tuple[bool, Body | None]:
    """(whether the model may think, further variables of the template)."""
    kwargs = dict(typed(body, "chat_template_kwargs", dict, "an object") or {})
    thinks = kwargs.pop("enable_thinking", None)
    if thinks is None:
        thinks = True
    if type(thinks) is not bool:
        raise BadRequest("enable_thinking is true or false", param="chat_template_kwargs")
    effort = string(body, "reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise BadRequest(
            f"reasoning_effort is one of {', '.join(EFFORTS)}", param="reasoning_effort"
        )
    if effort == "none":
        thinks = False
    elif effort is not None:
        kwargs["reasoning_effort"] = effort
    try:  # frames end at a depth that reading just survived
        n_values(kwargs, MAX_KWARGS_BYTES, MAX_TOLD_LEVELS)
        is_small = len(json.dumps(kwargs)) <= MAX_KWARGS_BYTES
    except ValueError:
        is_small = False
    if not is_small:
        raise BadRequest("chat_template_kwargs is too large", param="chat_template_kwargs")
    return thinks, kwargs or None
