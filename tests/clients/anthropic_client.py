"""Anthropic's Python package: plain, streamed, with tools, thoughts, counted, and refused.

Each event of a stream is held to the package's own types.
"""

import json
from typing import Any

import anthropic
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.clients.asked import CITY, INTRODUCE, OSLO, RESULT, SUM, THINK, TOLD, TWO_CITIES
from tests.support.server_process import RunningServer

TOOLS: Any = [{"name": "get_weather", "description": "", "input_schema": CITY}]


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    client = anthropic.Anthropic(base_url=server.url, api_key="lm-studio")
    ask: Any = {"model": server.model, "max_tokens": 100, "extra_body": {"temperature": 0}}
    tools(client, ask)
    types(server)
    errors(client, ask)
    return plain(client, ask)


def plain(client: anthropic.Anthropic, ask: Any) -> str:
    """Whole, streamed and counted."""
    messages: Any = [{"role": "user", "content": INTRODUCE}]
    whole = client.messages.create(messages=messages, **ask)
    with client.messages.stream(messages=messages, **ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=ask["model"], messages=messages)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    return str(text)


def tools(client: anthropic.Anthropic, ask: Any) -> None:
    """A call, whole and on a stream, its result in the next turn, and two at once."""
    messages: list[Any] = [{"role": "user", "content": OSLO}]
    whole = client.messages.create(messages=messages, tools=TOOLS, **ask)
    with client.messages.stream(messages=messages, tools=TOOLS, **ask) as stream:
        called = stream.get_final_message()
    for message in (whole, called):
        (call,) = message.content
        assert message.stop_reason == "tool_use"
        assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    messages += [called.to_param(), {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=messages, tools=TOOLS, **ask)
    assert answer.content[0].text == TOLD
    messages = [{"role": "user", "content": TWO_CITIES}]
    both = client.messages.create(messages=messages, tools=TOOLS, **ask)
    assert [block.input["city"] for block in both.content] == ["Oslo", "Rome"]
    alone: Any = {"type": "auto", "disable_parallel_tool_use": True}
    one = client.messages.create(messages=messages, tools=TOOLS, tool_choice=alone, **ask)
    assert [block.input["city"] for block in one.content] == ["Oslo"]


def types(server: RunningServer) -> None:
    """Messages and events as the package's types describe them, and not only as it reads them."""
    event_type, message_type = TypeAdapter(RawMessageStreamEvent), TypeAdapter(Message)
    for question, more in ((THINK, {}), (TWO_CITIES, {"tools": TOOLS}), (OSLO, {"max_tokens": 5})):
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 100,
                "temperature": 0, **more}  # fmt: skip
        message = message_type.validate_python(server.post("/v1/messages", **body).json)
        events = list(server.stream("/v1/messages", **body))
        for event in events:
            assert event == {"type": "ping"} or event_type.validate_json(json.dumps(event))
        if question == THINK:
            thinking, text = message.content
            assert (thinking.type, text.text) == ("thinking", SUM)
    counted = server.post("/v1/messages/count_tokens", messages=body["messages"]).json
    assert TypeAdapter(MessageTokensCount).validate_python(counted).input_tokens > 0


def errors(client: anthropic.Anthropic, ask: Any) -> None:
    """Each is an error of its own class, with Anthropic's body."""
    messages: Any = [{"role": "user", "content": "Hi"}]
    for wrong, error in (({"model": "no-such-model"}, anthropic.NotFoundError),
                         ({"temperature": "hot"}, anthropic.BadRequestError)):  # fmt: skip
        try:
            client.messages.create(messages=messages, **ask | {"extra_body": wrong})
            raise AssertionError(f"{wrong} was accepted")
        except error as err:
            assert err.body["type"] == "error"
