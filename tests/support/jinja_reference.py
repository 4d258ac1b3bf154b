"""Renders chat templates with Python's own Jinja, set up as in Hugging Face's transformers.

Templates of models are written for this set-up, so it gives the right prompt. jinja2 is the only
package besides pytest that `make test` fetches.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmlite.messages import ChatMessage

Json = dict[str, Any]
BOS, EOS = "<|endoftext|>", "<|im_end|>"  # of the vocabulary that tests use


class Refused(Exception):
    """The template called `raise_exception` with this message."""


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, used in training; here only its content counts."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Lenient(ImmutableSandboxedEnvironment):
    """Adds operations that transformers forbid or jinja2 lacks, but published templates use."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allows templates to add to lists and remove from them."""
        return attr in ("append", "pop") or super().is_safe_attribute(obj, attr, value)


def environment(lenient: bool = False) -> jinja2.Environment:
    """transformers' environment; a lenient one can do a few more things."""
    made = (Lenient if lenient else ImmutableSandboxedEnvironment)(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    if lenient:
        made.filters["tojson"] = lambda value, **more: _tojson(_listed(value), **more)
        made.filters["safe"] = str
    return made


def _tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **more)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, GeneratorType) else value


def _raise_exception(words: str) -> None:
    raise Refused(words)


def message_json(message: ChatMessage, *, arguments_are_text: bool = False) -> Json:
    """A message in transformers' form: the arguments of a call are an object."""
    body: Json = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        body["reasoning_content"] = message.reasoning
    if message.name is not None:
        body["name"] = message.name
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"type": "function", "id": call.id,
             "function": {"name": call.name,
                          "arguments": call.arguments if arguments_are_text
                          else json.loads(call.arguments)}}
            for call in message.tool_calls
        ]  # fmt: skip
    return body


def variables(messages: Sequence[Json], tools: Any, thinks: bool) -> Json:
    """The variables of a template. The dates are added by llama.cpp, in its own format."""
    now = datetime.now()
    return {
        "messages": list(messages),
        "tools": tools,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": BOS,
        "eos_token": EOS,
        "enable_thinking": thinks,
        "date_string": now.strftime("%d %b %Y"),
        "datetime": now.strftime("%b %d %Y"),
    }
