"""Bodies of Ollama's chats, completions and embeddings -> calls.

A body comes in the form of `bodies.py`. The formats follow docs/openapi.yaml of Ollama. Pure.
Errors are BadRequest.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

from lmlite.errors import FieldNames
from lmlite.messages import (
    Chat,
    ChatMessage,
    ChatOptions,
    Complete,
    Embed,
    Json,
    SamplingParams,
    Tokenize,
    ToolCall,
)
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.answer_forms import FREE, Form, held_form
from lmlite.server.api.chat.content_parts import ContentReader, Piece
from lmlite.server.api.chat.messages import conversation, function_call, message
from lmlite.server.api.chat.options import chat_options, parse_effort
from lmlite.server.api.chat.tools import Tools
from lmlite.server.api.fields import Field
from lmlite.server.api.ollama.bodies import OPTIONS, keep_alive_s
from lmlite.server.api.openai.messages import parse_tools
from lmlite.server.api.openai.requests import parse_embeddings
from lmlite.server.api.sampling import sampling_params
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

_EVERYWHERE = {"model", "name", "keep_alive", "options"}
_GENERATING = {*_EVERYWHERE, *OPTIONS, "stream", "format", "think", "logprobs", "top_logprobs"}
CHAT_FIELDS = {*_GENERATING, "messages", "tools", "truncate", "stop_in_reasoning"}
GENERATE_FIELDS = {*_GENERATING, "prompt", "suffix", "images", "system", "raw", "truncate",
                   "stop_in_reasoning"}  # fmt: skip
EMBED_FIELDS = {*_EVERYWHERE, *OPTIONS, "input", "dimensions"}
_ROLES = ("system", "user", "assistant", "tool")
_ANY_OBJECT: Json = {"type": "object"}


def says_nothing(body: Json) -> bool:
    """Whether a body has nothing for the model to read: it asks to load it, or to unload it."""
    return not (body.get("messages") or body.get("prompt") or body.get("input"))


def unloads(body: Json) -> bool:
    """Whether a body asks to unload the model."""
    return says_nothing(body) and keep_alive_s(body) == 0


def parse_chat(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /api/chat. Raises BadRequest."""
    asked, contents, tools = Field(body), ContentReader(defaults), parse_tools(body_tools(body))
    messages: tuple[ChatMessage, ...] = ()
    if not says_nothing(body):
        read = [_message(each.entry("a message"), contents) for each in asked["messages"].items()]
        messages = _with_ids(conversation(read, asked["messages"]))
    form, unheld = _form(asked["format"])
    chat = _chat(asked, defaults, messages, tools, form)
    return _call(
        body, chat if messages else Tokenize(0, ""), CHAT_FIELDS, contents.ignored | tools.ignored,
        field_names=FieldNames("messages", "format"), unheld=(*unheld, *tools.unheld),
    )  # fmt: skip


def parse_generate(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /api/generate. Raises BadRequest."""
    asked, contents = Field(body), ContentReader(defaults)
    prompt, system = asked["prompt"].string() or "", asked["system"].string()
    suffix, is_raw = asked["suffix"].string(), asked["raw"].boolean()
    form, unheld = _form(asked["format"])
    request: Chat | Complete | Tokenize = Tokenize(0, "")
    if prompt and (is_raw or suffix):
        if asked["images"].value:
            asked["images"].unsupported("images are not for a raw prompt, nor for a suffix")
        params = _params(asked, defaults)
        request = Complete(0, (prompt,), params, json_schema=form, suffix=suffix or None)
    elif prompt:
        pieces = [*_images(asked, contents), prompt]
        turns = [ChatMessage("system", system)] if system else []
        turns.append(message("user", pieces, asked["prompt"]))
        request = _chat(asked, defaults, tuple(turns), Tools(), form)
    return _call(
        body, request, GENERATE_FIELDS, contents.ignored,
        field_names=FieldNames("prompt", "format"), unheld=unheld,
    )  # fmt: skip


def parse_embed(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /api/embed. Raises BadRequest."""
    known = EMBED_FIELDS | ({"truncate"} if body.get("truncate") is False else set())
    if says_nothing(body):
        return _call(body, Tokenize(0, ""), known, ())
    asked = {name: body.get(name) for name in ("input", "dimensions")}
    return _call(body, parse_embeddings(asked, defaults).request, known, ())


def parse_embeddings_old(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /api/embeddings, the older form of /api/embed. Raises BadRequest."""
    prompt = Field(body)["prompt"].string()
    others = {name: value for name, value in body.items() if name != "prompt"}
    return parse_embed(others | {"input": prompt}, defaults)


# ---- parts of a body -----------------------------------------------------------------------


def body_tools(body: Json) -> Field:
    """The tools of a body; some clients leave out their type."""
    tools = Field(body)["tools"]
    if type(tools.value) is not list:
        return tools
    return tools.of([{"type": "function", **each} if type(each) is dict else each
                     for each in tools.value])  # fmt: skip


def _call(
    body: Json,
    request: Chat | Complete | Embed | Tokenize,
    known: Collection[str],
    parts: Collection[str],
    **more: object,
) -> Call:
    options = [f"options.{name}" for name in Field(body)["options"].object().value]
    stream = Field(body)["stream"]
    call = Call(
        request,
        stream=stream.value is None or stream.boolean(),
        ignored=ignored_fields(body, known, (*parts, *options)),
    )
    return replace(call, **more)  # type: ignore[arg-type]


def _params(asked: Field, defaults: Defaults) -> SamplingParams:
    n_top = asked["top_logprobs"].integer(0, 20) or 0
    return sampling_params(
        asked,
        defaults,
        max_tokens=asked["num_predict"],
        stop=asked["stop"],
        n_logprobs=n_top if asked["logprobs"].boolean() else None,
    )


def _chat(
    asked: Field,
    defaults: Defaults,
    messages: tuple[ChatMessage, ...],
    tools: Tools,
    form: Json | None,
) -> Chat:
    truncate = asked["truncate"]
    return Chat(
        0,
        messages,
        _params(asked, defaults),
        options=_options(asked, defaults, tools, form),
        truncates=truncate.value is None or truncate.boolean(),
    )


def _options(asked: Field, defaults: Defaults, tools: Tools, form: Json | None) -> ChatOptions:
    think = asked["think"]
    is_switch = type(think.value) is bool
    return chat_options(
        asked,
        defaults,
        tools,
        ("auto", ()),
        form=form,
        parallel=None,
        effort=None if is_switch else parse_effort(think),
        thinks=think.value if is_switch else None,
    )


def _message(body: Field, contents: ContentReader) -> ChatMessage:
    role = body["role"].text()
    if role not in _ROLES:
        body["role"].refuse(f"role is one of {', '.join(_ROLES)}")
    is_own, is_result = role == "assistant", role == "tool"
    calls = filter(None, map(_tool_call, body["tool_calls"].items())) if is_own else ()
    return message(
        role,
        [*_images(body, contents, is_result=is_result), body["content"].string() or ""],
        body["content"],
        name=body["tool_name"].string() if is_result else None,
        reasoning=body["thinking"].string() or None if is_own else None,
        tool_calls=tuple(calls),
        tool_call_id=body["tool_call_id"].string() if is_result else None,
    )


def _with_ids(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The same messages with ids of calls, by which templates know what a result belongs to.

    Clients of Ollama have only the names of tools, and send results in the order of the calls.
    """
    found, n_calls, waiting = [], 0, list[ToolCall]()
    for turn in messages:
        numbered = enumerate(turn.tool_calls, n_calls)
        calls = tuple(replace(call, id=call.id or f"call_{number}") for number, call in numbered)
        n_calls, call_id = n_calls + len(calls), turn.tool_call_id
        waiting += calls
        if turn.role == "tool" and waiting:
            fits = [call for call in waiting if call_id == call.id or turn.name == call.name]
            waiting.remove(call := (fits or waiting)[0])
            call_id = call_id or call.id
        found.append(replace(turn, tool_calls=calls, tool_call_id=call_id))
    return tuple(found)


def _images(body: Field, contents: ContentReader, *, is_result: bool = False) -> list[Piece]:
    """The images of a message or a prompt, which come before its text."""
    return [
        contents.image(image.of({"type": "image"}), image.text(), is_result=is_result)
        for image in body["images"].items()
    ]


def _tool_call(call: Field) -> ToolCall | None:
    function = call.entry("a tool call")["function"].object()
    return function_call(call["id"], function["name"], function["arguments"])


def _form(wanted: Field) -> Form:
    """The form of the reply: "json", a schema, or a schema as text; "": none."""
    if wanted.value in (None, ""):
        return FREE
    if wanted.value == "json":
        return _ANY_OBJECT, ()
    if type(wanted.value) is str:
        try:
            wanted = wanted.of(json.loads(wanted.value))
        except (ValueError, RecursionError):
            wanted.refuse("format is json, or a JSON schema")
    return held_form(wanted, is_strict=False)
