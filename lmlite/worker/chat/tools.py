"""Tools for chat templates that cannot read their schemas, or know no tools at all. Pure.

Templates look into schemas: they join the values of an enum, ask each property for its type, and
write that in capitals. A template that meets a null there, or `true` in place of a schema, fails.
`plain_tools` has schemas that all of them can read.

For a template that knows no tools, `in_words` makes text of them, of calls and of their results.
llama.cpp learns from `form_template`, which no model reads, how a model then writes its calls.
"""

import json
from collections.abc import Sequence
from string import Template
from typing import Any

from lmlite.worker.chat.rearrangement import calls_to_text, results_to_text

Json = dict[str, Any]

EMPTY: Json = {"role": "user", "content": ""}
# A request that shows whether a template tells its model of a tool.
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
    """The tools with schemas of objects that have one type each, and lists of texts."""
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
    """The first type that is not null."""
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

# llama.cpp derives a grammar and a parser from it, by comparing what it writes with and without a
# call or a thought. The rest is as short as possible.
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
        # A prompt may have begun the thought already.
        head, start, rest = opening.partition(thinking_start)
        begun, tags = start + rest, (_quoted(thinking_start), _quoted(thinking_ends[0]))
        thought = Template(_THOUGHT).substitute(start=tags[0], end=tags[1])
    return Template(_FORM).substitute(opening=_quoted(head), begun=_quoted(begun), thought=thought)


def has_tools(request: Json) -> bool:
    """Whether a request has anything to do with tools."""
    return "tools" in request or any(
        message["role"] == "tool" or "tool_calls" in message for message in request["messages"]
    )


def in_words(request: Json) -> Json:
    """The request without tools, calls and results: the messages say all of it."""
    # Many templates want turns to alternate, so results that follow each other become one.
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
