"""A completion's text -> content, reasoning and tool calls, as its chat template writes them.

llama.cpp's `common` library finds out from a chat template which tags the model puts around a
thought or a call. An Answer passes the growing text to this library and returns what each piece
adds. The reader's thread creates an Answer; after that it belongs to the engine thread.
"""

import ctypes
import json
import secrets
from dataclasses import dataclass
from typing import Any

from lmlite.messages import CallDelta
from lmlite.worker.llama.capi import take_fault, take_text


@dataclass(frozen=True, slots=True)
class Form:
    """The form of the answer to a prompt, as the bridge reports it when it renders the prompt."""

    reply: bytes  # the bridge's reply, for lml_answer_init and lml_grammar_init
    grammar: str  # GBNF; "" if the answer is free
    grammar_waits: bool  # applies only after a trigger, such as a tool call's opening tag
    opening: str  # the end of the prompt that belongs to the answer's turn
    separates: bool  # thoughts are kept out of the content
    thinking_start: str  # the opening tag; "" if the template has no thoughts
    thinking_ends: tuple[str, ...]
    preserved: frozenset[int]  # control tokens that count as text in this answer
    one_call: bool  # calls after the first are dropped


@dataclass(frozen=True, slots=True)
class Part:
    """The content, reasoning and calls that a piece of text adds to a message."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Answer:
    """One message, read from the text of a completion."""

    def __init__(self, lib: Any, form: Form) -> None:
        """Raises ValueError if the library cannot load the parser in the form's `reply`."""
        self._lib = lib
        error = ctypes.c_void_p()
        self._pointer = lib.lml_answer_init(form.reply, ctypes.byref(error))
        if not self._pointer:
            raise ValueError(f"the answer's form cannot be read: {take_fault(lib, error)}")
        self.form = form
        self._call_ids: list[str] = []
        self.call_done = False  # with form.one_call: the only allowed call is complete
        self.is_plain: bool = lib.lml_answer_is_plain(self._pointer)  # all text is content
        self.has_thought = False  # a thought has begun
        self.has_begun = False  # content or a call has begun
        self.is_thinking = False
        self._recent = ""  # the end of the text, which may hold the beginning of a tag
        self._follow_thoughts(form.opening)
        self._recent, self.has_begun = "", False  # the opening is part of the prompt

    def close(self) -> None:
        """Frees the parser."""
        self._lib.lml_answer_free(self._pointer)

    @property
    def has_calls(self) -> bool:
        """Whether a tool call has begun."""
        return bool(self._call_ids)

    def push(self, text: str) -> Part | None:
        """Takes more text. Returns what it adds, or None if that is not known yet."""
        data = text.encode()
        found = self._read(self._lib.lml_answer_push(self._pointer, data, len(data)))
        part = self._part(found) if found else None
        self._follow_thoughts(text)
        return part

    def finish(self, *, is_whole: bool) -> Part | None:
        """Returns what `push` has held back. `is_whole`: the model itself has ended the text."""
        found = self._read(self._lib.lml_answer_finish(self._pointer, is_whole))
        if found is None:
            return None
        if "error" in found:  # the text does not match the form: treat it as content
            found = {"content": self._rest(found.get("text", ""), found.get("content", ""))}
        return self._part(found)

    def _read(self, pointer: Any) -> dict[str, Any] | None:
        return json.loads(take_text(self._lib, pointer)) if pointer else None

    def _part(self, found: dict[str, Any]) -> Part | None:
        calls = found.get("calls", [])
        if self.form.one_call:
            self.call_done |= any(call["index"] > 0 for call in calls)
            calls = [call for call in calls if call["index"] == 0]
        content = found.get("content", "")
        part = Part(content, found.get("reasoning", ""), tuple(map(self._call, calls)))
        if self.form.separates:
            self.has_begun |= self.has_calls or bool(content.strip())
        return None if part == Part() else part

    def _call(self, found: dict[str, Any]) -> CallDelta:
        number = found["index"]
        if number < len(self._call_ids):
            return CallDelta(number, found["arguments"])
        self._call_ids.append(f"call_{secrets.token_hex(12)}")
        return CallDelta(number, found["arguments"], self._call_ids[-1], found["name"])

    def _rest(self, text: str, content: str) -> str:
        """The part of the text after its thoughts and after the content already sent."""
        if self.has_calls:
            return ""
        for end in self.form.thinking_ends:
            text = text.rpartition(end)[2].lstrip("\n")
        return text[len(content) :] if text.startswith(content) else ""

    def _follow_thoughts(self, text: str) -> None:
        """Follows the tags around thoughts, until content or a call has begun."""
        start, ends = self.form.thinking_start, self.form.thinking_ends
        if not start or not ends:
            return
        recent = self._recent + text
        opened = recent.rfind(start)
        closed, n_tag = max((recent.rfind(end), len(end)) for end in ends)
        if opened != closed:  # both are -1 without a tag
            self.is_thinking, self.has_thought = opened > closed, True
        if not self.form.separates and not self.is_thinking:
            rest = recent[closed + n_tag if closed >= 0 else 0 :].lstrip()
            self.has_begun |= not start.startswith(rest)
        self.is_thinking &= not self.has_begun
        self._recent = recent[1 - max(map(len, (start, *ends))) :]
