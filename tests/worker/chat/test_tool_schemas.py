"""Tools whose schemas a chat template cannot read are simplified, and can be called."""

from typing import Any

import pytest

from lmlite.messages import ChatMessage, ChatOptions
from lmlite.server.forms.schemas import ToolSchemas
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.chat.tools import plain_tools
from lmlite.worker.llama.model import Model
from tests.support.template_tree import NAMES, source_of

HI = [ChatMessage("user", "Hi")]
ODD = {
    "type": "object",
    "properties": {
        "unit": {"type": ["string", "null"], "enum": ["celsius", None, 3]},
        "extra": True,
        "tags": {"items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "inner": {"properties": {"a": {"type": "integer", "description": "how many"}}},
        "text": {"type": ["null"], "description": ["no text"], "default": {"a": None}},
    },
    "required": ["unit", 5, "nothing"],
    "$defs": {"a": False},
}


def tool(parameters: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "description": "Weather.", "parameters": parameters}
    return {"type": "function", "function": function}


def test_each_property_has_one_type_and_lists_have_texts_only() -> None:
    assert plain_tools([tool(ODD)]) == [tool({
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["celsius"]},
            "extra": {"type": "string", "description": "anything"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "inner": {"type": "object", "required": [], "properties": {
                "a": {"type": "integer", "description": "how many"}}},
            "text": {"type": "string"},
        },
        "required": ["unit"],
    })]  # fmt: skip


# Command R+ cannot be given a list among the parameters of a tool: it gets its tools in words.
@pytest.mark.parametrize("name", NAMES)
def test_every_template_takes_a_tool_with_an_odd_schema(special_model: Model, name: str) -> None:
    template = ChatTemplate(special_model, source_of(name))
    held = ToolSchemas().widened(ODD, "get_weather").schema
    options = ChatOptions(tools=(tool(ODD),), tool_schemas=(held,))
    for _ in range(2):  # the second time it is known
        rendered = template.render(HI, options)
        assert "get_weather" in rendered.form.grammar
    template.close()
