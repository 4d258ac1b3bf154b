"""Messages -> prompt tokens, through the model's own chat template and llama.cpp's Jinja.

Injection safety lives here. A template writes control tokens as text, so its output has to
be tokenized with control tokens parsed; but then a user who types `<|im_end|>` would end
the turn. So each control token that a message spells is broken with a character that occurs
nowhere else (`breaker.py`), the template renders the broken text, and the prompt is split at
those characters and tokenized part by part. No part spells a control token that a user wrote.
A picture stands in a text as its number between two other such characters.
Runs in the worker's reader thread.
"""

import ctypes
import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.chat.answer import Form
from lmlite.worker.chat.arranger import Arranger
from lmlite.worker.chat.bridge_request import narrowed, request_of, with_pictures
from lmlite.worker.chat.control_tokens import Breaker
from lmlite.worker.chat.limits import bounded
from lmlite.worker.chat.plain_tools import plain_tools
from lmlite.worker.chat.tool_words import (
    EMPTY,
    PROBE,
    PROBE_NAME,
    form_template,
    has_tools,
    in_words,
)
from lmlite.worker.grammars.call_grammar import (
    call_or_form,
    without_fence,
    without_small_talk,
    woken_by_name,
)
from lmlite.worker.grammars.json_grammar import mended, with_marks
from lmlite.worker.llama.capi import take_fault, take_text
from lmlite.worker.llama.model import Model
from lmlite.worker.media import InputChunk, Picture

Json = dict[str, Any]

# For answers that begin with JSON, whatever the model's own template is.
_BARE = "{% for message in messages %}{{ message.content }}{% endfor %}"
MAX_UNREADABLE = 64
SCHEMAS = ("schemas", "json_schema")  # fields of which llama.cpp makes grammars
_PRIVATE_USE = range(0xE000, 0xF900)  # characters without a meaning in Unicode


class TemplateError(Exception):
    """A chat template that cannot be read."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and what is known of the answer to it."""

    prompt: "Tokens"
    stops: tuple[str, ...]  # strings at which this template's answers end
    form: Form


@dataclass(slots=True)
class Tokens:
    """The tokens of a prompt, and what is to be seen in place of some."""

    ids: list[int] = field(default_factory=list)
    chunks: dict[int, InputChunk] = field(default_factory=dict)  # by the index of their first id

    @property
    def n_tokens(self) -> int:
        """Cells of memory that they take."""
        extra = (chunk.n_tokens - chunk.n_positions for chunk in self.chunks.values())
        return len(self.ids) + sum(extra)

    def show(self, picture: Picture) -> None:
        """Appends a picture."""
        self.chunks |= {len(self.ids) + begin: chunk for begin, chunk in picture.chunks}
        self.ids += picture.ids


@dataclass(frozen=True, slots=True)
class Marks:
    """Characters that stand for something, and occur in no text of a request."""

    breaks: str  # a control token
    picture: str  # before and behind the number of a picture


class ChatTemplate:
    """The chat template of a loaded model, or the one that replaces it."""

    def __init__(self, model: Model, override: str | None = None) -> None:
        """Reads the template; ChatML for a model without one. Raises TemplateError."""
        self._lib, self._vocab, self._model = model.lib, model.vocab, model
        self._pointer, self._bare = self._read(override), None
        try:
            self._bare = self._read(_BARE)
        except TemplateError:
            self.close()
            raise
        self._source: str = self._lib.lml_chat_source(self._pointer).decode("utf-8", "replace")
        self._breaker = Breaker(self._vocab.control_texts(), self._source)
        self._unreadable: set[int] = set()  # hashes of tools that the template refused
        self._arranger = Arranger(lambda request: str(self._reply(request)["prompt"]))

    def close(self) -> None:
        """Frees the templates."""
        self._lib.lml_chat_free(self._pointer)
        self._lib.lml_chat_free(self._bare)

    def render(
        self,
        messages: Sequence[ChatMessage],
        options: ChatOptions | None = None,
        pictures: Sequence[Picture] = (),
    ) -> Rendered:
        """The prompt for these messages; `pictures` are their images, read.

        Raises BadRequest with the template's own words when it refuses them however they are
        arranged, and for a tool or a schema of which llama.cpp can make no grammar.
        """
        request = request_of(messages, options or ChatOptions())
        marks = self._unused_characters(request)
        request = with_pictures(request, messages, marks.picture)
        told, prompt, reply = self.accepted(self.told(request), marks, pictures)
        request = request | {key: told[key] for key in ("messages", "tools") if key in told}
        # With marks in it, a reply is of no use but for its prompt.
        plain = json.loads(reply or self._render(told))
        found = plain
        if "tools" in request and request["tool_choice"] != "none":
            found = self._calling(narrowed(request, options), told, plain)
        if "json_schema" in request and not found["grammar"]:
            found = self._bare_reply(found, request["json_schema"])
        one_call = request.get("parallel_tool_calls") is False
        return Rendered(prompt, tuple(plain["stops"]), self._form(found, one_call))

    def accepted(
        self, request: Json, marks: Marks | None = None, pictures: Sequence[Picture] = ()
    ) -> tuple[Json, Tokens, bytes | None]:
        """The request with its messages as the template takes them, and what `prompt` makes of it.

        Its tools are said plainly, or in words, where the template cannot read them. Raises
        BadRequest with what the template said first.
        """
        if "tools" not in request:
            return self._arranged(request, marks, pictures)
        plainly = request | {"tools": plain_tools(request["tools"])}
        known = hash(json.dumps(request["tools"]))
        if known in self._unreadable:
            return self._arranged(plainly, marks, pictures)
        try:
            return self._arranged(request, marks, pictures)
        except BadRequest:
            for other in (plainly, in_words(request)):
                with suppress(BadRequest):
                    found = self._arranged(other, marks, pictures)
                    if other is plainly:
                        self._unreadable = {*[*self._unreadable][-MAX_UNREADABLE:], known}
                    return found
            raise

    def _arranged(
        self, request: Json, marks: Marks | None, pictures: Sequence[Picture]
    ) -> tuple[Json, Tokens, bytes | None]:
        refusal: BadRequest | None = None
        for messages in self._arranger.arrangements(request):
            arranged = request | {"messages": messages}
            try:
                return arranged, *self.prompt(arranged, marks, pictures)
            except BadRequest as err:
                if err.param != "messages":
                    raise
                refusal = refusal or err
        assert refusal is not None
        raise refusal

    def told(self, request: Json) -> Json:
        """The same request, with tools in plain words where the template knows none."""
        return in_words(request) if has_tools(request) and not self._knows_tools else request

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template tells its model of tools, and llama.cpp knows its form of a call."""
        try:
            reply = json.loads(self._render(PROBE))
        except BadRequest:
            return False
        return PROBE_NAME in reply["prompt"] and bool(reply["grammar"])

    def _calling(self, request: Json, told: Json, plain: Json) -> Json:
        """What the library says of an answer that may call tools, or must.

        `told` is the request as the template gets it, and `plain` what the library says of that.
        """

        def ask(asked: Json) -> Json:
            if "tools" not in told:
                return self._reply_in_words(told, plain, asked)
            return plain if asked == told else self._reply(asked)

        formless = {key: request[key] for key in request if key != "json_schema"}
        may_call, has_form = None, "json_schema" in request
        if request["tool_choice"] == "auto":
            may_call = ask(formless)
            if may_call["grammar"] and not has_form:
                return may_call
        must_call = ask(formless | {"tool_choice": "required"})
        forced = without_small_talk(must_call["grammar"])
        if may_call is None:
            return must_call | {"grammar": forced}
        if not has_form:
            names = [tool["function"]["name"] for tool in request["tools"]]
            return may_call | woken_by_name(forced, names)
        form = self._reply({key: told[key] for key in told if key not in ("tools", "schemas")})
        grammar = call_or_form(forced, form["grammar"])
        if grammar is None:
            return form
        return may_call | {"grammar": grammar, "grammar_lazy": False, "triggers": []}

    def _reply(self, request: Json, template: int | None = None) -> Json:
        reply: Json = json.loads(self._render(request, template))
        return reply

    def _reply_in_words(self, told: Json, plain: Json, request: Json) -> Json:
        """What holds an answer to calls in plain words, behind the template's own opening."""
        *others, last = told["messages"]
        messages = [EMPTY]
        if last["role"] == "assistant":  # it is continued, and part of the opening
            plain = self._reply(told | {"messages": others or [EMPTY]})
            messages.append(last)
        opening = plain["generation_prompt"], plain["thinking_start"], plain["thinking_ends"]
        template = self._read(form_template(*opening))
        try:
            return self._reply(request | {"messages": messages}, template)
        finally:
            self._lib.lml_chat_free(template)

    def _read(self, source: str | None) -> int:
        """A template for the library, the model's own where there is no source."""
        error = ctypes.c_void_p()
        data = source.encode() if source else None
        with bounded(self._lib):
            pointer: int = self._lib.lml_chat_init(self._model.pointer, data, ctypes.byref(error))
        if not pointer:
            fault = take_fault(self._lib, error)
            raise TemplateError(f"the chat template cannot be read: {fault}")
        return pointer

    def grammar_of(self, schema: Json) -> str:
        """The grammar of a text that is JSON of this schema."""
        reply = self._reply({"messages": [EMPTY], "json_schema": schema}, self._bare)
        return without_fence(str(reply["grammar"]))

    def _bare_reply(self, plain: Json, schema: Json) -> Json:
        """What holds an answer to a schema, where llama.cpp makes no grammar for the template."""
        if plain["thinking_start"] and plain["thinking_start"] in plain["generation_prompt"]:
            raise BadRequest(
                "the chat template of this model begins with thoughts, behind which llama.cpp "
                "cannot hold it to a response_format",
                param="response_format",
            )
        return self._reply({"messages": [EMPTY], "json_schema": schema}, self._bare)

    def prompt(
        self, request: Json, marks: Marks | None = None, pictures: Sequence[Picture] = ()
    ) -> tuple[Tokens, bytes | None]:
        """The tokens of a prompt; and the library's reply, unless control tokens are broken in it.

        `marks` are those that stand for the pictures in it.
        """
        marks = marks or self._unused_characters(request)
        broken = self._broken(request, marks.breaks)
        # A template may let its model read the schema of the answer.
        _, rules = with_marks(request, ("json_schema",))
        reply = self._render(broken, with_schemas=("schemas",))
        text = json.loads(reply)["prompt"]
        for mark in (marks.breaks, marks.picture):
            # A template that writes JSON in ASCII has written the mark so.
            text = text.replace(_escaped(mark), mark)
        tokens = self._tokens(text, marks, pictures)
        return tokens, reply if broken == request and not rules else None

    def _form(self, reply: Json, one_call: bool) -> Form:
        preserved: set[int] = set()
        for text in reply["preserved"]:
            tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
            preserved.update(tokens if len(tokens) == 1 else ())
        return Form(
            json.dumps(reply).encode(),
            grammar=reply["grammar"],
            grammar_waits=reply["grammar_lazy"],
            opening=reply["generation_prompt"],
            separates=reply["reasoning"],
            thinking_start=reply["thinking_start"],
            thinking_ends=tuple(reply["thinking_ends"]),
            preserved=frozenset(preserved),
            one_call=one_call,
        )

    def _tokens(self, text: str, marks: Marks, pictures: Sequence[Picture]) -> Tokens:
        """The tokens of a rendered prompt. Raises BadRequest when a picture got lost in it."""
        tokens = Tokens()
        seen = set()
        for i, part in enumerate(re.split(f"{marks.picture}([0-9]+){marks.picture}", text)):
            if i % 2 == 0:
                self._tokenize(self._breaker.parts(part, marks.breaks), tokens.ids)
            else:
                seen.add(int(part))
                tokens.show(pictures[int(part)])
        if len(seen) < len(pictures):
            raise BadRequest("the chat template leaves out an image", param="messages")
        return tokens

    def _tokenize(self, parts: Sequence[str], ids: list[int]) -> None:
        """Appends what the parts are cut into."""
        for part in filter(None, parts):
            ids += self._vocab.tokenize(
                part, add_special=not ids, parse_special=True, continues=bool(ids)
            )

    def _broken(self, request: Json, mark: str) -> Json:
        """The request with every text in it broken, save the words that the API itself knows."""
        broken = {
            key: self._break_field(key, request[key], mark, _API_KEYS) if key != "schemas"
            else request[key]  # which no model reads
            for key in request
        }  # fmt: skip
        if "json_schema" in request:
            broken["json_schema"] = self._break_all(request["json_schema"], mark, _SCHEMA_KEYS)
        if "kwargs" in request:
            # Variables of the template: it cannot write their names.
            kwargs = request["kwargs"].items()
            broken["kwargs"] = {
                key: self._break_field(key, value, mark, _API_KEYS) for key, value in kwargs
            }
        return broken

    def _break_all(self, value: Any, mark: str, keys: frozenset[str]) -> Any:
        """`keys` are the names in these objects that are not the client's."""
        if isinstance(value, str):
            return self._breaker.broken(value, mark)
        if isinstance(value, list):
            return [self._break_all(item, mark, keys) for item in value]
        if isinstance(value, dict):
            return {
                key if key in keys else self._breaker.broken(key, mark):
                    self._break_field(key, item, mark, keys)
                for key, item in value.items()
            }  # fmt: skip
        return value

    def _break_field(self, key: str, value: Any, mark: str, keys: frozenset[str]) -> Any:
        if value in _OUR_WORDS.get(key, ()):
            return value
        if key == "arguments" and keys is _API_KEYS and _is_json(value):
            return self._breaker.broken_json(value, mark)
        return self._break_all(value, mark, _keys_below(key, keys))

    def _unused_characters(self, request: Json) -> Marks:
        # One search instead of one for each text: what json.dumps leaves as it is, is there.
        used = self._source + json.dumps(request, ensure_ascii=False).lower()
        marks = (m for m in map(chr, _PRIVATE_USE) if m not in used and _escaped(m) not in used)
        free = tuple(itertools.islice(marks, 2))
        if len(free) < 2:
            raise BadRequest("the messages use every private-use character", param="messages")
        return Marks(*free)

    def _render(
        self, request: Json, template: int | None = None, with_schemas: tuple[str, ...] = SCHEMAS
    ) -> bytes:
        used = template or self._pointer
        asked, rules = with_marks(request, with_schemas)
        data = json.dumps(asked).encode()
        with bounded(self._lib):
            pointer = self._lib.lml_chat_render(used, data)
        reply = take_text(self._lib, pointer)
        if reply.startswith('{"error":'):
            _refuse(str(json.loads(reply)["error"]), request)
        if not request.keys() & set(SCHEMAS):
            return reply.encode()
        parsed = json.loads(reply)
        return json.dumps(parsed | {"grammar": mended(parsed["grammar"], rules)}).encode()


# Names of fields, which no message can choose: breaking one would hide it from the library.
_API_KEYS = frozenset(
    ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id", "id", "type",
     "function", "arguments", "description", "parameters")
)  # fmt: skip
_SCHEMA_KEYS = frozenset(
    ("type", "description", "properties", "required", "items", "enum", "additionalProperties",
     "anyOf", "oneOf", "allOf", "default", "title", "format", "nullable", "examples", "$ref",
     "$defs", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern")
)  # fmt: skip
_NO_KEYS: frozenset[str] = frozenset()


def _keys_below(key: str, keys: frozenset[str]) -> frozenset[str]:
    """What is known of the names in the value of this name."""
    if key == "parameters" and keys is _API_KEYS:
        return _SCHEMA_KEYS
    if key in ("properties", "$defs") and keys is _SCHEMA_KEYS:
        return _NO_KEYS
    return _SCHEMA_KEYS if keys is _NO_KEYS else keys


# Values that templates compare, none of which a client can choose freely.
_OUR_WORDS: dict[str, Sequence[str]] = {
    "role": ("system", "user", "assistant", "tool"),
    "type": ("function", "string", "number", "integer", "boolean", "object", "array", "null"),
    "tool_choice": ("auto", "none", "required"),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}


def _is_json(value: Any) -> bool:
    try:
        json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _refuse(fault: str, request: Json) -> NoReturn:
    """Raises BadRequest, for what llama.cpp or the template has found."""
    _, is_of_schema, words = fault.partition("JSON schema error ")
    if is_of_schema:
        param = "tools" if "tools" in request else "response_format"
        raise BadRequest(f"no grammar can be made of {param}: {words}", param=param)
    words = _own_words(fault)
    raise BadRequest(f"the chat template refuses the messages: {words}", param="messages")


def _own_words(error: str) -> str:
    """What the template itself said, without llama.cpp's account of where it said it.

    >>> _own_words("While executing ... Error: Jinja Exception: roles must alternate")
    'roles must alternate'
    """
    for introduction in ("Jinja Exception: ", "Error: "):
        if introduction in error:
            return " ".join(error.rpartition(introduction)[2].split())
    return " ".join(error.split())
