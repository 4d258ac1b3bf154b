"""Tools for chat templates that cannot read their schemas or do not support tools. Pure.

Templates read schemas: they join the values of an enum, look up the type of each property, and
write it in capitals. A template fails if it finds null there, or `true` in place of a schema.
`plain_tools` makes schemas that every template can read.

If a template does not support tools, `in_words` turns tools, calls and results into text. Then
`form_template` shows llama.cpp how the model writes its calls; it never makes a prompt.
"""

import json
from collections.abc import Sequence
from string import Template
from typing import Any

from lmlite.worker.chat.rearrangement import calls_to_text, results_to_text

Json = dict[str, Any]

EMPTY: Json = {"role": "user", "content": ""}
# A request that shows whether a template writes tools into the prompt.
PROBE_NAME = "probe_of_tools"
_FUNCTION = {"name": PROBE_NAME, "description": "",
             "parameters": {"type": "object", "properties": {}}}  # fmt: skip
PROBE: Json = {
    "messages": [EMPTY],
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": "required",
}

# ---- schemas that every template can read ------------------------------------------------------

_MAX_DEPTH = 32


def plain_tools(tools: list[Json]) -> list[Json]:
    """The tools with plain schemas: one type for each value, and enums only of strings."""
    return [
        tool | {"function": tool["function"] | {
            "parameters": _schema(tool["function"]["parameters"], _MAX_DEPTH)}}
        for tool in tools
    ]  # fmt: skip


def _schema(schema: Any, depth_left: int) -> Json:
    if type(schema) is not dict or depth_left == 0:
        return {"type": "string", "description": "anything"}
    plain = {key: schema[key] for key in ("title", "description", "format", "pattern")
             if type(schema.get(key)) is str}  # fmt: skip
    plain["type"] = _type(schema)
    if type(schema.get("enum")) is list and plain["type"] == "string":
        plain["enum"] = [each for each in schema["enum"] if type(each) is str]
    if plain["type"] == "object" or depth_left == _MAX_DEPTH:
        properties = schema.get("properties")
        named = properties if type(properties) is dict else {}
        plain["properties"] = {name: _schema(each, depth_left - 1) for name, each in named.items()}
        required = schema.get("required")
        names = required if type(required) is list else []
        plain["required"] = [name for name in names if type(name) is str and name in named]
    if plain["type"] == "array":
        plain["items"] = _schema(schema.get("items", True), depth_left - 1)
    return plain


def _type(schema: Json) -> str:
    """The schema's first type that is not null; guessed if it does not name a type."""
    said = schema.get("type")
    names = [name for name in (said if type(said) is list else [said]) if type(name) is str]
    found = next((name for name in names if name != "null"), None)
    guess = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return found or guess


# ---- tools in words ------------------------------------------------------------------------------

_INTRODUCTION = """\
You have tools. Each line is one: its name, what it does, and a JSON schema of its arguments.
<tools>
{tools}
</tools>
To use a tool, write a call in this form, with the tool's name and its arguments as JSON:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
Then stop: the result follows in <tool_response>. Without need for a tool, answer as usual."""

# llama.cpp renders this template with and without a call or a thought, compares the outputs, and
# derives a grammar and a parser from them. The rest is as short as possible.
_FORM = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ $opening }}
$thought
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' }}
{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{%- else %}{{ '\\n' ~ message.role ~ '\\n' ~ message.content }}{% endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ $opening ~ $begun }}{% endif %}"""
_THOUGHT = """\
{%- if message.reasoning_content %}
{{- $start ~ '\\n' ~ message.reasoning_content ~ '\\n' ~ $end ~ '\\n\\n' }}
{%- endif %}"""


def form_template(opening: str, thinking_start: str, thinking_ends: Sequence[str]) -> str:
    """A template whose answers begin with `opening`, may have thoughts, and call tools in tags."""
    head, begun, thought = opening, "", ""
    if thinking_start and thinking_ends:
        # The opening may already contain the start of the thought.
        head, start, rest = opening.partition(thinking_start)
        begun, tags = start + rest, (_quoted(thinking_start), _quoted(thinking_ends[0]))
        thought = Template(_THOUGHT).substitute(start=tags[0], end=tags[1])
    return Template(_FORM).substitute(opening=_quoted(head), begun=_quoted(begun), thought=thought)


def has_tools(request: Json) -> bool:
    """Whether a request has tools, calls or results of calls."""
    return "tools" in request or any(
        message["role"] == "tool" or "tool_calls" in message for message in request["messages"]
    )


def in_words(request: Json) -> Json:
    """The request with its tools, calls and results turned into text of messages."""
    # Many templates require alternating turns, so consecutive results become one message.
    messages = results_to_text(calls_to_text(request["messages"]))
    if "tools" in request:
        lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in request["tools"]]
        words = _INTRODUCTION.format(tools="\n".join(lines))
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        content = "\n\n".join(filter(None, [messages[0]["content"], words]))
        messages = [messages[0] | {"content": content}, *messages[1:]]
    of_tools = ("tools", "schemas", "tool_choice", "parallel_tool_calls")
    return {key: request[key] for key in request if key not in of_tools} | {"messages": messages}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
