"""The worker's events become Ollama's replies, and the lines of their streams."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from lmlite.errors import InternalError
from lmlite.messages import (
    CallDelta,
    Chat,
    ChatMessage,
    Delta,
    Finished,
    ReplyEvent,
    SamplingParams,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.ollama.replies import ChatReply, GenerateReply
from lmlite.server.models import life
from tests.support.listed_models import listed_model

HEAD = {"model": "m", "created_at": "2001-09-09T01:46:40Z"}
# Each look at the clock is a second later than the one before; the first comes with the request.
END = {"done": True, "done_reason": "stop", "total_duration": 5 * 10**9, "load_duration": 0,
       "prompt_eval_count": 7, "prompt_eval_duration": 2 * 10**9, "eval_count": 3,
       "eval_duration": 2 * 10**9}  # fmt: skip
TALK: list[ReplyEvent] = [Started(1, 0, 7, 4), Delta(1, 0, "", reasoning="Hm"), Delta(1, 0, "Hi"),
        Finished(1, 0, "stop", 3)]  # fmt: skip


def reply(kind: type[GenerateReply], *, stream: bool, n_logprobs: int | None = None) -> Any:
    params = SamplingParams(n_logprobs=n_logprobs)
    call = Call(Chat(0, (ChatMessage("user", "Hi"),), params), stream=stream)
    ticks: Iterator[int] = count()
    return kind(call, "ollama-1", listed_model(), 10**9, lambda: float(next(ticks)))


def whole(kind: type[GenerateReply], events: list[ReplyEvent], **more: Any) -> Any:
    found = reply(kind, stream=False, **more)
    assert b"".join(map(found.add, events)) == b""
    return found.whole()


def lines(kind: type[GenerateReply], events: list[ReplyEvent], **more: Any) -> list[Any]:
    found = reply(kind, stream=True, **more)
    data = b"".join(map(found.add, events)) + found.tail()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_a_completion_has_thoughts_text_and_numbers() -> None:
    assert whole(GenerateReply, TALK) == {**HEAD, "response": "Hi", "thinking": "Hm", **END}
    assert lines(GenerateReply, TALK) == [
        {**HEAD, "response": "", "thinking": "Hm", "done": False},
        {**HEAD, "response": "Hi", "done": False},
        {**HEAD, "response": "", **END},
    ]


def test_a_chat_says_the_same_in_messages() -> None:
    said = {"role": "assistant", "content": "Hi"}
    assert whole(ChatReply, TALK) == {**HEAD, "message": {**said, "thinking": "Hm"}, **END}
    thought, text, end = lines(ChatReply, TALK)
    assert thought["message"] == {"role": "assistant", "content": "", "thinking": "Hm"}
    assert text == {**HEAD, "message": said, "done": False}
    assert end == {**HEAD, "message": {"role": "assistant", "content": ""}, **END}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"city": "Oslo"}', {"content": "", "tool_calls": [
            {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"city": "Oslo"}}}]}),
        ("", {"content": "", "tool_calls": [
            {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {}}}]}),
        ('{"city": "Os', {"content": '{"city": "Os'}),  # it was cut off
    ],
)  # fmt: skip
def test_a_call_comes_whole_with_an_object(arguments: str, message: Any) -> None:
    reason: Any = "tool_calls" if arguments != '{"city": "Os' else "length"
    events: list[ReplyEvent] = [
        Started(1, 0, 7, 0), Delta(1, 0, "", calls=(CallDelta(0, arguments[:5], "c1", "f"),)),
        Delta(1, 0, "", calls=(CallDelta(0, arguments[5:]),)), Finished(1, 0, reason, 3),
    ]  # fmt: skip
    found = whole(ChatReply, events)
    assert found["message"] == {"role": "assistant", **message}
    called, end = lines(ChatReply, events)
    assert (called["message"], called["done"]) == (found["message"], False)
    assert end["done_reason"] == found["done_reason"]
    assert (found["done_reason"] == "length") == (reason == "length")


def test_tokens_have_log_probabilities_if_asked_for() -> None:
    token = TokenLogprob(b"Hi", -0.5, ((b"Ho", -1.5),))
    events: list[ReplyEvent] = [
        Started(1, 0, 7, 0),
        Delta(1, 0, "Hi", (token,)),
        Finished(1, 0, "stop", 1),
    ]
    shown = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105],
              "top_logprobs": [{"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}]}]  # fmt: skip
    assert whole(ChatReply, events, n_logprobs=1)["logprobs"] == shown
    assert [line.get("logprobs") for line in lines(ChatReply, events, n_logprobs=1)] == [
        shown,
        None,
    ]
    assert "logprobs" not in whole(ChatReply, events)


def test_the_time_of_a_load_is_told() -> None:
    found = reply(GenerateReply, stream=False)
    found.add(life.Loading())
    for event in TALK:
        found.add(event)
    assert found.whole()["load_duration"] > 0


def test_an_error_is_a_line_and_a_wait_a_space() -> None:
    found = reply(GenerateReply, stream=True)
    assert found.failure(InternalError("the worker died")) == b'{"error":"the worker died"}\n'
    assert found.ping("queued 2") == b" "
