"""Tools of POST /v1/responses -> those of a chat: names in namespaces become flat ones, and back.

Agents put the tools of each of their servers in a namespace. A chat knows none, so the model is
offered `namespace__name`, and a call says both apart again. Pure.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.chat.requests import MAX_NAME, TOOL_TYPES
from lmlite.server.api.fields import Body, required, string, typed

_SEPARATOR = "__"
SEARCH = "tool_search"


@dataclass
class ResponseTools:
    """The tools of a request."""

    of_chat: list[Any] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # of a chat's fields: what they are here
    as_sent: list[Body] = field(default_factory=list)  # those that are offered
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)  # flat: namespace and name
    has_search: bool = False  # the client's own, for tools that it has not sent yet
    _offered: set[str] = field(default_factory=set)  # by their flat names

    def add(self, tool: Any, path: str, namespace: str | None = None) -> None:
        """Takes a tool, or those in a namespace; what is none goes to the chat, to be refused."""
        kind = tool.get("type") if type(tool) is dict else None
        if kind == "namespace":
            self._add_all(tool, path)
        elif kind in TOOL_TYPES:
            self._offer(kind, self._named(tool, namespace), path)
        elif kind == "tool_search" and is_clients_search(tool):
            self.has_search = True
            self._offer("function", tool | {"name": SEARCH}, path)
        else:
            self._append(tool, path)

    def _add_all(self, tool: Body, path: str) -> None:
        required(tool, "name", f"{path}.name")
        namespace = string(tool, "name", f"{path}.name")
        for i, inner in enumerate(typed(tool, "tools", list, "a list", f"{path}.tools") or []):
            self.add(inner, f"{path}.tools.[{i}]", namespace)

    def _named(self, tool: Body, namespace: str | None) -> Body:
        name = tool.get("name")
        if namespace is None or type(name) is not str:
            return tool
        flat = flat_name(name, namespace)
        self.apart[flat] = namespace, name
        return tool | {"name": flat}

    def _offer(self, kind: str, tool: Body, path: str) -> None:
        """A name is that of the first tool that has it: agents send some of them again."""
        name = tool.get("name")
        if type(name) is str and name in self._offered:
            return
        self._append({"type": kind, kind: tool}, path)
        self._offered.add(str(name))

    def _append(self, tool: Any, path: str) -> None:
        place = f"tools.[{len(self.of_chat)}]"
        self.names |= {place: path, **{f"{place}.{kind}": path for kind in TOOL_TYPES}}
        self.of_chat.append(tool)

    def choice(self, choice: Any) -> Any:
        """A `tool_choice` as a chat has it. Raises BadRequest."""
        if type(choice) is not dict:
            return choice
        if choice.get("type") != "allowed_tools":
            named = self._of_choice(choice)
            return named[0] if named else choice
        tools = typed(choice, "tools", list, "a list", "tool_choice.tools") or []
        if not all(type(tool) is dict for tool in tools):
            raise BadRequest("a tool is an object", param="tool_choice.tools")
        allowed = [named for tool in tools for named in self._of_choice(tool)]
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": choice.get("mode"), "tools": allowed},
        }

    def _of_choice(self, tool: Body) -> list[Body]:
        """The tools that are meant, by their flat names: those of a namespace, or of a name."""
        kind, name, namespace = tool.get("type"), tool.get("name"), tool.get("namespace")
        if kind == "namespace":
            flat = [flat for flat, (where, _) in self.apart.items() if where == name]
            kind = "function"
        elif kind not in TOOL_TYPES or type(name) is not str:
            return []
        elif type(namespace) is str:
            flat = [flat_name(name, namespace)]
        else:
            # Without a namespace, a name may be that of a tool in one.
            inner = [flat for flat, (_, own) in self.apart.items() if own == name]
            flat = [name] if name in self._offered or not inner else inner
        return [{"type": kind, kind: {"name": one}} for one in flat]


def read_tools(body: Body) -> ResponseTools:
    """The tools of a body. Raises BadRequest."""
    tools = ResponseTools()
    for i, tool in enumerate(typed(body, "tools", list, "a list") or []):
        tools.add(tool, f"tools.[{i}]")
        if _is_offered(tool):
            keys = ("strict", "parameters") if tool["type"] == "function" else ()
            tools.as_sent.append(dict.fromkeys(keys) | tool)  # a function has these, always
    return tools


def _is_offered(tool: Any) -> bool:
    if type(tool) is not dict:
        return False
    return tool.get("type") in (*TOOL_TYPES, "namespace") or is_clients_search(tool)


def is_clients_search(tool: Body) -> bool:
    """Whether it is a search that the client runs, who then sends the tools that it finds."""
    return tool.get("type") == SEARCH and tool.get("execution") == "client"


def flat_names(tools: Any) -> list[str]:
    """What the model knows some tools by, as far as they are in order."""
    found = []
    for tool in tools if type(tools) is list else ():
        name = tool.get("name") if type(tool) is dict else None
        if type(name) is str and tool.get("type") == "namespace":
            found += [flat_name(inner, name) for inner in flat_names(tool.get("tools"))]
        elif type(name) is str:
            found.append(name)
    return found


def flat_name(name: str, namespace: str | None) -> str:
    """What the model knows a tool by.

    >>> flat_name("read", "mcp__files__"), flat_name("read", "mcp__files"), flat_name("read", None)
    ('mcp__files__read', 'mcp__files__read', 'read')
    """
    if not namespace:
        return name
    flat = f"{namespace.removesuffix(_SEPARATOR)}{_SEPARATOR}{name}"
    if len(flat) <= MAX_NAME:
        return flat
    return f"{flat[: MAX_NAME - 9]}_{zlib.crc32(flat.encode()):08x}"  # still one of its own
