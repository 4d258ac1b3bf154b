"""Tools of POST /v1/responses -> tools of a chat: namespaced names become flat names, and back.

Agents put the tools of each of their servers in a namespace. Chats have no namespaces, so the model
sees `namespace__name`, and the reply splits it again. Pure; errors are BadRequest.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

from lmlite.messages import Json
from lmlite.server.api.chat.tools import (
    MAX_NAME,
    TOOL_TYPES,
    Choice,
    Tools,
    allowed_tools,
    parse_tool_choice,
)
from lmlite.server.api.fields import Field

_SEPARATOR = "__"
SEARCH = "tool_search"


@dataclass
class ResponseTools:
    """The client's names of the tools that the model sees."""

    apart: dict[str, tuple[str, str]] = field(default_factory=dict)  # flat name -> namespace, name
    has_search: bool = False  # the client can search for tools that it has not sent yet


class ToolReader:
    """Reads the tools of a request."""

    def __init__(self) -> None:
        self.offered = Tools()
        self.known_as = ResponseTools()
        self.as_sent: list[Json] = []  # the body's tools that the model sees

    def read(self, field: Field) -> None:
        """Adds the tools of a body."""
        for tool in field.items():
            self.add(tool)
            if tool["type"].value in (*TOOL_TYPES, "namespace") or _is_clients_search(tool):
                # In a response, a function always has these two fields.
                keys = ("strict", "parameters") if tool["type"].value == "function" else ()
                self.as_sent.append(dict.fromkeys(keys) | tool.value)

    def add(self, tool: Field, namespace: str | None = None) -> None:
        """Adds a tool, or all tools of a namespace."""
        kind = tool.entry("a tool")["type"].required().value
        if kind == "namespace":
            name = tool["name"].text()
            for inner in tool["tools"].items():
                self.add(inner, name)
        elif kind in TOOL_TYPES:
            self._offer(kind, self._named(tool, namespace))
        elif _is_clients_search(tool):
            self.known_as.has_search = True
            self._offer("function", tool.of(tool.value | {"name": SEARCH}))
        else:
            self.offered.leave_out(kind)

    def _named(self, tool: Field, namespace: str | None) -> Field:
        name = tool["name"].value
        if namespace is None or type(name) is not str:
            return tool
        flat = flat_name(name, namespace)
        self.known_as.apart[flat] = namespace, name
        return tool.of(tool.value | {"name": flat})

    def _offer(self, kind: str, tool: Field) -> None:
        """Adds a tool unless its name is taken: agents send some tools twice."""
        if tool["name"].value in self.offered.names:
            return
        if kind == "custom":
            self.offered.add_custom(tool)
        else:
            self.offered.add(tool)

    def choice(self, choice: Field) -> Choice:
        """A `tool_choice`."""
        if type(choice.value) is not dict or choice["type"].value != "allowed_tools":
            return parse_tool_choice(choice, self.offered.names, self._names_of)
        if not all(type(tool.value) is dict for tool in choice["tools"].items()):
            choice["tools"].refuse("a tool is an object")
        allowed = choice.value | {"tools": choice["tools"].value or []}
        return allowed_tools(choice, allowed, self.offered.names, self._names_of)

    def _names_of(self, tool: Json) -> list[str]:
        """The flat names of the tools that a reference names: one, or all of a namespace."""
        kind, name, namespace = tool.get("type"), tool.get("name"), tool.get("namespace")
        apart = self.known_as.apart
        if kind == "namespace":
            return [flat for flat, (where, _) in apart.items() if where == name]
        if kind not in TOOL_TYPES or type(name) is not str:
            return []
        if type(namespace) is str:
            return [flat_name(name, namespace)]
        # A name without a namespace may still mean a tool in one.
        inner = [flat for flat, (_, own) in apart.items() if own == name]
        return [name] if name in self.offered.names or not inner else inner


def _is_clients_search(tool: Field) -> bool:
    """Whether the client runs this search for tools; it then sends the tools that it finds."""
    return bool(tool["type"].value == SEARCH and tool["execution"].value == "client")


def flat_names(tools: Any) -> list[str]:
    """The names of tools as the model sees them; malformed tools are skipped."""
    found = []
    for tool in tools if type(tools) is list else ():
        name = tool.get("name") if type(tool) is dict else None
        if type(name) is str and tool.get("type") == "namespace":
            found += [flat_name(inner, name) for inner in flat_names(tool.get("tools"))]
        elif type(name) is str:
            found.append(name)
    return found


def flat_name(name: str, namespace: str | None) -> str:
    """The name of a tool as the model sees it.

    >>> flat_name("read", "mcp__files__"), flat_name("read", "mcp__files"), flat_name("read", None)
    ('mcp__files__read', 'mcp__files__read', 'read')
    """
    if not namespace:
        return name
    flat = f"{namespace.removesuffix(_SEPARATOR)}{_SEPARATOR}{name}"
    if len(flat) <= MAX_NAME:
        return flat
    return f"{flat[: MAX_NAME - 9]}_{zlib.crc32(flat.encode()):08x}"  # the checksum keeps it unique
