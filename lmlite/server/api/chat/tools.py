"""The tools that a chat offers to its model, and which of them it may call.

Each API adds its tools one by one. Pure; errors are BadRequest.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lmlite.errors import BadRequest
from lmlite.messages import Json
from lmlite.server.api.chat.custom_tools import as_function
from lmlite.server.api.fields import Field
from lmlite.server.forms.bounds import n_values
from lmlite.server.forms.schemas import ToolSchemas, UnheldPart

MAX_TOOLS = 512
# Limits of all tools' schemas together: the slowest template takes 0.7 ms of CPU per value, over
# all its renderings, and its time grows with the square of the levels.
MAX_TOLD_VALUES, MAX_TOLD_LEVELS = 12_000, 400
TOOL_TYPES = ("function", "custom")  # tools of other types are left out
# Tool names become strings in grammars, so they have no character that could end a string.
MAX_NAME = 128

_NAME = re.compile(rf"[\w.:/-]{{1,{MAX_NAME}}}", re.ASCII)
_NO_PARAMETERS = {"type": "object", "properties": {}}
_TEXT = {"type": "text"}  # the format of a custom tool whose input is free text

# Whether a tool may or must be called, and the names of the tools that may be; (): all.
Choice = tuple[Literal["auto", "none", "required"], tuple[str, ...]]


class Tools:
    """The tools of one request."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.told: list[Json] = []  # OpenAI's function tools, as templates read them
        self.schemas: list[Json] = []  # enforced on the arguments of each
        self.unheld: list[UnheldPart] = []
        self.custom: set[str] = set()  # names of custom tools, which take one text
        self.ignored: set[str] = set()  # "tools.TYPE" of each tool that is left out
        self._n_added = 0
        self._n_values_left = MAX_TOLD_VALUES
        self._room = ToolSchemas()

    def add(self, function: Field, parameters: str = "parameters") -> None:
        """Adds a function; `parameters` names the field with its schema.

        Only the fields that templates know are kept: frameworks add others.
        """
        self._count()
        schema = function[parameters]
        if schema.value == []:  # PHP's way to write an empty object
            schema = schema.of({})
        if schema.value is not None and type(schema.value) not in (dict, bool):
            schema.refuse(f"{schema.path} is not a JSON schema")
        name = _name(function["name"].required())
        description = function["description"].string() or ""
        self._count_values(schema)
        held = self._room.widened(
            _NO_PARAMETERS | {"additionalProperties": False}
            if schema.value is None
            else schema.value,
            name,
        )
        told = schema.value if type(schema.value) is dict and schema.value else _NO_PARAMETERS
        parts = {"name": name, "description": description, "parameters": told}
        self.names.append(name)
        self.told.append({"type": "function", "function": parts})
        self.schemas.append(held.schema)
        self.unheld += held.unheld

    def add_custom(self, tool: Field) -> None:
        """Adds a custom tool."""
        self.add(tool.of(as_function(tool)))
        self.custom.add(self.names[-1])
        if (tool["format"].value or _TEXT) != _TEXT:
            self.ignored.add(f"tools.{self.names[-1]}.format")

    def leave_out(self, kind: Any) -> None:
        """Counts a tool of an unknown type, and lists it as ignored."""
        self._count()
        self.ignored.add(f"tools.{kind}")

    def _count(self) -> None:
        self._n_added += 1
        if self._n_added > MAX_TOOLS:
            raise BadRequest(f"tools has more than {MAX_TOOLS} tools", param="tools")

    def _count_values(self, schema: Field) -> None:
        try:
            self._n_values_left -= n_values(schema.value, self._n_values_left, MAX_TOLD_LEVELS)
        except ValueError:
            why = f"more than {MAX_TOLD_VALUES:,} values, or {MAX_TOLD_LEVELS} in each other"
            schema.refuse(f"{schema.path}: the schemas of all tools have {why}")


def _name(name: Field) -> str:
    if type(name.value) is not str or not _NAME.fullmatch(name.value):
        name.refuse(f"a tool's name has 1 to {MAX_NAME} letters, digits, _ . : / or -")
    return str(name.value)


# ---- which tools may be called -------------------------------------------------------------


def names_of(tool: Any) -> list[str]:
    """The name in a chat's reference to a function or custom tool; [] for other types."""
    kind = tool.get("type") if type(tool) is dict else None
    named = tool.get(kind) if kind in TOOL_TYPES else None
    name = named.get("name") if type(named) is dict else None
    return [name] if type(name) is str else []


def parse_tool_choice(
    choice: Field, offered: Sequence[str], names: Callable[[Any], list[str]] = names_of
) -> Choice:
    """A `tool_choice`; `offered`: names of all tools; `names` reads the names in a reference."""
    value = choice.value
    if value is None or (not offered and value in ("auto", "none")):
        return "auto", ()
    if type(value) is dict and value.get("type") == "allowed_tools":
        return allowed_tools(choice, value.get("allowed_tools"), offered, names)
    if not offered:
        choice.refuse("tool_choice needs tools")
    if value in ("auto", "none", "required"):
        return value, ()
    if type(value) is not dict:
        choice.refuse("tool_choice is auto, none, required, a tool by its name, or allowed_tools")
    if not (named := names(value)) or named[0] not in offered:
        choice.refuse("tool_choice names none of the tools")
    return "required", (named[0],)


def allowed_tools(
    choice: Field, allowed: Any, offered: Sequence[str], names: Callable[[Any], list[str]]
) -> Choice:
    """The choice of an `allowed_tools` list. Unknown names on it are ignored."""
    tools = allowed.get("tools") if type(allowed) is dict else None
    if type(tools) is not list or allowed.get("mode") not in ("auto", "required"):
        choice.refuse("allowed_tools has a mode, auto or required, and a list of tools")
    listed = [name for tool in tools for name in names(tool)]
    kept = tuple(name for name in offered if name in listed)
    if not kept and allowed["mode"] == "required":
        choice.refuse("tool_choice allows none of the tools")
    return (allowed["mode"], kept) if kept else ("none", ())
