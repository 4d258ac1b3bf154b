"""POST /v1/responses of the embedded model over HTTP: whole, streamed, and continued."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

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
    """What clients show as `output_text`."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for message in messages for part in message["content"])


def plan(server: RunningServer, **body: Any) -> Any:
    answer = server.request("POST", PATH, body, {"X-Dry-Run": "1"})
    assert answer.status == 200, answer.body
    return answer.json


# ---- in one piece --------------------------------------------------------------------------


def test_a_response_has_every_field(server: RunningServer) -> None:
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


def test_each_event_has_a_name_and_nothing_follows_the_last(server: RunningServer) -> None:
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
def test_a_conversation_continues_by_the_id_of_its_last_response(
    server: RunningServer, stream: bool
) -> None:
    body = {"input": "My name is Alice.", "temperature": 0}
    first = folded(list(server.stream(PATH, **body))) if stream else server.post(PATH, **body).json
    second = ask(server, "What is my name?", previous_response_id=first["id"])
    assert text_of(second) == "Your name is Alice."
    assert second["previous_response_id"] == first["id"]
    third = ask(server, "What is my name?", previous_response_id=second["id"])
    assert text_of(third) == "Your name is Alice."


def test_the_next_turn_has_the_prompt_of_a_chat_without_the_old_instructions(
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


def test_the_output_of_a_call_is_enough_when_the_call_is_stored(server: RunningServer) -> None:
    first = ask(server, OSLO, tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"],
              "output": [{"type": "input_text", "text": "rain, 4 degrees"}]}  # fmt: skip
    second = ask(server, [result], tools=[WEATHER], previous_response_id=first["id"])
    assert text_of(second) == "The result is rain, 4 degrees."


def test_a_response_is_not_stored_if_the_request_forbids_it(server: RunningServer) -> None:
    first = ask(server, "My name is Alice.", store=False)
    for name in (first["id"], "resp_0"):
        answer = server.post(PATH, input="Hi", previous_response_id=name)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (
            400, "previous_response_not_found", "previous_response_id")  # fmt: skip
        assert "may have been forgotten" in answer.error["message"]


def test_a_dry_run_cannot_be_continued(server: RunningServer) -> None:
    planned = plan(server, input="Hi", max_output_tokens=7, stream=True)
    assert planned["sampling"]["max_tokens"] == {"value": 7, "origin": "request"}
    answer = server.post(PATH, input="Hi", previous_response_id=planned["id"])
    assert answer.status == 400


# ---- what is refused, and what is ignored --------------------------------------------------


def refusal(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.error["param"]


def test_errors_of_the_worker_name_the_fields_of_this_api(server: RunningServer) -> None:
    long = server.post(PATH, input="the " * 5000)
    assert (*refusal(long), long.error["code"]) == (400, "input", "context_length_exceeded")
    long = server.post(PATH, input="the " * 5000, stream=True)
    assert refusal(long) == (400, "input")


def test_unknown_fields_are_reported(server: RunningServer) -> None:
    answer = server.post(PATH, input="Hi", max_output_tokens=1, n=2, max_tokens=5, user="me")
    assert (answer.status, answer.headers["x-ignored-params"]) == (200, "max_tokens, n")


def test_only_post_is_allowed(server: RunningServer) -> None:
    assert server.get(PATH).headers["allow"] == "POST, OPTIONS"
    assert server.get(f"{PATH}/resp_0").status == 404
