"""Request JSON -> messages: defaults filled in, types checked, each error naming its field.

An explicit null counts as absent, as OpenAI's clients send it. A boolean is not a number, and
1.0 is not a count. Fields that nobody here knows are ignored, as LM Studio does, and told by
name; features that are missing are refused by name. Pure; the only place that reads a client's
dictionaries.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, NoReturn

from lmlite.errors import BadRequest
from lmlite.messages import Chat, Complete, Embed, Prompt, SamplingParams
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.chat.answer_forms import FIELDS, guided, parse_form, parse_grammar
from lmlite.server.api.chat.requests import custom_tools, left_out, parse_messages, parse_options
from lmlite.server.api.fields import (
    Body,
    boolean,
    clamped,
    integer,
    required,
    string,
    typed,
    unsupported,
)
from lmlite.server.api.sampling import MAX_INT, NAMES, sampling_values
from lmlite.server.front.limits import Limits
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

MAX_GRAMMARS = 64  # of one request: each choice has one of its own, 20 ms for the largest

_EVERYWHERE = {"model", "user"}
_INERT = {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
          "service_tier", "store"}  # fmt: skip
_GENERATING = {*_EVERYWHERE, *NAMES, "stream", "stream_options", "n", "seed", "stop",
               "logit_bias", "logprobs", "max_tokens", "min_tokens", "ignore_eos", "grammar",
               *FIELDS}  # fmt: skip
CHAT_FIELDS = {*_GENERATING, *_INERT, "messages", "top_logprobs", "max_completion_tokens", "tools",
               "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
               "chat_template_kwargs", "stop_in_reasoning", "functions", "audio",
               "modalities"}  # fmt: skip
COMPLETION_FIELDS = {*_GENERATING, "prompt", "best_of", "suffix", "echo"}
EMBEDDING_FIELDS = {*_EVERYWHERE, "input", "encoding_format", "dimensions"}


def parse_chat(body: Body, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/chat/completions. Raises BadRequest."""
    _refuse_unsupported_chat(body)
    n_logprobs = None
    if boolean(body, "logprobs"):
        n_logprobs = integer(body, "top_logprobs", 0, 20) or 0
    elif body.get("top_logprobs") is not None:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    max_tokens = _max_tokens(body, "max_completion_tokens")
    if body.get("max_completion_tokens") is None:
        max_tokens = _max_tokens(body, "max_tokens")
    params = _sampling_params(body, max_tokens, n_logprobs, defaults)
    n = integer(body, "n", 1, defaults.limits.max_n) or 1
    messages = parse_messages(required(body, "messages"), defaults.takes_images, defaults.limits)
    options, unheld = parse_options(body)
    options = replace(options, separate_reasoning=defaults.separate_reasoning)
    grammar = parse_grammar(body, defaults.allows_grammars)
    if grammar is not None:
        if options.tools or options.json_schema:
            path = (guided(body) or ("", None, "grammar"))[2]
            raise BadRequest(f"{path} is not for tools, nor for a response_format", param=path)
        options = replace(options, thinks=False)  # a grammar leaves no place for thoughts
    request = Chat(0, messages, params, n, options=options, grammar=grammar)
    call = _call(body, request, CHAT_FIELDS, left_out(body, messages))
    return replace(call, custom_tools=custom_tools(body), unheld=unheld)


def parse_completion(body: Body, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/completions. Raises BadRequest."""
    n = integer(body, "n", 1, defaults.limits.max_n) or 1
    if (integer(body, "best_of", 1, MAX_INT) or n) != n:
        unsupported("best_of", "best_of other than n is not supported")
    if body.get("suffix"):
        unsupported("suffix", "suffix is not supported")
    n_logprobs = integer(body, "logprobs", 0, 5)
    params = _sampling_params(body, _max_tokens(body, "max_tokens"), n_logprobs, defaults)
    prompts = _prompts(body, "prompt", defaults.limits.max_prompts)
    grammar = parse_grammar(body, defaults.allows_grammars)
    if (grammar or guided(body)) and len(prompts) * n > MAX_GRAMMARS:
        raise BadRequest(f"grammar is for at most {MAX_GRAMMARS} choices", param="grammar")
    schema, _ = parse_form({name: body[name] for name in FIELDS if name in body})
    request = Complete(
        0, prompts, params, n, boolean(body, "echo"), grammar=grammar, json_schema=schema
    )
    return _call(body, request, COMPLETION_FIELDS)


def parse_embeddings(body: Body, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /v1/embeddings. Raises BadRequest."""
    inputs = _prompts(body, "input", defaults.limits.max_inputs)
    if not all(inputs):
        raise BadRequest("an input is empty", param="input")
    encoding_format = string(body, "encoding_format")
    if encoding_format is None:
        encoding_format = "float"
    if encoding_format not in ("float", "base64"):
        raise BadRequest("encoding_format is float or base64", param="encoding_format")
    return Call(
        Embed(0, inputs, integer(body, "dimensions", 1, MAX_INT)),
        string(body, "model"),
        encoding_format=encoding_format,
        ignored=ignored_fields(body, EMBEDDING_FIELDS),
    )


def _call(
    body: Body, request: Chat | Complete, known: Collection[str], others: Iterable[str] = ()
) -> Call:
    options = typed(body, "stream_options", dict, "an object") or {}
    return Call(
        request,
        string(body, "model"),
        stream=boolean(body, "stream"),
        include_usage=boolean(options, "include_usage", "stream_options.include_usage"),
        ignored=ignored_fields(body, known, others),
    )


# ---- parts of a body -----------------------------------------------------------------------


def _sampling_params(
    body: Body, max_tokens: int | None, n_logprobs: int | None, defaults: Defaults
) -> SamplingParams:
    return SamplingParams(
        **sampling_values(body, defaults.params, is_strict=False),
        logit_bias=_logit_bias(body, defaults.limits.max_biases),
        seed=_seed(body),
        max_tokens=max_tokens,
        min_tokens=_min_tokens(body, max_tokens),
        ignore_eos=boolean(body, "ignore_eos"),
        stop=stop_strings(body, "stop", defaults.limits),
        n_logprobs=n_logprobs,
    )


def _max_tokens(body: Body, field: str) -> int | None:
    n = integer(body, field, -1, MAX_INT)
    return None if n == -1 else n


def _min_tokens(body: Body, max_tokens: int | None) -> int:
    n = integer(body, "min_tokens", 0, MAX_INT) or 0
    if max_tokens is not None and n > max_tokens:
        raise BadRequest(f"min_tokens is more than max_tokens, {max_tokens:,}", param="min_tokens")
    return n


def _seed(body: Body) -> int | None:
    """Any whole number; the sampler takes 32 bits of it. -1 is llama.cpp's word for any seed."""
    seed = integer(body, "seed", -(2**63), 2**64 - 1)
    return None if seed is None or seed == -1 else seed % 2**32


def stop_strings(body: Body, field: str, limits: Limits) -> tuple[str, ...]:
    """A string, or a list of some. Raises BadRequest."""
    value = body.get(field)
    if value is None:
        return ()
    stops = [value] if type(value) is str else value
    if type(stops) is not list or not all(type(stop) is str for stop in stops):
        raise BadRequest(f"{field} is a string or a list of strings", param=field)
    if len(stops) > limits.max_stops:
        raise BadRequest(f"{field} has more than {limits.max_stops} strings", param=field)
    if not all(len(stop) <= limits.max_stop_length for stop in stops):
        words = f"a stop string has at most {limits.max_stop_length} characters"
        raise BadRequest(words, param=field)
    return tuple(filter(None, stops))  # an empty one never comes


def _logit_bias(body: Body, most: int) -> tuple[tuple[int, float], ...]:
    biases = typed(body, "logit_bias", dict, "an object") or {}
    if len(biases) > most:
        raise BadRequest(f"logit_bias has more than {most:,} entries", param="logit_bias")
    for token in biases:
        # One spelling for each id, or a token could have two biases.
        if not re.fullmatch("0|[1-9][0-9]{0,9}", token):
            raise BadRequest("logit_bias maps token ids to numbers", param="logit_bias")
    return tuple(
        (int(token), clamped(biases, token, -100, 100, 0.0, f"logit_bias.{token}"))
        for token in biases
    )


def _prompts(body: Body, field: str, most: int) -> tuple[Prompt, ...]:
    """The four forms of a prompt: text, texts, token ids, lists of token ids."""
    value = required(body, field)
    if type(value) is str:
        return (value,)
    if type(value) is not list or not value:
        _bad_prompt(field)
    if all(type(item) is int for item in value):
        return (token_ids(value, field),)
    if len(value) > most:
        raise BadRequest(f"{field} has more than {most:,} items", param=field)
    if all(type(item) is str for item in value):
        return tuple(value)
    return tuple(token_ids(item, field) for item in value)


def token_ids(value: Any, field: str) -> tuple[int, ...]:
    """A list of token ids, at least one. Raises BadRequest."""
    if type(value) is not list or not value or any(type(item) is not int for item in value):
        _bad_prompt(field)
    if min(value) < 0 or max(value) > MAX_INT:
        raise BadRequest(f"{field} has a token id that is out of range", param=field)
    return tuple(value)


def _bad_prompt(field: str) -> NoReturn:
    raise BadRequest(
        f"{field} is a text, a list of texts, a list of token ids, or a list of such lists",
        param=field,
    )


def _refuse_unsupported_chat(body: Body) -> None:
    if body.get("functions"):
        unsupported("functions", "functions are not supported: send them as tools")
    if body.get("audio"):
        unsupported("audio", "the only modality that is supported is text")
    if body.get("modalities") not in (None, ["text"]):
        unsupported("modalities", "the only modality that is supported is text")
