"""Custom tools, which take one text: functions for the model, and their calls as text again.

A model writes every call as JSON, so a custom tool becomes a function with one parameter, and the
value of that parameter, read from its JSON as it grows, is the input of the call. Pure. The forms
are those of OpenAI's custom tools in chats and in responses.
"""

import json
import re
from dataclasses import replace

from lmlite.messages import CallDelta, Delta
from lmlite.server.api.fields import Body, typed
from lmlite.server.front import wire

PARAMETER = "input"

_OPENING = re.compile(rf'\s*{{\s*"{PARAMETER}"\s*:\s*"')
# As much of a JSON string as can be decoded: no half of an escape, or of a pair of surrogates.
_HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_DECODABLE = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}'
    rf"|{_HIGH}(?:\\u[0-9a-fA-F]{{4}}|(?=[^\\]|\\[^u])))*"
)


def as_function(tool: Body, path: str) -> Body:
    """The function that is offered in place of a custom tool, which stands at `path`.

    A grammar of its input is told to the model, and holds it to nothing.
    """
    form = typed(tool, "format", dict, "an object", f"{path}.format") or {}
    grammar = form.get("grammar") or form  # chats and responses differ by this level
    wanted: Body = {"type": "string"}
    if type(grammar) is dict and type(grammar.get("definition")) is str:
        words = f"A text that follows this {grammar.get('syntax')} grammar"
        wanted["description"] = f"{words}:\n{grammar['definition']}"
    parameters = {"type": "object", "properties": {PARAMETER: wanted}, "required": [PARAMETER]}
    return {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": parameters | {"additionalProperties": False},
    }


def as_arguments(text: str) -> str:
    """The arguments of the function's call, as the model would write them."""
    return json.dumps({PARAMETER: text}, ensure_ascii=False)


class CustomCalls:
    """The calls of custom tools among the events of an answer."""

    def __init__(self, names: frozenset[str]) -> None:
        """`names` are those of the custom tools."""
        self._names = names
        self._inputs: dict[tuple[int, int], _Input] = {}  # by choice and number of the call

    def has(self, index: int, number: int) -> bool:
        """Whether this call of a choice is one of a custom tool."""
        return (index, number) in self._inputs

    def read(self, event: Delta) -> Delta:
        """The event, with the text of an input where it has a part of its JSON."""
        if not self._names or not event.calls:
            return event
        read = (self._read(event.index, call) for call in event.calls)
        return replace(event, calls=tuple(call for call in read if call.id or call.arguments))

    def _read(self, index: int, call: CallDelta) -> CallDelta:
        if call.name in self._names:
            self._inputs[index, call.number] = _Input()
        found = self._inputs.get((index, call.number))
        return call if found is None else replace(call, arguments=found.push(call.arguments))

    def rest(self, index: int) -> tuple[CallDelta, ...]:
        """What is still to be said of a choice's calls at its end: arguments of another form."""
        return tuple(
            CallDelta(number, found.unread)
            for (owner, number), found in self._inputs.items()
            if owner == index and found.unread
        )


class _Input:
    """The text in {"input": text}, as its JSON comes in pieces."""

    def __init__(self) -> None:
        self._raw = ""  # what is not read yet
        self._has_begun = self._is_over = False

    @property
    def unread(self) -> str:
        """All of it, where it was JSON of another form; "" for what was cut short."""
        try:
            json.loads("" if self._has_begun else self._raw)
        except (ValueError, RecursionError):
            return ""
        return self._raw

    def push(self, piece: str) -> str:
        """More of the JSON -> more of the text."""
        if self._is_over:
            return ""
        self._raw += piece
        if not self._has_begun:
            opening = _OPENING.match(self._raw)
            if opening is None:
                return ""
            self._has_begun, self._raw = True, self._raw[opening.end() :]
        return self._decoded()

    def _decoded(self) -> str:
        known = _DECODABLE.match(self._raw)
        assert known is not None  # it may be empty
        self._raw = self._raw[known.end() :]
        self._is_over = self._raw.startswith('"')
        return wire.whole_characters(json.loads(f'"{known[0]}"', strict=False))
