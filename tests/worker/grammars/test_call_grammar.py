"""Calls that must be made are made, and answers may be calls or in a form, for every template."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.messages import Chat, ChatMessage, ChatOptions, Delta, Finished, SamplingParams
from lmlite.worker.chat.answer import Form
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.grammars.call_grammar import call_or_form, without_small_talk, woken_by_name
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from lmlite.worker.preparer import Preparer
from tests.support.template_tree import NAMES, source_of
from tests.worker.test_engine import Run

N_CTX = 4096
HELLO = ChatMessage("user", "Hello!")
OSLO = {"type": "string", "enum": ["Oslo"]}
CITY = {"type": "object", "properties": {"city": OSLO}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "description": "", "parameters": CITY}}
     for name in ("get_weather", "get_time")
)  # fmt: skip


@pytest.mark.parametrize(("root", "without"), [
    ('"<|im_start|>" space until-7? tool-calls', '"<|im_start|>" space tool-calls'),
    ("until-76 tool-calls", "tool-calls"),
    ("space until-64 space tool-call-root", "space space tool-call-root"),
    ('("<think>" until-4 "</think>")? until-17 tool-call',
     '("<think>" until-4 "</think>")? tool-call'),
    ('("<a>" until-5 "</a>"?)? tool-call "<end>"?', '("<a>" until-5 "</a>"?)? tool-call "<end>"?'),
    ('"<r>"? until-14 "</r>"? kimi-k3-tool-call', '"<r>"? "</r>"? kimi-k3-tool-call'),
    ('">>>" ("all\\n" until-0 tools | tools)', '">>>" (tools)'),
    ('">>>" ("all\\n" until-0 (tool-a | tool-b) | tools)', '">>>" (tools)'),
])  # fmt: skip
def test_no_text_may_come_before_a_call_that_must_be_made(root: str, without: str) -> None:
    rules = 'until-1 ::= "until-2 tool-call"\n'
    assert without_small_talk(f"{rules}root ::= {root}\n") == f"{rules}root ::= {without}\n"


CALLS = 'root ::= "a" tool-call{1,2}\ntool-call ::= "\\"root" [a-z"\\]] x1'


def test_names_of_two_grammars_are_kept_apart() -> None:
    assert call_or_form(CALLS, 'root ::= x1 | "x1"\nx1 ::= [x]') == (
        "root ::= calls-root | form-root\n"
        'calls-root ::= "a" calls-tool-call{1,2}\n'
        'calls-tool-call ::= "\\"root" [a-z"\\]] calls-x1\n'
        'form-root ::= form-x1 | "x1"\nform-x1 ::= [x]'
    )


@pytest.mark.parametrize("form", ["", 'root ::= "```json" response-format "```"'])
def test_a_form_in_a_fence_is_not_joined_with_calls(form: str) -> None:
    assert call_or_form(CALLS, form) is None


def test_a_call_in_bare_json_is_held_from_its_name_on() -> None:
    rules = 'space ::= " "\ntool-call ::= "{}"'
    assert woken_by_name(f'root ::= "<a>\\n" space tool-call\n{rules}', ["get", "a.b"]) == {
        "grammar": f"root ::= tool-call\n{rules}",
        "grammar_lazy": True,
        "triggers": [{
            "type": 2,
            "value": r'^\s*(\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?:get|a\.b)")',
            "token": -1,
        }],
    }  # fmt: skip
    assert woken_by_name(f"root ::= space tool-calls\n{rules}", ["get"]) == {}


# ---- with every template ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(default_model: Model) -> Iterator[Run]:
    started = Run(default_model, n_ctx=N_CTX, n_parallel=1)
    yield started
    started.close()


def answer_of(run: Run, template: ChatTemplate, **options: Any) -> tuple[str, list[str], str]:
    """(content, names of calls, finish reason) of the embedded model with another template."""
    chat = Chat(1, (HELLO,), SamplingParams(temperature=0, max_tokens=40),
                options=ChatOptions(tools=TOOLS, **options))  # fmt: skip
    preparer = Preparer(run.model, template, N_CTX, lambda _: None)
    run.engine.submit(preparer.prepare(chat))
    (events,) = run.until_finished(1).values()
    deltas = [event for event in events if isinstance(event, Delta)]
    names = [call.name for delta in deltas for call in delta.calls if call.name is not None]
    end = events[-1]
    assert isinstance(end, Finished)
    return "".join(delta.text for delta in deltas), names, end.reason


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_would_write_text_makes_the_call_that_it_must(
    default_model: Model, run: Run, name: str
) -> None:
    template = ChatTemplate(default_model, source_of(name))
    content, names, reason = answer_of(
        run, template, tool_choice="required", tool_names=("get_time",), thinks=False
    )
    template.close()
    assert content.strip() == ""
    assert set(names) <= {"get_time"}
    # It may still be thinking, or not know how calls are written in this template.
    assert (reason == "tool_calls" and names) or reason == "length"


@pytest.mark.parametrize("name", NAMES)
def test_calls_that_may_be_made_are_held_to_the_tools(special_model: Model, name: str) -> None:
    template = ChatTemplate(special_model, source_of(name))
    form = template.render([HELLO], ChatOptions(tools=TOOLS)).form
    template.close()
    assert form.grammar_waits
    assert "get_time" in form.grammar
    Grammar(special_model, form.grammar, form.reply).close()


@pytest.mark.parametrize("name", NAMES)
def test_tools_that_are_not_allowed_stay_in_the_prompt_and_out_of_the_grammar(
    special_model: Model, name: str
) -> None:
    template = ChatTemplate(special_model, source_of(name))
    allowed = ChatOptions(tools=TOOLS, tool_names=("get_time",))
    every, some = (template.render([HELLO], o) for o in (ChatOptions(tools=TOOLS), allowed))
    template.close()
    assert some.prompt == every.prompt
    assert some.form.grammar_waits
    assert "get_time" in some.form.grammar and "get_weather" in every.form.grammar
    assert "get_weather" not in some.form.grammar
    Grammar(special_model, some.form.grammar, some.form.reply).close()


LLAMAS = [name for name in NAMES if name.startswith("meta-llama-Llama-3")]


@pytest.mark.parametrize("name", LLAMAS)
def test_bare_json_is_a_call_from_the_name_of_a_tool_on(default_model: Model, name: str) -> None:
    template = ChatTemplate(default_model, source_of(name))
    form = template.render([HELLO], ChatOptions(tools=TOOLS)).form
    template.close()
    begun = '{"name": "get_time", "parameters": {"'
    for said, right, wrong in ((begun, True, False), ('{"name": "Anna", "is": "', True, True),
                               (f"Say {begun}", True, True)):  # fmt: skip
        assert is_allowed(default_model, form, said, "city") == right
        assert is_allowed(default_model, form, said, "town") == wrong


def is_allowed(model: Model, form: Form, said: str, more: str) -> bool:
    """Whether the form lets an answer that begins with `said` go on with this text."""
    grammar, lib = Grammar(model, form.grammar, form.reply), model.lib
    for token in model.vocab.tokenize(said, add_special=False, parse_special=False):
        lib.llama_sampler_accept(grammar.pointer, token)
    token = model.vocab.tokenize(more, add_special=False, parse_special=False)[0]
    candidate = (capi.llama_token_data * 1)(capi.llama_token_data(token, 1.0, 0.0))
    candidates = capi.llama_token_data_array(candidate, 1, -1, False)
    lib.llama_sampler_apply(grammar.pointer, ctypes.byref(candidates))
    grammar.close()
    return bool(candidate[0].logit == 1.0)


# Templates that put their own marks around an answer in a form, or begin with thoughts: with
# these, an answer is in the form and tools are not called.
FORM_ALONE = {
    "GigaChat3-10B-A1.8B", "Kimi-K2-Instruct", "Kimi-K2-Thinking", "MiniMax-M3",
    "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "deepseek-ai-DeepSeek-V4-Flash-0731",
    "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved",
    "meetkai-functionary-medium-v3.2", "mistralai-Ministral-3-14B-Reasoning-2512",
    "moonshotai-Kimi-K2", "muse-glimmer", "unsloth-mistral-Devstral-Small-2507",
}  # fmt: skip
REFUSED = {"Kimi-K3", "inclusionai-ling-3.0-flash"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_an_answer_is_a_call_or_in_the_form(special_model: Model, name: str) -> None:
    template = ChatTemplate(special_model, source_of(name))
    form = template.render([HELLO], ChatOptions(tools=TOOLS, json_schema=CITY)).form
    template.close()
    assert not form.grammar_waits
    assert ("get_time" in form.grammar) == (name not in FORM_ALONE)
    Grammar(special_model, form.grammar, form.reply).close()
