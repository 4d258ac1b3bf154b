"""POST /v1/responses of the embedded model, over HTTP, streamed and not, and what it leaves."""

import json
from collections.abc import Iterator
from itertools import groupby
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
from tests.support.response_events import folded, nameless
from tests.support.server_process import Answer, RunningServer

PATH = "/v1/responses"
STRING = {"type": "string"}
WEATHER = {"type": "function", "name": "get_weather", "description": "", "strict": True,
           "parameters": {"type": "object", "properties": {"city": STRING},
                          "required": ["city"]}}  # fmt: skip
PERSON = {"type": "object", "properties": {"name": STRING, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}  # fmt: skip
FORM = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
OSLO = "What is the weather in Oslo?"
THINK = "Think first: What is 12 + 9?"
ANNA = "Anna is 12 years old. Answer as JSON with name and age."


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def ask(server: RunningServer, input_: Any, **body: Any) -> Any:
    """The response object, greedy unless told otherwise."""
    answer = server.post(PATH, **{"input": input_, "temperature": 0, **body})
    assert answer.status == 200, answer.body
    return answer.json


def text_of(response: Any) -> str:
    """As the clients' `output_text` has it."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for message in messages for part in message["content"])


def plan(server: RunningServer, **body: Any) -> Any:
    answer = server.request("POST", PATH, body, {"X-Dry-Run": "1"})
    assert answer.status == 200, answer.body
    return answer.json


# ---- in one piece --------------------------------------------------------------------------


def test_a_response_says_all_of_itself(server: RunningServer) -> None:
    response = ask(server, "Say hello", metadata={"a": "b"}, max_output_tokens=50, top_p=0.5)
    assert response["created_at"] > 1_700_000_000
    stem = response["id"].removeprefix("resp_")
    text = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    message = {"id": f"msg_{stem}_0", "type": "message", "status": "completed",
               "role": "assistant", "content": [text]}  # fmt: skip
    n_cached = response["usage"]["input_tokens_details"]["cached_tokens"]
    assert response == {
        "id": f"resp_{stem}",
        "object": "response",
        "created_at": response["created_at"],
        "model": "tiny",
        "status": "completed",
        "output": [message],
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": None,
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "temperature": 0.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 0.5,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {
                "cached_tokens": n_cached,
                "cache_write_tokens": 11 - n_cached,
            },
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 14,
        },
    }


def test_an_answer_that_is_cut_short_is_incomplete(server: RunningServer) -> None:
    response = ask(server, "Count from 1 to 10.", max_output_tokens=5)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete", {"reason": "max_output_tokens"})  # fmt: skip
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 5


def test_thoughts_are_an_item_before_the_answer(server: RunningServer) -> None:
    response = ask(server, THINK)
    thought, message = response["output"]
    assert (thought["type"], thought["summary"], message["type"]) == ("reasoning", [], "message")
    assert thought["content"][0]["text"].startswith("10 + 0 = 10, and 2 + 9 = 11.")
    assert message["content"][0]["text"] == "21"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 10


def test_thinking_can_be_turned_off(server: RunningServer) -> None:
    response = ask(server, THINK, reasoning={"effort": "none"})
    assert [item["type"] for item in response["output"]] == ["message"]
    assert response["reasoning"] == {"effort": "none", "summary": None}


def test_an_answer_is_in_the_form_that_was_asked_for(server: RunningServer) -> None:
    response = ask(server, ANNA, text=FORM)
    assert json.loads(text_of(response)) == {"name": "Anna", "age": 12}
    assert response["text"] == FORM


def test_a_call_is_an_item_and_its_output_the_next_turns_input(server: RunningServer) -> None:
    response = ask(server, OSLO, tools=[WEATHER])
    (call,) = response["output"]
    assert (call["type"], call["name"], call["status"]) == (
        "function_call", "get_weather", "completed")  # fmt: skip
    assert json.loads(call["arguments"]) == {"city": "Oslo"}
    assert response["tools"] == [WEATHER]
    items = [
        {"role": "user", "content": OSLO},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "rain, 4 degrees"},
    ]
    assert text_of(ask(server, items, tools=[WEATHER])) == "The result is rain, 4 degrees."


def test_a_call_can_be_required_or_forbidden(server: RunningServer) -> None:
    named = {"type": "function", "name": "get_weather"}
    for choice in ("required", named):
        response = ask(server, "Hello!", tools=[WEATHER], tool_choice=choice)
        assert {item["type"] for item in response["output"]} == {"function_call"}
        assert response["tool_choice"] == choice
    response = ask(server, "Say hello", tools=[WEATHER], tool_choice="none")
    assert text_of(response) == "hello"


def test_a_call_may_be_one_of_a_namespace_or_of_a_custom_tool(server: RunningServer) -> None:
    apart = {"type": "namespace", "name": "mcp__sky__", "description": "", "tools": [WEATHER]}
    body = {"tools": [apart], "tool_choice": "required"}
    (call,) = ask(server, OSLO, **body)["output"]
    assert (call["name"], call["namespace"]) == ("get_weather", "mcp__sky__")
    assert json.loads(call["arguments"]) == {"city": "Oslo"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
    items = [{"role": "user", "content": OSLO}, call, result]
    assert text_of(ask(server, items, tools=[apart])) == "The result is rain."
    say = {"type": "custom", "name": "say"}
    (call,) = ask(server, OSLO, tools=[say, apart], tool_choice=say)["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "say")
    assert call["input"]


def test_allowed_tools_restrict_calls_and_leave_the_prompt_as_it_was(server: RunningServer) -> None:
    tools = [WEATHER, WEATHER | {"name": "get_time"}]
    plain = plan(server, input=OSLO, tools=tools)["prompts"][0]
    for mode in ("auto", "required"):
        only = [{"type": "function", "name": "get_time"}, {"type": "web_search"}]
        choice = {"type": "allowed_tools", "mode": mode, "tools": only}
        planned = plan(server, input=OSLO, tools=tools, tool_choice=choice)["prompts"][0]
        assert planned["tokens"] == plain["tokens"]
        assert "get_weather" not in planned["grammar"] and "get_weather" in plain["grammar"]
    (call,) = ask(server, OSLO, tools=tools, tool_choice=choice)["output"]
    assert call["name"] == "get_time"


def test_logprobs_are_those_of_the_text(server: RunningServer) -> None:
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for question, text in (("Say hello", b"hello"), (THINK, b"21")):
        body = {"input": question, "temperature": 0, **more}
        for response in (server.post(PATH, **body).json, folded(list(server.stream(PATH, **body)))):
            entries = response["output"][-1]["content"][0]["logprobs"]
            assert b"".join(bytes(entry["bytes"]) for entry in entries) == text
            assert {len(entry["top_logprobs"]) for entry in entries} == {2}
            assert response["top_logprobs"] == 2
    plain = ask(server, "Say hello", include=["reasoning.encrypted_content"], top_logprobs=0)
    assert plain["output"][0]["content"][0]["logprobs"] == []


# ---- streamed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"input": "Introduce yourself."},
        {"input": "Tell me a story.", "temperature": 1, "seed": 5, "max_output_tokens": 3},
        {"input": OSLO, "tools": [WEATHER]},
        {"input": OSLO, "tools": [WEATHER], "max_output_tokens": 18},
        {"input": ANNA, "text": FORM},
        {"input": THINK},
        {"input": THINK, "max_output_tokens": 5},
        {"input": "Hello!", "max_output_tokens": 0},
    ],
    ids=lambda body: "-".join(body),
)
def test_the_events_of_a_stream_add_up_to_the_response(
    server: RunningServer, body: dict[str, Any]
) -> None:
    body = {"temperature": 0, **body}
    whole = server.post(PATH, **body).json
    assert nameless(folded(list(server.stream(PATH, **body)))) == nameless(whole)


def test_each_event_has_its_name_and_there_is_no_other_end(server: RunningServer) -> None:
    answer = server.post(PATH, input="Say hello", temperature=0, stream=True)
    *events, rest = answer.body.decode().split("\n\n")
    names = [event.partition("\n")[0].removeprefix("event: ") for event in events]
    assert [name for name, _ in groupby(names)] == [  # a delta for each token
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert rest == ""


# ---- one response after another ------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_by_the_id_of_its_last_response(
    server: RunningServer, stream: bool
) -> None:
    body = {"input": "My name is Alice.", "temperature": 0}
    first = folded(list(server.stream(PATH, **body))) if stream else server.post(PATH, **body).json
    second = ask(server, "What is my name?", previous_response_id=first["id"])
    assert text_of(second) == "Your name is Alice."
    assert second["previous_response_id"] == first["id"]
    third = ask(server, "What is my name?", previous_response_id=second["id"])
    assert text_of(third) == "Your name is Alice."


def test_the_next_turn_reads_what_a_chat_would_and_not_the_instructions(
    server: RunningServer,
) -> None:
    first = ask(server, "Say hello", instructions="Be brief.")
    planned = plan(server, input="Again", previous_response_id=first["id"], instructions="Be kind.")
    assert planned["prompts"][0]["text"] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nSay hello<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nAgain<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_output_of_a_call_is_enough_when_the_call_is_remembered(server: RunningServer) -> None:
    first = ask(server, OSLO, tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"],
              "output": [{"type": "input_text", "text": "rain, 4 degrees"}]}  # fmt: skip
    second = ask(server, [result], tools=[WEATHER], previous_response_id=first["id"])
    assert text_of(second) == "The result is rain, 4 degrees."


def test_what_is_not_to_be_stored_is_not_remembered(server: RunningServer) -> None:
    first = ask(server, "My name is Alice.", store=False)
    for name in (first["id"], "resp_0"):
        answer = server.post(PATH, input="Hi", previous_response_id=name)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (
            400, "previous_response_not_found", "previous_response_id")  # fmt: skip
        assert "may have been forgotten" in answer.error["message"]


def test_a_dry_run_is_no_response_to_go_on_from(server: RunningServer) -> None:
    planned = plan(server, input="Hi", max_output_tokens=7, stream=True)
    assert planned["sampling"]["max_tokens"] == {"value": 7, "origin": "request"}
    answer = server.post(PATH, input="Hi", previous_response_id=planned["id"])
    assert answer.status == 400


# ---- what is refused, and what is ignored --------------------------------------------------


def refusal(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.error["param"]


def test_what_the_worker_refuses_is_named_as_here(server: RunningServer) -> None:
    long = server.post(PATH, input="the " * 5000)
    assert (*refusal(long), long.error["code"]) == (400, "input", "context_length_exceeded")
    long = server.post(PATH, input="the " * 5000, stream=True)
    assert refusal(long) == (400, "input")


def test_unknown_fields_are_told(server: RunningServer) -> None:
    answer = server.post(PATH, input="Hi", max_output_tokens=1, n=2, max_tokens=5, user="me")
    assert (answer.status, answer.headers["x-ignored-params"]) == (200, "max_tokens, n")


def test_only_post_is_answered(server: RunningServer) -> None:
    assert server.get(PATH).headers["allow"] == "POST, OPTIONS"
    assert server.get(f"{PATH}/resp_0").status == 404


# ---- the reply alone -----------------------------------------------------------------------


def reply_to(stored: StoredResponses | None = None, **body: Any) -> ResponseReply:
    stored = stored or StoredResponses()
    call = parse_response(stored, {"input": "Hi", "stream": True, **body})
    model: Any = SimpleNamespace(name="tiny")
    return ResponseReply(stored, call, "resp_7", model, 1760000000)


def parsed(data: list[bytes]) -> list[Any]:
    blocks = b"".join(data).decode().split("\n\n")[:-1]
    return [json.loads(block.partition("\ndata: ")[2]) for block in blocks]


def streamed(reply: ResponseReply, events: list[ReplyEvent]) -> Any:
    """The response that the stream of these events adds up to."""
    data = [reply.add(event) for event in events]
    return folded(parsed([*data, reply.tail()]))


BEGUN = Started(0, 0, n_prompt=9, n_cached=4)


def test_an_error_before_the_response_is_an_event_of_its_own() -> None:
    error = PromptTooLong("Shorten it.", param="messages", tokens=(70, 64))
    assert reply_to().failure(error) == (
        b'event: error\ndata: {"type":"error","code":"context_length_exceeded",'
        b'"message":"This model\'s maximum context length is 64 tokens. However, your input '
        b'resulted in 70 tokens. Shorten it.","param":"input","sequence_number":0}\n\n'
    )


def test_an_error_after_it_has_begun_fails_the_response() -> None:
    reply = reply_to()
    said = [reply.add(BEGUN), reply.add(Delta(0, 0, "Hel"))]
    *_, failed = parsed([*said, reply.failure(InternalError("the worker ended"))])
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert response["error"] == {"code": "server_error", "message": "the worker ended"}
    assert response["status"] == "failed"
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"


def test_a_failed_response_is_not_remembered() -> None:
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


def test_items_stand_in_the_order_in_which_they_began() -> None:
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


def test_each_call_of_a_custom_tool_keeps_its_own_arguments_of_another_form() -> None:
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
    found = [event for event in parsed(data) if "custom" in event["type"]]
    for event in found:
        del event["sequence_number"]
    assert found == [
        {"type": "response.custom_tool_call_input.delta", **about, "delta": "a"},
        {"type": "response.custom_tool_call_input.delta", **about, "delta": "\n"},
        {"type": "response.custom_tool_call_input.done", **about, "input": "a\n"},
    ]


def test_the_same_events_in_one_piece_are_the_same_response() -> None:
    reply = reply_to(stream=False)
    for event in MIXED:
        reply.add(event)
    assert reply.whole() == streamed(reply_to(), MIXED)


def test_a_call_that_was_cut_short_is_remembered_as_it_is() -> None:
    stored = StoredResponses()
    reply = reply_to(stored)
    for event in (BEGUN, calls_of(CallDelta(0, '{"a": ', "call_a", "f")),
                  Finished(0, 0, "length", n_completion=5)):  # fmt: skip
        reply.add(event)
    turn = ChatMessage("assistant", "", tool_calls=(ToolCall("call_a", "f", '{"a": '),))
    assert stored.find("resp_7") == (ChatMessage("user", "Hi"), turn)


def test_an_answer_of_nothing_is_not_remembered() -> None:
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
