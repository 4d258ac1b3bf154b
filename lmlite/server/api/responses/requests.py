"""A body of POST /v1/responses -> the chat that it means, with errors in this API's own names.

Everything is said in the words of a chat, which `openai_requests.py` then reads; what this API
spells otherwise is renamed on the way there, and in errors on the way back. Pure, but for the
conversations that earlier responses have left.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import Chat, ChatMessage
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.fields import Body, boolean, integer, required, string, typed, unsupported
from lmlite.server.api.openai.requests import CHAT_FIELDS, parse_chat
from lmlite.server.api.responses.input_items import Turns
from lmlite.server.api.responses.stored import Conversation, StoredResponses
from lmlite.server.api.responses.tools import ResponseTools, read_tools
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

LOGPROBS = "message.output_text.logprobs"  # what `include` says to get them

# Fields of a chat that this API spells otherwise, or does not have.
_OF_CHATS = {"messages", "n", "max_tokens", "max_completion_tokens", "response_format",
             "reasoning_effort", "functions", "audio", "modalities", "logprobs"}  # fmt: skip
_SAME = CHAT_FIELDS - _OF_CHATS
_OWN = {"input", "instructions", "previous_response_id", "max_output_tokens", "text", "reasoning",
        "include", "truncation", "background", "conversation", "prompt",
        "max_tool_calls", "client_metadata"}  # fmt: skip
RESPONSE_FIELDS = _SAME | _OWN
# What errors call a chat's fields -> what they are here.
_NAMES = {"messages": "input", "max_completion_tokens": "max_output_tokens",
          "response_format.json_schema": "text.format", "response_format": "text.format",
          "reasoning_effort": "reasoning.effort"}  # fmt: skip


@dataclass(frozen=True)
class ResponseCall(Call):
    """A call, and what its response says and leaves behind."""

    conversation: Conversation = ()  # up to the answer, without instructions
    is_stored: bool = True
    settings: Body = field(default_factory=dict)  # those of the request, as the response has them
    tools: ResponseTools = field(default_factory=ResponseTools)


def parse_response(
    stored: StoredResponses, body: Body, defaults: Defaults = NO_DEFAULTS
) -> ResponseCall:
    """A body of POST /v1/responses. Raises BadRequest."""
    _refuse_unsupported(body)
    turns, tools = Turns(required(body, "input")), read_tools(body)
    for tool, path in turns.tools:
        tools.add(tool, path)
    chat = {name: body[name] for name in _SAME if name in body}
    chat |= _in_other_words(body) | {"messages": turns.messages, "tools": tools.of_chat}
    chat["tool_choice"] = tools.choice(body.get("tool_choice"))
    with own_names(_NAMES | turns.names | tools.names):
        call = parse_chat(chat, defaults)
    assert isinstance(call.request, Chat)
    previous = string(body, "previous_response_id")
    earlier = stored.find(previous) if previous is not None else ()
    conversation = earlier + call.request.messages
    instructions = string(body, "instructions")
    system = (ChatMessage("system", instructions),) if instructions else ()
    truncates = body.get("truncation") == "auto"
    request = replace(call.request, messages=system + conversation, truncates=truncates)
    return ResponseCall(
        request,
        call.model,
        stream=call.stream,
        ignored=ignored_fields(body, RESPONSE_FIELDS, {*call.ignored, *turns.unread}),
        custom_tools=call.custom_tools,
        tools=tools,
        unheld=call.unheld,
        conversation=conversation,
        is_stored=body.get("store") is None or boolean(body, "store"),
        settings=_settings(body, request) | {"tools": tools.as_sent},
    )


@contextmanager
def own_names(names: Mapping[str, str] = _NAMES) -> Iterator[None]:
    """Inside it, what an error says of a chat's field is said of the field that it came from."""
    try:
        yield
    except ApiError as err:
        rename(err, names)
        raise


def rename(error: ApiError, names: Mapping[str, str] = _NAMES) -> None:
    """Puts this API's field in place of the chat's: the longest of `names` that fits.

    >>> error = BadRequest("messages.[1].content is missing", param="messages.[1].content")
    >>> rename(error, {"messages.[1]": "input.[3]", "messages": "input"})
    >>> error.param, error.message
    ('input.[3].content', 'input.[3].content is missing')
    """
    param = error.param or ""
    fits = [name for name in names if f"{param}.".startswith(f"{name}.")]
    if fits:
        name = max(fits, key=len)
        error.param = names[name] + param.removeprefix(name)
        # Not where it is a word and no name: "the messages" are that here, too.
        pattern = rf"(?<!the ){re.escape(param)}"
        error.message = re.sub(pattern, error.param, error.message, count=1)


# ---- everything else -----------------------------------------------------------------------


def _refuse_unsupported(body: Body) -> None:
    if boolean(body, "background"):
        unsupported("background", "background is not supported: responses are sent at once")
    if string(body, "truncation") not in (None, "disabled", "auto"):
        raise BadRequest("truncation is auto or disabled", param="truncation")
    for name in ("conversation", "prompt"):
        if body.get(name) is not None:
            unsupported(name, f"{name} is not supported: this server keeps none")


def _in_other_words(body: Body) -> Body:
    """The fields that a chat spells otherwise, as it does."""
    reasoning = typed(body, "reasoning", dict, "an object") or {}
    n_top = integer(body, "top_logprobs", 0, 20)
    include = typed(body, "include", list, "a list") or []
    wants_logprobs = bool(n_top) or LOGPROBS in include
    form = _form(body)
    return {
        "max_completion_tokens": body.get("max_output_tokens"),
        "reasoning_effort": reasoning.get("effort"),
        "response_format": {"type": form["type"], "json_schema": form},
        "logprobs": wants_logprobs,
        "top_logprobs": n_top if wants_logprobs else None,
        "stream_options": None,  # here, they are about padding that this server does not send
    }


def _form(body: Body) -> Body:
    text = typed(body, "text", dict, "an object") or {}
    form = typed(text, "format", dict, "an object", "text.format") or {}
    return {"type": "text"} | form


def _settings(body: Body, request: Chat) -> Body:
    options, params = request.options, request.params
    reasoning = body.get("reasoning") or {}
    metadata = typed(body, "metadata", dict, "an object") or {}
    if not all(type(value) is str for value in metadata.values()):
        raise BadRequest("metadata maps names to strings", param="metadata")
    return {
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": params.max_tokens,
        "metadata": metadata,
        "parallel_tool_calls": options.parallel_tool_calls is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "temperature": params.temperature,
        "text": {"format": _form(body)},
        "tool_choice": body.get("tool_choice") or "auto",
        "top_logprobs": params.n_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "auto" if request.truncates else "disabled",
    }
