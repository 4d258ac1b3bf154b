"""A body of POST /v1/responses -> a chat.

Pure, except that it looks up the conversations of earlier responses.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from lmlite.errors import FieldNames
from lmlite.messages import Chat, ChatMessage, Json
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.content_parts import ContentReader
from lmlite.server.api.chat.messages import conversation
from lmlite.server.api.fields import Field
from lmlite.server.api.openai.requests import CHAT_FIELDS, chat_call
from lmlite.server.api.responses.input_items import InputReader
from lmlite.server.api.responses.stored import Conversation, StoredResponses
from lmlite.server.api.responses.tools import ResponseTools, ToolReader
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

LOGPROBS = "message.output_text.logprobs"  # the value of `include` that asks for them

# Fields of chat completions that this API names differently or does not have.
_OF_CHATS = {"messages", "n", "max_tokens", "max_completion_tokens", "response_format",
             "reasoning_effort", "functions", "audio", "modalities", "logprobs",
             "timings_per_token", "return_progress"}  # fmt: skip
_OWN = {"input", "instructions", "previous_response_id", "max_output_tokens", "text", "reasoning",
        "include", "truncation", "background", "conversation", "prompt",
        "max_tool_calls", "client_metadata"}  # fmt: skip
RESPONSE_FIELDS = CHAT_FIELDS - _OF_CHATS | _OWN


_NAMES = FieldNames(messages="input", form="text.format")


@dataclass(frozen=True)
class ResponseCall(Call):
    """A call, with what its response repeats and stores."""

    conversation: Conversation = ()  # before the reply, without instructions
    stored: StoredResponses | None = None  # where to keep the conversation; None: not kept
    input: Any = ()  # a text, or items
    settings: Json = field(default_factory=dict)  # of the request, as the response repeats them
    tools: ResponseTools = field(default_factory=ResponseTools)


def parse_response(
    stored: StoredResponses, body: Json, defaults: Defaults = NO_DEFAULTS
) -> ResponseCall:
    """A body of POST /v1/responses. Raises BadRequest."""
    asked = Field(body)
    _refuse_unsupported(asked)
    contents, tools = ContentReader(defaults), ToolReader()
    tools.read(asked["tools"])
    items = InputReader(asked["input"].required(), contents, tools)
    call = chat_call(
        asked,
        defaults,
        messages=conversation(items.messages, asked["input"]),
        tools=tools.offered,
        choice=tools.choice(asked["tool_choice"]),
        form=asked["text"].object()["format"],
        effort=asked["reasoning"].object()["effort"],
        max_tokens=asked["max_output_tokens"],
        n_logprobs=_n_logprobs(asked),
    )
    assert isinstance(call.request, Chat)
    previous = asked["previous_response_id"].string()
    turns = (stored.find(previous) if previous is not None else ()) + call.request.messages
    instructions = asked["instructions"].string()
    system = (ChatMessage("system", instructions),) if instructions else ()
    truncates = asked["truncation"].value == "auto"
    request = replace(call.request, messages=system + turns, truncates=truncates)
    ignored = contents.ignored | tools.offered.ignored | items.ignored
    call = replace(
        call,
        request=request,
        ignored=ignored_fields(body, RESPONSE_FIELDS, ignored),
        field_names=_NAMES,
        is_background=asked["background"].boolean() is True,
    )
    return ResponseCall(
        **vars(call),
        conversation=turns,
        stored=stored if asked["store"].value is None or asked["store"].boolean() else None,
        settings=_settings(asked, request) | {"tools": tools.as_sent},
        tools=tools.known_as,
        input=asked["input"].value,
    )


def _refuse_unsupported(body: Field) -> None:
    if body["background"].boolean() and (body["store"].value is False or body["stream"].value):
        body["background"].refuse("a background response is stored and polled, and so has no "
                                  "store: false or stream: true")  # fmt: skip
    if body["truncation"].string() not in (None, "disabled", "auto"):
        body["truncation"].refuse("truncation is auto or disabled")
    for name in ("conversation", "prompt"):
        if body[name].value is not None:
            body[name].unsupported(f"{name} is not supported: this server stores none")


def _n_logprobs(body: Field) -> int | None:
    n_top = body["top_logprobs"].integer(0, 20) or 0
    include = body["include"].typed(list, "a list") or []
    return n_top if n_top or LOGPROBS in include else None


def _settings(body: Field, request: Chat) -> Json:
    options, params = request.options, request.params
    metadata = body["metadata"].object()
    if not all(type(value) is str for value in metadata.value.values()):
        metadata.refuse("metadata maps names to strings")
    return {
        "background": body["background"].value is True,
        "instructions": body["instructions"].value,
        "max_output_tokens": params.max_tokens,
        "metadata": metadata.value,
        "parallel_tool_calls": options.parallel_tool_calls is not False,
        "previous_response_id": body["previous_response_id"].value,
        "reasoning": {"effort": body["reasoning"].object()["effort"].value, "summary": None},
        "temperature": params.temperature,
        "text": {"format": {"type": "text"} | body["text"].object()["format"].object().value},
        "tool_choice": body["tool_choice"].value or "auto",
        "top_logprobs": params.n_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "auto" if request.truncates else "disabled",
    }
