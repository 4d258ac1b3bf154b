"""Input items of POST /v1/responses -> messages of a chat.

Consecutive reasoning, text and calls of the assistant form one message. Items of unknown types,
which other servers made, become calls and results if they have ids, and otherwise a line of text.
Pure; errors are BadRequest.
"""

import re
from dataclasses import replace

from lmlite.messages import ChatMessage, Json, ToolCall
from lmlite.server.api.chat.content_parts import ContentReader, facts_of, told
from lmlite.server.api.chat.messages import custom_call, function_call, json_text, message
from lmlite.server.api.fields import Field
from lmlite.server.api.responses.tools import SEARCH, ToolReader, flat_name, flat_names

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Parts of a message of the assistant. A message has them in this order.
_REASONING, _CONTENT, _CALLS = range(3)


class InputReader:
    """Reads the input of a request."""

    def __init__(self, field: Field, contents: ContentReader, tools: ToolReader) -> None:
        """`field` is a string or a list of items. Tools in the items are added to `tools`."""
        self.messages: list[ChatMessage] = []
        self.ignored: set[str] = set()  # "input.TYPE" of each item that is left out or made text
        self._contents, self._tools = contents, tools
        self._call_ids: set[str] = set()
        self._last_part = _REASONING  # of the last message, if it is the assistant's
        self._told_at = -1  # index of the last message made from such lines of text
        if type(field.value) is str:
            self.messages.append(ChatMessage("user", field.value))
            return
        if type(field.value) is not list:
            field.refuse("input is a string or a list of items")
        for item in field.items():
            self._read(item.entry("an item"))
        # The model would continue the last message as its own, but it did not write these lines.
        if self._is_told_last and self._last_part == _CONTENT:
            self.messages.pop()

    def _read(self, item: Field) -> None:
        is_reference = "id" in item.value and item.value.keys() <= {"id", "type"}
        match item["type"].value or ("item_reference" if is_reference else "message"):
            case "message":
                self._read_message(item)
            case "function_call":
                self._add_call(item, function_call(*_named(item), item["arguments"]))
            case "custom_tool_call":
                self._add_call(item, custom_call(*_named(item), item["input"]))
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, item["output"])
            case "reasoning":
                self._read_reasoning(item)
            case "additional_tools":
                self._read_tools(item)
            case "tool_search_call":
                arguments = item["arguments"].of(item["arguments"].value or {})
                text = arguments.of(json_text(arguments))
                self._add_call(item, function_call(item["call_id"], Field(SEARCH), text))
            case "tool_search_output":
                self._read_tools(item)
                found = item["tools"].of({"tools": flat_names(item["tools"].value)})
                self._add_output(item, found.of(json_text(found)))
            case kind:
                self._read_other(str(kind), item)

    def _read_message(self, item: Field) -> None:
        role, content = item["role"].required(), item["content"]
        if type(role.value) is not str or role.value not in ROLES:
            role.refuse(f"role is one of {', '.join(ROLES)}")
        if role.value != "assistant":  # the assistant's content may be empty
            content.required()
        read = message(ROLES[role.value], self._contents.pieces(content), content)
        if role.value == "assistant":
            self._assistant(_CONTENT)
            self._change(content=read.content)
        else:
            self.messages.append(read)

    def _add_call(self, item: Field, call: ToolCall | None) -> None:
        self._call_ids.add(str(item["call_id"].value))
        turn = self._assistant(_CALLS)
        if call is not None:
            self._change(tool_calls=(*turn.tool_calls, call))

    def _add_output(self, item: Field, content: Field) -> None:
        pieces = self._contents.pieces(content, is_result=True)
        call_id = item["call_id"].string()
        self.messages.append(message("tool", pieces, content, tool_call_id=call_id))

    def _read_reasoning(self, item: Field) -> None:
        if text := _reasoning_text(item.value):
            turn = self._assistant(_REASONING)
            self._change(reasoning=(turn.reasoning or "") + text)
        else:
            self.ignored.add("input.reasoning")

    def _read_tools(self, item: Field) -> None:
        for tool in item["tools"].items():
            self._tools.add(tool)

    def _read_other(self, kind: str, item: Field) -> None:
        """An item of an unknown type: it becomes a call, a result, or a line of text."""
        self.ignored.add(f"input.{kind}")
        call_id, output = item["call_id"], item["output"]
        name = re.fullmatch(r"(\w{1,64})_call", kind, re.ASCII)
        has_id = type(call_id.value) is str
        if kind.endswith("_output") and has_id and call_id.value in self._call_ids:
            is_text = type(output.value) is str
            self._add_output(item, output if is_text else output.of(facts_of(item.value)))
        elif name and has_id:
            arguments = Field(facts_of(item.value))
            self._add_call(item, function_call(call_id, Field(name[1]), arguments))
        elif line := told(kind, item.value):
            self._tell(line)

    def _tell(self, line: str) -> None:
        """Adds a line about an item; consecutive lines form one message."""
        if self._is_told_last:
            self._change(content=self.messages[-1].content + line)
        else:
            self.messages.append(ChatMessage("assistant", line))
            self._last_part, self._told_at = _CONTENT, len(self.messages) - 1

    @property
    def _is_told_last(self) -> bool:
        return 0 <= self._told_at == len(self.messages) - 1

    def _assistant(self, part: int) -> ChatMessage:
        """The assistant's last message, if this part may follow in it; else a new message."""
        may_follow = _CALLS if part == _CALLS else _REASONING
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or self._last_part > may_follow:
            self.messages.append(ChatMessage("assistant", ""))
        self._last_part = part
        return self.messages[-1]

    def _change(self, **parts: object) -> None:
        self.messages[-1] = replace(self.messages[-1], **parts)  # type: ignore[arg-type]


def _named(item: Field) -> tuple[Field, Field]:
    """The id of a call, and the tool's name as the model sees it."""
    name, namespace = item["name"], item["namespace"].value
    if type(name.value) is str and type(namespace) is str:
        name = name.of(flat_name(name.value, namespace))
    return item["call_id"], name


def _reasoning_text(item: Json) -> str:
    """The reasoning; its summary if there is only that; "" if there is neither."""
    for name in ("content", "summary"):
        parts = item.get(name)
        parts = parts if type(parts) is list else [{"text": parts}]
        texts = [part.get("text") for part in parts if type(part) is dict]
        if text := "".join(text for text in texts if type(text) is str):
            return text
    return ""
