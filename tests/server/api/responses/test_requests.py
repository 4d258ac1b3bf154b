"""Bodies of POST /v1/responses become the chats that they mean, and errors name their fields."""

from typing import Any

import pytest

from lmlite.errors import ApiError
from lmlite.messages import Chat, ChatMessage, SamplingParams, ToolCall
from lmlite.server.api.responses.requests import (
    RESPONSE_FIELDS,
    ResponseCall,
    parse_response,
)
from lmlite.server.api.responses.stored import Record, StoredResponses
from lmlite.server.forms.schemas import honoured_schema
from lmlite.server.models.defaults import Defaults

HI = ChatMessage("user", "Hi")
TOOL = {"type": "function", "name": "get_weather", "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": False}  # fmt: skip
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files.",
         "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}}  # fmt: skip
FILES = {"type": "namespace", "name": "mcp__files__", "description": "Files.",
         "tools": [TOOL, {"type": "custom", "name": "note"}]}  # fmt: skip
TABLES = {"type": "namespace", "name": "mcp__tables", "description": "Tables.", "tools": [TOOL]}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}
MISSING = "missing_required_parameter"


def parse(input_: Any = "Hi", stored: StoredResponses | None = None, **body: Any) -> ResponseCall:
    return parse_response(stored or StoredResponses(), {"input": input_, **body})


def chat(input_: Any = "Hi", **body: Any) -> Chat:
    request = parse(input_, **body).request
    assert isinstance(request, Chat)
    return request


def messages(*items: Any) -> tuple[ChatMessage, ...]:
    return chat(list(items)).messages


def call(name: str, arguments: str = "{}") -> dict[str, str]:
    return {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}",
            "name": name, "arguments": arguments, "status": "completed"}  # fmt: skip


def output(name: str, value: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": value}


def reasoning(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [],
            "content": [{"type": "reasoning_text", "text": text}]}  # fmt: skip


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [part]}  # fmt: skip


# ---- input ---------------------------------------------------------------------------------


def test_a_text_is_what_the_user_says() -> None:
    assert chat("Hi").messages == (HI,)


def test_messages_come_with_a_type_or_without() -> None:
    parts = [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}]
    assert messages(
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": parts},
        {"role": "assistant", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ) == (
        ChatMessage("system", "Be brief."),
        HI,
        ChatMessage("assistant", "Hello"),
        ChatMessage("assistant", "No."),
    )


def test_what_the_assistant_thought_said_and_called_is_one_turn() -> None:
    items = [reasoning("Hm. "), reasoning("So."), said("I look."), call("f", '{"a": 1}'), call("g")]
    assert messages(HI_ITEM, *items, output("f", "7"), output("g", PARTS)) == (
        HI,
        ChatMessage("assistant", "I look.", None, "Hm. So.",
                    (ToolCall("call_f", "f", '{"a": 1}'), ToolCall("call_g", "g", "{}"))),
        ChatMessage("tool", "7", tool_call_id="call_f"),
        ChatMessage("tool", "8 9", tool_call_id="call_g"),
    )  # fmt: skip


HI_ITEM = {"role": "user", "content": "Hi"}
PARTS = [{"type": "input_text", "text": "8 "}, {"type": "input_text", "text": "9"}]


def test_what_is_out_of_this_order_begins_the_next_turn() -> None:
    assert messages(call("f"), said("A"), said("B"), reasoning("C"), call("g")) == (
        ChatMessage("assistant", "", tool_calls=(ToolCall("call_f", "f", "{}"),)),
        ChatMessage("assistant", "A"),
        ChatMessage("assistant", "B"),
        ChatMessage("assistant", "", reasoning="C", tool_calls=(ToolCall("call_g", "g", "{}"),)),
    )


def test_of_reasoning_that_is_not_shown_the_summary_counts() -> None:
    summary = {"type": "reasoning", "id": "rs_1", "encrypted_content": "x",
               "summary": [{"type": "summary_text", "text": "In short."}]}  # fmt: skip
    assert messages(summary, said("A")) == (ChatMessage("assistant", "A", reasoning="In short."),)
    assert messages(HI_ITEM, summary | {"summary": []}) == (HI,)


def test_calls_of_custom_tools_and_of_namespaces_are_calls_by_the_names_that_the_model_knows() -> (
    None
):
    custom = {"type": "custom_tool_call", "call_id": "call_p", "name": "apply_patch",
              "input": "a\n"}  # fmt: skip
    noted = custom | {"call_id": "call_n", "name": "note", "namespace": "mcp__files__"}
    apart = call("f") | {"namespace": "mcp__files"}
    result = output("p", "ok") | {"type": "custom_tool_call_output"}
    assert messages(HI_ITEM, custom, noted, apart, result) == (
        HI,
        ChatMessage("assistant", "", tool_calls=(
            ToolCall("call_p", "apply_patch", '{"input": "a\\n"}'),
            ToolCall("call_n", "mcp__files__note", '{"input": "a\\n"}'),
            ToolCall("call_f", "mcp__files__f", "{}"))),
        ChatMessage("tool", "ok", tool_call_id="call_p"),
    )  # fmt: skip


def test_calls_that_only_other_servers_know_are_calls_all_the_same() -> None:
    shell = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_s", "status": "completed",
             "action": {"type": "exec", "command": ["ls"]}}  # fmt: skip
    patch = {"type": "apply_patch_call", "call_id": "call_p", "operation": {"path": "a"}}
    patched = {"type": "apply_patch_call_output", "call_id": "call_p", "status": "completed",
               "output": "done"}  # fmt: skip
    ran = {"type": "shell_call_output", "call_id": "call_s", "output": [{"stdout": "a.txt"}]}
    assert messages(HI_ITEM, shell, patch, output("s", "a.txt"), patched, ran) == (
        HI,
        ChatMessage("assistant", "", tool_calls=(
            ToolCall("call_s", "local_shell",
                     '{"action": {"type": "exec", "command": ["ls"]}}'),
            ToolCall("call_p", "apply_patch", '{"operation": {"path": "a"}}'))),
        ChatMessage("tool", "a.txt", tool_call_id="call_s"),
        ChatMessage("tool", "done", tool_call_id="call_p"),
        ChatMessage("tool", '{"output": [{"stdout": "a.txt"}]}', tool_call_id="call_s"),
    )  # fmt: skip


SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed",
          "action": {"type": "search", "query": "x"}}  # fmt: skip
SEARCHED = '[web_search_call: {"action": {"type": "search", "query": "x"}}]\n'


def test_items_of_other_types_are_told_in_a_line_or_skipped_and_named() -> None:
    silent = [{"type": "item_reference", "id": "msg_1"}, {"type": None, "id": "msg_2"},
              {"id": "msg_3"}, {"role": "assistant", "content": None},
              {"type": "compaction", "id": "cmp_1", "encrypted_content": "xyz"},
              {"type": "ghost_snapshot"}]  # fmt: skip
    secret = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"}
    orphan = {"type": "shell_call_output", "call_id": "call_0", "output": "7"}
    found = parse([HI_ITEM, *silent, secret, SEARCH, SEARCH, said("A"), orphan, HI_ITEM])
    assert isinstance(found.request, Chat)
    assert found.request.messages == (
        HI,
        ChatMessage("assistant", SEARCHED * 2),
        ChatMessage("assistant", "A"),
        ChatMessage("assistant", '[shell_call_output: {"output": "7"}]\n'),
        HI,
    )
    assert found.ignored == ("input.compaction", "input.ghost_snapshot", "input.item_reference",
        "input.reasoning", "input.shell_call_output", "input.web_search_call")  # fmt: skip


def test_a_line_at_the_end_is_nothing_for_the_model_to_go_on_with() -> None:
    assert messages(HI_ITEM, SEARCH) == (HI,)
    assert messages(HI_ITEM, SEARCH, call("f")) == (
        HI, ChatMessage("assistant", SEARCHED, tool_calls=(ToolCall("call_f", "f", "{}"),))
    )  # fmt: skip


def test_parts_of_other_types_are_text() -> None:
    parts = [
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,SGk="},
        {"type": "input_file", "file_id": "file_1", "filename": "a.pdf"},
        {"type": "input_image", "file_id": "file_2"},
        {"type": "summary_text", "text": "."},
    ]
    found = parse([{"role": "user", "content": parts}])
    assert isinstance(found.request, Chat)
    assert found.request.messages[0].content == (
        'Hi[file a.pdf: it cannot be read here]\n[input_image: {"file_id": "file_2"}]\n.'
    )
    assert found.ignored == ("content.input_file", "content.input_image")


def test_a_call_that_was_cut_stays_and_one_without_a_name_goes() -> None:
    cut, nameless = call("f", '{"city": "Par'), call("", "")
    (turn, _) = messages(cut, nameless, output("f", "?"))
    assert [(each.name, each.arguments) for each in turn.tool_calls] == [("f", '{"city": "Par')]


def test_instructions_come_first_and_stay_out_of_the_conversation() -> None:
    stored = StoredResponses()
    stored.keep("resp_1", Record((ChatMessage("user", "A"), ChatMessage("assistant", "B"))))
    found = parse("Hi", stored, instructions="Be brief.", previous_response_id="resp_1")
    assert found.conversation == (ChatMessage("user", "A"), ChatMessage("assistant", "B"), HI)
    assert isinstance(found.request, Chat)
    assert found.request.messages == (ChatMessage("system", "Be brief."), *found.conversation)


# ---- everything else -----------------------------------------------------------------------


def test_a_request_that_asks_for_nothing_gets_the_servers_defaults() -> None:
    params = SamplingParams(temperature=0.25)
    defaults = Defaults(params, {}, separate_reasoning=True)
    found = parse_response(StoredResponses(), {"input": "Hi"}, defaults)
    assert found.request == Chat(0, (HI,), params)
    assert (found.stream, found.ignored) == (False, ())
    assert found.stored is not None


def test_sampling_is_that_of_a_chat() -> None:
    params = chat(max_output_tokens=9, temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=7,
                  stop="x", repeat_penalty=1.5, presence_penalty=1, frequency_penalty=2,
                  logit_bias={"5": 1}).params  # fmt: skip
    assert params == SamplingParams(
        0.5, 3, 0.25, 0.125, 1.5, 1.0, 2.0, ((5, 1.0),), 7, 9, ("x",), None
    )


def test_a_tool_is_that_of_a_chat_and_held_to_its_schema() -> None:
    found = parse(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert isinstance(found.request, Chat)
    options = found.request.options
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    assert options.tools == ({"type": "function", "function": function},)
    assert (options.tool_choice, options.parallel_tool_calls) == ("required", False)
    named = chat(tools=[TOOL], tool_choice={"type": "function", "name": "get_weather"}).options
    assert (named.tool_choice, named.tool_names) == ("required", ("get_weather",))


def names(**body: Any) -> list[str]:
    """Of the functions that the model is offered."""
    return [tool["function"]["name"] for tool in chat(**body).options.tools]


def test_tools_of_other_types_are_left_out_and_named() -> None:
    others = [{"type": kind} for kind in ("web_search", "file_search", "mcp", "local_shell", "new")]
    found = parse(tools=[*others, TOOL])
    assert found.request == chat(tools=[TOOL])
    assert found.ignored == tuple(sorted(f"tools.{tool['type']}" for tool in others))
    assert found.settings["tools"] == [TOOL]
    assert chat(tools=others, tool_choice="auto") == chat()


def test_the_tools_of_a_namespace_are_offered_by_flat_names() -> None:
    found = parse(tools=[TOOL, FILES, TABLES])
    assert names(tools=[TOOL, FILES, TABLES]) == [
        "get_weather", "mcp__files__get_weather", "mcp__files__note", "mcp__tables__get_weather",
    ]  # fmt: skip
    assert found.tools.apart == {
        "mcp__files__get_weather": ("mcp__files__", "get_weather"),
        "mcp__files__note": ("mcp__files__", "note"),
        "mcp__tables__get_weather": ("mcp__tables", "get_weather"),
    }
    assert found.custom_tools == frozenset({"mcp__files__note"})
    assert found.ignored == ()
    assert found.settings["tools"] == [TOOL, FILES, TABLES]


def test_a_flat_name_that_is_too_long_is_cut_and_still_one_of_its_own() -> None:
    long = [TOOL | {"name": "f" * 90 + str(i)} for i in range(2)]
    space = {"type": "namespace", "name": "n" * 60, "tools": long}
    first, second = names(tools=[space])
    assert len(first) == len(second) == 128
    assert first[:119] == second[:119] and first != second
    item = call("f" * 90 + "1") | {"namespace": "n" * 60}
    assert messages(HI_ITEM, item)[1].tool_calls[0].name == second


def test_a_custom_tool_is_a_function_of_one_text_and_its_grammar_is_named() -> None:
    found = parse(tools=[PATCH])
    function = chat(tools=[PATCH]).options.tools[0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert found.custom_tools == frozenset({"apply_patch"})
    assert found.ignored == ("tools.apply_patch.format",)
    assert found.settings["tools"] == [PATCH]


def test_tools_may_come_with_items_of_the_input() -> None:
    items = [{"type": "additional_tools", "role": "developer", "tools": [FILES, PATCH]}, HI_ITEM]
    found = parse(items, tools=[TOOL, TOOL])
    assert isinstance(found.request, Chat)
    assert found.request.messages == (HI,)
    assert names(input_=items, tools=[TOOL, TOOL]) == [
        "get_weather", "mcp__files__get_weather", "mcp__files__note", "apply_patch"
    ]  # fmt: skip
    assert found.ignored == ("tools.apply_patch.format",)
    assert found.settings["tools"] == [TOOL, TOOL]


def test_a_search_of_the_clients_is_a_function_and_finds_tools() -> None:
    search = {"type": "tool_search", "execution": "client", "description": "Finds tools.",
              "parameters": SCHEMA}  # fmt: skip
    asks = {"type": "tool_search_call", "id": "tsc_1", "call_id": "call_t", "execution": "client",
            "status": "completed", "arguments": {"age": 7}}  # fmt: skip
    finds = {"type": "tool_search_output", "call_id": "call_t", "execution": "client",
             "status": "completed", "tools": [TOOL, TABLES]}  # fmt: skip
    items = [HI_ITEM, asks, finds]
    found = parse(items, tools=[search])
    assert isinstance(found.request, Chat)
    assert found.request.messages == (
        HI,
        ChatMessage("assistant", "", tool_calls=(ToolCall("call_t", "tool_search", '{"age": 7}'),)),
        ChatMessage("tool", '{"tools": ["get_weather", "mcp__tables__get_weather"]}',
                    tool_call_id="call_t"),
    )  # fmt: skip
    assert names(input_=items, tools=[search]) == [
        "tool_search", "get_weather", "mcp__tables__get_weather"
    ]  # fmt: skip
    assert (found.tools.has_search, found.ignored) == (True, ())
    assert found.settings["tools"] == [search]
    assert parse(tools=[{"type": "tool_search"}]).ignored == ("tools.tool_search",)


def test_strict_is_told_as_it_was_sent() -> None:
    bare = {"type": "function", "name": "f"}
    for strict in ({"strict": True}, {"strict": False}, {"strict": None}):
        (told,) = parse(tools=[bare | strict]).settings["tools"]
        assert told == {**bare, "parameters": None, **strict}
    assert parse(tools=[bare]).settings["tools"][0]["strict"] is None


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ({"type": "custom", "name": "apply_patch"}, ("required", ("apply_patch",))),
        ({"type": "function", "name": "get_weather", "namespace": "mcp__files__"},
         ("required", ("mcp__files__get_weather",))),
        ({"type": "custom", "name": "note"}, ("required", ("mcp__files__note",))),
        ({"type": "allowed_tools", "mode": "auto",
          "tools": [{"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]},
         ("auto", ("apply_patch",))),
        ({"type": "allowed_tools", "mode": "required",
          "tools": [{"type": "namespace", "name": "mcp__files__"}]},
         ("required", ("mcp__files__get_weather", "mcp__files__note"))),
        ({"type": "allowed_tools", "mode": "auto",
          "tools": [{"type": "function", "name": "get_weather"}]},
         ("auto", ("mcp__files__get_weather", "mcp__tables__get_weather"))),
    ],
)  # fmt: skip
def test_a_choice_may_name_custom_tools_and_those_in_namespaces(choice: Any, meant: Any) -> None:
    options = chat(tools=[FILES, TABLES, PATCH], tool_choice=choice).options
    assert (options.tool_choice, options.tool_names) == meant
    assert names(tools=[FILES, TABLES, PATCH], tool_choice=choice) == names(
        tools=[FILES, TABLES, PATCH]
    )


def test_the_form_of_the_text_is_a_schema() -> None:
    def form(**form: Any) -> Any:
        return chat(text={"format": form, "verbosity": "low"}).options.json_schema

    assert form(type="text") is None
    assert form(type="json_object") == {"type": "object"}
    named = form(type="json_schema", name="a", schema=SCHEMA, strict=True)
    assert named == honoured_schema(SCHEMA, "schema")


def test_effort_reaches_the_template() -> None:
    assert not chat(reasoning={"effort": "none"}).options.thinks
    high = chat(reasoning={"effort": "high", "summary": "auto"}).options.template_kwargs
    assert high == {"reasoning_effort": "high"}


@pytest.mark.parametrize(
    ("body", "n"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
    ],
)
def test_logprobs_come_when_included_or_counted(body: dict[str, Any], n: int | None) -> None:
    assert chat(**body).params.n_logprobs == n


def test_what_nobody_here_knows_is_told() -> None:
    known: dict[str, Any] = {
        "user": "me", "metadata": {}, "prompt_cache_key": "a", "safety_identifier": "b",
        "service_tier": "auto", "max_tool_calls": 3, "truncation": "disabled", "store": False,
        "client_metadata": {"session": "s"},
        "background": False, "stream_options": {"include_obfuscation": False},
    }  # fmt: skip
    found = parse(**known, n=2, messages=[], max_tokens=3, response_format={}, ttl=1)
    assert found.ignored == ("max_tokens", "messages", "n", "response_format", "ttl")
    assert found.stored is None


def test_nulls_are_as_if_they_were_not_there() -> None:
    nulls, stored = dict.fromkeys(RESPONSE_FIELDS - {"input"}), StoredResponses()
    assert parse(stored=stored, **nulls) == parse(stored=stored)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({"input": None}, "input", MISSING, "input is missing"),
        ({"input": 5}, "input", None, "input is a string or a list of items"),
        ({"input": []}, "input", None, "input is a list of at least one message"),
        ({"input": ["Hi"]}, "input.[0]", None, "an item is an object"),
        ({"input": [{"content": "Hi"}]}, "input.[0].role", MISSING, "input.[0].role is missing"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.[0].role", None,
         "role is one of user, assistant, system, developer"),
        ({"input": [HI_ITEM, {"role": "user"}]}, "input.[1].content", MISSING,
         "input.[1].content is missing"),
        ({"input": [HI_ITEM, {"role": "user", "content": 5}]}, "input.[1].content", None,
         "content is a string or a list of parts"),
        ({"input": [{"role": "user", "content": [PARTS[0], {"type": "input_image"}]}]},
         "input.[0].content.[1].image_url", "unsupported_image_url",
         "this model sees no images: serve it with its projector, --mmproj FILE"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
         "input.[0].content.[0].text", None, "text is a string"),
        ({"input": [reasoning("A"), said("B"), call("f"), call("g") | {"arguments": 5}]},
         "input.[3].arguments", None, "arguments is a string"),
        ({"input": [said("B"), call("f") | {"name": 5}]}, "input.[1].name", None,
         "input.[1].name is not a string"),
        ({"input": [said("B"), call("f") | {"call_id": 5}]}, "input.[1].call_id", None,
         "input.[1].call_id is not a string"),
        ({"input": [said("B"), {"role": "assistant", "content": 5}]}, "input.[1].content", None,
         "content is a string or a list of parts"),
        ({"input": [output("f", {})]}, "input.[0].output", None,
         "content is a string or a list of parts"),
        ({"input": [output("f", "x") | {"call_id": 5}]}, "input.[0].call_id", None,
         "input.[0].call_id is not a string"),
        ({"input": [SEARCH, {"type": "reasoning", "content": [{}]}]}, "input", None,
         "input is a list of at least one message"),
        ({"input": [said("B"), {"type": "custom_tool_call", "name": "f", "input": 5}]},
         "input.[1].input", None, "input.[1].input is not a string"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", None,
         "tool_choice needs tools"),
        ({"tools": [TOOL, {"type": "mcp"}], "tool_choice": {"type": "mcp"}}, "tool_choice", None,
         "tool_choice names none of the tools"),
        ({"tools": [{"type": "namespace"}]}, "tools.[0].name", MISSING,
         "tools.[0].name is missing"),
        ({"tools": [TOOL, FILES | {"tools": [TOOL, {"type": "function"}]}]},
         "tools.[1].tools.[1].name", MISSING, "tools.[1].tools.[1].name is missing"),
        ({"input": [HI_ITEM, {"type": "additional_tools", "tools": [FILES, {"type": "custom"}]}]},
         "input.[1].tools.[1].name", MISSING, "input.[1].tools.[1].name is missing"),
        ({"input": [{"type": "additional_tools", "tools": {}}]}, "input.[0].tools", None,
         "input.[0].tools is not a list"),
        ({"tools": [FILES | {"tools": [5]}]}, "tools.[0].tools.[0]", None, "a tool is an object"),
        ({"tools": ["x"]}, "tools.[0]", None, "a tool is an object"),
        ({"tools": [{"name": "x"}]}, "tools.[0].type", MISSING,
         "tools.[0].type is missing"),
        ({"tools": [TOOL | {"name": ["x"]}]}, "tools.[0].name", None,
         "a tool's name has 1 to 128 letters, digits, _ . : / or -"),
        ({"tools": [{"type": "custom", "name": "a b"}]}, "tools.[0].name", None,
         "a tool's name has 1 to 128 letters, digits, _ . : / or -"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools.[1].name", MISSING,
         "tools.[1].name is missing"),
        ({"tools": [TOOL | {"parameters": 5}]}, "tools.[0].parameters", None,
         "tools.[0].parameters is not a JSON schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", None,
         "allowed_tools has a mode, auto or required, and a list of tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [5]}},
         "tool_choice.tools", None, "a tool is an object"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", None,
         "tool_choice names none of the tools"),
        ({"text": "json"}, "text", None, "text is not an object"),
        ({"text": {"format": "json"}}, "text.format", None, "text.format is not an object"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", None,
         "text.format.type is text, json_object or json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", MISSING,
         "text.format.schema is missing"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", None,
         "reasoning.effort is one of none, minimal, low, medium, high, xhigh, max"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort", None,
         "reasoning.effort is not a string"),
        ({"max_output_tokens": -2}, "max_output_tokens", None,
         "max_output_tokens must be from -1 to 2147483647"),
        ({"top_logprobs": 21}, "top_logprobs", None, "top_logprobs must be from 0 to 20"),
        ({"temperature": "hot"}, "temperature", None, "temperature is not a number"),
        ({"metadata": {"a": 1}}, "metadata", None, "metadata maps names to strings"),
        ({"truncation": "last"}, "truncation", None, "truncation is auto or disabled"),
        ({"background": True, "stream": True}, "background", None,
         "a background response is stored and polled, and so has no store: false or stream: true"),
        ({"background": True, "store": False}, "background", None,
         "a background response is stored and polled, and so has no store: false or stream: true"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_conversation",
         "conversation is not supported: this server stores none"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_prompt",
         "prompt is not supported: this server stores none"),
        ({"store": "yes"}, "store", None, "store is not true or false"),
        ({"previous_response_id": 5}, "previous_response_id", None,
         "previous_response_id is not a string"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_of_this_api(
    body: dict[str, Any], param: str, code: str | None, message: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse_response(StoredResponses(), {"input": "Hi", **body})
    error = caught.value
    assert error.status == 400
    assert (error.param, error.code, error.message) == (param, code, message)
