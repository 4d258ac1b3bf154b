"""Bodies of OpenAI's chat completions, completions and embeddings -> calls.

Unknown fields are ignored, as in LM Studio, and listed in a header of the reply. Unsupported
features are refused by name. Pure.
"""

from dataclasses import replace
from typing import NoReturn

from lmlite.errors import BadRequest
from lmlite.messages import Chat, ChatMessage, Complete, Embed, Json, Prompt
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.answer_forms import (
    FIELDS,
    guided,
    guided_form,
    guided_grammar,
    parse_form,
)
from lmlite.server.api.chat.content_parts import ContentReader
from lmlite.server.api.chat.options import chat_options, parse_effort
from lmlite.server.api.chat.tools import Choice, Tools, parse_tool_choice
from lmlite.server.api.fields import Field
from lmlite.server.api.openai.messages import parse_messages, parse_tools
from lmlite.server.api.sampling import MAX_INT, SAMPLING_FIELDS, sampling_params
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

MAX_GRAMMARS = 64  # of one request: each choice builds its own, in up to 20 ms

_EVERYWHERE = {"model", "user"}
_EXTRAS = {"timings_per_token", "return_progress"}
_INERT = {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
          "service_tier", "store"}  # fmt: skip
_GENERATING = {*_EVERYWHERE, *SAMPLING_FIELDS, "stream", "stream_options", "n", "stop", "logprobs",
               "max_tokens", "grammar", "draft_model", *FIELDS}  # fmt: skip
CHAT_FIELDS = {*_GENERATING, *_INERT, "messages", "top_logprobs", "max_completion_tokens", "tools",
               "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
               "chat_template_kwargs", "stop_in_reasoning", "functions", "audio",
               "modalities", "reasoning", *_EXTRAS}  # fmt: skip
COMPLETION_FIELDS = {*_GENERATING, *_EXTRAS, "prompt", "best_of", "suffix", "echo"}
EMBEDDING_FIELDS = {*_EVERYWHERE, "input", "encoding_format", "dimensions"}


def parse_chat(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/chat/completions. Raises BadRequest."""
    chat = Field(body)
    _refuse_unsupported(chat)
    reader, tools = ContentReader(defaults), parse_tools(chat["tools"])
    limit, effort = chat["max_completion_tokens"], chat["reasoning"].object()["effort"]
    call = chat_call(
        chat,
        defaults,
        messages=parse_messages(chat["messages"].required(), reader),
        tools=tools,
        choice=parse_tool_choice(chat["tool_choice"], tools.names),
        form=chat["response_format"],
        schema_in="json_schema",
        effort=chat["reasoning_effort"] if effort.value is None else effort,
        max_tokens=limit if limit.value is not None else chat["max_tokens"],
        n_logprobs=_n_logprobs(chat),
        n=_n_choices(chat, defaults),
    )
    ignored = ignored_fields(body, CHAT_FIELDS, reader.ignored | tools.ignored)
    return _with_extras(call, chat, ignored)


def chat_call(
    body: Field,
    defaults: Defaults,
    *,
    messages: tuple[ChatMessage, ...],
    tools: Tools,
    choice: Choice,
    form: Field,
    effort: Field,
    max_tokens: Field,
    n_logprobs: int | None,
    schema_in: str | None = None,
    n: int = 1,
) -> Call:
    """A chat in OpenAI's format. Raises BadRequest.

    The arguments differ between chat completions and responses. The rest is read from the body.
    """
    asked = guided(body)
    grammar = guided_grammar(asked, defaults.allows_grammars)
    schema, unheld = parse_form(form, asked, schema_in)
    if asked is not None and grammar is not None and tools.names:
        path = asked.field.path
        asked.field.refuse(f"{path} is not for tools, nor for a response_format")
    parallel = body["parallel_tool_calls"]
    options = chat_options(
        body,
        defaults,
        tools,
        choice,
        form=schema,
        parallel=None if parallel.value is None else parallel.boolean(),
        effort=parse_effort(effort),
        kwargs=body["chat_template_kwargs"],
    )
    if grammar is not None:  # the grammar has no place for reasoning
        options = replace(options, thinks=False)
    params = sampling_params(
        body,
        defaults,
        max_tokens=max_tokens,
        stop=body["stop"],
        n_logprobs=n_logprobs,
        budget=body["reasoning"].object()["max_tokens"],
    )
    return Call(
        Chat(0, messages, params, n, options=options, grammar=grammar),
        stream=body["stream"].boolean(),
        custom_tools=frozenset(tools.custom),
        unheld=(*unheld, *tools.unheld),
    )


def parse_completion(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/completions. Raises BadRequest."""
    text = Field(body)
    n = _n_choices(text, defaults)
    if (text["best_of"].integer(1, MAX_INT) or n) != n:
        text["best_of"].unsupported("best_of other than n is not supported")
    call = completion_call(
        text,
        defaults,
        _prompts(text["prompt"], defaults.limits.max_prompts),
        max_tokens=text["max_tokens"],
        n=n,
        suffix=text["suffix"].string() or None,
    )
    return _with_extras(call, text, ignored_fields(body, COMPLETION_FIELDS))


def completion_call(
    text: Field,
    defaults: Defaults,
    prompts: tuple[Prompt, ...],
    *,
    max_tokens: Field,
    n: int = 1,
    suffix: str | None = None,
) -> Call:
    """A completion of prompts; the rest is read from the body. Raises BadRequest."""
    asked, echo = guided(text), text["echo"]
    if asked is not None and len(prompts) * n > MAX_GRAMMARS:
        raise BadRequest(f"grammar is for at most {MAX_GRAMMARS} choices", param="grammar")
    if suffix is not None and echo.boolean():
        echo.refuse("echo is not for a prompt with a suffix")
    params = sampling_params(
        text,
        defaults,
        max_tokens=max_tokens,
        stop=text["stop"],
        n_logprobs=text["logprobs"].integer(0, 5),
    )
    request = Complete(
        0,
        prompts,
        params,
        n,
        echo.boolean(),
        grammar=guided_grammar(asked, defaults.allows_grammars),
        json_schema=guided_form(asked)[0],
        suffix=suffix,
    )
    return Call(request, stream=text["stream"].boolean())


def parse_embeddings(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/embeddings. Raises BadRequest."""
    asked = Field(body)
    inputs = _prompts(asked["input"], defaults.limits.max_inputs)
    if not all(inputs):
        asked["input"].refuse("an input is empty")
    encoding = asked["encoding_format"].string()
    if encoding not in (None, "float", "base64"):
        asked["encoding_format"].refuse("encoding_format is float or base64")
    return Call(
        Embed(0, inputs, asked["dimensions"].integer(1, MAX_INT)),
        encoding_format=encoding or "float",
        ignored=ignored_fields(body, EMBEDDING_FIELDS),
    )


# ---- parts of a body -----------------------------------------------------------------------


def _refuse_unsupported(chat: Field) -> None:
    if chat["functions"].value:
        chat["functions"].unsupported("functions are not supported: send them as tools")
    for field, is_text in (("audio", (None, {})), ("modalities", (None, ["text"]))):
        if chat[field].value not in is_text:
            chat[field].unsupported("the only modality that is supported is text")


def _n_choices(body: Field, defaults: Defaults) -> int:
    return body["n"].integer(1, defaults.limits.max_n) or 1


def _with_extras(call: Call, body: Field, ignored: tuple[str, ...]) -> Call:
    """The call with what its reply tells besides the text."""
    stream = body["stream_options"].object()
    return replace(
        call,
        include_usage=stream["include_usage"].boolean(),
        include_timings=body["timings_per_token"].boolean() or stream["include_timings"].boolean(),
        return_progress=body["return_progress"].boolean(),
        ignored=ignored,
    )


def _n_logprobs(chat: Field) -> int | None:
    """The number of alternatives per token; None: no log-probabilities."""
    if chat["logprobs"].boolean():
        return chat["top_logprobs"].integer(0, 20) or 0
    if chat["top_logprobs"].value is not None:
        chat["top_logprobs"].refuse("top_logprobs needs logprobs to be true")
    return None


def _prompts(field: Field, most: int) -> tuple[Prompt, ...]:
    """The four forms of a prompt: text, texts, token ids, lists of token ids."""
    value = field.required().value
    if type(value) is str:
        return (value,)
    if type(value) is not list or not value:
        _refuse_prompt(field)
    if all(type(item) is int for item in value):
        return (token_ids(field),)
    if len(value) > most:
        field.refuse(f"{field.path} has more than {most:,} items")
    if all(type(item) is str for item in value):
        return tuple(value)
    return tuple(token_ids(field.of(item)) for item in value)


def token_ids(field: Field) -> tuple[int, ...]:
    """A list of at least one token id. Raises BadRequest."""
    value = field.value
    if type(value) is not list or not value or any(type(item) is not int for item in value):
        _refuse_prompt(field)
    if min(value) < 0 or max(value) > MAX_INT:
        field.refuse(f"{field.path} has a token id that is out of range")
    return tuple(value)


def _refuse_prompt(field: Field) -> NoReturn:
    field.refuse(
        f"{field.path} is a text, a list of texts, a list of token ids, or a list of such lists"
    )
