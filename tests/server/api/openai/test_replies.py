"""The worker's events become exactly the JSON that OpenAI's clients read, whole and streamed."""

import base64
import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import (
    CallDelta,
    Delta,
    Embedded,
    Finished,
    ReplyEvent,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.openai.replies import ChatReply, CompletionReply, EmbeddingReply
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.front import wire


def chat_call(**body: Any) -> Call:
    return parse_chat({"messages": [{"role": "user", "content": "Hi"}], **body})


REPLY_ID, MODEL, CREATED = "chatcmpl-0123", "tiny", 1760000000


def served(name: str = MODEL) -> Any:
    """As much of a served model as a reply needs."""
    return SimpleNamespace(name=name)


ENVELOPE = {"id": REPLY_ID, "created": CREATED, "model": MODEL, "system_fingerprint": "lmlite"}
NO_REASONING = {"reasoning_tokens": 0}


def reply_to(kind: type[CompletionReply], call: Call) -> CompletionReply:
    return kind(call, REPLY_ID, served(), CREATED)


def chunks(reply: CompletionReply, events: Iterable[ReplyEvent]) -> list[Any]:
    """The JSON of each event of a stream. Checks that an event is `data: <one line>`."""
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


def test_usage_is_null_until_a_last_chunk_without_choices() -> None:
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


def test_a_missing_logprob_is_minus_9999() -> None:
    events: list[ReplyEvent] = [Started(0, 0, 1, 0)]
    events += [Delta(0, 0, "a", (TokenLogprob(b"a", None, ()),))]
    content = whole(reply_to(ChatReply, chat_call(logprobs=True)), events)["choices"][0]["logprobs"]
    assert content["content"][0]["logprob"] == -9999.0


LEGACY = {
    "tokens": ["\ufffd", "\ufffd", "x"],
    "token_logprobs": [-0.5, -0.25, -4.0],
    "top_logprobs": [
        {"\ufffd": -0.5, "y": -2.0},
        {"\ufffd": -0.25},  # of two pieces that print alike the likelier stays
        {"z": -0.1, "q": -0.2, "x": -4.0},  # and the token itself, however unlikely
    ],
    "text_offset": [0, 0, 1],
}


def test_a_completions_logprobs_are_four_lists() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 2})
    assert whole(reply_to(CompletionReply, call), SCORED_EVENTS)["choices"][0]["logprobs"] == LEGACY


def test_offsets_continue_from_chunk_to_chunk_for_each_choice() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 2, "n": 2, "stream": True})
    reply = reply_to(CompletionReply, call)
    events: list[ReplyEvent] = [Started(0, 0, 1, 0), Started(0, 1, 1, 1)]
    events += [Delta(0, i, "éx", SCORED) for i in (0, 1, 1)]
    offsets = [c["choices"][0]["logprobs"]["text_offset"] for c in chunks(reply, events)]
    assert offsets == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]


def test_streamed_lists_add_up_to_the_whole_ones() -> None:
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
def test_a_vector_with_fewer_dimensions_has_length_1_again(encoding_format: str) -> None:
    vector = [0.3, 0.4, math.sqrt(0.75)]
    body = {"dimensions": 2, "encoding_format": encoding_format}
    found = embedding_reply({0: vector}, **body)["data"][0]["embedding"]
    numbers = array("f", base64.b64decode(found)) if encoding_format == "base64" else found
    assert list(numbers) == pytest.approx([0.6, 0.8], abs=1e-6)


def test_a_vector_that_is_cut_to_zeros_stays_zero() -> None:
    assert embedding_reply({0: [0.0, 1.0]}, dimensions=1)["data"][0]["embedding"] == [0.0]


def test_all_dimensions_may_be_asked_for() -> None:
    assert embedding_reply({0: [0.0, 1.0]}, dimensions=2)["data"][0]["embedding"] == [0.0, 1.0]
