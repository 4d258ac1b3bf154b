"""Messages -> prompt tokens, through the model's own chat template and llama.cpp's Jinja.

Injection safety lives here. A template writes control tokens as text, so its output has to
be tokenized with control tokens parsed; but then a user who types `<|im_end|>` would end
the turn. So each control token that a message spells is broken with a character that occurs
nowhere else, the template renders the broken text, and the prompt is split at those
characters and tokenized part by part. No part spells a control token that a user wrote.
Runs in the worker's reader thread.
"""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.answer import Form
from lmlite.worker.llama import Model, take_text

Json = dict[str, Any]

_PRIVATE_USE = range(0xE000, 0xF900)  # characters without a meaning in Unicode


class TemplateError(Exception):
    """A chat template that cannot be read."""


class Breaker:
    """Breaks control tokens that a text spells, whole or where it meets other text."""

    def __init__(self, control_texts: Sequence[str]) -> None:
        # A token of one character cannot be broken; no known model has one that is printable.
        self._controls = [text for text in control_texts if len(text) > 1]
        self._beginnings = {text[:n] for text in self._controls for n in range(1, len(text))}
        self._endings = {text[n:] for text in self._controls for n in range(1, len(text))}
        self._longest = max(map(len, self._controls), default=0)

    def broken(self, text: str, mark: str) -> str:
        """The text with a mark inside each control token, and at an end that could complete one.

        >>> Breaker(["<|end|>"]).broken("a <|end|> b <|en", "~")
        'a <~|end|> b <|en~'
        """
        for control in self._controls:
            # Overlapping spellings need no second look: each pass leaves none of its own token.
            text = text.replace(control, control[0] + mark + control[1:])
        reach = range(1, min(self._longest, len(text) + 1))
        before = mark if any(text[:n] in self._endings for n in reach) else ""
        after = mark if any(text[-n:] in self._beginnings for n in reach) else ""
        return before + text + after


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and what is known of the answer to it."""

    tokens: list[int]
    stops: tuple[str, ...]  # strings at which this template's answers end
    form: Form


class ChatTemplate:
    """The chat template of a loaded model, or the one that replaces it."""

    def __init__(self, model: Model, override: str | None = None) -> None:
        """Reads the template; ChatML for a model without one. Raises TemplateError."""
        self._lib, self._vocab = model.lib, model.vocab
        error = ctypes.c_void_p()
        source = override.encode() if override else None
        self._pointer = self._lib.lml_chat_init(model.pointer, source, ctypes.byref(error))
        if not self._pointer:
            fault = take_text(self._lib, error.value)
            raise TemplateError(f"the chat template cannot be read: {fault}")
        self._source: str = self._lib.lml_chat_source(self._pointer).decode("utf-8", "replace")
        self._breaker = Breaker(self._vocab.control_texts())

    def close(self) -> None:
        """Frees the template."""
        self._lib.lml_chat_free(self._pointer)

    def render(
        self, messages: Sequence[ChatMessage], options: ChatOptions | None = None
    ) -> Rendered:
        """The prompt for these messages.

        Raises BadRequest with the template's own words when it refuses them, and for a tool or
        a schema of which llama.cpp can make no grammar.
        """
        request = _request(messages, options or ChatOptions())
        mark = self._unused_character(request)
        broken = self._break_all(request, mark)
        reply = self._render(broken)
        parsed = json.loads(reply)
        tokens = self._tokenize(parsed["prompt"].split(mark))
        narrowed = _narrowed(request, options)
        if narrowed is not request or broken != request:
            # The prompt has marks in it and lists every tool; a grammar must know neither.
            reply = self._render(narrowed)
            parsed = json.loads(reply)
        return Rendered(tokens, tuple(parsed["stops"]), self._form(parsed, reply))

    def _form(self, parsed: Json, reply: bytes) -> Form:
        preserved: set[int] = set()
        for text in parsed["preserved"]:
            tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
            preserved.update(tokens if len(tokens) == 1 else ())
        return Form(
            reply,
            has_grammar=bool(parsed["grammar"]),
            grammar_waits=parsed["grammar_lazy"],
            opening=parsed["generation_prompt"],
            thinking_start=parsed["thinking_start"],
            thinking_ends=tuple(parsed["thinking_ends"]),
            preserved=frozenset(preserved),
        )

    def _tokenize(self, parts: Sequence[str]) -> list[int]:
        tokens: list[int] = []
        for i, part in enumerate(part for part in parts if part):
            tokens += self._vocab.tokenize(
                part, add_special=i == 0, parse_special=True, continues=i > 0
            )
        return tokens

    def _break_all(self, value: Any, mark: str) -> Any:
        """The request with every text in it broken, save the names of fields."""
        if isinstance(value, str):
            return self._breaker.broken(value, mark)
        if isinstance(value, list):
            return [self._break_all(item, mark) for item in value]
        if isinstance(value, dict):
            return {
                key if key in _OUR_KEYS else self._break_all(key, mark): self._break_all(item, mark)
                for key, item in value.items()
            }
        return value

    def _unused_character(self, request: Json) -> str:
        # One search instead of one for each text: what json.dumps leaves as it is, is there.
        used = self._source + json.dumps(request, ensure_ascii=False)
        for code in _PRIVATE_USE:
            if chr(code) not in used:
                return chr(code)
        raise BadRequest("the messages use every private-use character", param="messages")

    def _render(self, request: Json) -> bytes:
        pointer = self._lib.lml_chat_render(self._pointer, json.dumps(request).encode())
        reply = take_text(self._lib, pointer)
        if reply.startswith('{"error":'):
            words = _own_words(str(json.loads(reply)["error"]))
            raise BadRequest(f"the chat template refuses the messages: {words}", param="messages")
        return reply.encode()


# Names of fields, which no message can choose: breaking one would hide it from the library.
_OUR_KEYS = frozenset(
    ("messages", "role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id", "id",
     "type", "function", "arguments", "tools", "tool_choice", "parallel_tool_calls", "json_schema",
     "enable_thinking", "reasoning", "kwargs", "description", "parameters")
)  # fmt: skip


def _request(messages: Sequence[ChatMessage], options: ChatOptions) -> Json:
    """What the bridge is asked for, in OpenAI's form."""
    request: Json = {
        "messages": [_as_json(message) for message in messages],
        "enable_thinking": options.thinks,
        "reasoning": options.separate_reasoning,
    }
    if options.tools is not None:
        request["tools"] = json.loads(options.tools)
        request["tool_choice"] = options.tool_choice
        if options.parallel_tool_calls is not None:
            request["parallel_tool_calls"] = options.parallel_tool_calls
    if options.json_schema is not None:
        request["json_schema"] = json.loads(options.json_schema)
    if options.template_kwargs is not None:
        request["kwargs"] = json.loads(options.template_kwargs)
    return request


def _narrowed(request: Json, options: ChatOptions | None) -> Json:
    """The request with the one tool that must be called; itself when any may be."""
    if options is None or options.tool_name is None:
        return request
    wanted = [t for t in request["tools"] if t["function"]["name"] == options.tool_name]
    return request | {"tools": wanted}


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


def _own_words(error: str) -> str:
    """What the template itself said, without llama.cpp's account of where it said it.

    >>> _own_words("While executing ... Error: Jinja Exception: roles must alternate")
    'roles must alternate'
    """
    for introduction in ("Jinja Exception: ", "Error: "):
        if introduction in error:
            return " ".join(error.rpartition(introduction)[2].split())
    return " ".join(error.split())
