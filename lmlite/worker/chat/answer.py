"""A completion's text -> content, reasoning and tool calls, as its chat template writes them.

llama.cpp's `common` knows which tags a model puts around a thought or a call, for every template
that it can read. An Answer hands it the text as it grows, and says what that adds. Belongs to the
engine thread, after the reader's thread has made it.
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
    """What rendering a prompt tells of the answer to it."""

    reply: bytes  # the bridge's reply, for lml_answer_init and lml_grammar_init
    grammar: str  # GBNF, "" for none
    grammar_waits: bool  # for a trigger, such as a tool call's opening tag
    opening: str  # the end of the prompt, where the answer's turn begins
    separates: bool  # thoughts are kept out of the content
    thinking_start: str  # "" for a template that has no thoughts
    thinking_ends: tuple[str, ...]
    preserved: frozenset[int]  # control tokens that are text here
    one_call: bool  # further calls are dropped


@dataclass(frozen=True, slots=True)
class Part:
    """What a piece of text adds to a message."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Answer:
    """One message, read from the text of a completion."""

    def __init__(self, lib: Any, form: Form) -> None:
        """Raises ValueError when the library cannot read its own parser."""
        self._lib = lib
        error = ctypes.c_void_p()
        self._pointer = lib.lml_answer_init(form.reply, ctypes.byref(error))
        if not self._pointer:
            raise ValueError(f"the answer's form cannot be read: {take_fault(lib, error)}")
        self.form = form
        self._call_ids: list[str] = []
        self.call_done = False  # the one call that it may make is complete
        self.is_plain: bool = lib.lml_answer_is_plain(self._pointer)  # all of it is content
        self.has_thought = False  # a thought has begun
        self.has_begun = False  # something else than a thought has
        self.is_thinking = False
        self._recent = ""  # the end of the text, in which a tag may have begun
        self._follow_thoughts(form.opening)
        self._recent, self.has_begun = "", False  # the opening is not the answer's own text

    def close(self) -> None:
        """Frees the parser."""
        self._lib.lml_answer_free(self._pointer)

    @property
    def has_calls(self) -> bool:
        """Whether a tool call has begun."""
        return bool(self._call_ids)

    def push(self, text: str) -> Part | None:
        """What more text adds; None for nothing yet."""
        data = text.encode()
        found = self._read(self._lib.lml_answer_push(self._pointer, data, len(data)))
        part = self._part(found) if found else None
        self._follow_thoughts(text)
        return part

    def finish(self, *, is_whole: bool) -> Part | None:
        """What was still unclear at the end of the text. `is_whole`: the model has ended it."""
        found = self._read(self._lib.lml_answer_finish(self._pointer, is_whole))
        if found is None:
            return None
        if "error" in found:  # text that is not in the form is content like any other
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
        """What the text has behind its thoughts and the content that was sent."""
        if self.has_calls:
            return ""
        for end in self.form.thinking_ends:
            text = text.rpartition(end)[2].lstrip("\n")
        return text[len(content) :] if text.startswith(content) else ""

    def _follow_thoughts(self, text: str) -> None:
        """Follows the tags around thoughts, until something else has begun."""
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
