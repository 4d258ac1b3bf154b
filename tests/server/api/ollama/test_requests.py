"""Bodies of Ollama's API become chats and other calls, or errors that name the field."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Chat, ChatMessage, Complete, Embed, Image, Tokenize, ToolCall
from lmlite.server.api.call import Call
from lmlite.server.api.ollama.bodies import keep_alive_s, shared_form
from lmlite.server.api.ollama.requests import (
    parse_chat,
    parse_embed,
    parse_embeddings_old,
    parse_generate,
    unloads,
)
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.image_files import RED, png

PICTURE = png(4, 4, RED)
BASE64 = base64.b64encode(PICTURE).decode()
HI = [{"role": "user", "content": "Hi"}]
USER = ChatMessage("user", "Hi")
SCHEMA = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"]}


def parse(reader: Any = parse_chat, /, **body: Any) -> Call:
    call = reader(shared_form(body), replace(NO_DEFAULTS, takes_images=True))
    assert isinstance(call, Call)
    return call


def chat(**body: Any) -> Chat:
    request = parse(**{"messages": HI, **body}).request
    assert isinstance(request, Chat)
    return request


# ---- what all bodies share -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (0, 0), (300, 300), (-1, -1), (0.5, 0.5), ("5m", 300), ("0", 0), ("-1", -1),
        ("1h30m", 5400), ("1.5s", 1.5), ("-1m", -60), ("300ms", 0.3), ("2h3s", 7203),
    ],
)  # fmt: skip
def test_a_model_stays_for_a_number_of_seconds_or_a_duration(value: Any, seconds: Any) -> None:
    assert keep_alive_s({"keep_alive": value}) == seconds


@pytest.mark.parametrize("value", ["soon", "", "5", "5x", "m", True, [], "1h" * 99])
def test_a_time_that_is_none_is_refused(value: Any) -> None:
    if value == "5":
        assert keep_alive_s({"keep_alive": value}) == 5
        return
    with pytest.raises(BadRequest) as caught:
        keep_alive_s({"keep_alive": value})
    assert caught.value.param == "keep_alive"


@pytest.mark.parametrize(
    ("keep_alive", "ttl"),
    [(None, None), ("5m", 300), (-1, 2**31 - 1), (0, 1), (0.2, 1), ("99999h", 359996400),
     (1e300, 2**31 - 1)],
)  # fmt: skip
def test_the_time_that_a_model_stays_is_its_time_to_live(keep_alive: Any, ttl: Any) -> None:
    assert shared_form({"keep_alive": keep_alive}).get("ttl") == ttl


@pytest.mark.parametrize("body", [{"model": "m:latest"}, {"name": "m"}, {"model": "m"}])
def test_a_model_is_named_with_or_without_the_tag_latest(body: Any) -> None:
    assert shared_form(body)["model"] == "m"


def test_options_are_the_sampling_values() -> None:
    call = parse(messages=HI, options={
        "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "repeat_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 3, "stop": ["x"],
        "num_predict": 9, "num_ctx": 4096, "num_gpu": 1, "numa": None,
    })  # fmt: skip
    assert isinstance(call.request, Chat)
    assert call.request.params == replace(
        NO_DEFAULTS.params, temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, repeat_penalty=1.5,
        presence_penalty=0.5, frequency_penalty=0.25, seed=3, stop=("x",), max_tokens=9,
    )  # fmt: skip
    assert call.ignored == ("options.num_ctx", "options.num_gpu")


@pytest.mark.parametrize("n", [-1, -2])
def test_a_negative_number_of_tokens_is_no_limit(n: int) -> None:
    assert chat(options={"num_predict": n}).params.max_tokens is None


def test_a_reply_is_streamed_unless_the_body_says_not_to() -> None:
    assert [parse(messages=HI, stream=value).stream for value in (None, True, False)] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"options": []}, "options"), ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"num_predict": "x"}}, "num_predict"), ({"stream": 1}, "stream"),
        ({"think": 5}, "think"), ({"think": "much"}, "think"), ({"format": "xml"}, "format"),
        ({"format": 5}, "format"), ({"messages": {"a": 1}}, "messages"),
        ({"messages": ["x"]}, "messages.[0]"), ({"messages": [{}]}, "messages.[0].role"),
        ({"messages": [{"role": "boss"}]}, "messages.[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.[0].content"),
        ({"messages": [{"role": "user", "images": "x"}]}, "messages.[0].images"),
        ({"messages": [{"role": "user", "images": [5]}]}, "messages.[0].images.[0]"),
        ({"messages": [{"role": "user", "images": ["AAAA"]}]}, "messages.[0].images.[0]"),
        ({"tools": [{"function": {}}]}, "tools.[0].function.name"), ({"model": 5}, "model"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"truncate": 1}, "truncate"),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_kind_is_refused_by_name(body: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**{"messages": HI, **body})
    assert caught.value.param == param


# ---- chats -----------------------------------------------------------------------------------


def test_a_conversation_has_thoughts_calls_results_and_images() -> None:
    asked = {
        "role": "user",
        "content": "Look",
        "images": [BASE64, f"data:image/png;base64,{BASE64}"],
    }
    called = {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [
        {"function": {"name": "f", "arguments": {"city": "Oslo"}}}]}  # fmt: skip
    result = {"role": "tool", "content": "rain", "tool_name": "f"}
    system = {"role": "system", "content": "Rhyme."}
    assert chat(messages=[system, asked, called, result]).messages == (
        ChatMessage("system", "Rhyme."),
        ChatMessage("user", "Look", images=tuple(
            Image(PICTURE, 0, f"messages.[1].images.[{i}]") for i in range(2))),
        ChatMessage("assistant", "", reasoning="Hm",
                    tool_calls=(ToolCall("call_0", "f", '{"city": "Oslo"}'),)),
        ChatMessage("tool", "rain", name="f", tool_call_id="call_0"),
    )  # fmt: skip


def test_a_result_without_an_id_belongs_to_the_first_call_of_its_tool_that_has_none() -> None:
    def calls(*names: str, **more: Any) -> Any:
        asked = [{"function": {"name": name, "arguments": {}}, **more} for name in names]
        return {"role": "assistant", "tool_calls": asked}

    def results(*names: str | None, **more: Any) -> Any:
        return [{"role": "tool", "content": "x", "tool_name": name, **more} for name in names]

    found = chat(messages=[
        calls("f", "g", "g"), *results("g", "f", None),
        calls("f", id="mine"), *results("f", tool_call_id="mine"), *results("f"),
        calls("f"), *results("h"),
    ]).messages  # fmt: skip
    assert [call.id for turn in found for call in turn.tool_calls] == [
        "call_0", "call_1", "call_2", "mine", "call_4",
    ]  # fmt: skip
    assert [turn.tool_call_id for turn in found if turn.role == "tool"] == [
        "call_1", "call_0", "call_2", "mine", None, "call_4",
    ]  # fmt: skip


def test_an_image_is_refused_by_a_model_that_sees_none() -> None:
    with pytest.raises(BadRequest, match="this model sees no images"):
        parse_chat(shared_form({"messages": [{"role": "user", "images": [BASE64]}]}))


def test_tools_may_come_without_a_type() -> None:
    function = {"name": "f", "description": "d", "parameters": SCHEMA}
    for tool in ({"function": function}, {"type": "function", "function": function}):
        assert chat(tools=[tool]).options.tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("think", "thinks", "kwargs"),
    [
        (None, True, None), (True, True, None), (False, False, None), ("none", False, None),
        ("low", True, {"reasoning_effort": "low"}), ("max", True, {"reasoning_effort": "max"}),
    ],
)  # fmt: skip
def test_thinking_is_a_switch_or_an_effort(think: Any, thinks: bool, kwargs: Any) -> None:
    options = chat(think=think).options
    assert (options.thinks, options.template_kwargs) == (thinks, kwargs)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        (None, None), ("", None), ("json", {"type": "object"}), (SCHEMA, SCHEMA),
        ('{"type": "object"}', {"type": "object"}),
    ],
)  # fmt: skip
def test_the_form_of_a_reply_is_json_or_a_schema(form: Any, schema: Any) -> None:
    found = chat(format=form).options.json_schema
    assert (found is None) == (schema is None)
    if schema:
        assert found is not None and found["type"] == "object"
        assert found.get("required") == schema.get("required")


def test_a_long_conversation_loses_its_oldest_messages_unless_told_not_to() -> None:
    assert [chat(truncate=value).truncates for value in (None, True, False)] == [True, True, False]


# ---- completions and embeddings --------------------------------------------------------------


def test_a_prompt_is_a_chat_unless_it_is_raw() -> None:
    found = parse(parse_generate, prompt="Hi", system="Rhyme.", images=[BASE64]).request
    assert isinstance(found, Chat)
    image = Image(PICTURE, 0, "images.[0]")
    assert found.messages == (ChatMessage("system", "Rhyme."), replace(USER, images=(image,)))
    params = replace(NO_DEFAULTS.params, n_logprobs=2)
    raw = parse(parse_generate, prompt="Hi", raw=True, logprobs=True, top_logprobs=2)
    assert raw.request == Complete(0, ("Hi",), params)
    gap = parse(parse_generate, prompt="a", suffix="b", context=[1], template="t")
    assert gap.request == Complete(0, ("a",), NO_DEFAULTS.params, suffix="b")
    assert gap.ignored == ("context", "template")
    with pytest.raises(BadRequest) as caught:
        parse(parse_generate, prompt="Hi", raw=True, images=[BASE64])
    assert caught.value.param == "images"


def test_embeddings_are_of_a_text_or_of_several() -> None:
    assert parse(parse_embed, input="a").request == Embed(0, ("a",))
    call = parse(parse_embed, input=["a", "b"], dimensions=2, truncate=True, options={"num_ctx": 1})
    assert call.request == Embed(0, ("a", "b"), 2)
    assert call.ignored == ("options.num_ctx", "truncate")  # a text that is too long is refused
    assert parse(parse_embed, input="a", truncate=False).ignored == ()
    assert parse(parse_embeddings_old, prompt="a").request == Embed(0, ("a",))


@pytest.mark.parametrize(
    ("reader", "body"),
    [
        (parse_chat, {}), (parse_chat, {"messages": []}), (parse_generate, {}),
        (parse_generate, {"prompt": "", "raw": True}), (parse_embed, {"input": ""}),
        (parse_embeddings_old, {}),
    ],
)  # fmt: skip
def test_a_body_with_nothing_to_read_loads_the_model_or_unloads_it(reader: Any, body: Any) -> None:
    assert parse(reader, **body).request == Tokenize(0, "")
    assert not unloads(body)
    assert unloads(body | {"keep_alive": 0}) and unloads(body | {"keep_alive": "0s"})
    assert not unloads({"prompt": "Hi", "keep_alive": 0})
