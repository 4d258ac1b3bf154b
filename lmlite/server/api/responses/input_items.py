"""Input items of POST /v1/responses -> messages of a chat, and what the fields of those are here.

What the assistant thought, said and called in a row is one turn. Items of other types, which other
servers have made, are calls and results where they have ids, and else told in a line of text. Pure.
"""

import json
import re
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.chat.content_parts import facts_of, told
from lmlite.server.api.fields import Body, required, typed
from lmlite.server.api.responses.tools import SEARCH, flat_name, flat_names

ROLES = ("user", "assistant", "system", "developer")


class Turns:
    """Input items as messages of a chat."""

    def __init__(self, value: Any) -> None:
        """`value` is a text or a list of items. Raises BadRequest."""
        self.messages: list[Body] = []
        self.names: dict[str, str] = {}  # of a chat's fields: what they are here
        self.tools: list[tuple[Any, str]] = []  # those that came with items, and their paths
        self.unread: set[str] = set()  # what was left out or told, as names of what is ignored
        self._call_ids: set[str] = set()
        self._told: Body = {}  # the last turn that was made of a line of text
        if type(value) is str:
            self._add({"role": "user", "content": value}, "input", "input")
        elif type(value) is list:
            for i, item in enumerate(value):
                self._read(item, f"input.[{i}]")
        else:
            raise BadRequest("input is a string or a list of items", param="input")
        # The model goes on with a last turn of its own, but these words are not.
        if self.messages and self.messages[-1] is self._told and len(self._told) == 2:
            self.messages.pop()

    def _read(self, item: Any, path: str) -> None:
        if type(item) is not dict:
            raise BadRequest("an item is an object", param=path)
        is_reference = "id" in item and item.keys() <= {"id", "type"}
        match item.get("type") or ("item_reference" if is_reference else "message"):
            case "message":
                self._read_message(item, path)
            case "function_call":
                self._read_call({"function": _flat(item)}, item, path)
            case "custom_tool_call":
                self._read_call({"type": "custom", "custom": _flat(item)}, item, path)
            case "function_call_output" | "custom_tool_call_output":
                self._read_output(item, item.get("output"), path)
            case "reasoning":
                self._read_reasoning(item, path)
            case "additional_tools":
                self._read_tools(item, path)
            case "tool_search_call":
                function = {"name": SEARCH, "arguments": _arguments(item, path)}
                self._read_call({"function": function}, item, path)
            case "tool_search_output":
                self._read_tools(item, path)
                found = {"tools": flat_names(item.get("tools"))}
                self._read_output(item, json.dumps(found, ensure_ascii=False), path)
            case kind:
                self._read_other(str(kind), item, path)

    def _read_message(self, item: Body, path: str) -> None:
        role = required(item, "role", f"{path}.role")
        if role not in ROLES:
            raise BadRequest(f"role is one of {', '.join(ROLES)}", param=f"{path}.role")
        if role == "assistant":  # who may have said nothing
            self._assistant(path, "reasoning_content")["content"] = item.get("content")
            self.names[f"{self._last}.content"] = f"{path}.content"
        else:
            content = required(item, "content", f"{path}.content")
            self._add({"role": role, "content": content}, path, f"{path}.content")

    def _read_call(self, call: Body, item: Body, path: str) -> None:
        turn = self._assistant(path, "reasoning_content", "content", "tool_calls")
        calls = turn.setdefault("tool_calls", [])
        place = f"{self._last}.tool_calls.[{len(calls)}]"
        self.names |= {f"{place}.function": path, f"{place}.custom": path,
                       f"{place}.id": f"{path}.call_id"}  # fmt: skip
        calls.append({"id": item.get("call_id"), **call})
        self._call_ids.add(str(item.get("call_id")))

    def _read_output(self, item: Body, content: Any, path: str) -> None:
        result = {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
        self._add(result, path, f"{path}.output")
        self.names[f"{self._last}.tool_call_id"] = f"{path}.call_id"

    def _read_reasoning(self, item: Body, path: str) -> None:
        if text := _reasoning_text(item):
            turn = self._assistant(path, "reasoning_content")
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
        else:
            self.unread.add("input.reasoning")

    def _read_tools(self, item: Body, path: str) -> None:
        tools = typed(item, "tools", list, "a list", f"{path}.tools") or []
        self.tools += [(tool, f"{path}.tools.[{i}]") for i, tool in enumerate(tools)]

    def _read_other(self, kind: str, item: Body, path: str) -> None:
        """An item that another server has made: a call, its result, or a line about it."""
        self.unread.add(f"input.{kind}")
        call_id = item.get("call_id")
        name = re.fullmatch(r"(\w{1,64})_call", kind, re.ASCII)
        if kind.endswith("_output") and type(call_id) is str and call_id in self._call_ids:
            output = item.get("output")
            self._read_output(item, output if type(output) is str else facts_of(item), path)
        elif name and type(call_id) is str:
            function = {"name": name[1], "arguments": facts_of(item)}
            self._read_call({"function": function}, item, path)
        elif line := told(kind, item):
            self._tell(line, path)

    def _tell(self, line: str, path: str) -> None:
        """Lines that follow each other are one turn."""
        if self.messages and self.messages[-1] is self._told:
            line = self._told["content"] + line
        else:
            self._told = {"role": "assistant"}
            self._add(self._told, path, path)
        self._told["content"] = line

    @property
    def _last(self) -> str:
        return f"messages.[{len(self.messages) - 1}]"

    def _add(self, message: Body, path: str, path_of_content: str) -> None:
        self.messages.append(message)
        self.names |= {self._last: path, f"{self._last}.content": path_of_content}

    def _assistant(self, path: str, *parts: str) -> Body:
        """The assistant's turn that is going on, if it has no other parts; else a new one."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or not last.keys() <= {"role", *parts}:
            self._add({"role": "assistant"}, path, path)
        return self.messages[-1]


def _flat(item: Body) -> Body:
    """The call of an item, by the name that the model knows the tool by."""
    name, namespace = item.get("name"), item.get("namespace")
    if type(name) is not str or type(namespace) is not str:
        return item
    return item | {"name": flat_name(name, namespace)}


def _arguments(item: Body, path: str) -> str:
    """Those of a search, which are no text."""
    try:
        return json.dumps(item.get("arguments") or {}, ensure_ascii=False)
    except RecursionError:  # a depth that reading just survived
        words = "arguments is nested too deeply"
        raise BadRequest(words, param=f"{path}.arguments") from None


def _reasoning_text(item: Body) -> str:
    """What the model thought, or its summary where only that is known; "" where neither is."""
    for name in ("content", "summary"):
        parts = item.get(name)
        parts = parts if type(parts) is list else [{"text": parts}]
        texts = [part.get("text") for part in parts if type(part) is dict]
        if text := "".join(text for text in texts if type(text) is str):
            return text
    return ""
