"""OpenAI's Python client: LM Studio's own examples, tools, forms, thoughts, and responses.

Nothing of LM Studio's examples is changed but the base URL and the model.
"""

import json
import time
from typing import Any

from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import InputTokenCountResponse

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
    TWO_CITIES,
    WEATHER,
    Owner,
    Person,
)
from tests.support.server_process import RunningServer

TOOLS: Any = [{"type": "function", "function": WEATHER}]


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="lm-studio")
    lm_studio(client, server.model)
    tools(client, server.model)
    calls_on_streams(client, server.model)
    forms(client, server.model)
    images(client, server.model)
    responses(client, server.model)
    return streamed(client, server.model)


def lm_studio(client: OpenAI, model: str) -> None:
    """The examples of LM Studio's page, and errors."""
    completion = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Always answer in rhymes."},
            {"role": "user", "content": "Introduce yourself."},
        ],
        temperature=0.7,
    )
    print(completion.choices[0].message)
    assert completion.choices[0].message.content
    assert completion.usage is not None

    def get_embedding(text: str, model: str) -> list[float]:
        text = text.replace("\n", " ")
        vector: list[float] = client.embeddings.create(input=[text], model=model).data[0].embedding
        return vector

    vector = get_embedding("Once upon a time, there was a cat.", model)
    assert abs(sum(x * x for x in vector) - 1) < 1e-4
    assert [each.id for each in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    text = client.completions.create(model=model, prompt="Once", max_tokens=3)
    assert text.usage is not None
    try:
        client.completions.create(model="no-such-model", prompt="Once")
        raise AssertionError("an unknown model was accepted")
    except NotFoundError as err:
        assert err.code == "model_not_found"
        assert err.request_id


def streamed(client: OpenAI, model: str) -> str:
    """A streamed answer, put together, that equals the whole one."""
    ask: Any = [{"role": "user", "content": INTRODUCE}]
    whole = client.chat.completions.create(model=model, messages=ask, temperature=0)
    chunks = client.chat.completions.create(
        model=model,
        messages=ask,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert text == whole.choices[0].message.content
    assert usage is not None and whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    return text


# ---- tools -----------------------------------------------------------------------------------


def arguments_of(message: Any) -> list[tuple[str, Any]]:
    """(name, arguments) of each call."""
    functions = [call.function for call in message.tool_calls or []]
    return [(function.name, json.loads(function.arguments)) for function in functions]


def tools(client: OpenAI, model: str) -> None:
    """A call, its result in the next turn, two calls at once, and one that is required."""
    ask: dict[str, Any] = {"model": model, "tools": TOOLS, "temperature": 0}
    messages: list[Any] = [{"role": "user", "content": OSLO}]
    (choice,) = client.chat.completions.create(messages=messages, **ask).choices
    assert arguments_of(choice.message) == [("get_weather", {"city": "Oslo"})]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    call_id = choice.message.tool_calls[0].id
    messages += [choice.message, {"role": "tool", "tool_call_id": call_id, "content": RESULT}]
    (told,) = client.chat.completions.create(messages=messages, **ask).choices
    assert (told.message.content, told.finish_reason) == (TOLD, "stop")
    messages = [{"role": "user", "content": TWO_CITIES}]
    (both,) = client.chat.completions.create(messages=messages, **ask).choices
    cities = [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})]
    assert arguments_of(both.message) == cities
    messages = [{"role": "user", "content": "Hello!"}]
    (must,) = client.chat.completions.create(
        messages=messages, tool_choice="required", **ask
    ).choices
    assert [name for name, _ in arguments_of(must.message)] == ["get_weather"]


def calls_on_streams(client: OpenAI, model: str) -> None:
    """Calls in pieces, by hand and with the client's own accumulation; and thoughts."""
    ask: dict[str, Any] = {"model": model, "tools": TOOLS, "temperature": 0}
    messages: list[Any] = [{"role": "user", "content": TWO_CITIES}]
    calls: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(messages=messages, stream=True, **ask):
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(piece.index, [piece.function.name, ""])
            call[1] += piece.function.arguments
    found = [(name, json.loads(text)) for name, text in calls.values()]
    assert found == [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})]
    with client.chat.completions.stream(messages=messages, **ask) as stream:
        kinds = {event.type for event in stream}
        (choice,) = stream.get_final_completion().choices
    assert arguments_of(choice.message) == found
    assert "tool_calls.function.arguments.done" in kinds
    messages = [{"role": "user", "content": THINK}]
    with client.chat.completions.stream(messages=messages, **ask) as stream:
        (choice,) = stream.get_final_completion().choices
    assert choice.message.content == SUM
    assert "Together 21." in choice.message.reasoning_content


def forms(client: OpenAI, model: str) -> None:
    """`parse` with a model class, also one with others in it; whole and streamed."""
    ask: dict[str, Any] = {"model": model, "temperature": 0}
    messages: list[Any] = [{"role": "user", "content": ANNA}]
    (choice,) = client.chat.completions.parse(
        messages=messages, response_format=Person, **ask
    ).choices
    assert choice.message.parsed == Person(name="Anna", age=12)
    with client.chat.completions.stream(messages=messages, response_format=Person, **ask) as stream:
        (choice,) = stream.get_final_completion().choices
    assert choice.message.parsed == Person(name="Anna", age=12)
    # The model has not been taught this form: what is in it may be anything.
    (nested,) = client.chat.completions.parse(
        messages=messages, response_format=Owner, max_tokens=1000, seed=1, model=model
    ).choices
    assert isinstance(nested.message.parsed, Owner)


# ---- images ----------------------------------------------------------------------------------


def images(client: OpenAI, model: str) -> None:
    """The examples of both APIs, with an image in place of its address."""
    content: Any = [
        {"type": "text", "text": COLOUR},
        {"type": "image_url", "image_url": {"url": RED_IMAGE, "detail": "auto"}},
    ]
    ask: Any = {"model": model, "temperature": 0}
    asked: Any = [{"role": "user", "content": content}]
    (choice,) = client.chat.completions.create(messages=asked, **ask).choices
    assert choice.message.content == RED_WORD
    parts: Any = [
        {"type": "input_text", "text": COLOUR},
        {"type": "input_image", "image_url": RED_IMAGE, "detail": "auto"},
    ]
    seen: Any = [{"role": "user", "content": parts}]
    assert client.responses.create(input=seen, **ask).output_text == RED_WORD
    content[1]["image_url"]["url"] = "https://example.com/image.png"
    try:
        client.chat.completions.create(messages=asked, **ask)
        raise AssertionError("an image was fetched")
    except BadRequestError as err:
        assert "send the file itself" in err.message


# ---- responses -------------------------------------------------------------------------------


def responses(client: OpenAI, model: str) -> None:
    """The Responses API: whole, streamed, with a tool, in a form, and one after another."""
    ask: dict[str, Any] = {"model": model, "temperature": 0}
    first = client.responses.create(input="My name is Alice.", **ask)
    with client.responses.stream(input="My name is Alice.", **ask) as events:
        said = "".join(
            event.delta for event in events if event.type == "response.output_text.delta"
        )
        assert events.get_final_response().output_text == said == first.output_text
    counted = client.responses.input_tokens.count(model=model, input="My name is Alice.")
    assert first.usage is not None
    assert counted == InputTokenCountResponse(
        object="response.input_tokens", input_tokens=first.usage.input_tokens
    )
    tool: Any = {"type": "function", "strict": True, **WEATHER}
    asked = client.responses.create(input=OSLO, tools=[tool], **ask)
    (call,) = asked.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    pieces = [
        event.delta
        for event in client.responses.create(input=OSLO, tools=[tool], stream=True, **ask)
        if event.type == "response.function_call_arguments.delta"
    ]
    assert "".join(pieces) == call.arguments and len(pieces) > 1
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    told = client.responses.create(
        input=[output], tools=[tool], previous_response_id=asked.id, **ask
    )
    assert told.output_text == TOLD
    parsed = client.responses.parse(input=ANNA, text_format=Person, **ask)
    assert parsed.output_parsed == Person(name="Anna", age=12)
    last = client.responses.create(input="What is my name?", previous_response_id=first.id, **ask)
    assert last.output_text == "Your name is Alice."
    try:
        client.responses.create(model=model, input="Hi", previous_response_id="resp_0")
        raise AssertionError("an unknown response was accepted")
    except BadRequestError as err:
        assert err.code == "previous_response_not_found"
    kept(client, first.id, first.output_text, ask)


def kept(client: OpenAI, response_id: str, text: str, ask: dict[str, Any]) -> None:
    """Stored responses: fetched, listed, deleted, and made in the background."""
    assert client.responses.retrieve(response_id).output_text == text
    (item,) = client.responses.input_items.list(response_id)
    assert item.type == "message"
    assert item.content[0].type in ("input_text", "output_text")
    many: Any = [{"role": "user", "content": str(i)} for i in range(5)]
    asked = client.responses.create(input=many, max_output_tokens=1, **ask)
    pages = client.responses.input_items.list(asked.id, limit=2, order="asc")
    assert [each.content[0].text for each in pages] == ["0", "1", "2", "3", "4"]
    client.responses.delete(response_id)
    try:
        client.responses.retrieve(response_id)
        raise AssertionError("a deleted response was found")
    except NotFoundError:
        pass
    made = client.responses.create(input="My name is Alice.", background=True, **ask)
    deadline_s = time.monotonic() + 60
    while made.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline_s, made
        time.sleep(0.05)
        made = client.responses.retrieve(made.id)
    assert (made.status, made.output_text) == ("completed", text)
    long: Any = {"ignore_eos": True}
    endless = client.responses.create(input="Hi", background=True, extra_body=long, **ask)
    assert client.responses.cancel(endless.id).status == "cancelled"
