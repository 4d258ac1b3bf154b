"""Messages and tools of chat completions -> those of a chat. Pure; errors are BadRequest."""

from lmlite.messages import ChatMessage, ToolCall
from lmlite.server.api.chat.content_parts import ContentReader
from lmlite.server.api.chat.messages import conversation, custom_call, function_call, message
from lmlite.server.api.chat.tools import TOOL_TYPES, Tools
from lmlite.server.api.fields import Field

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
         "tool": "tool"}  # fmt: skip


def parse_messages(messages: Field, reader: ContentReader) -> tuple[ChatMessage, ...]:
    """The messages of a conversation, without those that are empty."""
    if type(messages.value) is not list:
        messages.refuse(f"{messages.path} is a list of at least one message")
    read = [_message(each.entry("a message"), reader) for each in messages.items()]
    return conversation(read, messages)


def _message(body: Field, reader: ContentReader) -> ChatMessage:
    role = body["role"].required()
    if role.value == "function":
        role.unsupported("functions are not supported: send their results as tools")
    if type(role.value) is not str or role.value not in ROLES:
        role.refuse(f"role is one of {', '.join(ROLES)}")
    if body["function_call"].value:
        body["function_call"].unsupported("function_call is not supported: send tool_calls")
    content, is_result, is_own = body["content"], role.value == "tool", role.value == "assistant"
    if content.value is None and not (is_own or is_result):  # tools may have nothing to say
        content.required("the message has no content")
    pieces = reader.pieces(content, is_result=is_result)
    reasoning = body["reasoning_content"].string()
    return message(
        ROLES[role.value],
        pieces,
        content,
        name=body["name"].string(),
        reasoning=reasoning or None if is_own else None,
        tool_calls=_tool_calls(body) if is_own else (),
        tool_call_id=body["tool_call_id"].string() if is_result else None,
    )


def _tool_calls(body: Field) -> tuple[ToolCall, ...]:
    read = (_tool_call(call.entry("a tool call")) for call in body["tool_calls"].items())
    return tuple(filter(None, read))


def _tool_call(call: Field) -> ToolCall | None:
    if call["type"].value == "custom":
        custom = call["custom"].object()
        return custom_call(call["id"], custom["name"], custom["input"])
    function = call["function"].object()
    return function_call(call["id"], function["name"], function["arguments"])


def parse_tools(field: Field) -> Tools:
    """The tools of a body."""
    tools = Tools()
    for tool in field.items():
        kind = tool.entry("a tool")["type"].required().value
        if kind not in TOOL_TYPES:
            tools.leave_out(kind)
            continue
        function = tool[kind].required().entry(kind)
        if kind == "custom":
            tools.add_custom(function)
        else:
            tools.add(function)
    return tools
