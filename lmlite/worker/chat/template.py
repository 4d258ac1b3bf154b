"""Messages -> prompt tokens and the form of the answer, through the model's chat template.

Runs in the worker's reader thread.
"""

import itertools
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.chat.answer import Form
from lmlite.worker.chat.arranger import Arranger
from lmlite.worker.chat.bridge_request import narrowed, request_of, with_pictures
from lmlite.worker.chat.control_tokens import ControlTokens
from lmlite.worker.chat.renderer import Renderer, TemplateError
from lmlite.worker.chat.tools import (
    EMPTY,
    PROBE,
    PROBE_NAME,
    form_template,
    has_tools,
    in_words,
    plain_tools,
)
from lmlite.worker.grammars.call_grammar import (
    call_or_form,
    without_fence,
    without_small_talk,
    woken_by_name,
)
from lmlite.worker.grammars.json_grammar import with_marks
from lmlite.worker.llama.model import Model
from lmlite.worker.media import InputChunk, Picture

Json = dict[str, Any]

# A template that adds nothing: llama.cpp makes the grammar of plain JSON answers from it.
_BARE = "{% for message in messages %}{{ message.content }}{% endfor %}"
MAX_UNREADABLE = 64
PRIVATE_USE = range(0xE000, 0xF900)  # characters without a meaning in Unicode


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and the form in which its answer is read."""

    prompt: "Tokens"
    stops: tuple[str, ...]  # strings at which this template's answers end
    form: Form


@dataclass(slots=True)
class Tokens:
    """The tokens of a prompt, and the pictures among them."""

    ids: list[int] = field(default_factory=list)
    chunks: dict[int, InputChunk] = field(default_factory=dict)  # by the index of their first id

    @property
    def n_tokens(self) -> int:
        """Cells of memory that the prompt takes."""
        extra = (chunk.n_tokens - chunk.n_positions for chunk in self.chunks.values())
        return len(self.ids) + sum(extra)

    def show(self, picture: Picture) -> None:
        """Appends a picture."""
        self.chunks |= {len(self.ids) + begin: chunk for begin, chunk in picture.chunks}
        self.ids += picture.ids


@dataclass(frozen=True, slots=True)
class Markers:
    """Characters that do not occur in the request or in the template."""

    token: str  # splits control tokens in a client's text
    picture: str  # comes before and after the number of a picture


class ChatTemplate:
    """The chat template of a loaded model, or the user's replacement for it."""

    def __init__(self, model: Model, override: str | None = None) -> None:
        """Reads the template; ChatML for a model without one. Raises TemplateError."""
        self._model, self._vocab = model, model.vocab
        self._own = Renderer(model, override)
        try:
            self._bare = Renderer(model, _BARE)
        except TemplateError:
            self._own.close()
            raise
        self._control_tokens = ControlTokens(self._vocab.control_texts(), self._own.source)
        self._unreadable = deque[int](maxlen=MAX_UNREADABLE)  # hashes of refused lists of tools
        self._arranger = Arranger(lambda request: str(self._own.reply(request)["prompt"]))

    def close(self) -> None:
        """Frees the templates."""
        self._own.close()
        self._bare.close()

    def render(
        self,
        messages: Sequence[ChatMessage],
        options: ChatOptions | None = None,
        pictures: Sequence[Picture] = (),
    ) -> Rendered:
        """The prompt for these messages; `pictures` are their decoded images.

        Raises BadRequest with the template's own words if it refuses every arrangement of the
        messages, or if llama.cpp cannot make a grammar from a tool or a schema.
        """
        request = request_of(messages, options or ChatOptions())
        markers = self._markers(request)
        request = with_pictures(request, messages, markers.picture)
        adapted, prompt, reply = self.accepted(self.adapted(request), markers, pictures)
        request = request | {key: adapted[key] for key in ("messages", "tools") if key in adapted}
        plain = reply or self._own.reply(adapted)
        found = plain
        if "tools" in request and request["tool_choice"] != "none":
            found = self._calling(narrowed(request, options), adapted, plain)
        if "json_schema" in request and not found["grammar"]:
            found = self._bare_reply(found, request["json_schema"])
        one_call = request.get("parallel_tool_calls") is False
        return Rendered(prompt, tuple(plain["stops"]), self._form(found, one_call))

    def grammar_of(self, schema: Json) -> str:
        """The GBNF grammar of JSON texts that match this schema."""
        reply = self._bare.reply({"messages": [EMPTY], "json_schema": schema})
        return without_fence(str(reply["grammar"]))

    # ---- requests that the template accepts ------------------------------------------------

    def adapted(self, request: Json) -> Json:
        """The request, with its tools described in a message if the template ignores tools."""
        return in_words(request) if has_tools(request) and not self._knows_tools else request

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template writes tools, and llama.cpp recognizes the form of its calls."""
        try:
            reply = self._own.reply(PROBE)
        except BadRequest:
            return False
        return PROBE_NAME in reply["prompt"] and bool(reply["grammar"])

    def accepted(
        self, request: Json, markers: Markers | None = None, pictures: Sequence[Picture] = ()
    ) -> tuple[Json, Tokens, Json | None]:
        """The first variant of the request that the template accepts, and its `prompt`.

        Raises BadRequest with the first refusal if the template accepts no variant.
        """
        refusal: BadRequest | None = None
        for variant in self._variants(request):
            for messages in self._arranger.arrangements(variant):
                arranged = variant | {"messages": messages}
                try:
                    return arranged, *self.prompt(arranged, markers, pictures)
                except BadRequest as err:
                    refusal = refusal or err
                    if err.param != "messages":
                        break
        assert refusal is not None
        raise refusal

    def _variants(self, request: Json) -> Iterator[Json]:
        """The request as it is, then with plain tool schemas, then with tools in words."""
        if "tools" not in request:
            yield request
            return
        known = hash(json.dumps(request["tools"]))
        if known not in self._unreadable:
            yield request
            self._unreadable.append(known)
        yield request | {"tools": plain_tools(request["tools"])}
        self._unreadable.remove(known)  # plain tools are refused, too: the schemas are not at fault
        yield in_words(request)

    # ---- the prompt ------------------------------------------------------------------------

    def prompt(
        self, request: Json, markers: Markers | None = None, pictures: Sequence[Picture] = ()
    ) -> tuple[Tokens, Json | None]:
        """The tokens of a prompt; and the reply, if the request was rendered without changes.

        `markers` are those with which the request's pictures were marked.
        """
        markers = markers or self._markers(request)
        marked = self._control_tokens.marked_request(request, markers.token)
        # A template may show the answer's schema to the model: do not change that schema.
        _, rules = with_marks(request, ("json_schema",))
        reply = self._own.reply(marked, ("schemas",))
        text = reply["prompt"]
        for marker in (markers.token, markers.picture):
            text = text.replace(_escaped(marker), marker)  # the template may have written JSON
        tokens = self._tokens(text, markers, pictures)
        return tokens, reply if marked == request and not rules else None

    def _tokens(self, text: str, markers: Markers, pictures: Sequence[Picture]) -> Tokens:
        """The tokens of a rendered prompt. Raises BadRequest if the template lost a picture."""
        tokens = Tokens()
        seen = set()
        for i, part in enumerate(re.split(f"{markers.picture}([0-9]+){markers.picture}", text)):
            if i % 2 == 1:
                seen.add(int(part))
                tokens.show(pictures[int(part)])
                continue
            for piece in filter(None, self._control_tokens.parts(part, markers.token)):
                begins = not tokens.ids
                tokens.ids += self._vocab.tokenize(
                    piece, add_special=begins, parse_special=True, continues=not begins
                )
        if len(seen) < len(pictures):
            raise BadRequest("the chat template leaves out an image", param="messages")
        return tokens

    def _markers(self, request: Json) -> Markers:
        # One search in the JSON of the whole request is faster than one search for each text.
        used = self._own.source + json.dumps(request, ensure_ascii=False).lower()
        unused = (m for m in map(chr, PRIVATE_USE) if m not in used and _escaped(m) not in used)
        found = tuple(itertools.islice(unused, 2))
        if len(found) < 2:
            raise BadRequest("the messages use every private-use character", param="messages")
        return Markers(*found)

    # ---- the form of the answer ------------------------------------------------------------

    def _calling(self, request: Json, adapted: Json, plain: Json) -> Json:
        """The library's reply for an answer that may call tools or has to.

        `adapted` is the request that the template accepted, `plain` the reply to `adapted`.
        """
        formless = {key: request[key] for key in request if key != "json_schema"}

        def ask(tool_choice: str) -> Json:
            asked = formless | {"tool_choice": tool_choice}
            if "tools" not in adapted:
                return self._reply_in_words(adapted, plain, asked)
            return plain if asked == adapted else self._own.reply(asked)

        reply = ask(request["tool_choice"])
        if request["tool_choice"] == "required":
            return reply | {"grammar": without_small_talk(reply["grammar"])}
        has_form = "json_schema" in request
        if reply["grammar"] and not has_form:
            return reply
        forced = without_small_talk(ask("required")["grammar"])
        if not has_form:
            names = [tool["function"]["name"] for tool in request["tools"]]
            return reply | woken_by_name(forced, names)
        without_tools = {key: adapted[key] for key in adapted if key not in ("tools", "schemas")}
        form = self._own.reply(without_tools)
        grammar = call_or_form(forced, form["grammar"])
        if grammar is None:
            return form
        return reply | {"grammar": grammar, "grammar_lazy": False, "triggers": []}

    def _reply_in_words(self, adapted: Json, plain: Json, request: Json) -> Json:
        """The reply for calls that are text, after the opening that the template writes."""
        *others, last = adapted["messages"]
        messages = [EMPTY]
        if last["role"] == "assistant":  # the answer continues this message
            plain = self._own.reply(adapted | {"messages": others or [EMPTY]})
            messages.append(last)
        opening = plain["generation_prompt"], plain["thinking_start"], plain["thinking_ends"]
        with closing(Renderer(self._model, form_template(*opening))) as form:
            return form.reply(request | {"messages": messages})

    def _bare_reply(self, plain: Json, schema: Json) -> Json:
        """The reply for a schema if llama.cpp makes no grammar for this template."""
        if plain["thinking_start"] and plain["thinking_start"] in plain["generation_prompt"]:
            raise BadRequest(
                "the chat template of this model begins with thoughts, behind which llama.cpp "
                "cannot hold it to a response_format",
                param="response_format",
            )
        return self._bare.reply({"messages": [EMPTY], "json_schema": schema})

    def _form(self, reply: Json, one_call: bool) -> Form:
        preserved: set[int] = set()
        for text in reply["preserved"]:
            tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
            preserved.update(tokens if len(tokens) == 1 else ())
        return Form(
            json.dumps(reply | {"prompt": ""}).encode(),
            grammar=reply["grammar"],
            grammar_waits=reply["grammar_lazy"],
            opening=reply["generation_prompt"],
            separates=reply["reasoning"],
            thinking_start=reply["thinking_start"],
            thinking_ends=tuple(reply["thinking_ends"]),
            preserved=frozenset(preserved),
            one_call=one_call,
        )


def _escaped(marker: str) -> str:
    return f"\\u{ord(marker):04x}"
