"""Tools, their results, and the form of an answer: from a client's JSON to messages."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import ApiError
from lmlite.messages import Chat, ChatMessage, ChatOptions, ToolCall
from lmlite.server.api.call import Call
from lmlite.server.api.openai.requests import parse_chat
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.image_files import RED, png

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
PATCH = {
    "type": "custom",
    "custom": {
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
    },
}
HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}


def chat(body: dict[str, Any], *, takes_images: bool = False) -> Call:
    return parse_chat({"messages": HI, **body}, replace(NO_DEFAULTS, takes_images=takes_images))


def options(**body: Any) -> ChatOptions:
    request = chat(body).request
    assert isinstance(request, Chat)
    return request.options


def messages_of(*turns: Any, takes_images: bool = False) -> tuple[ChatMessage, ...]:
    request = chat({"messages": [*turns]}, takes_images=takes_images).request
    assert isinstance(request, Chat)
    return request.messages


def refused(body: dict[str, Any]) -> tuple[str | None, str]:
    """(param, message) of the error."""
    with pytest.raises(ApiError) as caught:
        chat(body)
    assert caught.value.status == 400
    return caught.value.param, caught.value.message


# ---- what is understood --------------------------------------------------------------------


def test_a_request_that_asks_for_nothing_gets_the_defaults() -> None:
    assert options() == options(tools=None, response_format=None) == ChatOptions()


def test_a_tool_keeps_what_templates_know_of_it() -> None:
    listed = options(tools=[WEATHER]).tools
    function = {key: WEATHER["function"][key] for key in ("name", "description", "parameters")}  # type: ignore[index]
    assert listed == ({"type": "function", "function": function},)


def test_a_tool_without_parameters_takes_none() -> None:
    listed = options(tools=[{"type": "function", "function": {"name": "now"}}]).tools
    empty = {"type": "object", "properties": {}}
    assert listed[0]["function"] == {"name": "now", "description": "", "parameters": empty}


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_choice_is_kept(choice: str) -> None:
    assert options(tools=[WEATHER], tool_choice=choice).tool_choice == choice


def test_a_function_chosen_by_name_must_be_called() -> None:
    named = options(
        tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}}
    )
    assert (named.tool_choice, named.tool_names) == ("required", ("get_weather",))


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    (tool,) = options(tools=[PATCH]).tools
    assert tool == {
        "type": "function",
        "function": {
            "name": "apply_patch",
            "description": "Edits files.",
            "parameters": {
                "type": "object",
                "properties": {
                    "input": {
                        "type": "string",
                        "description": "A text that follows this lark grammar:\nstart: /x/",
                    }
                },
                "required": ["input"],
                "additionalProperties": False,
            },
        },
    }


def test_tools_of_other_types_are_left_out() -> None:
    others = [{"type": kind} for kind in ("web_search", "mcp", "computer_use_preview", "new")]
    assert options(tools=[*others, WEATHER, *others]) == options(tools=[WEATHER])
    assert options(tools=others) == options(tools=others, tool_choice="auto") == ChatOptions()


def test_left_out_tools_have_names() -> None:
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}},
                                         {"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "Hi"},
        ],
        "tools": [WEATHER, {"type": "web_search"}, PATCH,
                  {"type": "custom", "custom": {"name": "say", "format": {"type": "text"}}}],
    }  # fmt: skip
    call = chat(body)
    assert call.ignored == ("content.input_audio", "tools.apply_patch.format", "tools.web_search")
    assert call.custom_tools == {"apply_patch", "say"}


@pytest.mark.parametrize(
    ("url", "sees"),
    [
        ("data:image/png;base64,AAAA", False),
        ("data:image/png;base64,AAAA", True),  # no image at all
        ("data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=", True),
        ("https://a.example/b.png", True),
    ],
)
def test_what_a_tool_shows_and_nobody_can_look_at_is_told(url: str, sees: bool) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "A: "}, image]
    result = {"role": "tool", "tool_call_id": "call_1", "content": content}
    words = "A: [image: it cannot be read here]\n"
    told = ChatMessage("tool", words, tool_call_id="call_1")
    assert messages_of(result, takes_images=sees) == (told,)
    assert chat({"messages": [result]}, takes_images=sees).ignored == ("content.image_url",)
    with pytest.raises(ApiError):
        messages_of({"role": "user", "content": content}, takes_images=sees)


def test_what_a_tool_shows_to_a_model_that_sees_is_looked_at() -> None:
    dot = png(1, 1, RED)
    image = {"type": "image_url", "image_url": {"url": base64.b64encode(dot).decode()}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [image]}
    (shown,) = messages_of(result, takes_images=True)
    assert [each.data for each in shown.images] == [dot]
    assert chat({"messages": [result]}, takes_images=True).ignored == ()


def test_a_tool_may_have_nothing_to_say() -> None:
    results: tuple[dict[str, Any], ...] = ({}, {"content": None}, {"content": []}, {"content": ""})
    for result in results:
        (said,) = messages_of({"role": "tool", **result})
        assert said == ChatMessage("tool", "")


@pytest.mark.parametrize("name", ["get weather", "wetter/für?", "x" * 300, "<|im_end|>"])
def test_a_name_that_a_model_made_up_is_taken_back(name: str) -> None:
    function = {"name": name, "arguments": "{}"}
    (call,) = calls_of({"id": "call_1", "function": function})
    assert call.name == name


def test_no_parameters_as_php_writes_them() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": []}}
    assert options(tools=[tool]) == options(
        tools=[{**tool, "function": {"name": "f", "parameters": {}}}]
    )


@pytest.mark.parametrize("parallel", [None, True, False])
def test_parallel_calls_are_the_templates_choice_unless_said(parallel: bool | None) -> None:
    assert options(tools=[WEATHER], parallel_tool_calls=parallel).parallel_tool_calls == parallel


def test_the_form_of_an_answer_is_a_schema() -> None:
    assert options(response_format={"type": "text"}).json_schema is None
    assert options(response_format={"type": "json_object"}).json_schema == {"type": "object"}
    beside = options(response_format={"type": "json_object", "schema": {"const": 1}})
    assert beside.json_schema == {"enum": [1]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    closed = SCHEMA | {"required": [], "additionalProperties": False}
    assert options(response_format=wanted).json_schema == closed


def test_thinking_is_turned_off_by_effort_or_by_the_templates_own_variable() -> None:
    assert not options(reasoning_effort="none").thinks
    assert not options(chat_template_kwargs={"enable_thinking": False}).thinks
    assert options(chat_template_kwargs={"enable_thinking": None}) == options()
    high = options(reasoning_effort="high", chat_template_kwargs={"a": [1]})
    assert (high.thinks, high.template_kwargs) == (
        True, {"a": [1], "reasoning_effort": "high"}
    )  # fmt: skip


def test_calls_and_their_results_are_turns() -> None:
    call = {"id": "call_1", "type": "function",
            "function": {"name": "f", "arguments": '{"a": 1}'}}  # fmt: skip
    empty = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}}
    custom = {"id": "call_3", "type": "custom", "custom": {"name": "h", "input": 'a "b"'}}
    assert messages_of(
        {"role": "assistant", "content": None, "tool_calls": [call, empty, custom]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "7"}]},
        {"role": "assistant", "content": "It is 7.", "reasoning_content": "Easy."},
    ) == (
        ChatMessage("assistant", "", tool_calls=(
            ToolCall("call_1", "f", '{"a": 1}'), ToolCall("call_2", "g", "{}"),
            ToolCall("call_3", "h", '{"input": "a \\"b\\""}'))),
        ChatMessage("tool", "7", tool_call_id="call_1"),
        ChatMessage("assistant", "It is 7.", reasoning="Easy."),
    )  # fmt: skip


# ---- what is refused -----------------------------------------------------------------------


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def form(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"strict": True, "schema": schema},
        }
    }


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def called(**function: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}]}


PATH = "response_format.json_schema.schema"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "tools that are an object": ({"tools": {}}, "tools"),
    "513 tools": ({"tools": [WEATHER] * 513}, "tools"),
    "a tool that is a text": ({"tools": ["f"]}, "tools.[0]"),
    "a tool without a type": ({"tools": [{}]}, "tools.[0].type"),
    "a custom tool without a name": ({"tools": [{"type": "custom", "custom": {}}]},
                                     "tools.[0].custom.name"),
    "a custom tool in words": ({"tools": [{"type": "custom", "custom": "x"}]}, "tools.[0].custom"),
    "a required call where all tools are left out": (
        {"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]},
                              "tools.[0].function.name"),
    "a name with a quote": (tool(name='f"'), "tools.[0].function.name"),
    "a name of 129 letters": (tool(name="f" * 129), "tools.[0].function.name"),
    "parameters in a list": (tool(parameters=[{}]), "tools.[0].function.parameters"),
    "a description in numbers": (tool(description=1), "tools.[0].function.description"),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "a choice in other words": ({**tool(), "tool_choice": "any"}, "tool_choice"),
    "a choice of a tool that is not there": (
        {**tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    "parallel calls in words": ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    "a form of another type": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "a form without its schema": ({"response_format": {"type": "json_schema"}},
                                  "response_format.json_schema"),
    "a schema that is a list": (form([]), PATH),
    "a schema that nests too deep": (form(nested(40)), PATH),
    "a schema with too many values": (form({"enum": list(range(4001))}), PATH),
    "a schema of too many bytes": (form({"const": "x" * 70_000}), PATH),
    "a million items": (form({"type": "array", "minItems": 10**6}), PATH),
    "more at least than at most": (form({"type": "array", "minItems": 5, "maxItems": 2}), PATH),
    "a pattern that repeats too often": (form({"type": "string", "pattern": "^a{5000}$"}), PATH),
    "a pattern that repeats backwards": (form({"type": "string", "pattern": "^a{5,2}$"}), PATH),
    "a pattern that is too long": (form({"type": "string", "pattern": "a" * 257}), PATH),
    "a stop in words": ({"stop_in_reasoning": "yes"}, "stop_in_reasoning"),
    "an effort that nobody knows": ({"reasoning_effort": "heroic"}, "reasoning_effort"),
    "variables in a list": ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    "thinking in words": ({"chat_template_kwargs": {"enable_thinking": "no"}},
                          "chat_template_kwargs"),
    "variables that are too large": ({"chat_template_kwargs": {"a": "x" * 20_000}},
                                     "chat_template_kwargs"),
    "a call that is a text": ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]},
                              "messages.[0].tool_calls.[0]"),
    "arguments in a list": (called(name="f", arguments=[]),
                            "messages.[0].tool_calls.[0].function.arguments"),
    "an answer of nothing alone": ({"messages": [{"role": "assistant", "content": ""}]},
                                   "messages"),
    "a user's message without content": ({"messages": [{"role": "user"}]},
                                 "messages.[0].content"),
}  # fmt: skip


@pytest.mark.parametrize("body, param", BAD.values(), ids=BAD.keys())
def test_a_bad_field_is_refused_by_its_name(body: dict[str, Any], param: str) -> None:
    found, message = refused(body)
    assert found == param
    assert message


# ---- what an answer left behind --------------------------------------------------------------


def calls_of(*tool_calls: Any) -> tuple[ToolCall, ...]:
    messages = [*HI, {"role": "assistant", "content": "I look.", "tool_calls": [*tool_calls]}]
    return messages_of(*messages)[1].tool_calls


def test_arguments_that_were_cut_stay_as_they_are() -> None:
    cut = {"id": "1", "function": {"name": "f", "arguments": '{"city": "Par'}}
    assert calls_of(cut) == (ToolCall("1", "f", '{"city": "Par'),)


def test_arguments_that_are_an_object_become_its_text() -> None:
    read = {"id": "1", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
    assert calls_of(read) == (ToolCall("1", "f", '{"city": "Zürich"}'),)


@pytest.mark.parametrize(
    "call",
    [{"id": "1"}, {"function": {}}, {"function": {"name": None}},
     {"id": "1", "function": {"name": "", "arguments": ""}}],
)  # fmt: skip
def test_a_call_without_a_name_is_none(call: Any) -> None:
    assert calls_of(call) == ()


def test_answers_of_nothing_are_left_out() -> None:
    nothing = [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": [], "reasoning_content": ""},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": ""}}]},
    ]
    found = messages_of(*nothing, *HI, *nothing)
    assert found == (ChatMessage("user", "Hi"),)
