"""A stream adds up to the whole answer, for every feature of every API.

Both requests have the same seed, and are sent after the prompt is in memory.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.response_events import folded as folded_response
from tests.support.response_events import nameless
from tests.support.server_process import RunningServer
from tests.support.streams import agree, folded_chunks, folded_message, unnamed

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
SEED = {"temperature": 1, "seed": 5}
HOT = {"temperature": 2, "seed": 5, "top_k": 0, "top_p": 1, "min_p": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    # With a changing number of threads, sums would be rounded differently.
    with RunningServer("--allow-grammar", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def digits(server: RunningServer) -> dict[str, float]:
    """Biases that make the model write only digits, so that the seed alone decides which."""
    plan = server.request("POST", TEXT, {"prompt": list("0123456789")}, {"X-Dry-Run": "1"}).json
    return {str(prompt["tokens"][-1]["id"]): 60 for prompt in plan["prompts"]}


# ---- requests --------------------------------------------------------------------------------

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def form(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties),
            "additionalProperties": False}  # fmt: skip


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


CITY, PERSON = form(city=STRING), form(name=STRING, age=INTEGER)
MINUTES = form(minutes=INTEGER)
FUNCTIONS = [{"name": "get_weather", "description": "", "parameters": CITY},
             {"name": "set_timer", "description": "", "parameters": MINUTES}]  # fmt: skip
TOOLS = {"tools": [{"type": "function", "function": function} for function in FUNCTIONS]}
OSLO, TWO_CITIES = "What is the weather in Oslo?", "What is the weather in Oslo and in Rome?"
THINK, ANNA = (
    "Think first: What is 12 + 9?",
    "Anna is 12 years old. Answer as JSON with name and age.",
)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
TIMER = {"type": "function", "function": {"name": "set_timer"}}
COUNT = "<|im_start|>user\nCount from 1 to 9.<|im_end|>\n<|im_start|>assistant\n"

CHATS: dict[str, dict[str, Any]] = {
    "text": user("Introduce yourself."),
    "system": {"messages": [{"role": "system", "content": "Always answer in rhymes."},
                            {"role": "user", "content": "Introduce yourself."}]},
    "no text": user("Hello!") | {"max_tokens": 0},
    "cut short": user("Introduce yourself.") | {"max_tokens": 7},
    "other alphabets": user("Say ü 東京 🙂"),
    "stop": user("Count from 1 to 9.") | {"stop": [", 6", "zz"]},
    "a stop that never comes": user("Count from 1 to 9.") | {"stop": ["9!", ", 11"]},
    "continued": {"messages": [{"role": "user", "content": "Who are you?"},
                               {"role": "assistant", "content": "I am tiny, the"}]},
    "logprobs": user("Introduce yourself.") | LOGPROBS,
    "logprobs and stop": user("Count from 1 to 9.") | LOGPROBS | {"stop": [", 6", "9!"]},
    "n": user("Introduce yourself.") | {"n": 3},
    "n and logprobs": user("Say hello") | LOGPROBS | {"n": 2},
    "a call": user(OSLO) | TOOLS,
    "a call cut short": user(OSLO) | TOOLS | {"max_tokens": 18},
    "a call and logprobs": user(OSLO) | TOOLS | LOGPROBS,
    "a call and stop": user(OSLO) | TOOLS | {"stop": ["sl", "}"]},
    "two calls": user(TWO_CITIES) | TOOLS,
    "two calls, n": user(TWO_CITIES) | TOOLS | {"n": 2},
    "one of two calls": user(TWO_CITIES) | TOOLS | {"parallel_tool_calls": False},
    "a call that is required": user("Hello!") | TOOLS | {"tool_choice": "required"},
    "a call by name": user("Hello!") | TOOLS | {"tool_choice": TIMER},
    "no call": user(OSLO) | TOOLS | {"tool_choice": "none"},
    "a call or a form, a call": user(OSLO) | TOOLS | {"response_format": SCHEMA},
    "a call or a form, a form": user(ANNA) | TOOLS | {"response_format": SCHEMA},
    "a schema": user(ANNA) | {"response_format": SCHEMA},
    "a schema and logprobs": user(ANNA) | {"response_format": SCHEMA} | LOGPROBS,
    "any JSON": user("Give me a JSON object with name Ben and age 7.")
    | {"response_format": {"type": "json_object"}},
    "a grammar": user("Say hello") | {"grammar": 'root ::= "yes" | "no" [a-z]{3}'},
    "thoughts": user(THINK),
    "thoughts and logprobs": user(THINK) | LOGPROBS,
    "thoughts and stop": user(THINK) | {"stop": ["="]},
    "thoughts that a stop ends": user(THINK) | {"stop": ["="], "stop_in_reasoning": True},
    "thoughts cut short": user(THINK) | {"max_tokens": 9},
    "no thoughts": user(THINK) | {"reasoning_effort": "none"},
    "thoughts and a schema": user(THINK) | {"response_format": SCHEMA, "max_tokens": 120},
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "text": {"prompt": COUNT},
    "cut short": {"prompt": COUNT, "max_tokens": 3},
    "stop": {"prompt": COUNT, "stop": ", 6"},
    "n": {"prompt": COUNT, "n": 2},
    "prompts": {"prompt": [COUNT, "Once"], "max_tokens": 4, "temperature": 0},
    "logprobs": {"prompt": COUNT, "logprobs": 2},
    "echo": {"prompt": COUNT, "echo": True},
    "echo and logprobs": {"prompt": COUNT, "echo": True, "logprobs": 2},
    "echo and n": {"prompt": COUNT, "echo": True, "n": 2, "logprobs": 0},
    "a scored prompt": {"prompt": "é🙂x", "echo": True, "logprobs": 1, "max_tokens": 0},
    "a grammar": {"prompt": COUNT, "grammar": 'root ::= "1" (", " [0-9]){3}'},
}
RESPONSE_TOOLS = {"tools": [{"type": "function", **function} for function in FUNCTIONS]}
RESPONSE_LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
RESPONSE_FORM = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
RESPONSES_ASKED: dict[str, dict[str, Any]] = {
    "text": {"input": "Introduce yourself."},
    "cut short": {"input": "Introduce yourself.", "max_output_tokens": 7},
    "logprobs": {"input": "Introduce yourself."} | RESPONSE_LOGPROBS,
    "stop": {"input": "Count from 1 to 9.", "stop": [", 6"]},
    "a call": {"input": OSLO} | RESPONSE_TOOLS,
    "a call cut short": {"input": OSLO, "max_output_tokens": 18} | RESPONSE_TOOLS,
    "two calls": {"input": TWO_CITIES} | RESPONSE_TOOLS,
    "a call that is required": {"input": "Hello!", "tool_choice": "required"} | RESPONSE_TOOLS,
    "a schema": {"input": ANNA, "text": RESPONSE_FORM},
    "any JSON": {"input": ANNA, "text": {"format": {"type": "json_object"}}},
    "thoughts": {"input": THINK},
    "thoughts and logprobs": {"input": THINK} | RESPONSE_LOGPROBS,
    "thoughts cut short": {"input": THINK, "max_output_tokens": 9},
}
MESSAGE_TOOLS = {
    "tools": [{"name": each["name"], "input_schema": each["parameters"]} for each in FUNCTIONS]
}
MESSAGES_ASKED: dict[str, dict[str, Any]] = {
    "text": user("Introduce yourself."),
    "cut short": user("Introduce yourself.") | {"max_tokens": 7},
    "stop": user("Count from 1 to 9.") | {"stop_sequences": [", 6"]},
    "continued": CHATS["continued"],
    "a call": user(OSLO) | MESSAGE_TOOLS,
    "two calls": user(TWO_CITIES) | MESSAGE_TOOLS,
    "a call by name": user("Hello!") | MESSAGE_TOOLS | {
        "tool_choice": {"type": "tool", "name": "set_timer"}},
    "thoughts": user(THINK),
    "no thoughts": user(THINK) | {"thinking": {"type": "disabled"}},
    "a schema": user(ANNA) | {"output_config": {
        "format": {"type": "json_schema", "schema": PERSON}}},
}  # fmt: skip


# ---- the checks ------------------------------------------------------------------------------


def whole(server: RunningServer, path: str, body: dict[str, Any]) -> Any:
    """The whole answer, to a prompt that is already in memory."""
    server.post(path, **body)
    answer = server.post(path, **body)
    assert answer.status == 200, answer.body
    return answer.json


def check_chunks(server: RunningServer, path: str, body: dict[str, Any]) -> Any:
    """The whole answer. Checks that its stream adds up to it."""
    found = unnamed(whole(server, path, body))
    *chunks, done = server.stream(path, **body, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert agree(unnamed(folded_chunks(chunks)), found), (chunks, found)
    usage, choices = found["usage"], found["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return found


@pytest.mark.parametrize("body", CHATS.values(), ids=CHATS.keys())
def test_the_chunks_of_a_chat_add_up_to_it(server: RunningServer, body: dict[str, Any]) -> None:
    check_chunks(server, CHAT, {"max_tokens": 200} | SEED | body)


@pytest.mark.parametrize("body", TEXTS.values(), ids=TEXTS.keys())
def test_the_chunks_of_a_completion_add_up_to_it(
    server: RunningServer, body: dict[str, Any]
) -> None:
    check_chunks(server, TEXT, {"max_tokens": 60} | SEED | body)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_choices_that_differ_add_up_one_by_one(
    server: RunningServer, digits: dict[str, float], path: str
) -> None:
    asked = user("Hello!") if path == CHAT else {"prompt": "Hello!"}
    body = {**asked, **HOT, "n": 4, "max_tokens": 5, "logit_bias": digits}
    found = check_chunks(server, path, body)
    texts = [choice.get("text") or choice["message"]["content"] for choice in found["choices"]]
    assert len(set(texts)) > 1
    assert found["usage"]["completion_tokens"] == 4 * 5


@pytest.mark.parametrize("body", RESPONSES_ASKED.values(), ids=RESPONSES_ASKED.keys())
def test_the_events_of_a_response_add_up_to_it(server: RunningServer, body: dict[str, Any]) -> None:
    body = {"max_output_tokens": 200} | SEED | body
    found = whole(server, RESPONSES, body)
    events = list(server.stream(RESPONSES, **body))
    assert agree(nameless(folded_response(events)), nameless(found)), (events, found)


@pytest.mark.parametrize("body", MESSAGES_ASKED.values(), ids=MESSAGES_ASKED.keys())
def test_the_events_of_a_message_add_up_to_it(server: RunningServer, body: dict[str, Any]) -> None:
    body = {"max_tokens": 200} | SEED | body
    found = whole(server, MESSAGES, body)
    message = folded_message(list(server.stream(MESSAGES, **body)))
    for each in (found, message):
        assert each.pop("id").startswith("msg_")
        for block in each["content"]:
            assert block["type"] != "tool_use" or block.pop("id").startswith("call_")
    assert message == found
