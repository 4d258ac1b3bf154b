"""Tools in plain words, for chat templates that know none.

What is said of tools, of calls and of their results becomes text of the messages that every
template renders. How a model then writes its calls is told to llama.cpp by a template of their own,
which no model reads. Pure: requests as the bridge takes them.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from string import Template
from typing import Any

Json = dict[str, Any]

EMPTY: Json = {"role": "user", "content": ""}
# What shows whether a template tells its model of a tool.
PROBE_NAME = "probe_of_tools"
_FUNCTION = {"name": PROBE_NAME, "description": "",
             "parameters": {"type": "object", "properties": {}}}  # fmt: skip
PROBE: Json = {
    "messages": [EMPTY],
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": "required",
}

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

# The form of an answer, from which llama.cpp derives a grammar and a parser. It looks at what
# changes with a call or a thought, so all else is as short as can be.
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
    messages: list[Json] = []
    for role, group in groupby(request["messages"], lambda each: each["role"]):
        # Many templates want turns to alternate, so results that follow each other are one.
        turns = list(group)
        messages += [told_results(turns)] if role == "tool" else map(spoken, turns)
    if "tools" in request:
        messages = _introduced(messages, request["tools"])
    of_tools = ("tools", "schemas", "tool_choice", "parallel_tool_calls")
    return {key: request[key] for key in request if key not in of_tools} | {"messages": messages}


def _introduced(messages: list[Json], tools: list[Json]) -> list[Json]:
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    words = _INTRODUCTION.format(tools="\n".join(lines))
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": words}, *messages]
    return [first | {"content": f"{first['content']}\n\n{words}"}, *messages[1:]]


def spoken(message: Json) -> Json:
    """The message, with its calls as text."""
    if "tool_calls" not in message:
        return message
    calls = [
        f'<tool_call>\n{{"name": {_quoted(call["function"]["name"])}, '
        f'"arguments": {call["function"]["arguments"]}}}\n</tool_call>'
        for call in message["tool_calls"]
    ]
    said = [message["content"]] if message["content"] else []
    same = {key: message[key] for key in message if key != "tool_calls"}
    return same | {"content": "\n".join(said + calls)}


def told_results(messages: Iterable[Json]) -> Json:
    """Results of tools as one text of the user."""
    words = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in messages]
    return {"role": "user", "content": "\n".join(words)}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
