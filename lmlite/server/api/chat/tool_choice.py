"""Which tools of a chat may be called, or must be: the values of `tool_choice`. Pure."""

from collections.abc import Sequence
from typing import Any

from lmlite.errors import BadRequest

Choice = tuple[str, tuple[str, ...]]  # auto, none or required; the only tools, () for all


def parse_tool_choice(choice: Any, names: Sequence[str]) -> Choice:
    """`names` are those of the tools that are offered. Raises BadRequest where one is missing."""
    if choice is None or (not names and choice in ("auto", "none")):
        return "auto", ()
    if type(choice) is dict and choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), names)
    if not names:
        raise BadRequest("tool_choice needs tools", param="tool_choice")
    if choice in ("auto", "none", "required"):
        return choice, ()
    if type(choice) is not dict:
        raise BadRequest(
            "tool_choice is auto, none, required, a tool by its name, or allowed_tools",
            param="tool_choice",
        )
    name = _name(choice)
    if name is None or name not in names:
        raise BadRequest("tool_choice names none of the tools", param="tool_choice")
    return "required", (name,)


def _allowed(allowed: Any, names: Sequence[str]) -> Choice:
    """Those of the tools that are on a list; others on it are not missed while one is left."""
    tools = allowed.get("tools") if type(allowed) is dict else None
    if type(tools) is not list or allowed.get("mode") not in ("auto", "required"):
        words = "allowed_tools has a mode, auto or required, and a list of tools"
        raise BadRequest(words, param="tool_choice")
    listed = [_name(tool) for tool in tools]
    kept = tuple(name for name in names if name in listed)
    if not kept and allowed["mode"] == "required":
        raise BadRequest("tool_choice allows none of the tools", param="tool_choice")
    return (allowed["mode"], kept) if kept else ("none", ())


def _name(tool: Any) -> str | None:
    """The name of a function or custom tool; None for a tool of another type."""
    kind = tool.get("type") if type(tool) is dict else None
    named = tool.get(kind) if kind in ("function", "custom") else None
    name = named.get("name") if type(named) is dict else None
    return name if type(name) is str else None
