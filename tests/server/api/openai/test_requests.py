"""Bodies of OpenAI's chats, completions and embeddings become calls."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import (
    Chat,
    ChatMessage,
    Complete,
    Embed,
    SamplingParams,
)
from lmlite.server.api.call import Call
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.front import wire
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.server.api.test_bad_requests import CHAT, EMBED, ROWS, TEXT, Bad

HI = [{"role": "user", "content": "Hi"}]
PARSERS: dict[str, Callable[[dict[str, Any]], Call]] = {
    CHAT: partial(parse_chat, defaults=replace(NO_DEFAULTS, takes_images=True)),
    TEXT: parse_completion,
    EMBED: parse_embeddings,
}


def chat_call(**body: Any) -> Call:
    return parse_chat({"messages": HI, **body})


def chat(**body: Any) -> Chat:
    request = chat_call(**body).request
    assert isinstance(request, Chat)
    return request


def complete(**body: Any) -> Complete:
    request = parse_completion({"prompt": "Hi", **body}).request
    assert isinstance(request, Complete)
    return request


def embed(value: Any) -> Embed:
    request = parse_embeddings({"input": value}).request
    assert isinstance(request, Embed)
    return request


# ---- requests: what is read ----------------------------------------------------------------


def test_a_minimal_chat_gets_every_default() -> None:
    assert chat_call() == Call(Chat(0, (ChatMessage("user", "Hi"),), SamplingParams()))


def test_a_minimal_completion_gets_every_default() -> None:
    assert parse_completion({"prompt": "Hi"}) == Call(Complete(0, ("Hi",), SamplingParams()))


def test_minimal_embeddings_are_whole_and_in_floats() -> None:
    assert parse_embeddings({"input": "Hi"}) == Call(Embed(0, ("Hi",)))


OPTIONAL = [
    "model", "stream", "stream_options", "temperature", "top_k", "top_p", "min_p",
    "repeat_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "max_tokens",
    "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs", "echo", "best_of", "suffix",
    "tools", "functions", "tool_choice", "response_format", "modalities", "audio",
    "encoding_format", "dimensions",
]  # fmt: skip


@pytest.mark.parametrize("field", OPTIONAL)
def test_an_explicit_null_is_an_absent_field(field: str) -> None:
    for parse, required in (
        (parse_chat, {"messages": HI}),
        (parse_completion, {"prompt": "Hi"}),
        (parse_embeddings, {"input": "Hi"}),
    ):
        assert parse({**required, field: None}) == parse(required)


@pytest.mark.parametrize(
    ("parse", "body"),
    [(parse_chat, {"messages": HI}), (parse_completion, {"prompt": "Hi"}),
     (parse_embeddings, {"input": "Hi"})],
)  # fmt: skip
def test_unknown_fields_are_ignored_and_reported(
    parse: Callable[[dict[str, Any]], Call], body: dict[str, Any]
) -> None:
    call = parse({**body, "user": 5, "ttl": "x", "a b\r\n": [], "ü" * 99: {}, "nothing": None})
    assert call == replace(parse(body), ignored=("?" * 64, "a?b??", "ttl"))


def test_openai_fields_without_effect_here_are_not_reported() -> None:
    inert = {"metadata": {"a": []}, "store": True, "service_tier": "auto", "safety_identifier": "x"}
    assert parse_chat({"messages": HI, **inert}).ignored == ()


def test_no_more_than_twenty_ignored_fields_are_reported() -> None:
    many = {f"f{i:03}": 1 for i in range(1000)}
    assert parse_chat({"messages": HI, **many}).ignored == tuple(f"f{i:03}" for i in range(20))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", 0, 0.0),
        ("temperature", 2, 2.0),
        ("top_p", 0, 0.0),
        ("top_p", 1, 1.0),
        ("top_k", 0, 0),
        ("top_k", -1, 0),  # all, as llama.cpp has it
        ("top_k", 2**31 - 1, 2**31 - 1),
        ("top_k", -2, 0),
        ("top_k", 2**40, 2**31 - 1),
        ("min_p", 0.5, 0.5),
        ("repeat_penalty", 10, 10.0),
        ("presence_penalty", -2, -2.0),
        ("frequency_penalty", 2, 2.0),
        # What is out of range is the nearest that is in it.
        ("temperature", 2.1, 2.0),
        ("temperature", 10**400, 2.0),
        ("temperature", -0.1, 0.0),
        ("top_p", 1.5, 1.0),
        ("min_p", -1, 0.0),
        ("repeat_penalty", 11, 10.0),
        ("presence_penalty", 3, 2.0),
        ("frequency_penalty", -3, -2.0),
        ("logit_bias", {"5": 200, "7": -999}, ((5, 100.0), (7, -100.0))),
        ("max_tokens", -1, None),
        ("max_tokens", 0, 0),
        ("max_tokens", 2**31 - 1, 2**31 - 1),
        ("seed", 0, 0),
        ("seed", -1, None),  # any, as llama.cpp has it
        ("seed", -2, 2**32 - 2),
        ("seed", 2**32 + 7, 7),
        ("seed", 2**64 - 1, 2**32 - 1),
        ("seed", -(2**63), 0),
        ("stop", [], ()),
        ("stop", "", ()),
        ("stop", ["", "a"], ("a",)),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("typical_p", 0.5, 0.5),
        ("repeat_last_n", -5, -1),
        ("dry_penalty_last_n", 2**40, 2**31 - 1),
        ("dry_sequence_breakers", [], ()),
        ("dry_sequence_breakers", ["a", ""], ("a",)),
        ("mirostat", 2, 2),
        ("samplers", [], ()),
        ("samplers", ["typical_p", "top_k"], ("typ_p", "top_k")),
        ("reasoning_budget_tokens", -9, -1),
        ("stop", ["x" * 256] * 16, ("x" * 256,) * 16),
        ("logit_bias", {}, ()),
        ("logit_bias", {"5": 100, "7": -0.5}, ((5, 100.0), (7, -0.5))),
    ],
)
def test_a_sampling_parameter_is_read_as(field: str, value: Any, expected: Any) -> None:
    for request in (chat(**{field: value}), complete(**{field: value})):
        found = getattr(request.params, field)
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samplers", ["top_z"]),
        ("samplers", "edkypmxt"),
        ("samplers", [["top_k"]]),
        ("samplers", ["top_k", "top_k"]),
        ("samplers", ["typ_p", "typical_p"]),
        ("samplers", ["top_k"] * 1000),
        ("dry_sequence_breakers", ["a"] * 9),
        ("dry_sequence_breakers", ["a" * 257]),
        ("dry_sequence_breakers", [5]),
        ("mirostat", 1),
        ("mirostat", 2.0),
        ("dry_base", "2"),
    ],
)
def test_a_wrong_sampler_is_named(field: str, value: Any) -> None:
    for ask in (chat, complete):
        with pytest.raises(BadRequest) as refused:
            ask(**{field: value})
        assert refused.value.param == field


def test_max_completion_tokens_wins_in_a_chat_also_when_it_means_no_limit() -> None:
    assert chat(max_tokens=9, max_completion_tokens=2).params.max_tokens == 2
    assert chat(max_tokens=9, max_completion_tokens=-1).params.max_tokens is None
    assert chat(max_tokens=9, max_completion_tokens=None).params.max_tokens == 9


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": None}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_a_chat_asks_for_logprobs_in_two_fields(body: dict[str, Any], expected: int | None) -> None:
    assert chat(**body).params.n_logprobs == expected


@pytest.mark.parametrize(("value", "expected"), [(None, None), (0, 0), (5, 5)])
def test_a_completion_asks_for_logprobs_by_number(value: Any, expected: int | None) -> None:
    assert complete(logprobs=value).params.n_logprobs == expected


def test_how_the_answer_is_sent_is_kept_beside_the_request() -> None:
    call = chat_call(model="a", n=8, stream=True, stream_options={"include_usage": True})
    assert (call.stream, call.include_usage) == (True, True)
    assert call.request == chat(n=8)
    assert complete(echo=True, stream=True).echo


def test_harmless_forms_of_what_is_not_supported_are_accepted() -> None:
    harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"},
                "modalities": ["text"]}  # fmt: skip
    assert chat(**harmless) == chat(tool_choice="auto") == chat()
    assert complete(suffix="", best_of=1) == complete()
    assert complete(n=3, best_of=3) == complete(n=3)


# ---- requests: messages and prompts --------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "system", "content": "a"}, ChatMessage("system", "a")),
        ({"role": "developer", "content": "a"}, ChatMessage("system", "a")),
        ({"role": "user", "content": ""}, ChatMessage("user", "")),
        ({"role": "user", "content": "a", "name": "Ann"}, ChatMessage("user", "a", "Ann")),
        ({"role": "assistant", "content": "a", "tool_calls": []}, ChatMessage("assistant", "a")),
        (
            {"role": "user", "content": [{"type": "text", "text": "a "},
                                         {"type": "text", "text": "b"}]},
            ChatMessage("user", "a b"),
        ),
    ],
)  # fmt: skip
def test_a_message_is_read_as(message: dict[str, Any], expected: ChatMessage) -> None:
    assert chat(messages=[*HI, message]).messages == (ChatMessage("user", "Hi"), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([0, 2**31 - 1], ((0, 2**31 - 1),)),
    ],
)
def test_the_four_forms_of_a_prompt_and_of_an_input(value: Any, expected: Any) -> None:
    assert complete(prompt=value).prompts == expected
    assert embed(value).inputs == expected


def test_an_empty_prompt_is_for_the_worker_to_judge() -> None:
    assert complete(prompt="").prompts == ("",)  # some models begin every text with a token


def test_lists_may_be_as_long_as_their_limits() -> None:
    assert len(complete(prompt=["a"] * 256).prompts) == 256
    assert len(embed(["a"] * 2048).inputs) == 2048
    assert embed([1] * 3000).inputs == ((1,) * 3000,)  # one input


# ---- requests: what is refused -------------------------------------------------------------

# Only a model can judge these: its name, its vocabulary, its context, its vectors.
NEED_A_MODEL = {
    "a prompt longer than the context", "logit_bias of a token that does not exist",
    "an empty prompt", "a token that does not exist", "a long prompt",
    "a token beyond the vocabulary", "too many dimensions", "a long input",
    "a suffix for a vocabulary without tokens for it",
    "a model that is a number",  # whoever chooses the model reads it
}  # fmt: skip
PURE = [
    row
    for row in ROWS
    if row.path in PARSERS and row.method == "POST" and row.status == 400
    if row.name not in NEED_A_MODEL
]
MORE = [
    Bad("messages that are null", CHAT, {"messages": None}, param="messages",
        code="missing_required_parameter"),
    Bad("a null among messages", CHAT, {"messages": [None]}, param="messages.[0]"),
    Bad("a result of a function", CHAT, {"messages": [*HI, {"role": "function", "content": "x"}]},
        param="messages.[1].role", code="unsupported_role"),
    Bad("functions", CHAT, {"messages": HI, "functions": [{}]}, param="functions",
        code="unsupported_functions"),
    Bad("speech", CHAT, {"messages": HI, "modalities": ["text", "audio"]}, param="modalities",
        code="unsupported_modalities"),
    Bad("top_logprobs with logprobs false", CHAT,
        {"messages": HI, "logprobs": False, "top_logprobs": 0}, param="top_logprobs"),
    Bad("n that is true", CHAT, {"messages": HI, "n": True}, param="n"),
    Bad("n of 1.0", CHAT, {"messages": HI, "n": 1.0}, param="n"),
    Bad("n of 9", CHAT, {"messages": HI, "n": 9}, param="n"),
    Bad("max_tokens beyond 31 bits", CHAT, {"messages": HI, "max_tokens": 2**31},
        param="max_tokens"),
    Bad("a seed below 64 bits", CHAT, {"messages": HI, "seed": -(2**63) - 1}, param="seed"),
    Bad("a stop string of 257 characters", CHAT, {"messages": HI, "stop": "x" * 257},
        param="stop"),
    Bad("1,025 biases", CHAT,
        {"messages": HI, "logit_bias": {str(i): 1 for i in range(1025)}}, param="logit_bias"),
    Bad("a bias of a negative token", CHAT, {"messages": HI, "logit_bias": {"-1": 1}},
        param="logit_bias"),
    Bad("a bias of a superscript", CHAT, {"messages": HI, "logit_bias": {"\u00b2": 1}},
        param="logit_bias"),
    Bad("a bias that is true", CHAT, {"messages": HI, "logit_bias": {"5": True}},
        param="logit_bias.5"),
    Bad("best_of below n", TEXT, {"prompt": "a", "n": 2, "best_of": 1}, param="best_of",
        code="unsupported_best_of"),
    Bad("stop that is false", CHAT, {"messages": HI, "stop": False}, param="stop"),
    Bad("stop that is 0", CHAT, {"messages": HI, "stop": 0}, param="stop"),
    Bad("stop that is an object", CHAT, {"messages": HI, "stop": {}}, param="stop"),
    Bad("a bias of a token spelt with a zero", CHAT,
        {"messages": HI, "logit_bias": {"5": 1, "05": 1}}, param="logit_bias"),
    Bad("a voice", CHAT, {"messages": HI, "audio": {"voice": "x"}}, param="audio",
        code="unsupported_audio"),
    Bad("an answer that called a function", CHAT,
        {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
        param="messages.[0].function_call", code="unsupported_function_call"),
    Bad("an empty encoding", EMBED, {"input": "a", "encoding_format": ""},
        param="encoding_format"),
    Bad("a prompt that is null", TEXT, {"prompt": None}, param="prompt",
        code="missing_required_parameter"),
    Bad("tokens and texts", TEXT, {"prompt": [[1], "a"]}, param="prompt"),
    Bad("a text in a list in a list", TEXT, {"prompt": [["a"]]}, param="prompt"),
    Bad("a token of 1.0", TEXT, {"prompt": [1, 1.0]}, param="prompt"),
    Bad("a token beyond 31 bits", TEXT, {"prompt": [2**31]}, param="prompt"),
    Bad("257 lists of tokens", TEXT, {"prompt": [[1]] * 257}, param="prompt"),
    Bad("logprobs that are true", TEXT, {"prompt": "a", "logprobs": True}, param="logprobs"),
    Bad("an empty list of input tokens", EMBED, {"input": [[]]}, param="input"),
    Bad("an encoding in numbers", EMBED, {"input": "a", "encoding_format": 1},
        param="encoding_format"),
    Bad("dimensions that are true", EMBED, {"input": "a", "dimensions": True},
        param="dimensions"),
]  # fmt: skip


def body_bytes(bad: Bad) -> bytes:
    return bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()


def test_every_row_that_needs_a_model_exists() -> None:
    assert {row.name for row in ROWS} >= NEED_A_MODEL
    assert len(PURE) >= 60


@pytest.mark.parametrize("bad", PURE + MORE, ids=[row.name for row in PURE + MORE])
def test_a_bad_body_is_refused_with_its_field(bad: Bad) -> None:
    with pytest.raises(ApiError) as caught:
        PARSERS[bad.path](wire.parse_json(body_bytes(bad)))
    refusal = caught.value
    assert (refusal.status, refusal.param, refusal.code) == (400, bad.param, bad.code)
