"""The worker's events become a response, or the events of its stream, and what it stores."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import BadRequest, InternalError, PromptTooLong
from lmlite.messages import (
    CallDelta,
    ChatMessage,
    Delta,
    Finished,
    ReplyEvent,
    Started,
    TokenLogprob,
    ToolCall,
)
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.stored import StoredResponses
from tests.support.response_events import folded
from tests.support.streams import typed_events


def reply_to(stored: StoredResponses | None = None, **body: Any) -> ResponseReply:
    stored = stored or StoredResponses()
    call = parse_response(stored, {"input": "Hi", "stream": True, **body})
    model: Any = SimpleNamespace(name="tiny")
    return ResponseReply(call, "resp_7", model, 1760000000)


def streamed(reply: ResponseReply, events: list[ReplyEvent]) -> Any:
    """The response that the stream of these events adds up to."""
    data = [reply.add(event) for event in events]
    return folded(typed_events(b"".join([*data, reply.tail()])))


BEGUN = Started(0, 0, n_prompt=9, n_cached=4)


def test_an_error_before_the_response_is_an_event_of_its_own() -> None:
    error = PromptTooLong("Shorten it.", param="input", tokens=(70, 64))
    assert reply_to().failure(error) == (
        b'event: error\ndata: {"type":"error","code":"context_length_exceeded",'
        b'"message":"This model\'s maximum context length is 64 tokens. However, your input '
        b'resulted in 70 tokens. Shorten it.","param":"input","sequence_number":0}\n\n'
    )


def test_an_error_after_it_has_begun_fails_the_response() -> None:
    reply = reply_to()
    said = [reply.add(BEGUN), reply.add(Delta(0, 0, "Hel"))]
    end = reply.failure(InternalError("the worker ended"))
    *_, failed = typed_events(b"".join([*said, end]))
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert response["error"] == {"code": "server_error", "message": "the worker ended"}
    assert response["status"] == "failed"
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"


def test_a_failed_response_is_not_stored() -> None:
    stored = StoredResponses()
    reply = reply_to(stored)
    reply.add(BEGUN)
    reply.failure(InternalError("the worker ended"))
    with pytest.raises(BadRequest):
        stored.find("resp_7")


def calls_of(*pieces: CallDelta) -> Delta:
    return Delta(0, 0, "", calls=pieces)


MIXED: list[ReplyEvent] = [
    BEGUN,
    Delta(0, 0, "", reasoning="Two things."),
    Delta(0, 0, "I look."),
    calls_of(CallDelta(0, '{"a"', "call_a", "f")),
    Delta(0, 0, " More.", calls=(CallDelta(0, ": 1}"), CallDelta(1, "", "call_b", "g"))),
    calls_of(CallDelta(1, "{}")),
    Finished(0, 0, "tool_calls", n_completion=20, n_reasoning=3),
]
CALLS = (ToolCall("call_a", "f", '{"a": 1}'), ToolCall("call_b", "g", "{}"))


def test_items_are_in_the_order_in_which_they_began() -> None:
    stored = StoredResponses()
    reply = reply_to(stored)
    response = streamed(reply, MIXED)
    assert [item["id"] for item in response["output"]] == [
        "rs_7_0", "msg_7_1", "fc_7_2", "msg_7_3", "fc_7_4"]  # fmt: skip
    assert {item["status"] for item in response["output"]} == {"completed"}
    turn = ChatMessage("assistant", "I look. More.", None, "Two things.", CALLS)
    assert stored.find("resp_7") == (ChatMessage("user", "Hi"), turn)


TOOLS = [
    {"type": "custom", "name": "say"},
    {"type": "namespace", "name": "mcp__a__", "description": "", "tools": [
        {"type": "function", "name": "f"}, {"type": "custom", "name": "note"}]},
]  # fmt: skip
SPOKEN: list[ReplyEvent] = [
    BEGUN,
    calls_of(CallDelta(0, '{"input": "a', "call_s", "say")),
    Delta(0, 0, "Ok.", calls=(CallDelta(0, '\\n"}'),)),
    calls_of(CallDelta(1, "{}", "call_f", "mcp__a__f"), CallDelta(2, "", "call_n", "mcp__a__note")),
    calls_of(CallDelta(2, '{"text": 7}')),
    Finished(0, 0, "tool_calls", n_completion=20),
]


def test_calls_of_custom_tools_and_of_namespaces_have_their_own_form() -> None:
    stored = StoredResponses()
    response = streamed(reply_to(stored, tools=TOOLS), SPOKEN)
    done = {"status": "completed"}
    calls = [item for item in response["output"] if item["type"] != "message"]
    assert calls == [
        {"id": "ctc_7_0", "type": "custom_tool_call", **done, "call_id": "call_s", "name": "say",
         "input": "a\n"},
        {"id": "fc_7_2", "type": "function_call", **done, "call_id": "call_f", "name": "f",
         "namespace": "mcp__a__", "arguments": "{}"},
        {"id": "ctc_7_3", "type": "custom_tool_call", **done, "call_id": "call_n", "name": "note",
         "namespace": "mcp__a__", "input": '{"text": 7}'},
    ]  # fmt: skip
    whole = reply_to(tools=TOOLS, stream=False)
    for event in SPOKEN:
        whole.add(event)
    assert whole.whole() == response
    assert stored.find("resp_7")[-1].tool_calls == (
        ToolCall("call_s", "say", '{"input": "a\\n"}'),
        ToolCall("call_f", "mcp__a__f", "{}"),
        ToolCall("call_n", "mcp__a__note", '{"input": "{\\"text\\": 7}"}'),
    )


@pytest.mark.parametrize(("cut", "arguments"), [("", {"query": "x"}), ('"}', {})])
def test_a_call_of_the_clients_search_has_its_arguments_as_an_object(
    cut: str, arguments: Any
) -> None:
    search = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
    written = '{"query": "x"}'.removesuffix(cut)
    reason: Any = "length" if cut else "tool_calls"
    events: list[ReplyEvent] = [
        BEGUN,
        calls_of(CallDelta(0, written, "call_t", "tool_search")),
        Finished(0, 0, reason, n_completion=5),
    ]
    (call,) = streamed(reply_to(tools=[search]), events)["output"]
    assert call == {
        "id": "tsc_7_0", "type": "tool_search_call", "call_id": "call_t", "execution": "client",
        "status": "incomplete" if cut else "completed", "arguments": arguments,
    }  # fmt: skip


def test_arguments_of_another_form_stay_with_their_own_custom_call() -> None:
    events: list[ReplyEvent] = [
        BEGUN,
        calls_of(CallDelta(0, '{"a": 1}', "call_s", "say"), CallDelta(1, "", "call_t", "say")),
        calls_of(CallDelta(1, '{"b": 2}')),
        Finished(0, 0, "tool_calls", n_completion=20),
    ]
    response = streamed(reply_to(tools=TOOLS), events)
    assert [item["input"] for item in response["output"]] == ['{"a": 1}', '{"b": 2}']


def test_the_input_of_a_custom_tool_is_streamed_by_events_of_its_own() -> None:
    reply = reply_to(tools=TOOLS)
    data = [reply.add(event) for event in [*SPOKEN[:3], SPOKEN[-1]]]
    about = {"item_id": "ctc_7_0", "output_index": 0}
    found = [event for event in typed_events(b"".join(data)) if "custom" in event["type"]]
    for event in found:
        del event["sequence_number"]
    assert found == [
        {"type": "response.custom_tool_call_input.delta", **about, "delta": "a"},
        {"type": "response.custom_tool_call_input.delta", **about, "delta": "\n"},
        {"type": "response.custom_tool_call_input.done", **about, "input": "a\n"},
    ]


def test_a_whole_reply_is_the_response_of_the_stream() -> None:
    reply = reply_to(stream=False)
    for event in MIXED:
        reply.add(event)
    assert reply.whole() == streamed(reply_to(), MIXED)


def test_a_call_that_was_cut_short_is_stored_as_it_is() -> None:
    stored = StoredResponses()
    reply = reply_to(stored)
    for event in (BEGUN, calls_of(CallDelta(0, '{"a": ', "call_a", "f")),
                  Finished(0, 0, "length", n_completion=5)):  # fmt: skip
        reply.add(event)
    turn = ChatMessage("assistant", "", tool_calls=(ToolCall("call_a", "f", '{"a": '),))
    assert stored.find("resp_7") == (ChatMessage("user", "Hi"), turn)


def test_an_empty_answer_is_not_stored() -> None:
    stored = StoredResponses()
    reply = reply_to(stored)
    for event in (BEGUN, Finished(0, 0, "length", n_completion=0)):
        reply.add(event)
    assert stored.find("resp_7") == (ChatMessage("user", "Hi"),)


def test_an_answer_that_says_nothing_is_an_empty_message() -> None:
    (message,) = streamed(reply_to(), [BEGUN, Finished(0, 0, "stop", n_completion=1)])["output"]
    assert message["content"][0]["text"] == ""


def test_logprobs_wait_for_the_text_that_they_are_about() -> None:
    def entry(piece: bytes) -> TokenLogprob:
        return TokenLogprob(piece, -0.5, ())

    events: list[ReplyEvent] = [
        BEGUN,
        Delta(0, 0, "", (entry(b"hm"),), reasoning="hm"),
        Delta(0, 0, "", (entry(b"</think>"),)),
        Delta(0, 0, "", (entry(b"\xc3"),)),
        Delta(0, 0, "é", (entry(b"\xa9"),)),
        Finished(0, 0, "stop", n_completion=5),
    ]
    response = streamed(reply_to(include=["message.output_text.logprobs"]), events)
    entries = response["output"][1]["content"][0]["logprobs"]
    assert [bytes(entry["bytes"]) for entry in entries] == [b"\xc3", b"\xa9"]
