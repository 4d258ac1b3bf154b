"""Tools for chat templates that know none: what the model reads, and how its calls are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import ChatMessage, ChatOptions, ToolCall
from lmlite.worker.chat.answer import Answer
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate, Rendered
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from tests.support.gguf_writer import CHATML
from tests.support.server_process import RunningServer
from tests.support.template_tree import NAMES, source_of

# Such templates in llama.cpp's tree, and what they lack.
TEMPLATES = {
    "HuggingFaceTB-SmolLM3-3B": "wants tools in variables of its own",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "does not tell of tools",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "does not tell of tools",
    "deepseek-ai-DeepSeek-V3.1": "does not tell of tools",
    "fireworks-ai-llama-3-firefunction-v2": "wants tools in a variable of its own",
    "google-gemma-2-2b-it": "has no tools",
    "ibm-granite-granite-3.3-2B-Instruct": "writes no calls, so that their form is not known",
    "llama-cpp-rwkv-world": "has no tools",
    "microsoft-Phi-3.5-mini-instruct": "has no tools",
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": f"To {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


STRING = {"type": "string"}
TOOLS = [tool("get_weather", city=STRING), tool("get_time", city=STRING)]
SYSTEM, ASK = ChatMessage("system", "Be kind."), ChatMessage("user", "The weather in Oslo?")
OSLO = ToolCall("1", "get_weather", '{"city": "Oslo"}')
BERGEN = ToolCall("2", "get_time", '{"city": "Bergen"}')
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Bergen"}}\n</tool_call>'


@pytest.fixture(params=["ChatML", *TEMPLATES])
def template(request: pytest.FixtureRequest, special_model: Model) -> Iterator[ChatTemplate]:
    name: str = request.param
    made = ChatTemplate(special_model, CHATML if name == "ChatML" else source_of(name))
    yield made
    made.close()


@pytest.fixture
def chatml(default_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(default_model, CHATML)
    yield made
    made.close()


def render(template: ChatTemplate, *messages: ChatMessage, **options: Any) -> Rendered:
    return template.render(messages or [ASK], ChatOptions(tools=tuple(TOOLS), **options))


def text_of(model: Model, rendered: Rendered) -> str:
    return b"".join(
        model.vocab.piece(token, special=True) for token in rendered.prompt.ids
    ).decode()


def test_these_templates_know_no_tools(special_model: Model) -> None:
    found = set()
    for name in NAMES:
        template = ChatTemplate(special_model, source_of(name))
        request = request_of([ASK], ChatOptions(tools=tuple(TOOLS)))
        found |= {name} if template.adapted(request) != request else set()
        template.close()
    assert found == set(TEMPLATES)


# ---- what the model reads --------------------------------------------------------------------

INTRODUCTION = """\
You have tools. Each line is one: its name, what it does, and a JSON schema of its arguments.
<tools>
{"name": "get_weather", "description": "To get_weather.", "parameters": {"type": "object", \
"properties": {"city": {"type": "string"}}, "required": ["city"]}}
{"name": "get_time", "description": "To get_time.", "parameters": {"type": "object", \
"properties": {"city": {"type": "string"}}, "required": ["city"]}}
</tools>
To use a tool, write a call in this form, with the tool's name and its arguments as JSON:
<tool_call>
{"name": "...", "arguments": {...}}
</tool_call>
Then stop: the result follows in <tool_response>. Without need for a tool, answer as usual."""


def test_the_system_message_describes_the_tools(default_model: Model, chatml: ChatTemplate) -> None:
    asked = "<|im_start|>user\nThe weather in Oslo?<|im_end|>\n<|im_start|>assistant\n"
    with_system = text_of(default_model, render(chatml, SYSTEM, ASK))
    assert with_system == f"<|im_start|>system\nBe kind.\n\n{INTRODUCTION}<|im_end|>\n{asked}"
    alone = text_of(default_model, render(chatml, ASK))
    assert alone == f"<|im_start|>system\n{INTRODUCTION}<|im_end|>\n{asked}"


def test_calls_and_results_are_turns_of_text(default_model: Model, chatml: ChatTemplate) -> None:
    calling = ChatMessage("assistant", "I look.", tool_calls=(OSLO, BERGEN))
    results = ChatMessage("tool", "rain", tool_call_id="1"), ChatMessage("tool", "9", None)
    # Also when the client offers the tools no longer.
    text = text_of(default_model, chatml.render([ASK, calling, *results]))
    assert text == (
        "<|im_start|>user\nThe weather in Oslo?<|im_end|>\n"
        f"<|im_start|>assistant\nI look.\n{CALL}\n{OTHER_CALL}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\n9\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_every_such_template_renders_tools_calls_and_results(
    special_model: Model, template: ChatTemplate
) -> None:
    calling = ChatMessage("assistant", "", tool_calls=(OSLO,))
    text = text_of(special_model, render(template, ASK, calling, ChatMessage("tool", "rain")))
    words = ['{"name": "get_weather", "description"', CALL, "<tool_response>\nrain\n"]
    places = [text.index(each) for each in words]
    assert places == sorted(places)


# ---- how its answer is read ------------------------------------------------------------------

ANSWERS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "text": ("It rains, 3 < 4.", "It rains, 3 < 4.", []),
    "a call": (CALL, "", [(OSLO.name, OSLO.arguments)]),
    "text and calls": (f"I look. {CALL}\n{OTHER_CALL}", "I look. ",
                       [(OSLO.name, OSLO.arguments), (BERGEN.name, BERGEN.arguments)]),
    "a call that is none": ("<tool_call>\nOslo()\n</tool_call>",
                            "<tool_call>\nOslo()\n</tool_call>", []),
}  # fmt: skip


def read(model: Model, rendered: Rendered, text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """(content, reasoning, calls) of a text that comes letter by letter."""
    answer = Answer(model.lib, rendered.form)
    parts = [*map(answer.push, text), answer.finish(is_whole=True)]
    answer.close()
    calls: list[tuple[str, str]] = []
    for call in (call for part in parts if part for call in part.calls):
        if call.name is not None:
            calls.append((call.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    told = [part for part in parts if part]
    return "".join(p.content for p in told), "".join(p.reasoning for p in told), calls


@pytest.mark.parametrize(("text", "content", "calls"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_read_with_and_without_thoughts(
    special_model: Model, template: ChatTemplate, text: str, content: str, calls: list[Any]
) -> None:
    rendered = render(template)
    form = rendered.form
    is_begun = form.thinking_start != "" and form.thinking_start in form.opening
    if not is_begun:
        assert read(special_model, rendered, text) == (content, "", calls)
    if form.thinking_start:
        begin = "" if is_begun else f"{form.thinking_start}\n"
        thinking = f"{begin}Hm.\n{form.thinking_ends[0]}\n\n{text}"
        assert read(special_model, rendered, thinking) == (content, "Hm.\n", calls)


def test_the_answer_opens_as_the_template_writes_it(template: ChatTemplate) -> None:
    for thinks in (True, False):
        own = template.render([ASK], ChatOptions(thinks=thinks)).form
        form = render(template, thinks=thinks).form
        assert (form.opening, form.thinking_start) == (own.opening, own.thinking_start)
        assert form.thinking_ends == own.thinking_ends


def test_a_begun_answer_is_continued(default_model: Model, chatml: ChatTemplate) -> None:
    begun = render(chatml, ASK, ChatMessage("assistant", "I "))
    assert text_of(default_model, begun).endswith("<|im_start|>assistant\nI ")
    assert read(default_model, begun, f"look. {CALL}")[0] == "I look. "


def test_calls_are_held_to_the_tools(special_model: Model, template: ChatTemplate) -> None:
    for choice, waits in (("auto", True), ("required", False)):
        form = render(template, tool_choice=choice, tool_names=()).form
        assert ("get_weather" in form.grammar, form.grammar_waits) == (True, waits)
        Grammar(special_model, form.grammar, form.reply).close()
    assert render(template, tool_choice="none").form.grammar == ""
    named = render(template, tool_choice="required", tool_names=("get_time",)).form.grammar
    assert ("get_time" in named, "get_weather" in named) == (True, False)


# ---- over HTTP -------------------------------------------------------------------------------


def test_a_model_whose_template_knows_no_tools_calls_a_required_one(tmp_path: Path) -> None:
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML)
    named = {"type": "function", "function": {"name": "get_time"}}
    with RunningServer("--chat-template", str(path)) as server:
        for choice, names in (("required", ("get_time", "get_weather")), (named, ("get_time",))):
            answer = server.chat("Time in Oslo?", tools=TOOLS, tool_choice=choice)["choices"][0]
            for call in answer["message"]["tool_calls"]:
                assert call["function"]["name"] in names
                assert json.loads(call["function"]["arguments"]).keys() == {"city"}
            assert answer["finish_reason"] == "tool_calls"
