"""Ollama's Python package: chats, streams, tools, images, a form, embeddings, lists, and errors.

Its types validate each reply and each line of a stream.
"""

from typing import Any

import ollama

from tests.clients.asked import (
    ANNA,
    COLOUR,
    INTRODUCE,
    OSLO,
    RED_IMAGE,
    RED_WORD,
    RESULT,
    SUM,
    THINK,
    TOLD,
    WEATHER,
    Person,
)
from tests.support.server_process import RunningServer

ASK: Any = {"options": {"temperature": 0, "num_ctx": 2048}, "keep_alive": "5m"}


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    client = ollama.Client(host=server.url)
    lists(client, server.model)
    tools(client, server.model)
    errors(client)
    image = RED_IMAGE.partition(",")[2]
    asked: Any = [{"role": "user", "content": COLOUR, "images": [image]}]
    assert client.chat(server.model, asked, **ASK).message.content == RED_WORD
    form = client.generate(server.model, ANNA, format=Person.model_json_schema(), **ASK)
    assert Person.model_validate_json(form.response) == Person(name="Anna", age=12)
    vectors = client.embed(server.model, ["a", "b"])
    assert vectors.embeddings[0] == client.embeddings(server.model, "a").embedding
    thought = client.chat(server.model, [{"role": "user", "content": THINK}], think=True, **ASK)
    assert thought.message.thinking and thought.message.content == SUM
    return plain(client, server.model)


def plain(client: ollama.Client, model: str) -> str:
    """Whole and streamed, as a chat and as a completion; then loaded and unloaded."""
    messages: Any = [{"role": "user", "content": INTRODUCE}]
    whole = client.chat(model, messages, **ASK)
    *parts, last = client.chat(model, messages, stream=True, **ASK)
    text = "".join(part.message.content or "" for part in parts)
    assert text == whole.message.content == client.generate(model, INTRODUCE, **ASK).response
    assert last.done and last.eval_count == whole.eval_count and last.total_duration
    assert client.generate(model, keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.generate(model).done_reason == "load"
    return text


def tools(client: ollama.Client, model: str) -> None:
    """A Python function is called, whole and on a stream, and its result is read."""

    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        return RESULT if city == "Oslo" else "none"

    messages: list[Any] = [{"role": "user", "content": OSLO}]
    schema: Any = {"type": "function", "function": WEATHER}
    for offered in ([schema], [get_weather]):
        message = client.chat(model, messages, tools=offered, **ASK).message
        parts = client.chat(model, messages, tools=offered, stream=True, **ASK)
        (streamed,) = [call for part in parts for call in part.message.tool_calls or ()]
        (call,) = message.tool_calls
        assert streamed.function == call.function
        assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
    result = {"role": "tool", "content": get_weather("Oslo"), "tool_name": "get_weather"}
    answer = client.chat(model, [*messages, message, result], tools=[schema], **ASK)
    assert answer.message.content == TOLD


def lists(client: ollama.Client, model: str) -> None:
    """The models, what they can do, and which are loaded."""
    (listed,) = client.list().models
    (running,) = client.ps().models
    assert listed.model == running.model == model and listed.digest == running.digest
    shown = client.show(f"{model}:latest")
    assert {"completion", "tools", "vision"} <= {*(shown.capabilities or ())}
    assert (shown.modelinfo or {})["llama.context_length"] >= (running.context_length or 0) > 0
    assert client.pull(model).status == "success"


def errors(client: ollama.Client) -> None:
    """Each is an error with its status and its words."""
    for ask, name, status in ((client.generate, "none", 404), (client.delete, "tiny", 501),
                              (client.pull, "none", 501)):  # fmt: skip
        try:
            ask(name)
            raise AssertionError("it was accepted")
        except ollama.ResponseError as err:
            assert err.status_code == status and len(err.error.split()) > 3
