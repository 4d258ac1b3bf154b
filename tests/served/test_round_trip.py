"""An answer can be sent back in the next turn, however it ended."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.response_events import folded
from tests.support.server_process import RunningServer
from tests.support.streams import folded_chunks, folded_message

Json = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OSLO = "What is the weather in Oslo?"
THINK = "Think first: What is 12 + 9?"
MOST = 60  # tokens; more than in any of the answers


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def ends(ask: Callable[[Json], str], limit: str) -> set[str]:
    """How answers end: a call is cut after each of its tokens, others at some places."""
    found = set()
    for question, has_tools, cuts in (
        (OSLO, True, range(MOST)),
        (THINK, False, (1, 2, 3, 20, MOST)),
        ("Say hello", True, (0, 1, MOST)),
    ):
        for n_tokens in cuts:
            found.add(end := ask({"question": question, "has_tools": has_tools, limit: n_tokens}))
            if not end.startswith(("length", "max_tokens", "incomplete")):
                break
        else:
            raise AssertionError("the answer does not end")
    found.add(ask({"question": "Say hello", "has_tools": False, "stop": ["llo"], limit: MOST}))
    return found


# ---- chats -----------------------------------------------------------------------------------

CHAT = "/v1/chat/completions"
CHAT_TOOL = {"type": "function",
             "function": {"name": "get_weather", "parameters": SCHEMA}}  # fmt: skip


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_chat_accepts_its_own_answers_in_the_next_turn(
    server: RunningServer, is_streamed: bool
) -> None:
    def ask(body: Json) -> str:
        turns: list[Json] = [{"role": "user", "content": body.pop("question")}]
        body |= {"temperature": 0, "tools": [CHAT_TOOL] * body.pop("has_tools")}
        if is_streamed:
            *chunks, _ = server.stream(CHAT, messages=turns, **body)
            (choice,) = folded_chunks(chunks)["choices"]
        else:
            (choice,) = server.post(CHAT, messages=turns, **body).json["choices"]
        message = choice["message"]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "rain"}
                   for call in message.get("tool_calls", [])]  # fmt: skip
        go_on = {"role": "user", "content": "Go on."}
        for rest in ([], [go_on], results):
            body |= {"messages": [*turns, message, *rest], "max_tokens": 1}
            answer = server.post(CHAT, **body)
            assert answer.status == 200, (message, answer.body)
        return str(choice["finish_reason"])

    assert ends(ask, "max_tokens") == {"stop", "length", "tool_calls"}


# ---- responses -------------------------------------------------------------------------------

RESPONSES = "/v1/responses"
RESPONSE_TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_response_accepts_its_own_items_in_the_next_turn(
    server: RunningServer, is_streamed: bool
) -> None:
    def ask(body: Json) -> str:
        items = [{"role": "user", "content": body.pop("question")}]
        body |= {"temperature": 0, "tools": [RESPONSE_TOOL] * body.pop("has_tools")}
        if is_streamed:
            response = folded(list(server.stream(RESPONSES, input=items, **body)))
        else:
            response = server.post(RESPONSES, input=items, **body).json
        output = response["output"]
        results = [{"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
                   for item in output if item["type"] == "function_call"]  # fmt: skip
        go_on = {"role": "user", "content": "Go on."}
        for rest in ([go_on], results or [go_on]):
            body |= {"max_output_tokens": 1}
            sent = server.post(RESPONSES, input=[*items, *output, *rest], **body)
            assert sent.status == 200, (output, sent.body)
            kept = server.post(RESPONSES, input=rest, previous_response_id=response["id"], **body)
            assert kept.status == 200, (output, kept.body)
            assert kept.json["usage"]["input_tokens"] == sent.json["usage"]["input_tokens"]
        incomplete = response["incomplete_details"] or {}
        return str(response["status"] + " " + incomplete.get("reason", ""))

    assert ends(ask, "max_output_tokens") == {"completed ", "incomplete max_output_tokens"}


# ---- messages --------------------------------------------------------------------------------

MESSAGES = "/v1/messages"
MESSAGE_TOOL = {"name": "get_weather", "input_schema": SCHEMA}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_message_accepts_its_own_blocks_in_the_next_turn(
    server: RunningServer, is_streamed: bool
) -> None:
    def ask(body: Json) -> str:
        turns: list[Json] = [{"role": "user", "content": body.pop("question")}]
        body |= {"temperature": 0, "tools": [MESSAGE_TOOL] * body.pop("has_tools"),
                 "stop_sequences": body.pop("stop", [])}  # fmt: skip
        if is_streamed:
            message = folded_message(list(server.stream(MESSAGES, messages=turns, **body)))
        else:
            message = server.post(MESSAGES, messages=turns, **body).json
        content = message["content"]
        results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "rain"}
                   for block in content if block["type"] == "tool_use"]  # fmt: skip
        go_on = {"type": "text", "text": "Go on."}
        for rest in ([go_on], results or [go_on]):
            answer = {"role": "assistant", "content": content}
            next_turns = [*turns, answer, {"role": "user", "content": rest}]
            body |= {"messages": next_turns, "max_tokens": 1}
            reply = server.post(MESSAGES, **body)
            assert reply.status == 200, (content, reply.body)
        return str(message["stop_reason"])

    wanted = {"end_turn", "tool_use", "max_tokens", "stop_sequence"}
    assert ends(ask, "max_tokens") == wanted
