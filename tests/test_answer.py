"""From a completion's text to content, reasoning and tool calls, wherever the text is cut."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.answer import Answer, Form
from lmlite.worker.chat_template import ChatTemplate
from lmlite.worker.llama import LlamaError, Model
from lmlite.worker.samplers import Grammar

TEMPLATE = Path(__file__).parent / "tiny_model" / "chat_template.jinja"
ASK = [ChatMessage("user", "What is the weather in Oslo?")]
TOOLS = json.dumps(
    [{"type": "function", "function": {
        "name": name, "description": "",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                       "required": ["city"]}}} for name in ("get_weather", "get_time")]
)  # fmt: skip
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Bergen"}}\n</tool_call>'
THOUGHT = "<think>\nHm, <b>.\n</think>\n\n"
OSLO, BERGEN = ("get_weather", '{"city": "Oslo"}'), ("get_time", '{"city": "Bergen"}')


@pytest.fixture(scope="module")
def template(default_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(default_model, TEMPLATE.read_text())
    yield made
    made.close()


class Read:
    """An answer given piece by piece, and put together again."""

    def __init__(
        self, model: Model, form: Form, pieces: list[str], *, is_whole: bool = True
    ) -> None:
        answer = Answer(model.lib, form)
        parts = [answer.push(piece) for piece in pieces] + [answer.finish(is_whole=is_whole)]
        answer.close()
        self.content = self.reasoning = ""
        calls: list[list[Any]] = []
        for part in filter(None, parts):
            self.content += part.content
            self.reasoning += part.reasoning
            for call in part.calls:
                if call.number == len(calls):
                    assert call.id is not None
                    calls.append([call.name, ""])
                else:
                    assert call.id is call.name is None
                calls[call.number][1] += call.arguments
        self.calls = [(name, arguments) for name, arguments in calls]


def form_of(template: ChatTemplate, **options: Any) -> Form:
    return template.render(ASK, ChatOptions(**options)).form


ANSWERS: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "text": ("It rains, 3 < 4.", "It rains, 3 < 4.", "", []),
    "a thought": (f"{THOUGHT}It rains.", "It rains.", "Hm, <b>.", []),
    "a call": (CALL, "", "", [OSLO]),
    "text and a call": (f"Let me see.\n{CALL}", "Let me see.", "", [OSLO]),
    "two calls": (f"{CALL}\n{OTHER_CALL}", "", "", [OSLO, BERGEN]),
    "a thought and a call": (f"{THOUGHT}{CALL}", "", "Hm, <b>.", [OSLO]),
    "other alphabets": ("È 東京 🙂", "È 東京 🙂", "", []),
}


@pytest.mark.parametrize("text, content, reasoning, calls", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_reads_the_same_wherever_it_is_cut(
    default_model: Model, template: ChatTemplate,
    text: str, content: str, reasoning: str, calls: list[tuple[str, str]],
) -> None:  # fmt: skip
    form = form_of(template, tools=TOOLS)
    cuts = [[text], list(text)] + [[text[:i], text[i:]] for i in range(1, len(text), 7)]
    for pieces in cuts:
        read = Read(default_model, form, pieces)
        assert read.content.strip() == content
        assert read.reasoning.strip() == reasoning
        assert [(name, json.loads(a)) for name, a in read.calls] == [
            (name, json.loads(a)) for name, a in calls
        ]


def test_content_is_sent_as_it_comes_and_not_at_the_end(
    default_model: Model, template: ChatTemplate
) -> None:
    answer = Answer(default_model.lib, form_of(template))
    parts = [answer.push(piece) for piece in ("It", " rains", ".")]
    assert [part.content for part in parts if part] == ["It", " rains", "."]
    answer.close()


def test_arguments_are_sent_as_they_come(default_model: Model, template: ChatTemplate) -> None:
    answer = Answer(default_model.lib, form_of(template, tools=TOOLS))
    sent = []
    for character in CALL:
        part = answer.push(character)
        sent += [call.arguments for call in part.calls] if part else []
    answer.close()
    assert len([piece for piece in sent if piece]) > 5
    assert json.loads("".join(sent)) == {"city": "Oslo"}


def test_a_call_that_is_none_is_content(default_model: Model, template: ChatTemplate) -> None:
    for text in ("<tool_call>\nget_weather(Oslo)\n</tool_call>", "Hm. <tool_call>\n[1, 2]"):
        read = Read(default_model, form_of(template, tools=TOOLS), [text])
        assert (read.content, read.calls) == (text, [])


def test_a_call_cut_off_by_max_tokens_keeps_what_there_is(
    default_model: Model, template: ChatTemplate
) -> None:
    cut = CALL[: CALL.index("Os") + 1]
    read = Read(default_model, form_of(template, tools=TOOLS), list(cut), is_whole=False)
    assert read.calls == [("get_weather", '{"city": "O')]


def test_a_second_call_is_none_where_one_is_wanted(
    default_model: Model, template: ChatTemplate
) -> None:
    form = form_of(template, tools=TOOLS, parallel_tool_calls=False)
    answer = Answer(default_model.lib, form)
    parts = [answer.push(letter) for letter in CALL]
    assert not answer.is_full
    parts += [answer.push(letter) for letter in f"\n{OTHER_CALL}"]
    assert answer.is_full
    parts.append(answer.finish(is_whole=True))
    answer.close()
    found = [call for part in parts if part for call in part.calls]
    assert "".join(call.arguments for call in found) == OSLO[1]
    assert {call.number for call in found} == {0}


def test_without_tools_a_call_is_content(default_model: Model, template: ChatTemplate) -> None:
    read = Read(default_model, form_of(template), list(CALL))
    assert (read.content, read.calls) == (CALL, [])


def test_reasoning_stays_in_the_content_when_asked(
    default_model: Model, template: ChatTemplate
) -> None:
    text = f"{THOUGHT}It rains."
    read = Read(default_model, form_of(template, separate_reasoning=False), list(text))
    assert (read.content, read.reasoning) == (text, "")


def test_thinking_is_known_while_it_lasts(default_model: Model, template: ChatTemplate) -> None:
    answer = Answer(default_model.lib, form_of(template))
    states = []
    for piece in ("<thi", "nk>", "\nHm.\n", "</thi", "nk>", "\n\nIt rains."):
        answer.push(piece)
        states.append(answer.is_thinking)
    answer.close()
    assert states == [False, True, True, True, False, False]


def test_a_template_that_is_told_not_to_think_opens_no_thought(
    default_model: Model, template: ChatTemplate
) -> None:
    answer = Answer(default_model.lib, form_of(template, thinks=False))
    assert not answer.is_thinking
    assert answer.form.opening.endswith("<think>\n\n</think>\n\n")
    answer.close()


# ---- grammars ------------------------------------------------------------------------------


def test_a_grammar_that_waits_and_one_that_does_not(template: ChatTemplate) -> None:
    forms = [form_of(template), form_of(template, tools=TOOLS),
             form_of(template, tools=TOOLS, tool_choice="none"),
             form_of(template, tools=TOOLS, tool_choice="required"),
             form_of(template, json_schema='{"type": "object"}')]  # fmt: skip
    assert [(bool(form.grammar), form.grammar_waits) for form in forms] == [
        (False, False), (True, True), (False, False), (True, False), (True, False),
    ]  # fmt: skip


def test_a_grammar_that_cannot_be_read_is_an_error(default_model: Model) -> None:
    with pytest.raises(LlamaError, match="cannot read the grammar"):
        Grammar(default_model, "root ::= nothing")


def test_a_tool_chosen_by_name_is_the_only_one_in_the_grammar(template: ChatTemplate) -> None:
    rendered = template.render(
        ASK, ChatOptions(tools=TOOLS, tool_choice="required", tool_names=("get_time",))
    )
    grammar = json.loads(rendered.form.reply)["grammar"]
    assert "get_time" in grammar
    assert "get_weather" not in grammar
    both = template.render(ASK, ChatOptions(tools=TOOLS))
    assert rendered.prompt.ids == both.prompt.ids
