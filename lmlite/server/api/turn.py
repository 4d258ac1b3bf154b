"""One choice of a generated reply as it grows: its thoughts, texts and tool calls.

A Turn collects the worker's deltas into parts. Each API writes its whole reply from the parts, and
its stream in the methods of a Writer, which the turn calls at each change. Pure.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lmlite.errors import BadRequest
from lmlite.messages import CallDelta, Delta, Finished, Json, Started, TokenLogprob
from lmlite.server.api.chat.custom_tools import CustomInput
from lmlite.server.front import wire

Kind = Literal["reasoning", "text", "call"]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(slots=True, eq=False)
class Part:
    """A piece of the turn: thoughts, text, or a tool call."""

    kind: Kind
    index: int  # position in the turn's list of parts
    call: CallDelta | None = None  # the first delta of a tool call
    custom: CustomInput | None = None  # reads a custom tool's input from the JSON of its call
    status: Status = "in_progress"
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)  # one for each token of the text

    @property
    def text(self) -> str:
        """The whole text. For a call: its arguments. For a call of a custom tool: its input."""
        return "".join(self.pieces)

    def arguments(self) -> Json | None:
        """A call's arguments as an object; None if they are incomplete or not an object."""
        try:
            return wire.parse_json(self.text.encode() or b"{}")
        except BadRequest:
            return None


class Writer:
    """The turn calls these methods at each change. In this base class they do nothing."""

    def started(self, event: Started) -> None:
        """The turn starts."""

    def begun(self, part: Part) -> None:
        """A part has begun, without any text yet."""

    def grown(self, part: Part, text: str, logprobs: Sequence[Json]) -> None:
        """Text was added to a part."""

    def ended(self, part: Part) -> None:
        """A part will not grow any more."""

    def finished(self, event: Finished) -> None:
        """The turn is complete, and all of its parts have ended."""


class Turn:
    """One choice: collects its deltas into parts."""

    def __init__(
        self, custom_tools: Collection[str | None], writer: Writer, *, is_sequential: bool
    ) -> None:
        """`is_sequential`: text in the middle of a call waits until the call has ended."""
        self.parts: list[Part] = []
        self.logprobs: list[TokenLogprob] = []  # one for each token of the choice
        self.end: Finished | None = None
        self._custom_tools, self._writer = custom_tools, writer
        self._is_sequential = is_sequential
        self._open: dict[Kind, Part] = {}
        self._held: list[tuple[Kind, str]] = []

    def add(self, delta: Delta, text_logprobs: Sequence[Json] = ()) -> None:
        """Adds a delta. `text_logprobs` go to the part that gets its text."""
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.reasoning:
            self._say("reasoning", delta.reasoning)
        calls = delta.calls
        while self._is_sequential and calls and calls[0].id is None:
            self._lengthen_call(calls[0].arguments)  # first: this may end the call before the text
            calls = calls[1:]
        if delta.text:
            self._say("text", delta.text, text_logprobs)
        for call in calls:
            if call.id is not None:
                self._close("completed", *self._open)
                custom = CustomInput() if call.name in self._custom_tools else None
                self._begin("call", call, custom)
            self._lengthen_call(call.arguments)

    def finish(self, event: Finished, *, has_text: bool = False) -> None:
        """Ends the choice. `has_text`: adds an empty text if it has only thoughts."""
        self.end = event
        is_silent = all(part.kind == "reasoning" for part in self.parts)
        if has_text and is_silent and event.reason == "stop":
            self._close("completed", *self._open)
            self._begin("text")
        self._close("incomplete" if event.reason == "length" else "completed", *self._open)
        self._writer.finished(event)

    def said(self, kind: Kind) -> str:
        """The joined text of all parts of this kind."""
        return "".join(part.text for part in self.parts if part.kind == kind)

    def calls(self) -> list[tuple[CallDelta, Part]]:
        """The first delta and the part of each tool call."""
        return [(part.call, part) for part in self.parts if part.call]

    def _say(self, kind: Kind, text: str, logprobs: Sequence[Json] = ()) -> None:
        part = self._open.get(kind)
        if part is None:
            if self._is_sequential and self._is_amid_call():
                self._held.append((kind, text))
                return
            # Unless sequential, a call stays open: more arguments may follow the text.
            others = [kind for kind in self._open if self._is_sequential or kind != "call"]
            self._close("completed", *others)
            part = self._begin(kind)
        self._grow(part, text, logprobs)

    def _is_amid_call(self) -> bool:
        call = self._open.get("call")
        if call is None:
            return False
        return bool(self._held) or not call.pieces or call.arguments() is None

    def _lengthen_call(self, arguments: str) -> None:
        part = self._open.get("call")
        if part is not None:  # else a text has ended the call, and these are only white space
            text = part.custom.push(arguments) if part.custom else arguments
            if text:
                self._grow(part, text)

    def _begin(
        self, kind: Kind, call: CallDelta | None = None, custom: CustomInput | None = None
    ) -> Part:
        part = self._open[kind] = Part(kind, len(self.parts), call, custom)
        self.parts.append(part)
        self._writer.begun(part)
        return part

    def _grow(self, part: Part, text: str, logprobs: Sequence[Json] = ()) -> None:
        part.pieces.append(text)
        part.logprobs += logprobs
        self._writer.grown(part, text, logprobs)

    def _close(self, status: Status, *kinds: Kind) -> None:
        for part in [self._open.pop(kind) for kind in kinds]:
            if part.custom and (rest := part.custom.unread):
                self._grow(part, rest)
            part.status = status
            self._writer.ended(part)
        held, self._held = self._held, []
        for kind, text in held:
            self._say(kind, text)
        if held:
            self._close(status, *self._open)
