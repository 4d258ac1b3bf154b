"""Custom tools take one text. The model sees each as a function with one parameter.

A model writes every call as JSON. The parameter's value is read from the JSON as it streams, and
becomes the input of the custom tool's call. Formats: OpenAI's custom tools in chats and in
responses. Pure.
"""

import json
import re

from lmlite.messages import Json
from lmlite.server.api.fields import Field
from lmlite.server.front import wire

PARAMETER = "input"

_OPENING = re.compile(rf'\s*{{\s*"{PARAMETER}"\s*:\s*"')
# The decodable start of a JSON string: it does not end within an escape or a surrogate pair.
_HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_DECODABLE = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}'
    rf"|{_HIGH}(?:\\u[0-9a-fA-F]{{4}}|(?=[^\\]|\\[^u])))*"
)


def as_function(tool: Field) -> Json:
    """The function that the model sees in place of a custom tool. Raises BadRequest.

    Its description shows the grammar of the input to the model, but nothing enforces it.
    """
    form = tool["format"].object().value
    grammar = form.get("grammar") or form  # only chats have this level
    wanted: Json = {"type": "string"}
    if type(grammar) is dict and type(grammar.get("definition")) is str:
        words = f"A text that follows this {grammar.get('syntax')} grammar"
        wanted["description"] = f"{words}:\n{grammar['definition']}"
    parameters = {"type": "object", "properties": {PARAMETER: wanted}, "required": [PARAMETER]}
    return {
        "name": tool["name"].value,
        "description": tool["description"].value,
        "parameters": parameters | {"additionalProperties": False},
    }


def as_arguments(text: str) -> str:
    """The arguments of the function's call, as the model would write them."""
    return json.dumps({PARAMETER: text}, ensure_ascii=False)


class CustomInput:
    """Reads the text in a call's arguments, {"input": text}, while their JSON comes in pieces."""

    def __init__(self) -> None:
        self._raw = ""  # JSON that is not read yet
        self._has_begun = self._is_over = False

    @property
    def unread(self) -> str:
        """The arguments, if they are JSON of a different form; "" if they were cut short."""
        try:
            json.loads("" if self._has_begun else self._raw)
        except (ValueError, RecursionError):
            return ""
        return self._raw

    def push(self, piece: str) -> str:
        """Takes more of the JSON; returns more of the text."""
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
