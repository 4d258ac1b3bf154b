"""The worker's events become Anthropic's message, or the typed events of its stream."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import InternalError
from lmlite.messages import CallDelta, Delta, Finished, ReplyEvent, Started
from lmlite.server.api.anthropic.replies import MessageReply
from lmlite.server.api.anthropic.requests import parse_message
from tests.support.streams import folded_message, typed_events

HI = [{"role": "user", "content": "Hi"}]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def reply(**body: Any) -> MessageReply:
    call = parse_message({"messages": HI, "max_tokens": 9, **body})
    model: Any = SimpleNamespace(name="m")
    return MessageReply(call, "msg_1", model, 0)


def whole(events: list[ReplyEvent], **body: Any) -> Any:
    answer = reply(**body)
    for event in events:
        answer.add(event)
    return answer.whole()


def streamed(events: list[ReplyEvent], **body: Any) -> list[Any]:
    answer = reply(**body, stream=True)
    return typed_events(b"".join(map(answer.add, events)) + answer.tail())


EVENTS: list[ReplyEvent] = [
    Started(0, 0, n_prompt=9, n_cached=4),
    Delta(0, 0, "", reasoning="h"),
    Delta(0, 0, "I ", reasoning="m"),
    Delta(0, 0, "look."),
    Delta(0, 0, "", calls=(CallDelta(0, "", "call_1", "get_weather"),)),
    Delta(0, 0, "", calls=(CallDelta(0, '{"city": '), CallDelta(0, '"Oslo"}'))),
    Delta(0, 0, "", calls=(CallDelta(1, "", "call_2", "set_timer"),)),
    Finished(0, 0, "tool_calls", 12),
]
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        text("I look."),
        {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_2", "name": "set_timer", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
              "output_tokens": 12},
}  # fmt: skip


def test_events_become_a_message() -> None:
    assert whole(EVENTS) == folded_message(streamed(EVENTS)) == MESSAGE


def test_events_become_typed_events() -> None:
    def start(index: int, **block: Any) -> Any:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, **more: str) -> Any:
        more["type"] = f"{kind}_delta"
        return {"type": "content_block_delta", "index": index, "delta": more}

    def stop(index: int) -> Any:
        return {"type": "content_block_stop", "index": index}

    usage = {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
             "output_tokens": 0}  # fmt: skip
    empty = MESSAGE | {"content": [], "stop_reason": None, "usage": usage}
    assert streamed(EVENTS) == [
        {"type": "message_start", "message": empty},
        {"type": "ping"},
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking", thinking="h"),
        delta(0, "thinking", thinking="m"),
        delta(0, "signature", signature=""),
        stop(0),
        start(1, type="text", text=""),
        delta(1, "text", text="I "),
        delta(1, "text", text="look."),
        stop(1),
        start(2, type="tool_use", id="call_1", name="get_weather", input={}),
        delta(2, "input_json", partial_json='{"city": '),
        delta(2, "input_json", partial_json='"Oslo"}'),
        stop(2),
        start(3, type="tool_use", id="call_2", name="set_timer", input={}),
        stop(3),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 12}},
        {"type": "message_stop"},
    ]  # fmt: skip


def test_a_text_may_follow_a_call() -> None:
    begin, end = CallDelta(0, '{"a"', "call_1", "f"), CallDelta(0, ": 1}")
    events = [EVENTS[0], Delta(0, 0, "", calls=(begin,)), Delta(0, 0, "Ok.", calls=(end,))]
    call = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}}
    assert whole([*events, EVENTS[-1]])["content"] == [call, text("Ok.")]


@pytest.mark.parametrize("first", ["", '{"a"'])
def test_text_in_the_middle_of_a_call_waits_for_its_end(first: str) -> None:
    rest = '{"a": 1}'.removeprefix(first)
    events: list[ReplyEvent] = [
        EVENTS[0],
        Delta(0, 0, "", calls=(CallDelta(0, first, "call_1", "f"),)),
        Delta(0, 0, "O"),
        Delta(0, 0, "k.", reasoning="hm"),
        Delta(0, 0, "", calls=(CallDelta(0, rest), CallDelta(1, "{}", "call_2", "g"))),
        Delta(0, 0, "Done."),
        Delta(0, 0, "", calls=(CallDelta(1, "\n"),)),
        EVENTS[-1],
    ]
    content = [
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
        text("O"),
        {"type": "thinking", "thinking": "hm", "signature": ""},
        text("k."),
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
        text("Done."),
    ]
    found = streamed(events)
    assert whole(events)["content"] == folded_message(found)["content"] == content
    edges = [(e["type"], e["index"]) for e in found if e["type"].startswith("content_block_st")]
    assert edges == [
        (f"content_block_{edge}", i) for i in range(len(content)) for edge in ("start", "stop")
    ]


def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    assert reply().failure(InternalError("broken")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"broken"}}\n\n'
    )


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (Finished(0, 0, "stop", 3, "end_token"), "end_turn", None),
        (Finished(0, 0, "length", 3, "max_tokens"), "max_tokens", None),
        (Finished(0, 0, "length", 3, "context_full"), "model_context_window_exceeded", None),
        (Finished(0, 0, "tool_calls", 3, "end_token"), "tool_use", None),
        (Finished(0, 0, "stop", 3, "stop_string", stop_string="END"), "stop_sequence", "END"),
        (Finished(0, 0, "stop", 3, "stop_string", stop_string="<eot>"), "end_turn", None),
        (Finished(0, 0, "tool_calls", 3, "stop_string", stop_string="<eot>"), "tool_use", None),
    ],
)
def test_a_stop_reason_says_why_the_message_ends(
    end: Finished, reason: str, sequence: str | None
) -> None:
    message = whole([EVENTS[0], end], stop_sequences=["x", "END"])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize("arguments", ['{"city": "Os', "[1]", '{"n": NaN}', '{"n": 1e999}'])
def test_arguments_that_are_not_a_json_object_become_text(arguments: str) -> None:
    call = CallDelta(0, arguments, "call_1", "get_weather")
    events = [EVENTS[0], Delta(0, 0, "", calls=(call,)), Finished(0, 0, "length", 3, "max_tokens")]
    assert whole(events)["content"] == [text(arguments)]


def test_a_continued_message_does_not_repeat_its_beginning() -> None:
    begun = [*HI, {"role": "assistant", "content": "I am"}]
    events = [EVENTS[0], Delta(0, 0, "I am t"), Delta(0, 0, "I am"), EVENTS[-1]]
    assert whole(events, messages=begun)["content"] == [text(" tI am")]
    thoughts = {"type": "thinking", "thinking": "hm", "signature": ""}
    thinking = [*HI, {"role": "assistant", "content": [thoughts]}]
    events = [EVENTS[0], Delta(0, 0, "", reasoning="hm, so"), EVENTS[-1]]
    assert whole(events, messages=thinking)["content"] == [{**thoughts, "thinking": ", so"}]
    both = [*HI, {"role": "assistant", "content": [thoughts, text("I am")]}]
    events = [EVENTS[0], Delta(0, 0, "I am", reasoning="hm\n"), Delta(0, 0, " t"), EVENTS[-1]]
    assert whole(events, messages=both)["content"] == [text(" t")]
