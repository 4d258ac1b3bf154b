"""Every reply against OpenAI's own schemas, and streams against their rules. `make conformance`

Each case is asked in one piece, streamed, and streamed with usage: every body, chunk and error
is validated, and the three answers must agree. Schemas are closed first, so that a key which
they do not know fails too. At the end the checks are checked: every place of every kind of
reply is spoilt in turn, and what was spoilt must be refused.
"""

import base64
import functools
import json
import math
import sys
from array import array
from collections.abc import Callable, Iterator
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from lmlite.errors import InternalError
from lmlite.messages import Delta, ReplyEvent, Started
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.stored import StoredResponses
from tests.support.house import until
from tests.support.image_files import BLUE_JPEG, RED, png
from tests.support.response_events import folded as folded_events
from tests.support.response_events import nameless
from tests.support.server_process import Answer, RunningServer
from tests.support.streams import agree, folded_chunks, unnamed

Json = dict[str, Any]
Keys = tuple[str | int, ...]

SCHEMAS = Path(__file__).with_name("openai-schemas.json")  # openai/openai-openapi, MIT licence
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES = "/v1/responses"

# ---- the schemas, and where replies differ from them ---------------------------------------

# Kind of reply -> its schema, and the keys that may be absent.
COMMON = ["system_fingerprint", "usage", "usage.*_details*"]
LEGACY = ("CreateCompletionResponse", [*COMMON, "*.logprobs.*"])
FACTS = ["*context_length", "*type", "*arch", "*quantization", "*state", "*publisher",
         "*capabilities*", "*input_modalities*"]  # fmt: skip
KINDS: dict[str, tuple[str, list[str]]] = {
    "models": ("ListModelsResponse", FACTS),
    "model": ("Model", FACTS),
    "chat": ("CreateChatCompletionResponse", [*COMMON, "*.tool_calls", "*.reasoning_content"]),
    "chat chunk": ("CreateChatCompletionStreamResponse", [*COMMON, "*.delta.*", "*.logprobs"]),
    "completion": LEGACY,
    "completion chunk": LEGACY,
    "echo": LEGACY,  # a completion with echo and logprobs
    "echo chunk": LEGACY,
    "embeddings": ("CreateEmbeddingResponse", []),
    "base64": ("CreateEmbeddingResponse", []),
    "error": ("ErrorResponse", []),
}
RESPONSE = ["*background", "*max_output_tokens", "*previous_response_id", "*reasoning", "*effort",
            "*summary", "*status", "*.text", "text", "*format", "*description", "*top_logprobs",
            "*truncation", "*usage", "*incomplete_details.reason", "*output.id", "*item.id",
            "*output.content", "*item.content", "*text.format.strict", "*metadata.*",
            "*namespace", "*tools.execution"]  # fmt: skip
KINDS["response"] = ("Response", RESPONSE)
# Of the items that are listed. A message has an id, which only the schema's prose knows.
INPUT_ITEMS = {"message": "InputMessage", "function_call": "FunctionToolCall"}
KINDS |= {
    kind: (name, ["status", "id", "type", "*.detail", "*.image_url", "arguments"])
    for kind, name in INPUT_ITEMS.items()
}
KINDS |= {  # the events of a response, by their types
    f"response.{kind}": (f"Response{name}Event", [*RESPONSE, "logprobs.top_logprobs*"])
    for kind, name in {
        "created": "Created",
        "in_progress": "InProgress",
        "output_item.added": "OutputItemAdded",
        "content_part.added": "ContentPartAdded",
        "output_text.delta": "TextDelta",
        "output_text.done": "TextDone",
        "reasoning_text.delta": "ReasoningTextDelta",
        "reasoning_text.done": "ReasoningTextDone",
        "function_call_arguments.delta": "FunctionCallArgumentsDelta",
        "function_call_arguments.done": "FunctionCallArgumentsDone",
        "custom_tool_call_input.delta": "CustomToolCallInputDelta",
        "custom_tool_call_input.done": "CustomToolCallInputDone",
        "content_part.done": "ContentPartDone",
        "output_item.done": "OutputItemDone",
        "completed": "Completed",
        "incomplete": "Incomplete",
        "failed": "Failed",
    }.items()
}
KINDS["error event"] = ("ResponseErrorEvent", [])
# Where a schema lets anything be: a client's own schemas, and the tools on a list of its own.
FREE = ["*tools.parameters*", "*text.format.schema*", "*tool_choice.tools*", "*.arguments.*",
        "*capabilities.*", "*input_modalities.*"]  # fmt: skip
# Kinds, a place in the schemas, what else it may be, and why.
CHOICE = "CreateCompletionResponse/properties/choices/items/properties"
IN_RESPONSES = ", ".join(kind for kind in KINDS if kind.startswith("response"))
LOGPROBS = f"{CHOICE}/logprobs/anyOf/0/properties"
EXEMPTIONS = [
    ("completion chunk, echo chunk", f"{CHOICE}/finish_reason", "null",
     "the spec has no schema of a streamed completion; as in chats, only the last chunk ends"),
    ("completion chunk, echo chunk", "CreateCompletionResponse/properties/usage", "null",
     "with include_usage, as the spec's text says, and its schema of chat chunks"),
    ("chat", "ChatCompletionResponseMessage/properties/reasoning_content", "string",
     "the spec has no thoughts in chats; this is what DeepSeek, and servers since, call them"),
    ("chat chunk", "ChatCompletionStreamResponseDelta/properties/reasoning_content", "string",
     "likewise"),
    ("echo, echo chunk", f"{LOGPROBS}/token_logprobs/items", "null",
     "nothing precedes the first token of a prompt, so it has no probability"),
    ("echo, echo chunk", f"{LOGPROBS}/top_logprobs/items", "null",
     "as above: there is no list of what else it might have been"),
    ("base64", "Embedding/properties/embedding", "string",
     "encoding_format base64 is in the request's schema, but not in the reply's"),
    ("model, models", "Model/additionalProperties", "integer",
     "context_length and the like: users ask for them, and clients ignore them"),
    ("model, models", "Model/additionalProperties", "string",
     "type, arch, quantization, state, publisher, as LM Studio names them: likewise"),
    ("model, models", "Model/additionalProperties", "array",
     "capabilities, input_modalities: likewise"),
    (IN_RESPONSES, "CustomToolCall/properties/status", "string",
     "OpenAI's guide shows it, as in all other items; the schema has forgotten it"),
    (IN_RESPONSES, "FunctionToolParam/properties/parameters", "object",
     "parameters of a function in a namespace: of those, the schema says nothing"),
    (IN_RESPONSES, "ToolSearchToolParam/properties/parameters", "object", "likewise, of a search"),
]  # fmt: skip


def joined(schema: Json, document: Json) -> Json:
    """A schema with all parts of its `allOf` in one, which can be closed as a whole."""
    if "allOf" not in schema:
        return schema
    found: Json = {"type": "object", "properties": {}, "required": []}
    for part in schema["allOf"]:
        named = document[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        one = joined(named, document)
        found["properties"] |= one["properties"]
        found["required"] += one.get("required", [])
    return found


def closed(schema: Any) -> Any:
    """A schema as JSON Schema has it: `nullable` spelt out, and no unknown keys."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        found.setdefault("additionalProperties", False)
        found["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
    is_nullable = found.pop("nullable", False)
    return {"anyOf": [found, {"type": "null"}]} if is_nullable else found


@functools.cache
def validator(kind: str) -> Any:
    """What validates a kind of reply. To it 1.0 is no integer, as to strictly typed clients."""
    document = json.loads(SCHEMAS.read_text())["components"]["schemas"]
    schemas = {name: closed(joined(schema, document)) for name, schema in document.items()}
    for kinds, place, also, _ in EXEMPTIONS:
        if kind in kinds.split(", "):
            *keys, last = place.split("/")
            parent: Any = schemas
            for key in keys:
                parent = parent[int(key) if isinstance(parent, list) else key]
            parent[last] = {"anyOf": [parent.get(last, False), {"type": also}]}
    root = {"$ref": f"#/components/schemas/{KINDS[kind][0]}", "components": {"schemas": schemas}}
    types = Draft202012Validator.TYPE_CHECKER
    types = types.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft202012Validator, type_checker=types)(root)


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The way to each part of a reply; of a list, its last item stands for all."""
    yield keys
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*keys, key))
    elif isinstance(value, list) and value:
        yield from places(value[-1], (*keys, len(value) - 1))


def dotted(keys: Keys) -> str:
    """A place's name: choices.message.content."""
    return ".".join(key if isinstance(key, str) else "" for key in keys).replace("..", ".")


def spoilt(reply: Any, keys: Keys, optional: list[str]) -> Iterator[tuple[str, Any]]:
    """Wrong replies, each wrong in that one place."""
    wrong: Any = [deepcopy(reply)]
    *way, last = (0, *keys)
    parent = functools.reduce(lambda part, key: part[key], way, wrong)
    old, parent[last] = parent[last], {"wrong": True}
    yield "of another type", wrong[0]
    if isinstance(old, dict):
        parent[last] = {**old, "wrong": True}
        yield "with an unknown key", wrong[0]
    if isinstance(last, str) and not any(fnmatch(dotted(keys), name) for name in optional):
        del parent[last]
        yield "absent", wrong[0]


# ---- asking and counting -------------------------------------------------------------------


class Pass:
    """One pass over a server: asks, validates, counts."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.n_passed = 0
        self.failures: list[str] = []
        self._samples: dict[str, dict[str, tuple[Any, Keys]]] = {}  # kind -> place -> reply

    def expect(self, is_right: bool, what: str, shown: Any) -> None:
        """Counts one check; `shown` is what was looked at."""
        if is_right:
            self.n_passed += 1
        else:
            self.failures.append(f"{what}\n    {json.dumps(shown, default=repr)[:4000]}")

    def group(self, name: str, cases: dict[str, Any], check: "Check") -> None:
        """Runs every case, whatever happens to the others, and prints a line."""
        n_passed, n_failed = self.n_passed, len(self.failures)
        for case_name, case in cases.items():
            try:
                check(self, case_name, case)
            except Exception as err:
                self.expect(False, f"{case_name}: {type(err).__name__}: {err}", case)
        n_failed = len(self.failures) - n_failed
        print(f"{name:12} {self.n_passed - n_passed:6} passed, {n_failed} failed", flush=True)

    def validate(self, kind: str, reply: Any, what: str) -> None:
        """Checks a reply, and keeps the first that has a place."""
        error = best_match(validator(kind).iter_errors(reply))
        message = f"{error.json_path}: {error.message[:300]}" if error else ""
        self.expect(error is None, f"{what}: no valid {kind}: {message}", reply)
        json.dumps(reply, allow_nan=False)
        for keys in [] if error else places(reply):
            self._samples.setdefault(kind, {}).setdefault(dotted(keys), (reply, keys))

    def check_the_checks(self) -> None:
        """Spoils every place that replies have had: what was spoilt must be refused."""
        for kind, samples in self._samples.items():
            for place, (reply, keys) in samples.items():
                if any(fnmatch(place, name) for name in FREE):
                    continue
                for how, wrong in spoilt(reply, keys, KINDS[kind][1]):
                    is_refused = not validator(kind).is_valid(wrong)
                    self.expect(is_refused, f"a {kind} passes with {place} {how}", wrong)

    def ask(self, kind: str, path: str, body: Json | None, what: str) -> Any:
        """A reply in one piece."""
        answer = self.server.request("POST" if body else "GET", path, body)
        self.expect(answer.status == 200, f"{what}: status {answer.status}", answer.json)
        self.validate(kind, answer.json, what)
        self.expect_headers(answer, what)
        return answer.json

    def expect_headers(self, answer: Answer, what: str) -> None:
        """The headers of a reply in one piece."""
        found = {key: answer.headers.get(key) for key in ("content-type", "content-length")}
        right = {"content-type": "application/json", "content-length": str(len(answer.body))}
        self.expect(found == right and "x-request-id" in answer.headers, what, answer.headers)

    def stream(self, kind: str, path: str, body: Json, what: str) -> list[Json]:
        """The chunks of a stream, which keep the rules of wire.md, 3.3."""
        *chunks, done = self.server.stream(path, **body)
        self.expect(done == "[DONE]" and "[DONE]" not in chunks, f"{what}: [DONE]", done)
        for chunk in chunks:
            self.validate(kind, chunk, what)
        names = {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}
        prefix = "chatcmpl-" if path == CHAT else "cmpl-"
        self.expect(len(names) == 1 and chunks[0]["id"].startswith(prefix), f"{what}: id", chunks)
        with_choice, usages = chunks, [chunk.get("usage", "none") for chunk in chunks]
        if body.get("stream_options"):
            *with_choice, last = chunks
            self.expect(last["choices"] == [] and usages[-1], f"{what}: no usage", chunks)
            self.expect(set(usages[:-1]) == {None}, f"{what}: usage is not null", chunks)
        else:
            self.expect(set(usages) == {"none"}, f"{what}: usage unasked", chunks)
        choices = [choice for chunk in with_choice for choice in chunk["choices"]]
        self.expect(len(choices) == len(with_choice), f"{what}: choices of a chunk", chunks)
        for index in {choice["index"] for choice in choices}:
            self.expect_life([one for one in choices if one["index"] == index], what)
        return chunks

    def expect_life(self, life: list[Json], what: str) -> None:
        """One choice of a stream: the role once and first, text, then the end without text."""
        *ends, end = [choice["finish_reason"] for choice in life]
        self.expect(end is not None and not any(ends), f"{what}: finish_reason", life)
        if "text" in life[0]:
            self.expect(life[-1]["text"] == "", f"{what}: the last chunk has text", life)
            return
        first, *middle, last = [choice["delta"] for choice in life]
        self.expect(first == {"role": "assistant", "content": ""}, f"{what}: role chunk", life)
        fields = {"content", "reasoning_content", "tool_calls"}
        is_said = all(delta and delta.keys() <= fields for delta in middle)
        self.expect(is_said and last == {}, f"{what}: deltas", life)
        says = all(any(one["delta"].values()) or one["logprobs"] for one in life[1:-1])
        self.expect(says, f"{what}: a chunk says nothing", life)


Check = Callable[[Pass, str, Any], None]


# ---- what is asked -------------------------------------------------------------------------

USER = {"role": "user", "content": "Introduce yourself."}
PARTS = [{"type": "text", "text": "Introduce "}, {"type": "text", "text": "yourself."}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
BRIEF = [{"role": role, "content": "Be brief."} for role in ("system", "developer")]
TEXTS, TOKENS = ["Once", "upon"], [10, 11, 12]
RIGHT: dict[str, Json] = {
    CHAT: {"messages": [USER], "temperature": 0, "max_tokens": 16},
    COMPLETIONS: {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 16},
    EMBEDDINGS: {"input": "Once"},
    RESPONSES: {"input": "Introduce yourself.", "temperature": 0, "max_output_tokens": 60},
}
SAMPLING: dict[str, Any] = {
    "temperature": 1.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repeat_penalty": 1.3, "seed": 7,
    "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"10": 5, "11": -100},
    "repeat_last_n": 9, "typical_p": 0.9, "xtc_probability": 0.1, "dry_multiplier": 0.8,
    "top_n_sigma": 2, "dynatemp_range": 0.1, "samplers": ["dry", "top_k", "temperature"],
}  # fmt: skip
SHARED_CASES: dict[str, Json] = {
    "plain": {},
    "n": {"n": 2},
    "n sampled": {"n": 2, "temperature": 1, "seed": 3},
    "stop": {"stop": "e"},
    "stops": {"stop": ["\n", "o", "an", "?"]},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens 1": {"max_tokens": 1},
    "no limit": {"max_tokens": -1, "stop": [".", "!", " "]},
    "nulls": dict.fromkeys(["n", "stop", "top_p", "logit_bias", "logprobs", "seed"]),
    "fields that change nothing": {"user": "me", "store": False, "metadata": {}, "unknown": 1},
    "every sampling parameter": SAMPLING,
    **{name: {"temperature": 1, "seed": 3, name: value} for name, value in SAMPLING.items()},
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "", "parameters": CITY}
CALLED = {"id": "1", "type": "function",
          "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
CALLABLE: Json = {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 60}
OSLO: Json = {**CALLABLE, "messages": [{"role": "user", "content": "What is the weather in Oslo?"}]}
TWO_CITIES: Json = {**CALLABLE, "messages": [
    {"role": "user", "content": "What is the weather in Oslo and in Rome?"}]}  # fmt: skip
CHAT_THINK: Json = {"messages": [{"role": "user", "content": "Think first: What is 12 + 9?"}],
                    "max_tokens": 60}  # fmt: skip
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
CHAT_CASES: dict[str, Json] = SHARED_CASES | {
    "system and developer": {"messages": [*BRIEF, USER]},
    "content parts": {"messages": [{"role": "user", "content": PARTS}]},
    "conversation": {"messages": [USER, {"role": "assistant", "content": "Hi."}, USER]},
    "continued message": {"messages": [USER, {"role": "assistant", "content": "I am"}]},
    "max_completion_tokens": {"max_completion_tokens": 1},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
    "n with logprobs": {"logprobs": True, "top_logprobs": 20, "n": 2},
    "logprobs of nothing": {"logprobs": True, "max_tokens": 0},
    "logprobs and stop": {"logprobs": True, "stop": ["m a", "an ", "e"]},
    "no tools": {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
    "a call": OSLO,
    "a call with logprobs": {**OSLO, "logprobs": True, "top_logprobs": 2},
    "a call cut short": {**OSLO, "max_tokens": 18},
    "calls": {**TWO_CITIES, "n": 2},
    "one call of two": {**TWO_CITIES, "parallel_tool_calls": False},
    "a call that is required": {**CALLABLE, "tool_choice": "required"},
    "a call by name": {
        **CALLABLE,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    },
    "no call": {**OSLO, "tool_choice": "none"},
    "the result of a call": {
        **OSLO,
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "rain"}]},
        ],
    },
    "a form": {"response_format": SCHEMA},
    "a form with logprobs": {"response_format": SCHEMA, "logprobs": True},
    "a call or a form": {**OSLO, "response_format": SCHEMA},
    "any JSON": {"response_format": {"type": "json_object"}},
    "thoughts": CHAT_THINK,
    "thoughts with logprobs": {**CHAT_THINK, "logprobs": True, "top_logprobs": 1},
    "thoughts cut short": {**CHAT_THINK, "max_tokens": 5},
    "a stop in thoughts": {**CHAT_THINK, "stop": ["="], "stop_in_reasoning": True},
    "effort": {**CHAT_THINK, "reasoning_effort": "none"},
    "a budget of thoughts": {**CHAT_THINK, "reasoning": {"max_tokens": 4}},
}
RED_URL, BLUE_URL = (
    f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    for kind, data in (("png", png(64, 48, RED)), ("jpeg", BLUE_JPEG))
)
WHAT = {"type": "text", "text": "What is in this image?"}
RED_PART = {"type": "image_url", "image_url": {"url": RED_URL}}
BLUE_PART = {"type": "image_url", "image_url": {"url": BLUE_URL, "detail": "low"}}
LOOK: Json = {"messages": [{"role": "user", "content": [WHAT, RED_PART]}]}
IMAGE_CASES: dict[str, Json] = {  # for models that see
    "an image": LOOK,
    "an image between texts": {"messages": [{"role": "user", "content": [WHAT, BLUE_PART, WHAT]}]},
    "an image as a text": {
        "messages": [{"role": "user", "content": [{**RED_PART, "image_url": RED_URL}, WHAT]}]
    },
    "images": {"messages": [{"role": "user", "content": [RED_PART, BLUE_PART, RED_PART, WHAT]}]},
    "images over turns": {
        "messages": [
            *LOOK["messages"],
            {"role": "assistant", "content": "One red square."},
            {"role": "user", "content": [BLUE_PART, WHAT]},
        ]
    },
    "an image in the result of a call": {
        **OSLO,
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "1", "content": [RED_PART]},
        ],
    },
    "an image and logprobs": {**LOOK, "logprobs": True, "top_logprobs": 2},
    "an image, n, and a stop": {**LOOK, "n": 2, "stop": ["e"]},
    "an image and tools": {**OSLO, **LOOK},
    "an image and a form": {**LOOK, "response_format": SCHEMA},
}
COMPLETION_CASES: dict[str, Json] = SHARED_CASES | {
    "texts": {"prompt": TEXTS},
    "token ids": {"prompt": TOKENS},
    "lists of token ids": {"prompt": [TOKENS, TOKENS[:1]]},
    "texts and n": {"prompt": TEXTS, "n": 2},
    "logprobs": {"logprobs": 2},
    "logprobs 0": {"logprobs": 0},
    "logprobs of nothing": {"logprobs": 1, "max_tokens": 0},
    "echo": {"echo": True},
    "echo of texts and n": {"echo": True, "prompt": TEXTS, "n": 2},
    "echo with logprobs": {"echo": True, "logprobs": 5},
    "scored prompts": {"echo": True, "logprobs": 1, "max_tokens": 0, "prompt": TEXTS},
    "scored characters of many tokens": {"echo": True, "logprobs": 1, "prompt": "é🙂x Once"},
}
TOOL = {"type": "function", **FUNCTION}
WEATHER = {"input": "What is the weather in Oslo?", "tools": [TOOL]}
CALL = {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": "{}"}
SPACE = {"type": "namespace", "name": "mcp__sky__", "description": "Weather.", "tools": [TOOL]}
SAY = {"type": "custom", "name": "say"}
QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
SEARCH = {"type": "tool_search", "execution": "client", "description": "", "parameters": QUERY}
SAID = {"type": "custom_tool_call", "call_id": "1", "name": "say", "input": "Hi"}
THINK = {"input": "Think first: What is 12 + 9?"}
FORM = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}
RESPONSE_CASES: dict[str, Json] = {
    "plain": {},
    "messages": {"input": [*BRIEF, USER]},
    "parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
    "instructions": {"instructions": "Be brief."},
    "cut short": {"max_output_tokens": 3},
    "nothing": {"max_output_tokens": 0},
    "no limit": {"max_output_tokens": -1, "stop": [".", "!"]},
    "thoughts": THINK,
    "thoughts cut short": {**THINK, "max_output_tokens": 5},
    "effort": {**THINK, "reasoning": {"effort": "none"}},
    "a budget of thoughts": {**THINK, "reasoning": {"max_tokens": 4}},
    "a call": WEATHER,
    "a call cut short": {**WEATHER, "max_output_tokens": 18},
    "a call that is required": {"tools": [TOOL], "tool_choice": "required"},
    "a call by name": {"tools": [TOOL], "tool_choice": {"type": "function", "name": TOOL["name"]}},
    "a call in a namespace": {**WEATHER, "tools": [SPACE, {"type": "web_search"}]},
    "a call of a custom tool": {"tools": [SAY, SPACE], "tool_choice": SAY},
    "tools among the items": {
        "input": [{"type": "additional_tools", "role": "developer", "tools": [SAY]}, USER],
        "tool_choice": "required",
    },
    "a search of the client's": {"tools": [SEARCH], "tool_choice": "required"},
    "allowed tools": {
        "tools": [TOOL, SAY],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [SAY]},
    },
    "items of other types": {
        "input": [USER, {"type": "web_search_call", "action": {"type": "search"}}, SAID, USER]
    },
    "no call": {**WEATHER, "tool_choice": "none", "parallel_tool_calls": False},
    "the output of a call": {
        "input": [USER, CALL, {"type": "function_call_output", "call_id": "1", "output": "rain"}]
    },
    "JSON": {
        "input": "Give me a JSON object with name Ben and age 7.",
        "text": {"format": {"type": "json_object"}},
    },
    "a form": {
        "input": "Anna is 12 years old. Answer as JSON with name and age.",
        "text": {"format": FORM, "verbosity": "low"},
    },
    "logprobs": {"include": ["message.output_text.logprobs"]},
    "top_logprobs": {**THINK, "top_logprobs": 3},
    "fields that change nothing": {"user": "me", "store": False, "metadata": {"a": "b"}},
    "every sampling parameter": SAMPLING,
}
SHOWN = [{"type": "input_text", "text": "What is in this image?"},
         {"type": "input_image", "image_url": RED_URL, "detail": "auto"}]  # fmt: skip
SEEN_RESPONSES: dict[str, Json] = {
    "an image": {"input": [{"role": "user", "content": SHOWN}]},
    "images and logprobs": {
        "input": [{"role": "user", "content": [*SHOWN, *SHOWN]}],
        "include": ["message.output_text.logprobs"],
    },
    "an image and a tool": {**WEATHER, "input": [{"role": "user", "content": SHOWN}]},
    "an image and a form": {
        "input": [{"role": "user", "content": SHOWN}],
        "text": {"format": FORM},
    },
}
FAILURES: dict[str, list[ReplyEvent]] = {
    "before the response": [],
    "in its middle": [Started(0, 0, 9, 0), Delta(0, 0, "Hel")],
}
INPUTS = {
    "text": "Once upon a time", "texts": TEXTS, "token ids": TOKENS,
    "lists of token ids": [TOKENS, TOKENS[:1]],
}  # fmt: skip
WRONG_VALUES: Json = {
    "temperature": "hot", "top_p": "1", "top_k": 1.5, "min_p": [], "repeat_penalty": 0, "seed": "x",
    "presence_penalty": {}, "frequency_penalty": True, "logit_bias": [], "max_tokens": -2, "n": 0,
    "typical_p": "1", "mirostat": 1, "samplers": ["top_z"], "dry_sequence_breakers": 5,
    "stop": 5, "stream": "true", "stream_options": 1, "logprobs": "yes",
}  # fmt: skip


class Wrong(NamedTuple):
    """A request, and how it must be refused; wire.md, 3.10."""

    status: int
    code: str | None = None
    param: str | None = None
    path: str = CHAT
    body: Any = None  # bytes, or what is laid over a right one
    method: str = "POST"
    headers: dict[str, str] = {}
    type: str = "invalid_request_error"


MISSING, OVER = "missing_required_parameter", "context_length_exceeded"
WRONG = {
    "malformed": Wrong(400, body=b'{"messages":'),
    "not UTF-8": Wrong(400, body=b'{"messages": "\xff"}'),
    "not an object": Wrong(400, body=b"[]"),
    "no body": Wrong(400, body=b""),
    "NaN": Wrong(400, body=b'{"temperature": NaN}'),
    "no messages": Wrong(400, MISSING, "messages", body={"messages": None}),
    "no prompt": Wrong(400, MISSING, "prompt", COMPLETIONS, {"prompt": None}),
    "no input": Wrong(400, MISSING, "input", EMBEDDINGS, {"input": None}),
    "empty messages": Wrong(400, None, "messages", body={"messages": []}),
    "empty input": Wrong(400, None, "input", EMBEDDINGS, {"input": ""}),
    "empty inputs": Wrong(400, None, "input", EMBEDDINGS, {"input": []}),
    "unknown role": Wrong(400, None, "messages.[0].role", body={"messages": [{"role": "x"}]}),
    "an image that is none": Wrong(400, None, "messages.[0].content.[0]",
                      body={"messages": [{"role": "user", "content": [IMAGE]}]}),
    "a tool that is none": Wrong(400, MISSING, "tools.[0].function",
                                 body={"tools": [{"type": "function"}]}),
    "a choice without tools": Wrong(400, None, "tool_choice", body={"tool_choice": "required"}),
    "a form that is none": Wrong(400, None, "response_format.type",
                                 body={"response_format": {"type": "xml"}}),
    "a form that cannot be held": Wrong(
        400, None, "response_format.json_schema.schema", body={"response_format": {
            "type": "json_schema", "json_schema": {"strict": True, "schema": {"not": {}}}}}),
    "a grammar": Wrong(400, "unsupported_grammar", "grammar", body={"grammar": 'root ::= "a"'}),
    "top_logprobs alone": Wrong(400, None, "top_logprobs", body={"top_logprobs": 1}),
    "dimensions": Wrong(400, None, "dimensions", EMBEDDINGS, {"dimensions": 10**6}),
    "format": Wrong(400, None, "encoding_format", EMBEDDINGS, {"encoding_format": "int8"}),
    "no input of a response": Wrong(400, MISSING, "input", RESPONSES, {"input": None}),
    "nothing but an item of another type": Wrong(
        400, None, "input", RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}),
    "a response that is not there": Wrong(400, "previous_response_not_found",
                                          "previous_response_id", RESPONSES,
                                          {"previous_response_id": "resp_1"}),
    "a choice of a tool that is left out": Wrong(
        400, None, "tool_choice", RESPONSES,
        {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}),
    "host": Wrong(403, headers={"Host": "example.com"}, type="permission_error"),
    "origin": Wrong(403, headers={"Origin": "https://example.com"}, type="permission_error"),
    "route": Wrong(404, path="/v1/nothing"),
    "model by GET": Wrong(404, "model_not_found", "model", "/v1/models/x", method="GET"),
    "method": Wrong(405, "method_not_supported", method="GET"),
    "method of models": Wrong(405, "method_not_supported", path="/v1/models"),
    "no chunks": Wrong(400, body=b"{}\r\n", headers={"Transfer-Encoding": "chunked"}),
    "compressed chunks": Wrong(400, headers={"Transfer-Encoding": "gzip, chunked"}),
    "large body": Wrong(413, headers={"Content-Length": str(2**40)}),
    "content type": Wrong(415, headers={"Content-Type": "text/plain"}),
    "compressed": Wrong(415, headers={"Content-Encoding": "gzip"}),
    "expectation": Wrong(417, headers={"Expect": "more"}),
    "large head": Wrong(431, headers={"X-Long": "x" * 2**15}),
}  # fmt: skip
WRONG |= {
    f"model of {path}": Wrong(404, "model_not_found", "model", path, {"model": "x"})
    for path in RIGHT
}
WRONG |= {
    f"{field} of {path}": Wrong(400, None, field, path, {field: value})
    for path in (CHAT, COMPLETIONS)
    for field, value in WRONG_VALUES.items()
}


def wrong_of_model(n_context: int, embeds_only: bool) -> dict[str, Wrong]:
    """Prompts over the context, and what else depends on the model."""
    text, chat = "the " * n_context, Wrong(400, "unsupported_feature", "model")
    found = {"long input": Wrong(400, OVER, "input", EMBEDDINGS, {"input": text})}
    if embeds_only:
        paths = {"chat": CHAT, "completion": COMPLETIONS, "response": RESPONSES}
        return found | {name: chat._replace(path=path) for name, path in paths.items()}
    messages, ids = [{"role": "user", "content": text}], [10] * (n_context + 1)
    return found | {
        "long messages": Wrong(400, OVER, "messages", CHAT, {"messages": messages}),
        "long items": Wrong(400, OVER, "input", RESPONSES, {"input": messages}),
        "long prompt": Wrong(400, OVER, "prompt", COMPLETIONS, {"prompt": text}),
        "long ids": Wrong(400, OVER, "prompt", COMPLETIONS, {"prompt": ids}),
        "no such id": Wrong(400, None, "prompt", COMPLETIONS, {"prompt": [2**31 - 1]}),
    }


# ---- the checks ----------------------------------------------------------------------------


def check_models(run: Pass, name: str, _: Any) -> None:
    """The list, and its model by name, which may be percent-encoded."""
    (model,) = run.ask("models", "/v1/models", None, name)["data"]
    encoded = "".join(f"%{byte:02X}" for byte in model["id"].encode())
    for id_ in (quote(model["id"]), encoded):
        found = run.ask("model", f"/v1/models/{id_}", None, name)
        run.expect(found == model, f"{name}: {id_} is another than in the list", found)


def check_answer(path: str, run: Pass, name: str, case: Json) -> None:
    """A request in one piece, streamed, and streamed with usage."""
    body = {**RIGHT[path], "model": run.server.model, **case}
    is_scored = body.get("echo") and "logprobs" in body
    kind = "chat" if path == CHAT else "echo" if is_scored else "completion"
    whole = run.ask(kind, path, body, name)
    found = unnamed(whole)
    plain = run.stream(f"{kind} chunk", path, body, f"{name}, streamed")
    choices = unnamed(folded_chunks(plain))["choices"]
    run.expect(agree(choices, found["choices"]), f"{name}: streamed, another", [whole, plain])
    body["stream_options"] = {"include_usage": True}
    counted = run.stream(f"{kind} chunk", path, body, f"{name}, streamed with usage")
    same = agree(unnamed(folded_chunks(counted)), found)
    run.expect(same, f"{name}: with usage, another", [whole, counted])
    prompt = body.get("prompt")
    n_prompts = len(prompt) if isinstance(prompt, list) and prompt != TOKENS else 1
    n_choices = n_prompts * (body.get("n") or 1)
    indexes = [choice["index"] for choice in whole["choices"]]
    run.expect(indexes == list(range(n_choices)), f"{name}: choices", whole)
    usage = whole["usage"]
    n_completion = usage["completion_tokens"]
    is_sum = usage["prompt_tokens"] + n_completion == usage["total_tokens"]
    run.expect(is_sum, f"{name}: usage does not add up", usage)
    limit: Any = body.get("max_completion_tokens", body["max_tokens"])
    run.expect(limit < 0 or n_completion <= limit * n_choices, f"{name}: too many tokens", whole)
    for choice in found["choices"]:
        check_choice(run, name, body, choice)


def check_choice(run: Pass, name: str, body: Json, choice: Json) -> None:
    """What the parameters ask of one choice."""
    message = choice.get("message", choice)
    text, logprobs = message.get("text") or message.get("content") or "", choice["logprobs"] or {}
    # Tokens that are no content: tags, calls, thoughts, and spaces in front of a form.
    has_others = not message.keys().isdisjoint({"tool_calls", "reasoning_content"})
    has_others |= "response_format" in body
    is_clean = not any(stop in text for stop in body.get("stop") or [])
    run.expect(is_clean, f"{name}: the text has a stop string", choice)
    if body["max_tokens"] == 0:
        run.expect(choice["finish_reason"] == "length", f"{name}: finish_reason", choice)
        run.expect(text == "" or body.get("echo", False), f"{name}: text", choice)
    if body.get("echo") and isinstance(body["prompt"], str):
        run.expect(text.startswith(body["prompt"]), f"{name}: no echo", choice)
    is_asked = body.get("logprobs") is not None and (text != "" or has_others)
    run.expect(bool(logprobs) == is_asked, f"{name}: logprobs", choice)
    if "content" in logprobs:
        pieces = b"".join(bytes(entry["bytes"]) for entry in logprobs["content"])
        said = pieces.decode("utf-8", "replace")  # a stop string may end within a token
        is_said = said.startswith(text) if body.get("stop") else said == text
        is_said = text in said if has_others else is_said
        run.expect(is_said, f"{name}: bytes", choice)
        for entry in logprobs["content"]:
            tops = [top["logprob"] for top in entry["top_logprobs"]]
            run.expect(tops == sorted(tops)[::-1], f"{name}: order of top_logprobs", entry)
            run.expect(len(tops) == body.get("top_logprobs", 0), f"{name}: top_logprobs", entry)
    if "tokens" in logprobs:
        starts = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        is_at = [text.startswith(token, at) for token, at in starts if "\ufffd" not in token]
        run.expect(all(is_at), f"{name}: a token is not at its text_offset", choice)
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            # The token itself is there beside the likeliest; pieces of characters look alike.
            others = [other for other in top or {} if other != token]
            is_full = top is None or "\ufffd" in top or len(others) <= body["logprobs"] <= len(top)
            run.expect(is_full and (top is None or token in top), f"{name}: top_logprobs", top)
        nulls = [i for i, value in enumerate(logprobs["token_logprobs"]) if value is None]
        run.expect(nulls == ([0] if body.get("echo") else []), f"{name}: nulls", choice)


def check_embedding(run: Pass, name: str, value: Any) -> None:
    """An input of POST /v1/embeddings: as numbers, as base64, and cut."""
    body = {"model": run.server.model, "input": value}
    plain = run.ask("embeddings", EMBEDDINGS, body, name)
    rows = [row["embedding"] for row in plain["data"]]
    n_rows = len(value) if isinstance(value, list) and value != TOKENS else 1
    run.expect([row["index"] for row in plain["data"]] == list(range(n_rows)), name, plain)
    usage = plain["usage"]
    run.expect(usage["prompt_tokens"] == usage["total_tokens"] > 0, f"{name}: usage", usage)
    floats = run.ask("embeddings", EMBEDDINGS, {**body, "encoding_format": "float"}, name)
    run.expect(agree(floats, plain), f"{name}: float is not the default", floats)
    coded = run.ask("base64", EMBEDDINGS, {**body, "encoding_format": "base64"}, name)
    decoded = [array("f", base64.b64decode(row["embedding"])).tolist() for row in coded["data"]]
    run.expect(agree(decoded, rows), f"{name}: base64 differs", coded)
    cut = run.ask("embeddings", EMBEDDINGS, {**body, "dimensions": 1}, name)
    short = [row["embedding"] for row in cut["data"]]
    run.expect({len(row) for row in short} == {1}, f"{name}: dimensions", cut)
    for row in rows + short:
        run.expect(math.isclose(math.hypot(*row), 1, abs_tol=1e-4), f"{name}: length", row)


def check_response(run: Pass, name: str, case: Json) -> None:
    """A response in one piece, and the events that build it."""
    body = {**RIGHT[RESPONSES], "model": run.server.model, **case}
    whole = run.ask("response", RESPONSES, body, name)
    events = list(run.server.stream(RESPONSES, **body))
    for event in events:
        run.validate(event["type"], event, f"{name}, streamed")
    streamed = nameless(folded_events(events))
    run.expect(agree(streamed, nameless(whole)), f"{name}: streamed, another", [whole, events])
    body["store"] = True
    whole = run.ask("response", RESPONSES, body, name)
    own = f"{RESPONSES}/{whole['id']}"
    run.expect(run.server.get(own).json == whole, f"{name}: fetched, another", whole)
    for item in run.server.get(f"{own}/input_items").json["data"]:
        run.expect(type(item["id"]) is str, f"{name}: an item without an id", item)
        if item["type"] == "message":
            del item["id"]
        if item["type"] in INPUT_ITEMS:
            run.validate(item["type"], item, f"{name}, its input")
    queued = run.ask("response", RESPONSES, body | {"background": True}, f"{name}, background")
    own = f"{RESPONSES}/{queued['id']}"
    until(lambda: run.server.get(own).json["status"] not in ("queued", "in_progress"))
    made = run.server.get(own).json
    run.validate("response", made, f"{name}, from the background")
    run.expect(agree(nameless(made | {"background": False}), nameless(whole)),
               f"{name}: made in the background, another", [whole, made])  # fmt: skip
    usage = whole["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    run.expect(total == usage["total_tokens"], f"{name}: usage does not add up", usage)


def check_failure(run: Pass, name: str, events: list[ReplyEvent]) -> None:
    """The last event of a stream that fails after these events of the worker."""
    stored = StoredResponses()
    call = parse_response(stored, {"input": "Hi", "stream": True})
    model: Any = SimpleNamespace(name=run.server.model)
    reply = ResponseReply(call, "resp_1", model, 0)
    for event in events:
        reply.add(event)
    data = reply.failure(InternalError("the worker ended"))
    shown = json.loads(data.partition(b"\ndata: ")[2])
    run.validate(shown["type"] if events else "error event", shown, name)


def check_error(run: Pass, name: str, wrong: Wrong) -> None:
    """A request that must be refused, also where a stream is asked for."""
    bodies = [wrong.body]
    if wrong.method == "POST" and not isinstance(wrong.body, bytes):
        body = RIGHT.get(wrong.path, {}) | (wrong.body or {})
        bodies = [body, {"stream": True, **body}]
    for body in bodies:
        answer = run.server.request(wrong.method, wrong.path, body, wrong.headers)
        run.expect(answer.status == wrong.status, f"{name}: status {answer.status}", answer.json)
        run.validate("error", answer.json, name)
        run.expect_headers(answer, name)
        error = answer.json["error"]
        right = (wrong.type, wrong.code, wrong.param)
        run.expect((error["type"], error["code"], error["param"]) == right, name, [error, right])
        run.expect((wrong.status == 405) == ("allow" in answer.headers), name, answer.headers)


def main(arguments: list[str]) -> int:
    """One pass over a server of its own; the exit code."""
    with RunningServer(*arguments) as server:
        run = Pass(server)
        (model,) = server.get("/v1/models").json["data"]
        embeds_only = model["type"] == "embeddings"
        run.group("models", {"models": None}, check_models)
        if not embeds_only:
            run.group("chat", CHAT_CASES, functools.partial(check_answer, CHAT))
            check_completion = functools.partial(check_answer, COMPLETIONS)
            run.group("completions", COMPLETION_CASES, check_completion)
            run.group("responses", RESPONSE_CASES, check_response)
            run.group("failures", FAILURES, check_failure)
        if model["type"] == "vlm":
            run.group("images", IMAGE_CASES, functools.partial(check_answer, CHAT))
            run.group("seen", SEEN_RESPONSES, check_response)
        run.group("embeddings", INPUTS, check_embedding)
        wrong = WRONG | wrong_of_model(model["context_length"], embeds_only)
        run.group("errors", wrong, check_error)
        run.group("the checks", {"the checks": None}, lambda *_: run.check_the_checks())
    for failure in run.failures:
        print(f"\n{failure}")
    print(f"{run.n_passed} passed, {len(run.failures)} failed")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main([str(Path(argument).resolve()) for argument in sys.argv[1:]]))
