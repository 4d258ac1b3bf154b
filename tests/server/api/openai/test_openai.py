"""Request JSON becomes messages, and events become exactly the JSON that OpenAI's clients read."""

import base64
import json
import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import (
    CallDelta,
    Chat,
    ChatMessage,
    Complete,
    Delta,
    Embed,
    Embedded,
    Finished,
    ReplyEvent,
    SamplingParams,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.openai.replies import ChatReply, CompletionReply, EmbeddingReply
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


def test_a_chat_that_says_nothing_more_gets_every_default() -> None:
    assert chat_call() == Call(Chat(0, (ChatMessage("user", "Hi"),), SamplingParams()), None)


def test_a_completion_that_says_nothing_more_gets_every_default() -> None:
    assert parse_completion({"prompt": "Hi"}) == Call(Complete(0, ("Hi",), SamplingParams()), None)


def test_embeddings_that_say_nothing_more_are_whole_and_in_floats() -> None:
    assert parse_embeddings({"input": "Hi"}) == Call(Embed(0, ("Hi",)), None)


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
def test_unknown_fields_are_ignored_and_named(
    parse: Callable[[dict[str, Any]], Call], body: dict[str, Any]
) -> None:
    call = parse({**body, "user": 5, "ttl": "x", "a b\r\n": [], "ü" * 99: {}, "nothing": None})
    assert call == replace(parse(body), ignored=("?" * 64, "a?b??", "ttl"))


def test_what_is_openais_and_changes_nothing_here_is_not_named() -> None:
    inert = {"metadata": {"a": []}, "store": True, "service_tier": "auto", "safety_identifier": "x"}
    assert parse_chat({"messages": HI, **inert}).ignored == ()


def test_no_more_than_twenty_ignored_fields_are_named() -> None:
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
    assert (call.model, call.stream, call.include_usage) == ("a", True, True)
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


def test_lists_may_be_as_long_as_their_caps() -> None:
    assert len(complete(prompt=["a"] * 256).prompts) == 256
    assert len(embed(["a"] * 2048).inputs) == 2048
    assert embed([1] * 3000).inputs == ((1,) * 3000,)  # one input


# ---- requests: what is refused -------------------------------------------------------------

# Only a model can judge these: its name, its vocabulary, its context, its vectors.
NEED_A_MODEL = {
    "a prompt longer than the context", "logit_bias of a token that does not exist",
    "an empty prompt", "a token that does not exist", "a long prompt",
    "a token beyond the vocabulary", "too many dimensions", "a long input",
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


def test_every_row_that_needs_a_model_is_a_row() -> None:
    assert {row.name for row in ROWS} >= NEED_A_MODEL
    assert len(PURE) >= 60


@pytest.mark.parametrize("bad", PURE + MORE, ids=[row.name for row in PURE + MORE])
def test_a_bad_body_is_refused_with_its_field(bad: Bad) -> None:
    with pytest.raises(ApiError) as caught:
        PARSERS[bad.path](wire.parse_json(body_bytes(bad)))
    refusal = caught.value
    assert (refusal.status, refusal.param, refusal.code) == (400, bad.param, bad.code)


# ---- replies -------------------------------------------------------------------------------

REPLY_ID, MODEL, CREATED = "chatcmpl-0123", "tiny", 1760000000


def served(name: str = MODEL) -> Any:
    """As much of a served model as a reply tells of."""
    return SimpleNamespace(name=name)


ENVELOPE = {"id": REPLY_ID, "created": CREATED, "model": MODEL, "system_fingerprint": "lmlite"}
NO_REASONING = {"reasoning_tokens": 0}


def reply_to(kind: type[CompletionReply], call: Call) -> CompletionReply:
    return kind(call, REPLY_ID, served(), CREATED)


def chunks(reply: CompletionReply, events: Iterable[ReplyEvent]) -> list[Any]:
    """The JSON of each event of a stream, every one of them `data: <one line>` and a blank line."""
    found = []
    streamed, tail = [*map(reply.add, events)], reply.tail()
    assert tail.endswith(b"data: [DONE]\n\n")
    for data in [*streamed, tail.removesuffix(b"data: [DONE]\n\n")]:
        *lines, end = data.split(b"\n\n")
        assert end == b""
        for line in lines:
            assert line.startswith(b"data: {")
            assert b"\n" not in line
            found.append(json.loads(line.removeprefix(b"data: ")))
    return found


def whole(reply: CompletionReply, events: Iterable[ReplyEvent]) -> Any:
    for event in events:
        reply.add(event)
    return json.loads(wire.to_json(reply.whole()))


def usage(n_prompt: int, n_completion: int, n_cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": NO_REASONING,
    }


GREETING: list[ReplyEvent] = [
    Started(0, 0, n_prompt=9, n_cached=4),
    Delta(0, 0, 'Hé "you"'),
    Delta(0, 0, "\n\u2028</s>"),
    Finished(0, 0, "stop", n_completion=3),
]


def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    error = BadRequest("too hot", param="temperature")
    assert reply_to(ChatReply, chat_call()).failure(error) == (
        b'data: {"error":{"message":"too hot","type":"invalid_request_error",'
        b'"param":"temperature","code":null}}\n\n'
    )


def test_a_whole_chat_has_every_field_that_the_schema_requires() -> None:
    assert whole(reply_to(ChatReply, chat_call()), GREETING) == {
        **ENVELOPE,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": 'Hé "you"\n\u2028</s>',
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage(9, 3, 4),
    }


def chat_chunk(delta: Any, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**ENVELOPE, "object": "chat.completion.chunk", "choices": [choice], **more}


def test_a_streamed_chat_is_role_text_and_end() -> None:
    assert chunks(reply_to(ChatReply, chat_call(stream=True)), GREETING) == [
        chat_chunk({"role": "assistant", "content": ""}),
        chat_chunk({"content": 'Hé "you"'}),
        chat_chunk({"content": "\n\u2028</s>"}),
        chat_chunk({}, "stop"),
    ]


def test_usage_is_a_last_chunk_without_choices_and_null_before() -> None:
    call = chat_call(stream=True, stream_options={"include_usage": True})
    *before, last = chunks(reply_to(ChatReply, call), GREETING)
    assert [chunk["usage"] for chunk in before] == [None] * 4
    assert last == {
        **ENVELOPE,
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": usage(9, 3, 4),
    }


def test_a_whole_completion_has_a_text_and_no_message() -> None:
    events = [*GREETING[:3], Finished(0, 0, "length", 2, "max_tokens")]
    assert whole(reply_to(CompletionReply, parse_completion({"prompt": "Hi"})), events) == {
        **ENVELOPE,
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": 'Hé "you"\n\u2028</s>',
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": usage(9, 2, 4),
    }


def test_a_streamed_completion_has_no_role_to_announce() -> None:
    call = parse_completion({"prompt": "Hi", "stream": True})
    choices = [chunk["choices"][0] for chunk in chunks(reply_to(CompletionReply, call), GREETING)]
    assert choices == [
        {"index": 0, "text": 'Hé "you"', "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "\n\u2028</s>", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]


def test_a_streamed_call_begins_without_arguments_and_a_chunk_has_one_piece() -> None:
    def piece(index: int, arguments: str, **head: str) -> Any:
        return {"tool_calls": [{"index": index, **head, "function": {"arguments": arguments}}]}

    def begun(index: int, name: str) -> Any:
        function = {"name": name, "arguments": ""}
        call = {"index": index, "id": f"call_{name}", "type": "function", "function": function}
        return {"tool_calls": [call]}

    first, second = CallDelta(0, '{"a"', "call_f", "f"), CallDelta(1, "{}", "call_g", "g")
    events = [
        GREETING[0],
        Delta(0, 0, "I look.", calls=(first,)),
        Delta(0, 0, "", calls=(CallDelta(0, ": 1}"), second)),
        Finished(0, 0, "tool_calls", n_completion=9),
    ]
    assert chunks(reply_to(ChatReply, chat_call(stream=True)), events)[1:] == [
        chat_chunk(begun(0, "f") | {"content": "I look."}),
        chat_chunk(piece(0, '{"a"')),
        chat_chunk(piece(0, ": 1}")),
        chat_chunk(begun(1, "g")),
        chat_chunk(piece(1, "{}")),
        chat_chunk({}, "tool_calls"),
    ]


SAY = {"type": "custom", "custom": {"name": "say"}}
SAID = [
    GREETING[0],
    Delta(0, 0, "", calls=(CallDelta(0, '{"inp', "call_1", "say"),)),
    Delta(0, 0, "", calls=(CallDelta(0, 'ut": "a'),)),
    Delta(0, 0, "", calls=(CallDelta(0, '\\n"}'), CallDelta(1, "{}", "call_2", "say"))),
    Finished(0, 0, "tool_calls", n_completion=9),
]


def test_a_call_of_a_custom_tool_is_a_text() -> None:
    call = chat_call(tools=[SAY])
    message = whole(reply_to(ChatReply, call), SAID)["choices"][0]["message"]
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "custom", "custom": {"name": "say", "input": "a\n"}},
        {"id": "call_2", "type": "custom", "custom": {"name": "say", "input": "{}"}},
    ]

    def begun(index: int, name: str) -> Any:
        custom = {"name": "say", "input": ""}
        return {"tool_calls": [{"index": index, "id": name, "type": "custom", "custom": custom}]}

    def more(index: int, text: str) -> Any:
        return {"tool_calls": [{"index": index, "custom": {"input": text}}]}

    streamed = replace(call, stream=True)
    assert chunks(reply_to(ChatReply, streamed), SAID)[1:] == [
        chat_chunk(begun(0, "call_1")),
        chat_chunk(more(0, "a")),
        chat_chunk(more(0, "\n")),
        chat_chunk(begun(1, "call_2")),
        chat_chunk(more(1, "{}")),
        chat_chunk({}, "tool_calls"),
    ]


@pytest.mark.parametrize("text", ["", '"', "\\", "\x00\x1f\x7f", "日本語 😀", "<text>", "a" * 9999])
def test_every_chunk_of_a_text_is_the_json_of_that_text(text: str) -> None:
    for kind in (ChatReply, CompletionReply):
        reply = reply_to(kind, chat_call(stream=True))
        first, again = reply.add(Delta(0, 0, text)), reply.add(Delta(0, 0, text))
        chunk = json.loads(first.removeprefix(b"data: "))
        assert first == again == b"data: " + wire.to_json(chunk) + b"\n\n"
        choice = chunk["choices"][0]
        assert (choice["delta"]["content"] if kind is ChatReply else choice["text"]) == text


def test_a_model_may_have_any_name() -> None:
    reply = ChatReply(chat_call(stream=True), REPLY_ID, served("<text>"), CREATED)
    (chunk,) = chunks(reply, [Delta(0, 0, "Hi")])
    assert (chunk["model"], chunk["choices"][0]["delta"]) == ("<text>", {"content": "Hi"})


def test_choices_that_interleave_keep_their_own_texts_and_order() -> None:
    events: list[ReplyEvent] = [Started(0, 1, 5, 5), Started(0, 0, 5, 2)]
    events += [Delta(0, 1, "b1"), Delta(0, 0, "a1"), Delta(0, 1, "b2")]
    events += [Finished(0, 1, "length", 2), Finished(0, 0, "stop", 2)]
    reply = whole(reply_to(ChatReply, chat_call(n=2)), events)
    assert [c["index"] for c in reply["choices"]] == [0, 1]
    assert [c["message"]["content"] for c in reply["choices"]] == ["a1", "b1b2"]
    assert [c["finish_reason"] for c in reply["choices"]] == ["stop", "length"]
    streamed = chunks(reply_to(ChatReply, chat_call(n=2, stream=True)), events)
    mine = [c["choices"][0]["delta"] for c in streamed if c["choices"][0]["index"] == 1]
    assert mine == [{"role": "assistant", "content": ""}, {"content": "b1"}, {"content": "b2"}, {}]


def test_a_prompt_counts_once_however_many_choices_it_has() -> None:
    events: list[ReplyEvent] = []
    for index, (n_prompt, n_cached) in enumerate([(5, 1), (5, 4), (7, 0), (7, 6)]):
        events.append(Started(0, index, n_prompt, n_cached))
        events.append(Finished(0, index, "stop", n_completion=10))
    call = parse_completion({"prompt": ["a", "b"], "n": 2})
    assert whole(reply_to(CompletionReply, call), events)["usage"] == usage(12, 40, 1)


# ---- log-probabilities ---------------------------------------------------------------------

# "é" in two tokens, then "x"; the alternatives are the likeliest first.
SCORED = (
    TokenLogprob(b"\xc3", -0.5, ((b"\xc3", -0.5), (b"y", -2.0))),
    TokenLogprob(b"\xa9", -0.25, ((b"\xa9", -0.25), (b"\xff", -3.0))),
    TokenLogprob(b"x", -4.0, ((b"z", -0.1), (b"q", -0.2))),
)
SCORED_EVENTS: list[ReplyEvent] = [
    Started(0, 0, 1, 0),
    Delta(0, 0, "é", SCORED[:2]),
    Delta(0, 0, "x", SCORED[2:]),
    Finished(0, 0, "stop", 3),
]


def test_a_chats_logprobs_hold_the_bytes_of_half_characters() -> None:
    call = chat_call(logprobs=True, top_logprobs=2)
    choice = whole(reply_to(ChatReply, call), SCORED_EVENTS)["choices"][0]
    first, *_ = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert first == {
        "token": "\ufffd",
        "logprob": -0.5,
        "bytes": [195],
        "top_logprobs": [
            {"token": "\ufffd", "logprob": -0.5, "bytes": [195]},
            {"token": "y", "logprob": -2.0, "bytes": [121]},
        ],
    }
    tokens = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert tokens.decode() == choice["message"]["content"] == "éx"


def test_each_chunk_of_a_chat_carries_the_logprobs_of_its_own_tokens() -> None:
    call = chat_call(logprobs=True, top_logprobs=2, stream=True)
    role, one, two, end = chunks(reply_to(ChatReply, call), SCORED_EVENTS)
    assert role["choices"][0]["logprobs"] is None
    assert [e["bytes"] for e in one["choices"][0]["logprobs"]["content"]] == [[195], [169]]
    assert [e["bytes"] for e in two["choices"][0]["logprobs"]["content"]] == [[120]]
    assert end["choices"][0]["logprobs"] is None


def test_a_probability_that_does_not_exist_is_openais_number_for_it() -> None:
    events: list[ReplyEvent] = [Started(0, 0, 1, 0)]
    events += [Delta(0, 0, "a", (TokenLogprob(b"a", None, ()),))]
    content = whole(reply_to(ChatReply, chat_call(logprobs=True)), events)["choices"][0]["logprobs"]
    assert content["content"][0]["logprob"] == -9999.0


LEGACY = {
    "tokens": ["\ufffd", "\ufffd", "x"],
    "token_logprobs": [-0.5, -0.25, -4.0],
    "top_logprobs": [
        {"\ufffd": -0.5, "y": -2.0},
        {"\ufffd": -0.25},  # two pieces print alike: the likelier stays
        {"z": -0.1, "q": -0.2, "x": -4.0},  # and the token itself, however unlikely
    ],
    "text_offset": [0, 0, 1],
}


def test_a_completions_logprobs_are_four_lists() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 2})
    assert whole(reply_to(CompletionReply, call), SCORED_EVENTS)["choices"][0]["logprobs"] == LEGACY


def test_offsets_go_on_from_chunk_to_chunk_and_each_choice_has_its_own() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 2, "n": 2, "stream": True})
    reply = reply_to(CompletionReply, call)
    events: list[ReplyEvent] = [Started(0, 0, 1, 0), Started(0, 1, 1, 1)]
    events += [Delta(0, i, "éx", SCORED) for i in (0, 1, 1)]
    offsets = [c["choices"][0]["logprobs"]["text_offset"] for c in chunks(reply, events)]
    assert offsets == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]


def test_streamed_lists_put_together_are_the_whole_ones() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 2, "stream": True})
    joined: dict[str, list[Any]] = {name: [] for name in LEGACY}
    for chunk in chunks(reply_to(CompletionReply, call), SCORED_EVENTS):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == LEGACY


def test_the_first_token_of_an_echoed_prompt_has_nulls() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 1, "echo": True, "max_tokens": 0})
    echoed = (TokenLogprob(b"a", None, ()), TokenLogprob(b"b", -1.0, ((b"b", -1.0),)))
    events: list[ReplyEvent] = [Started(0, 0, 2, 0), Delta(0, 0, "ab", echoed)]
    events += [Finished(0, 0, "length", 0)]
    assert whole(reply_to(CompletionReply, call), events)["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"b": -1.0}],
        "text_offset": [0, 1],
    }


# ---- embeddings and models -----------------------------------------------------------------


def embedding_reply(vectors: dict[int, list[float]], **body: Any) -> Any:
    call = parse_embeddings({"input": ["a"] * len(vectors), **body})
    reply = EmbeddingReply(call, "embd-1", served(), CREATED)
    for index, vector in vectors.items():
        reply.add(Embedded(0, index, n_prompt=4, vector=array("f", vector).tobytes()))
    return json.loads(wire.to_json(reply.whole()))


def test_vectors_come_in_the_order_of_their_inputs() -> None:
    assert embedding_reply({1: [0.0, 1.0], 0: [0.5, -0.5]}) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
        ],
        "model": MODEL,
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }


def test_base64_is_the_same_float32_bytes() -> None:
    (row,) = embedding_reply({0: [0.6, 0.8]}, encoding_format="base64")["data"]
    assert array("f", base64.b64decode(row["embedding"])) == array("f", [0.6, 0.8])


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_fewer_dimensions_are_a_vector_of_length_1_again(encoding_format: str) -> None:
    vector = [0.3, 0.4, math.sqrt(0.75)]
    body = {"dimensions": 2, "encoding_format": encoding_format}
    found = embedding_reply({0: vector}, **body)["data"][0]["embedding"]
    numbers = array("f", base64.b64decode(found)) if encoding_format == "base64" else found
    assert list(numbers) == pytest.approx([0.6, 0.8], abs=1e-6)


def test_a_cut_that_leaves_only_zeros_is_no_division_by_zero() -> None:
    assert embedding_reply({0: [0.0, 1.0]}, dimensions=1)["data"][0]["embedding"] == [0.0]


def test_all_dimensions_may_be_asked_for() -> None:
    assert embedding_reply({0: [0.0, 1.0]}, dimensions=2)["data"][0]["embedding"] == [0.0, 1.0]
