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
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage
from lmlite.worker.llama import Model

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


class ChatTemplate:
    """The chat template of a loaded model, or the one that replaces it."""

    def __init__(self, model: Model, override: str | None = None) -> None:
        """Reads the template; ChatML for a model without one. Raises TemplateError."""
        self._lib, self._vocab = model.lib, model.vocab
        error = ctypes.c_void_p()
        source = override.encode() if override else None
        self._pointer = self._lib.lml_chat_init(model.pointer, source, ctypes.byref(error))
        if not self._pointer:
            raise TemplateError(f"the chat template cannot be read: {self._take(error.value)}")
        self._source: str = self._lib.lml_chat_source(self._pointer).decode("utf-8", "replace")
        self._breaker = Breaker(self._vocab.control_texts())

    def close(self) -> None:
        """Frees the template."""
        self._lib.lml_chat_free(self._pointer)

    def tokens(self, messages: Sequence[ChatMessage]) -> tuple[list[int], tuple[str, ...]]:
        """The prompt's tokens, and strings at which this template's answers stop.

        Raises BadRequest with the template's own words when it refuses the messages.
        """
        mark = self._unused_character(messages)
        reply = self._render([self._as_json(message, mark) for message in messages])
        parts = [part for part in reply["prompt"].split(mark) if part]
        tokens: list[int] = []
        for i, part in enumerate(parts):
            tokens += self._vocab.tokenize(
                part, add_special=i == 0, parse_special=True, continues=i > 0
            )
        return tokens, tuple(reply["stops"])

    def _as_json(self, message: ChatMessage, mark: str) -> dict[str, str]:
        body = {
            "role": message.role,
            "content": self._breaker.broken(message.content, mark),
        }
        if message.name is not None:
            body["name"] = self._breaker.broken(message.name, mark)
        return body

    def _unused_character(self, messages: Sequence[ChatMessage]) -> str:
        used = {self._source, *(m.content for m in messages), *(m.name or "" for m in messages)}
        for code in _PRIVATE_USE:
            if not any(chr(code) in text for text in used):
                return chr(code)
        raise BadRequest("the messages use every private-use character", param="messages")

    def _render(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        request = json.dumps({"messages": messages}).encode()
        reply = json.loads(self._take(self._lib.lml_chat_render(self._pointer, request)))
        if "error" in reply:
            words = _own_words(str(reply["error"]))
            raise BadRequest(f"the chat template refuses the messages: {words}", param="messages")
        return dict(reply)

    def _take(self, pointer: int | None) -> str:
        """A string that C made for us: copied, and given back."""
        if not pointer:
            raise MemoryError("the library has no memory for a reply")
        text = ctypes.string_at(pointer).decode("utf-8", "replace")
        self._lib.lml_free(pointer)
        return text


def _own_words(error: str) -> str:
    """What the template itself said, without llama.cpp's account of where it said it.

    >>> _own_words("While executing ... Error: Jinja Exception: roles must alternate")
    'roles must alternate'
    """
    for introduction in ("Jinja Exception: ", "Error: "):
        if introduction in error:
            return " ".join(error.rpartition(introduction)[2].split())
    return " ".join(error.split())
