"""A body of POST /v1/responses -> the chat that it means, with errors in this API's own names.

Everything is said in the words of a chat, which `openai_requests.py` then reads; what this API
spells otherwise is renamed on the way there, and in errors on the way back. Pure, but for the
conversations that earlier responses have left.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import Chat, ChatMessage
from lmlite.server.fields import Body, boolean, integer, required, string, typed, unsupported
from lmlite.server.openai_requests import CHAT_FIELDS, Call, ignored_fields, parse_chat
from lmlite.server.sampling import NO_DEFAULTS, Defaults
from lmlite.server.stored_responses import Conversation, StoredResponses

ROLES = ("user", "assistant", "system", "developer")
LOGPROBS = "message.output_text.logprobs"  # what `include` says to get them

# Fields of a chat that this API spells otherwise, or does not have.
_OF_CHATS = {"messages", "n", "max_tokens", "max_completion_tokens", "response_format",
             "reasoning_effort", "functions", "audio", "modalities", "logprobs"}  # fmt: skip
_SAME = CHAT_FIELDS - _OF_CHATS
_OWN = {"input", "instructions", "previous_response_id", "max_output_tokens", "text", "reasoning",
        "include", "truncation", "background", "conversation", "prompt",
        "max_tool_calls"}  # fmt: skip
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


def parse_response(
    stored: StoredResponses, body: Body, defaults: Defaults = NO_DEFAULTS
) -> ResponseCall:
    """A body of POST /v1/responses. Raises BadRequest."""
    _refuse_unsupported(body)
    turns = _Turns(required(body, "input"))
    chat = {name: body[name] for name in _SAME if name in body}
    chat |= _in_other_words(body) | {"messages": turns.messages}
    names_of_tools = {f"tools.[{i}].function": f"tools.[{i}]" for i in range(len(chat["tools"]))}
    with own_names(turns.names | names_of_tools):
        call = parse_chat(chat, defaults)
    assert isinstance(call.request, Chat)
    previous = string(body, "previous_response_id")
    earlier = stored.find(previous) if previous is not None else ()
    conversation = earlier + call.request.messages
    instructions = string(body, "instructions")
    system = (ChatMessage("system", instructions),) if instructions else ()
    request = replace(call.request, messages=system + conversation)
    return ResponseCall(
        request,
        call.model,
        stream=call.stream,
        ignored=ignored_fields(body, RESPONSE_FIELDS),
        conversation=conversation,
        is_stored=body.get("store") is None or boolean(body, "store"),
        settings=_settings(body, request),
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


# ---- input items ---------------------------------------------------------------------------


class _Turns:
    """Input items as messages of a chat, and what the fields of those are called here."""

    def __init__(self, value: Any) -> None:
        self.messages: list[Body] = []
        self.names = dict(_NAMES)
        if type(value) is str:
            self._add({"role": "user", "content": value}, "input", "input")
        elif type(value) is list:
            for i, item in enumerate(value):
                self._read(item, f"input.[{i}]")
        else:
            raise BadRequest("input is a string or a list of items", param="input")

    def _read(self, item: Any, path: str) -> None:
        if type(item) is not dict:
            raise BadRequest("an item is an object", param=path)
        match item.get("type") or "message":
            case "message":
                self._read_message(item, path)
            case "function_call":
                self._read_call(item, path)
            case "function_call_output":
                result = {"role": "tool", "tool_call_id": item.get("call_id"),
                          "content": _parts(item.get("output"))}  # fmt: skip
                self._add(result, path, f"{path}.output")
                self.names[f"{self._last}.tool_call_id"] = f"{path}.call_id"
            case "reasoning":
                self._read_reasoning(item, path)
            case "item_reference":
                unsupported(f"{path}.type", "items cannot be referred to: send the item itself")
            case _:
                words = "items are messages, function calls, their outputs and reasoning"
                unsupported(f"{path}.type", f"{words}: this server knows no other type")

    def _read_message(self, item: Body, path: str) -> None:
        role = required(item, "role", f"{path}.role")
        if role not in ROLES:
            raise BadRequest(f"role is one of {', '.join(ROLES)}", param=f"{path}.role")
        content = _parts(required(item, "content", f"{path}.content"))
        if role == "assistant":
            self._assistant(path, "reasoning_content")["content"] = content
            self.names[f"{self._last}.content"] = f"{path}.content"
        else:
            self._add({"role": role, "content": content}, path, f"{path}.content")

    def _read_call(self, item: Body, path: str) -> None:
        turn = self._assistant(path, "reasoning_content", "content", "tool_calls")
        calls = turn.setdefault("tool_calls", [])
        place = f"{self._last}.tool_calls.[{len(calls)}]"
        self.names |= {f"{place}.function": path, f"{place}.id": f"{path}.call_id"}
        calls.append({"id": item.get("call_id"), "function": item})

    def _read_reasoning(self, item: Body, path: str) -> None:
        if text := _reasoning_text(item, path):
            turn = self._assistant(path, "reasoning_content")
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    @property
    def _last(self) -> str:
        return f"messages.[{len(self.messages) - 1}]"

    def _add(self, message: Body, path: str, path_of_content: str) -> None:
        self.messages.append(message)
        self.names |= {self._last: path, f"{self._last}.content": path_of_content}

    def _assistant(self, path: str, *parts: str) -> Body:
        """The assistant's turn that is going on, if it has no other parts; else a new one."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or not last.keys() <= {"role", *parts}:
            self._add({"role": "assistant"}, path, path)
        return self.messages[-1]


def _parts(content: Any) -> Any:
    """Content parts as a chat has them; what is none goes there as it is, to be refused."""
    return [_part(part) for part in content] if type(content) is list else content


def _part(part: Any) -> Any:
    if type(part) is not dict:
        return part
    if part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if part.get("type") == "input_image":
        if part.get("file_id") is not None:
            unsupported("input", "files are not kept here: send the image as image_url")
        image = {"url": part.get("image_url"), "detail": part.get("detail")}
        return {"type": "image_url", "image_url": image}
    return part


def _reasoning_text(item: Body, path: str) -> str:
    """What the model thought, or its summary where only that is known."""
    for name in ("content", "summary"):
        parts = typed(item, name, list, "a list", f"{path}.{name}") or []
        if not all(type(part) is dict and type(part.get("text")) is str for part in parts):
            raise BadRequest("each part of reasoning has a text", param=f"{path}.{name}")
        if parts:
            return "".join(part["text"] for part in parts)
    return ""


# ---- everything else -----------------------------------------------------------------------


def _refuse_unsupported(body: Body) -> None:
    if boolean(body, "background"):
        unsupported("background", "background is not supported: responses are sent at once")
    if string(body, "truncation") not in (None, "disabled"):
        unsupported("truncation", "input is never cut: truncation can only be disabled")
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
        "tools": _tools(body),
        "tool_choice": _tool_choice(body.get("tool_choice")),
    }


def _form(body: Body) -> Body:
    text = typed(body, "text", dict, "an object") or {}
    form = typed(text, "format", dict, "an object", "text.format") or {}
    return {"type": "text"} | form


def _tools(body: Body) -> list[Any]:
    """Functions with their fields where a chat has them; other tools are refused there."""
    tools = typed(body, "tools", list, "a list") or []
    return [
        {"type": "function", "function": tool}
        if type(tool) is dict and tool.get("type") == "function"
        else tool
        for tool in tools
    ]


def _tool_choice(choice: Any) -> Any:
    if type(choice) is dict and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


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
        # Strict, whatever was asked for: a grammar holds calls to the schemas.
        "tools": [
            {"type": "function", "strict": True} | tool["function"]
            for tool in json.loads(options.tools or "[]")
        ],
        "top_logprobs": params.n_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
    }
