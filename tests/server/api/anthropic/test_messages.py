"""Anthropic's Messages API: its requests as those of a chat, and its replies, streamed and not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.errors import (
    ApiError,
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InternalError,
    NotFound,
    Unavailable,
)
from lmlite.messages import Chat, Failed, ToolCall
from lmlite.server.api.anthropic.errors import message_error
from lmlite.server.api.anthropic.requests import parse_count, parse_message
from lmlite.server.api.openai.requests import parse_chat
from lmlite.server.models.open_requests import error_of
from tests.support.server_process import Answer, RunningServer
from tests.support.streams import folded_message, typed_events

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "", "input_schema": SCHEMA}
TIMER = {"name": "set_timer", "input_schema": {"type": "object", "properties": {}}}
CACHED = {"cache_control": {"type": "ephemeral"}}
OSLO = "What is the weather in Oslo?"
THINK = "Think first: What is 12 + 9?"


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def function(tool: dict[str, Any]) -> dict[str, Any]:
    """The same tool, as a chat has it."""
    body = {"name": tool["name"], "parameters": tool["input_schema"]}
    return {"type": "function", "function": body}


# ---- a request is that of a chat -------------------------------------------------------------


def request(**body: Any) -> Chat:
    found = parse_message({"messages": HI, "max_tokens": 9, **body}).request
    assert isinstance(found, Chat)
    return found


def chat(**body: Any) -> Chat:
    found = parse_chat({"messages": HI, "max_tokens": 9, **body}).request
    assert isinstance(found, Chat)
    return found


def test_values_mean_what_they_mean_in_a_chat() -> None:
    same = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 7, "min_p": 0.1,
            "stop_in_reasoning": True}  # fmt: skip
    assert request(**same, stop_sequences=["x"]) == chat(**same, stop=["x"])
    assert request(max_tokens=0) == chat(max_tokens=0)
    call = parse_message({"messages": HI, "max_tokens": 9, "model": "m", "stream": True})
    assert call.stream


@pytest.mark.parametrize("system", ["Be brief.", [text("Be "), text("brief.") | CACHED]])
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    assert request(system=system) == chat(
        messages=[{"role": "system", "content": "Be brief."}, *HI]
    )


def test_no_system_prompt_is_no_message() -> None:
    assert request(system="") == request(system=None) == request(system=[]) == chat()


def test_nothing_is_added_between_blocks() -> None:
    blocks = [{"role": "user", "content": [text("a"), text("b")]}]
    assert request(messages=blocks) == chat(messages=[{"role": "user", "content": "ab"}])


def test_messages_of_one_role_stay_apart() -> None:
    twice = [*HI, *HI, {"role": "system", "content": "Now be brief."}]
    assert request(messages=twice) == chat(messages=twice)


def test_an_assistants_blocks_are_one_message() -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "abc"},
              {"type": "redacted_thinking", "data": "xyz"}, text("I "), text("look."),
              {"type": "tool_use", "id": "t1", "name": "get_weather",
               "input": {"city": "Tromsø"}}]  # fmt: skip
    call = {"id": "t1", "function": {"name": "get_weather", "arguments": '{"city": "Tromsø"}'}}
    assert request(messages=[{"role": "assistant", "content": blocks}, *HI]) == chat(
        messages=[
            {"role": "assistant", "content": "I look.", "reasoning_content": "hm",
             "tool_calls": [call]},
            *HI,
        ]
    )  # fmt: skip


def test_results_of_tools_are_messages_of_their_own() -> None:
    blocks = [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
              {"type": "tool_result", "tool_use_id": "t2", "content": [text("4 "), text("deg")],
               "is_error": False},
              {"type": "tool_result", "tool_use_id": "t3", "is_error": True},
              text("And "), text("now?")]  # fmt: skip
    assert request(messages=[{"role": "user", "content": blocks}]) == chat(
        messages=[
            {"role": "tool", "tool_call_id": "t1", "content": "rain"},
            {"role": "tool", "tool_call_id": "t2", "content": "4 deg"},
            {"role": "tool", "tool_call_id": "t3", "content": ""},
            {"role": "user", "content": "And now?"},
        ]
    )


def test_a_tool_is_a_function() -> None:
    tools = [WEATHER, {**TIMER, "type": "custom", **CACHED}]
    assert request(tools=tools) == chat(tools=[function(WEATHER), function(TIMER)])


@pytest.mark.parametrize(
    ("choice", "of_chat"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "set_timer"},
         {"type": "function", "function": {"name": "set_timer"}}),
    ],
)  # fmt: skip
def test_a_tool_choice_is_the_chats(choice: dict[str, Any], of_chat: Any) -> None:
    tools, functions = [WEATHER, TIMER], [function(WEATHER), function(TIMER)]
    assert request(tools=tools, tool_choice=choice) == chat(tools=functions, tool_choice=of_chat)
    alone = {**choice, "disable_parallel_tool_use": True}
    assert request(tools=tools, tool_choice=alone) == chat(
        tools=functions, tool_choice=of_chat, parallel_tool_calls=False
    )
    several = {**choice, "disable_parallel_tool_use": False}
    assert request(tools=tools, tool_choice=several) == request(tools=tools, tool_choice=choice)


def test_thinking_is_on_unless_it_is_turned_off() -> None:
    for thinking in (None, {"type": "adaptive", "budget_tokens": 9}):
        assert request(thinking=thinking) == chat()
    limited = request(thinking={"type": "enabled", "budget_tokens": 1024})
    assert limited == chat(reasoning={"max_tokens": 1024})
    assert limited.params.reasoning_budget_tokens == 1024
    assert request(thinking={"type": "disabled"}) == chat(reasoning_effort="none")


def test_the_output_config_is_the_chats_effort_and_form() -> None:
    assert request(output_config={"effort": "low"}) == chat(reasoning_effort="low")
    form = {"type": "json_schema", "schema": SCHEMA}
    assert request(output_config={"format": form}) == chat(
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    )


def test_unknown_fields_are_reported() -> None:
    inert = {"metadata": {"user_id": "me"}, **CACHED}
    unknown = {"betas": ["x"], "service_tier": "auto", "stop": "x"}
    body = {"messages": HI, "max_tokens": 9, **inert, **unknown}
    call = parse_message(body)
    assert call.ignored == ("betas", "service_tier", "stop")
    assert call.request == chat()


def test_a_count_needs_no_max_tokens_and_generates_nothing() -> None:
    call = parse_count({"messages": HI, "stream": True})
    assert isinstance(call.request, Chat)
    assert (call.request.dry_run, call.stream) == (True, False)


# ---- what a chat has no place for ------------------------------------------------------------


def of_role(role: str, *content: Any) -> dict[str, Any]:
    return {"messages": [*HI, {"role": role, "content": list(content)}]}


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


def document(source: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "document", "source": source, **more}


TOLD: list[tuple[dict[str, Any], str]] = [
    (document({"type": "text", "media_type": "text/plain", "data": "Grass is green."}, title="a"),
     "Grass is green.\n"),
    (document({"type": "content", "content": "Grass."}), "Grass.\n"),
    (document({"type": "content", "content": [text("Grass "), text("is green.\n")]}),
     "Grass is green.\n"),
    (document({"type": "base64", "media_type": "application/pdf", "data": "JVBE"}, title="a.pdf"),
     "[document a.pdf application/pdf: it cannot be read here]\n"),
    (document({"type": "url", "url": "https://a.b/c.pdf"}),
     "[document https://a.b/c.pdf: it cannot be read here]\n"),
    (document({"type": "file", "file_id": "file_1"}),
     "[document file_1: it cannot be read here]\n"),
    ({"type": "search_result", "title": "Lawns", "source": "https://a.b", "citations": {},
      "content": [text("Grass is green.")]},
     '[search_result: {"title": "Lawns", "source": "https://a.b"}]\nGrass is green.\n'),
    ({"type": "tool_reference", "tool_name": "set_timer", **CACHED},
     '[tool_reference: {"tool_name": "set_timer"}]\n'),
    ({"type": "container_upload", "file_id": "file_1"},
     '[container_upload: {"file_id": "file_1"}]\n'),
    ({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
     '[server_tool_use: {"name": "web_search", "input": {"query": "x"}}]\n'),
    ({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
        {"type": "web_search_result", "title": "Lawns", "url": "https://a.b",
         "encrypted_content": "xyz", "page_age": None}]},
     '[web_search_tool_result: {"content": [{"type": "web_search_result", "title": "Lawns", '
     '"url": "https://a.b"}]}]\n'),
    ({"type": "mcp_tool_result", "tool_use_id": "t", "is_error": False, "content": [text("7")]},
     '[mcp_tool_result: {"is_error": false, "content": [{"type": "text", "text": "7"}]}]\n'),
    ({"type": "of_next_year"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("block", "words"), TOLD)
def test_a_block_of_another_type_is_its_text_or_a_line(block: dict[str, Any], words: str) -> None:
    def said(role: str, *content: Any) -> Chat:
        return request(messages=[{"role": role, "content": list(content)}, *HI])

    assert said("user", text("a"), block, text("b")) == chat(
        messages=[{"role": "user", "content": f"a{words}b"}, *HI]
    )
    assert said("user", {**RESULT, "content": [block]}) == chat(
        messages=[{"role": "tool", "tool_call_id": "t", "content": words}, *HI]
    )
    assert said("assistant", text("a"), block) == chat(
        messages=[{"role": "assistant", "content": f"a{words}"}, *HI]
    )


def test_an_image_that_lies_elsewhere_becomes_a_line() -> None:
    image = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}
    words = "[image file_1: it cannot be read here]\n"
    assert request(messages=[{"role": "user", "content": [image]}]) == chat(
        messages=[{"role": "user", "content": words}]
    )


def test_a_document_may_show_images() -> None:
    shown = document({"type": "content", "content": [
        {"type": "image", "source": {"type": "base64", "data": ""}}]})  # fmt: skip
    with pytest.raises(BadRequest) as caught:
        request(messages=[{"role": "user", "content": [shown]}])
    assert caught.value.param == "messages.0.content.0.source.content.0.image_url"


def test_tools_of_other_types_are_left_out_and_all_of_it_is_named() -> None:
    server_tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
                    {"type": "bash_20250124", "name": "bash"},
                    {"type": "mcp_toolset", "mcp_server_name": "a"}]  # fmt: skip
    own = {**TIMER, "type": "of_next_year", "defer_loading": True}
    reference = {"type": "tool_reference", "tool_name": "f"}
    call = parse_message({
        "messages": [
            {"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]},
            *of_role("user", {**RESULT, "content": [reference]}, text("x"))["messages"],
        ],
        "system": [text("Be brief."), {"type": "new"}],
        "max_tokens": 9,
        "tools": [*server_tools, WEATHER, own],
    })  # fmt: skip
    assert isinstance(call.request, Chat)
    assert call.request.options == chat(tools=[function(WEATHER), function(TIMER)]).options
    assert call.ignored == ("content.container_upload", "content.new", "content.tool_reference",
        "tools.bash_20250124", "tools.mcp_toolset", "tools.web_search_20250305")  # fmt: skip


# ---- what is wrong is named as the client wrote it -------------------------------------------


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": None}, "max_tokens", "max_tokens is missing"),
    ({"max_tokens": -1}, "max_tokens", "max_tokens must be from 0 to 2147483647"),
    ({"messages": None}, "messages", "messages is missing"),
    ({"messages": []}, "messages", "messages has no message"),
    ({"messages": "Hi"}, "messages", "messages is not a list"),
    ({"messages": ["Hi"]}, "messages.0", "a message is an object"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role",
     "role is user, assistant or system"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "messages.0.content is missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content",
     "content is a string or a list of blocks"),
    (of_role("user", "Hi"), "messages.1.content.0", "a content block is an object"),
    (of_role("user", text("x"), {"type": "text"}), "messages.1.content.1.text",
     "messages.1.content.1.text is missing"),
    (of_role("user", {"type": "image", "source": {}}), "messages.1.content.0.source.data",
     "messages.1.content.0.source.data is missing"),
    (of_role("user", {"type": "image", "source": {"type": "base64", "data": ""}}),
     "messages.1.content.0.image_url",
     "this model sees no images: serve it with its projector, --mmproj FILE"),
    (of_role("user", {**RESULT, "content": [USE]}), "messages.1.content.0.content.0.type",
     "a block here is of type text or image"),
    (of_role("user", USE), "messages.1.content.0.type",
     "a block here is of type text or image or tool_result"),
    (of_role("assistant", RESULT), "messages.1.content.0.type",
     "a block here is of type text or thinking or redacted_thinking or tool_use"),
    (of_role("user", {"type": "tool_result", "content": "x"}), "messages.1.content.0.tool_use_id",
     "messages.1.content.0.tool_use_id is missing"),
    (of_role("user", {**RESULT, "is_error": "no"}), "messages.1.content.0.is_error",
     "messages.1.content.0.is_error is not true or false"),
    (of_role("assistant", {**USE, "input": [1]}), "messages.1.content.0.input",
     "messages.1.content.0.input is not an object"),
    (of_role("assistant", {**USE, "name": 5}), "messages.1.content.0.name",
     "messages.1.content.0.name is not a string"),
    (of_role("assistant", USE), "messages", "the last message calls tools: send their results"),
    ({"system": [{"type": "image"}]}, "system.0.type", "a block here is of type text"),
    ({"stop_sequences": ["x" * 257]}, "stop_sequences",
     "a stop string has at most 256 characters"),
    ({"stop_sequences": 5}, "stop_sequences", "stop_sequences is a string or a list of strings"),
    ({"tools": [5]}, "tools.0", "a tool is an object"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}],
      "tool_choice": {"type": "any"}}, "tool_choice", "tool_choice needs tools"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema", "tools.0.input_schema is missing"),
    ({"tools": [{**WEATHER, "input_schema": 5}]}, "tools.0.input_schema",
     "tools.0.input_schema is not a JSON schema"),
    ({"tools": [{**WEATHER, "name": "a b"}]}, "tools.0.name",
     "a tool's name has 1 to 128 letters, digits, _ . : / or -"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "tool_choice needs tools"),
    ({"tools": [TIMER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice",
     "tool_choice names none of the tools"),
    ({"tools": [TIMER], "tool_choice": {"type": "tool"}}, "tool_choice.name",
     "tool_choice.name is missing"),
    ({"tools": [TIMER], "tool_choice": {"type": "all"}}, "tool_choice.type",
     "type is auto, any, tool or none"),
    ({"thinking": {"type": "on"}}, "thinking.type", "type is enabled, disabled or adaptive"),
    ({"thinking": {"type": "enabled", "budget_tokens": "9"}}, "thinking.budget_tokens",
     "thinking.budget_tokens is not a whole number"),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens",
     f"thinking.budget_tokens must be from 0 to {2**31 - 1}"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort",
     "effort is one of none, minimal, low, medium, high, xhigh, max"),
    ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type",
     "type is json_schema"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema",
     "output_config.format.schema is missing"),
    ({"temperature": "hot"}, "temperature", "temperature is not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), REFUSED)
def test_an_error_names_the_field(body: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**body)
    assert (caught.value.param, caught.value.message) == (param, message)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BadRequest("type is json_schema", param="a.type"), "invalid_request_error",
         "a.type: type is json_schema"),
        (BadRequest("max_tokens is missing", param="max_tokens"), "invalid_request_error",
         "max_tokens is missing"),
        (BadRequest("output_config.format.schema.not cannot be honoured",
                    param="output_config.format.schema"), "invalid_request_error",
         "output_config.format.schema.not cannot be honoured"),
        (Forbidden("not called so"), "permission_error", "not called so"),
        (NotFound("there is nothing"), "not_found_error", "there is nothing"),
        (BodyTooLarge("large"), "request_too_large", "large"),
        (Unavailable("full"), "overloaded_error", "full"),
        (InternalError("broken"), "api_error", "broken"),
    ],
)  # fmt: skip
def test_an_error_has_anthropics_form(error: ApiError, kind: str, message: str) -> None:
    assert message_error(error) == {"type": "error", "error": {"type": kind, "message": message}}


def test_an_error_of_the_worker_names_the_field_of_this_api() -> None:
    failed = Failed(1, "BadRequest", "no grammar can be made of response_format: x")
    error = error_of(failed, parse_message({"messages": HI, "max_tokens": 9}).field_names)
    assert error.message == "no grammar can be made of output_config.format: x"


def test_a_call_that_was_cut_is_taken_back_and_one_without_a_name_is_none() -> None:
    cut, nameless = {**USE, "input": '{"city": "Par'}, {**USE, "name": ""}
    answer = {"role": "assistant", "content": [cut, nameless]}
    turn = request(messages=[*HI, answer, *HI]).messages[1]
    assert turn.tool_calls == (ToolCall("t", "f", '{"city": "Par'),)


BILLING = "x-anthropic-billing-header: cc_version=2.1.{}; cc_entrypoint=cli; cch={};"


@pytest.mark.parametrize(
    ("system", "left"),
    [
        (BILLING + "\nBe kind.", "Be kind."),
        ([text(BILLING), text("Be "), text("kind.")], "Be kind."),
        ([text(f"{BILLING}\n\nBe kind.\n{BILLING}")], f"Be kind.\n{BILLING}"),
        (f"Be kind.\n{BILLING}", f"Be kind.\n{BILLING}"),
    ],
)
def test_the_line_that_changes_each_turn_is_no_part_of_the_system_prompt(
    system: Any, left: str
) -> None:
    assert request(system=system) == request(system=left)


def test_a_system_prompt_of_only_that_line_is_empty() -> None:
    assert request(system=[text(BILLING)]) == request()


def test_the_line_stays_in_messages_of_users() -> None:
    said = [{"role": "user", "content": BILLING}]
    assert request(messages=said).messages[0].content == BILLING


# ---- over HTTP -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def post(server: RunningServer, question: str, **more: Any) -> Answer:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 200,
            "temperature": 0}  # fmt: skip
    headers = {"X-Api-Key": "x", "Anthropic-Version": "2023-06-01"}  # accepted, not needed
    return server.request("POST", MESSAGES, body | more, headers)


def ask(server: RunningServer, question: str, **more: Any) -> Any:
    answer = post(server, question, **more)
    assert answer.status == 200, answer.body
    return answer.json


def without_ids(message: dict[str, Any]) -> Any:
    assert message["id"].startswith("msg_")
    content = [{**block, "id": ""} if "id" in block else block for block in message["content"]]
    return message | {"id": "", "content": content}


@pytest.mark.parametrize(
    ("question", "more"),
    [
        ("Tell me a story.", {}),
        ("Tell me a story.", {"stop_sequences": ["."]}),
        ("Tell me a story.", {"max_tokens": 5}),
        (OSLO, {"tools": [WEATHER, TIMER]}),
        (THINK, {}),
    ],
)
def test_the_events_of_a_stream_are_those_of_the_message(
    server: RunningServer, question: str, more: dict[str, Any]
) -> None:
    more = {"temperature": 1, "seed": 7, **more}
    ask(server, question, **more)  # from here on as much of the prompt is in memory
    message = ask(server, question, **more)
    answer = post(server, question, **more, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    events = typed_events(answer.body)
    assert without_ids(folded_message(events)) == without_ids(message)
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


def test_a_plain_answer(server: RunningServer) -> None:
    message = ask(server, "Say hello", system="Be brief.")
    assert message["content"] == [text("hello")]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")


def test_thoughts_are_a_block_in_front(server: RunningServer) -> None:
    thinking, answer = ask(server, THINK)["content"]
    assert answer == text("21")
    assert thinking["thinking"].startswith("10 + 0 = 10, and 2 + 9 = 11.")
    (alone,) = ask(server, THINK, thinking={"type": "disabled"})["content"]
    assert alone["type"] == "text"


def test_a_call_and_its_result(server: RunningServer) -> None:
    message = ask(server, OSLO, tools=[WEATHER, TIMER])
    (call,) = message["content"]
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Oslo"})
    assert message["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "rain, 4 degrees"}
    turns = [{"role": "user", "content": OSLO}, {"role": "assistant", "content": [call]},
             {"role": "user", "content": [result]}]  # fmt: skip
    after = ask(server, "", messages=turns, tools=[WEATHER, TIMER])
    assert after["content"] == [text("The result is rain, 4 degrees.")]


def test_a_call_can_be_required(server: RunningServer) -> None:
    choice = {"type": "tool", "name": "set_timer"}
    (call,) = ask(server, OSLO, tools=[WEATHER, TIMER], tool_choice=choice)["content"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "set_timer", {})


def test_the_stop_sequence_that_matched_is_reported(server: RunningServer) -> None:
    message = ask(server, "Count from 3 to 9.", stop_sequences=["x", ", 6"])
    assert message["content"] == [text("3, 4, 5")]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", ", 6")


def test_a_beginning_of_the_answer_is_continued(server: RunningServer) -> None:
    turns = [{"role": "user", "content": "Who are you?"},
             {"role": "assistant", "content": "I am tiny, the"}]  # fmt: skip
    message = ask(server, "", messages=turns)
    assert message["content"][0]["text"].startswith(" little model inside lmlite.")


def test_the_answer_has_the_form_that_was_asked_for(server: RunningServer) -> None:
    person = {"name": {"type": "string"}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": person, "required": ["name", "age"]}
    form = {"type": "json_schema", "schema": schema}
    question = "Anna is 12 years old. Answer as JSON with name and age."
    (block,) = ask(server, question, output_config={"format": form})["content"]
    assert json.loads(block["text"]) == {"name": "Anna", "age": 12}


def test_a_count_is_the_number_that_the_answer_reports(server: RunningServer) -> None:
    body = {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Is it cold in Rome?"}],
        "tools": [WEATHER],
    }
    for _ in range(2):  # whether it is in memory or not
        counted = server.request("POST", COUNT, body)
        assert counted.status == 200, counted.body
        usage = ask(server, "", **body)["usage"]
        n_prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert counted.json == {"input_tokens": n_prompt}


def test_the_second_turn_of_claude_code_reads_only_new_tokens(server: RunningServer) -> None:
    prompt = "You are an agent. " * 40

    def ask(turns: list[Any], n: int) -> Any:
        blocks = [text(BILLING.format(n, f"{n:05x}")), {**text(prompt), **CACHED}]
        body = {"messages": turns, "max_tokens": 5, "temperature": 0, "system": blocks}
        return server.post(MESSAGES, **body).json

    first = ask(HI, 1)
    turns = [*HI, {"role": "assistant", "content": first["content"]}, *HI]
    n_first = first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"]
    usage = ask(turns, 2)["usage"]
    assert n_first > 150
    assert usage["cache_read_input_tokens"] >= n_first - 5
    assert usage["input_tokens"] < 30


def test_cached_tokens_are_counted_separately(server: RunningServer) -> None:
    first = ask(server, "How many moons has Mars?")["usage"]
    again = ask(server, "How many moons has Mars?")["usage"]
    assert (again["input_tokens"], again["cache_creation_input_tokens"]) == (1, 0)
    n_prompt = first["input_tokens"] + first["cache_read_input_tokens"]
    assert again["cache_read_input_tokens"] == n_prompt - 1


def test_a_dry_run_knows_the_stop_sequences(server: RunningServer) -> None:
    body = {"messages": HI, "max_tokens": 9, "stop_sequences": ["x"]}
    found = server.request("POST", MESSAGES, body, {"X-Dry-Run": "1"}).json
    assert found["sampling"]["stop"] == {"value": ["x"], "origin": "request"}


def test_only_paths_of_this_api_have_anthropics_errors(server: RunningServer) -> None:
    cases = [
        (server.post(MESSAGES, messages=HI), 400, "invalid_request_error", "max_tokens is missing"),
        (server.post(COUNT), 400, "invalid_request_error", "messages is missing"),
        (server.request("POST", MESSAGES, b"{"), 400, "invalid_request_error",
         "the body is not valid JSON, at line 1, column 2"),
        (server.get(MESSAGES), 405, "invalid_request_error", "/v1/messages takes POST and OPTIONS"),
        (server.get(f"{MESSAGES}/batches"), 404, "not_found_error",
         "there is nothing at /v1/messages/batches"),
    ]  # fmt: skip
    for answer, status, kind, message in cases:
        assert answer.status == status
        assert answer.json == {
            "type": "error",
            "error": {"type": kind, "message": message},
            "request_id": answer.headers["x-request-id"],
        }
    unknown = server.post(MESSAGES, messages=HI, max_tokens=1, model="claude")
    assert (unknown.status, unknown.json["error"]["type"]) == (404, "not_found_error")
    assert server.get("/v1/nothing").error["type"] == "invalid_request_error"


def test_ignored_fields_are_reported_and_a_strict_server_refuses_them(
    server: RunningServer,
) -> None:
    told = post(server, "Hi", max_tokens=1, betas=["x"])
    assert (told.status, told.headers["x-ignored-params"]) == (200, "betas")
    with RunningServer("--strict") as strict:
        refused = post(strict, "Hi", betas=["x"])
        assert (refused.status, refused.json["error"]["message"]) == (
            400,
            "this server does not know: betas",
        )
        assert post(strict, "Hi", max_tokens=1, metadata={}).status == 200
