"""A body of LM Studio's POST /api/v1/chat -> a chat.

Pure, except that it looks up the conversations of earlier responses. Errors are BadRequest.
"""

from dataclasses import dataclass

from lmlite.errors import BadRequest, FieldNames
from lmlite.messages import Chat, ChatMessage, Json
from lmlite.server.api.abilities import reasoning_settings
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.content_parts import ContentReader, Piece
from lmlite.server.api.chat.messages import message
from lmlite.server.api.chat.options import chat_options
from lmlite.server.api.chat.tools import Tools
from lmlite.server.api.fields import Field
from lmlite.server.api.responses.stored import Conversation, StoredResponses
from lmlite.server.api.sampling import MAX_INT, SAMPLING_FIELDS, sampling_params
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults
from lmlite.server.models.served_model import ServedModel

CHAT_FIELDS = {*SAMPLING_FIELDS, "model", "input", "system_prompt", "integrations", "stream",
               "max_output_tokens", "reasoning", "store", "previous_response_id"}  # fmt: skip
_REASONING = ("off", "low", "medium", "high", "on")
_NAMES = FieldNames(messages="input", form="input")


@dataclass(frozen=True)
class NativeCall(Call):
    """A call, with what it asks of its model, and what is stored of it."""

    conversation: Conversation = ()  # before the reply, with its system prompt
    stored: StoredResponses | None = None  # where to keep the conversation; None: not kept
    reasoning: str | None = None  # None: as the model is set
    n_ctx: int | None = None  # tokens that the context must hold

    def check_model(self, model: ServedModel) -> None:
        """Raises BadRequest if the model cannot do what the call asks for."""
        settings = reasoning_settings(model)
        if self.reasoning is not None and self.reasoning not in settings:
            can = f"takes {', '.join(settings)}" if settings else "does not reason"
            raise BadRequest(
                f"reasoning is {self.reasoning}, but {model.name} {can}", param="reasoning"
            )
        n_ctx = model.ready.loaded.n_ctx if model.ready else None
        if self.n_ctx is not None and n_ctx is not None and self.n_ctx > n_ctx:
            raise BadRequest(
                f"context_length is {self.n_ctx:,}, but {model.name} is loaded with {n_ctx:,}: "
                "unload it, then load it with this context_length by POST /api/v1/models/load",
                param="context_length",
            )


def parse_native_chat(
    stored: StoredResponses, body: Json, defaults: Defaults = NO_DEFAULTS
) -> NativeCall:
    """A body of POST /api/v1/chat. Raises BadRequest."""
    asked, contents = Field(body), ContentReader(defaults)
    if asked["integrations"].value:
        asked["integrations"].unsupported(
            "integrations are not supported: this server connects to no other and runs no tools"
        )
    reasoning = asked["reasoning"].string()
    if reasoning is not None and reasoning not in _REASONING:
        asked["reasoning"].refuse(f"reasoning is one of {', '.join(_REASONING)}")
    said = message("user", _pieces(asked["input"].required(), contents), asked["input"])
    conversation = (*_earlier(asked, stored), said)
    options = chat_options(
        asked,
        defaults,
        Tools(),
        ("auto", ()),
        form=None,
        parallel=None,
        effort=reasoning if reasoning not in ("off", "on") else None,
        thinks={"off": False, "on": True}.get(reasoning or ""),
    )
    params = sampling_params(
        asked,
        defaults,
        max_tokens=asked["max_output_tokens"],
        stop=asked.of(None),
        n_logprobs=None,
    )
    return NativeCall(
        Chat(0, conversation, params, options=options),
        stream=asked["stream"].boolean(),
        ignored=ignored_fields(body, CHAT_FIELDS, contents.ignored),
        field_names=_NAMES,
        conversation=conversation,
        stored=stored if asked["store"].value is None or asked["store"].boolean() else None,
        reasoning=reasoning,
        n_ctx=asked["context_length"].integer(1, MAX_INT),  # else ignored: the model's is used
    )


def _earlier(asked: Field, stored: StoredResponses) -> Conversation:
    """The conversation so far. A new system prompt takes the place of an earlier one."""
    previous = asked["previous_response_id"].string()
    turns = stored.find(previous) if previous is not None else ()
    system = asked["system_prompt"].string()
    if system is None:
        return turns
    others = tuple(turn for turn in turns if turn.role != "system")
    return (ChatMessage("system", system), *others) if system else others


def _pieces(field: Field, contents: ContentReader) -> list[Piece]:
    """The texts and images of an input: a string, or a list of items."""
    if type(field.value) is str:
        return [field.value]
    if type(field.value) is not list or not field.value:
        field.refuse("input is a string or a list of items")
    return [_piece(item.entry("an item of input"), contents) for item in field.items()]


def _piece(item: Field, contents: ContentReader) -> Piece:
    kind = item["type"].required()
    if kind.value in ("message", "text"):  # LM Studio's documents have both
        return item["content"].text()
    if kind.value != "image":
        kind.refuse("type is message, text or image")
    return contents.image(item, item["data_url"].text(), is_result=False)
