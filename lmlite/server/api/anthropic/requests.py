"""Bodies of Anthropic's Messages API -> chats.

Pure. The formats are those of the types in Anthropic's Python package. Errors are BadRequest.
"""

from lmlite.errors import FieldNames
from lmlite.messages import Chat, ChatMessage, Json, ToolCall
from lmlite.server.api.anthropic.blocks import (
    BLOCKS_OF,
    RESULT_BLOCKS,
    BlockReader,
    MessageField,
    of_kind,
)
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.answer_forms import FREE, Form, held_form
from lmlite.server.api.chat.content_parts import ContentReader, Piece
from lmlite.server.api.chat.messages import conversation, function_call, message
from lmlite.server.api.chat.options import chat_options, parse_effort
from lmlite.server.api.chat.tools import Choice, Tools, parse_tool_choice
from lmlite.server.api.dry_run import planned
from lmlite.server.api.fields import Field
from lmlite.server.api.sampling import MAX_INT, SAMPLING_FIELDS, sampling_params
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

_INERT = {"metadata", "cache_control"}  # every prompt is cached anyway, as memory allows
MESSAGE_FIELDS = {*SAMPLING_FIELDS, *_INERT, "model", "stream", "stop_in_reasoning", "max_tokens",
                  "messages", "system", "tools", "tool_choice", "stop_sequences", "thinking",
                  "output_config"}  # fmt: skip

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_message(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/messages. Raises BadRequest."""
    MessageField(body)["max_tokens"].required()
    return _parse(body, defaults)


def parse_count(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/messages/count_tokens, as a dry run. Raises BadRequest."""
    return planned(_parse(body, defaults))


def _parse(body: Json, defaults: Defaults) -> Call:
    asked, contents = MessageField(body), ContentReader(defaults)
    asked["max_tokens"].integer(0, MAX_INT)  # -1 is allowed only in other APIs
    tools = _tools(asked["tools"])
    choice, parallel = _tool_choice(asked["tool_choice"], tools)
    config = asked["output_config"].object()
    form, unheld = _form(config["format"])
    effort = _effort(asked["thinking"], config["effort"])
    thinking = asked["thinking"].object()
    is_enabled = thinking["type"].value == "enabled"
    options = chat_options(
        asked,
        defaults,
        tools,
        choice,
        form=form,
        parallel=parallel,
        effort=effort,
        thinks=is_enabled or None,
    )
    params = sampling_params(
        asked,
        defaults,
        max_tokens=asked["max_tokens"],
        stop=asked["stop_sequences"],
        n_logprobs=None,
        budget=thinking["budget_tokens"] if is_enabled else None,
    )
    request = Chat(0, _messages(asked, BlockReader(contents)), params, options=options)
    return Call(
        request,
        stream=asked["stream"].boolean(),
        ignored=ignored_fields(body, MESSAGE_FIELDS, contents.ignored | tools.ignored),
        field_names=FieldNames("messages", "output_config.format"),
        unheld=(*unheld, *tools.unheld),
    )


# ---- messages ------------------------------------------------------------------------------


def _messages(body: Field, reader: BlockReader) -> tuple[ChatMessage, ...]:
    messages = body["messages"].required()
    if not messages.typed(list, "a list"):
        messages.refuse("messages has no message")
    turns = []
    if system := reader.system_text(body["system"]):
        turns.append(ChatMessage("system", system))
    for each in messages.items():
        turns += _turns(each.entry("a message"), reader)
    if turns[-1].tool_calls:
        messages.refuse("the last message calls tools: send their results")
    return conversation(turns, messages)


def _turns(body: Field, reader: BlockReader) -> list[ChatMessage]:
    """The messages of a chat for one message: each tool result becomes a message of its own."""
    role = body["role"].text()
    if role not in BLOCKS_OF:
        body["role"].refuse("role is user, assistant or system")
    content = body["content"].required()
    blocks = reader.blocks(content, BLOCKS_OF[role])
    if role == "user":
        return _user_turns(blocks, content, reader)
    thoughts = "".join(block["thinking"].text() for block in of_kind(blocks, "thinking"))
    calls = filter(None, map(_tool_call, of_kind(blocks, "tool_use")))
    pieces = reader.pieces(blocks)
    turn = message(role, pieces, content, reasoning=thoughts or None, tool_calls=tuple(calls))
    return [turn]


def _user_turns(blocks: list[Field], content: Field, reader: BlockReader) -> list[ChatMessage]:
    """A user's messages, in order; consecutive texts and images form one message."""
    turns: list[ChatMessage] = []
    said: list[Piece] | None = None if blocks else []
    for block in blocks:
        if block["type"].value != "tool_result":
            said = (said or []) + reader.pieces([block])
            continue
        if said is not None:
            turns.append(message("user", said, content))
        turns.append(_result(block, reader))
        said = None
    if said is not None:
        turns.append(message("user", said, content))
    return turns


def _result(block: Field, reader: BlockReader) -> ChatMessage:
    block["is_error"].boolean()  # checked, but templates have no place for it
    content = block["content"]
    blocks = reader.blocks(content.of(content.value or ""), RESULT_BLOCKS)
    pieces = reader.pieces(blocks, is_result=True)
    return message("tool", pieces, content, tool_call_id=block["tool_use_id"].text())


def _tool_call(block: Field) -> ToolCall | None:
    """A call; its input is text if a client kept an incomplete object."""
    arguments = block["input"]
    if type(arguments.value) is not str:
        arguments = arguments.object()
    block["id"].text()
    block["name"].string()
    return function_call(block["id"], block["name"], arguments)


# ---- tools, and the form of the reply ------------------------------------------------------


def _tools(field: Field) -> Tools:
    tools = Tools()
    for tool in field.items():
        kind = tool.entry("a tool")["type"].value
        # Tools of other types are known to Anthropic's models, or run on its servers.
        if kind in (None, "custom") or "input_schema" in tool.value:
            tool["input_schema"].required()
            tools.add(tool, "input_schema")
        else:
            tools.leave_out(kind)
    return tools


def _tool_choice(choice: Field, tools: Tools) -> tuple[Choice, bool | None]:
    """Which tools may be called, and whether several at once; None: the template decides."""
    if choice.typed(dict, "an object") is None:
        return ("auto", ()), None
    kind = choice["type"].text()
    # False only allows several calls; it does not ask for them.
    parallel = False if choice["disable_parallel_tool_use"].boolean() else None
    if kind == "tool":
        name = choice["name"].text()
        return parse_tool_choice(choice, tools.names, lambda _: [name]), parallel
    if kind not in _CHOICES:
        choice["type"].refuse("type is auto, any, tool or none")
    return parse_tool_choice(choice.of(_CHOICES[kind]), tools.names), parallel


def _effort(thinking: Field, effort: Field) -> str | None:
    """The reasoning effort; None: the model's default."""
    asked = thinking.object()
    kind = asked["type"].text() if asked.value else "adaptive"
    if kind not in ("enabled", "disabled", "adaptive"):
        asked["type"].refuse("type is enabled, disabled or adaptive")
    asked["budget_tokens"].typed(int, "a whole number")
    found = parse_effort(effort, "effort")
    return "none" if kind == "disabled" else found


def _form(wanted: Field) -> Form:
    if wanted.typed(dict, "an object") is None:
        return FREE
    if wanted["type"].text() != "json_schema":
        wanted["type"].refuse("type is json_schema")
    return held_form(wanted["schema"].required(), is_strict=False)
