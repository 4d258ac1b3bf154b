"""From a completion's text to content, reasoning and tool calls, wherever the text is cut."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.messages import ChatMessage, ChatOptions, Delta, Finished, ReplyEvent, SamplingParams
from lmlite.worker.chat.answer import Answer, Form
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from lmlite.worker.sequence import Sequence
from tests import REPOSITORY

TEMPLATE = REPOSITORY / "tests" / "tiny_model" / "chat_template.jinja"
ASK = [ChatMessage("user", "What is the weather in Oslo?")]
TOOLS = tuple(
    {"type": "function", "function": {
        "name": name, "description": "",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                       "required": ["city"]}}} for name in ("get_weather", "get_time")
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


def test_content_is_sent_as_it_comes(default_model: Model, template: ChatTemplate) -> None:
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


def test_a_malformed_call_is_content(default_model: Model, template: ChatTemplate) -> None:
    for text in ("<tool_call>\nget_weather(Oslo)\n</tool_call>", "Hm. <tool_call>\n[1, 2]"):
        read = Read(default_model, form_of(template, tools=TOOLS), [text])
        assert (read.content, read.calls) == (text, [])


def test_a_call_that_max_tokens_cuts_off_keeps_its_beginning(
    default_model: Model, template: ChatTemplate
) -> None:
    cut = CALL[: CALL.index("Os") + 1]
    read = Read(default_model, form_of(template, tools=TOOLS), list(cut), is_whole=False)
    assert read.calls == [("get_weather", '{"city": "O')]


def test_a_second_call_is_dropped_where_only_one_is_allowed(
    default_model: Model, template: ChatTemplate
) -> None:
    form = form_of(template, tools=TOOLS, parallel_tool_calls=False)
    answer = Answer(default_model.lib, form)
    parts = [answer.push(letter) for letter in CALL]
    assert not answer.call_done
    parts += [answer.push(letter) for letter in f"\n{OTHER_CALL}"]
    assert answer.call_done
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


def test_a_tag_inside_the_answer_begins_no_thought(
    default_model: Model, template: ChatTemplate
) -> None:
    for separates in (True, False):
        answer = Answer(default_model.lib, form_of(template, separate_reasoning=separates))
        states = []
        for piece in (THOUGHT, "Write ", "<think>", " first."):
            answer.push(piece)
            states.append((answer.is_thinking, answer.has_begun))
        answer.close()
        assert states == [(False, False), (False, True), (False, True), (False, True)]


def test_an_answer_without_a_thought_has_begun_at_once(
    default_model: Model, template: ChatTemplate
) -> None:
    for separates in (True, False):
        answer = Answer(default_model.lib, form_of(template, separate_reasoning=separates))
        states = []
        for piece in ("\n", "<th", "ree> ", "<think>"):
            answer.push(piece)
            states.append((answer.is_thinking, answer.has_begun))
        answer.close()
        assert states == [(False, False), (False, False), (False, True), (False, True)]


# ---- stop strings ----------------------------------------------------------------------------


def said(model: Model, form: Form, pieces: list[str], stop: str) -> tuple[str, str, str | None]:
    """The content and the reasoning of a sequence with a stop string, and that if it came."""
    sequence = Sequence(1, 0, [1], SamplingParams(stop=(stop,)), 0, ())
    sequence.answer = Answer(model.lib, form)
    events: list[ReplyEvent] = []
    for piece in pieces:
        events += sequence.extended(piece.encode(), None)
        if sequence.cause_to_end(1000) is not None:
            break
    events += sequence.finished("end_token")
    sequence.close()
    deltas = [event for event in events if isinstance(event, Delta)]
    (end,) = [event for event in events if isinstance(event, Finished)]
    return ("".join(d.text for d in deltas), "".join(d.reasoning for d in deltas),
            end.stop_string)  # fmt: skip


@pytest.mark.parametrize("separates", [True, False])
def test_stop_strings_do_not_hold_between_a_thought_and_the_answer(
    default_model: Model, template: ChatTemplate, separates: bool
) -> None:
    form = form_of(template, separate_reasoning=separates)
    thought = ["<think>", "\nOne.\n\nTwo.\n", "</think>"]
    for between in (["\n\n"], ["\n", "\n"], ["\n\nHello"], []):
        pieces = [*thought, *between, "Hello", " there.\n", "\nMore."]
        content, reasoning, stop = said(default_model, form, pieces, "\n\n")
        assert content.endswith("Hello there.")
        assert (reasoning.strip() == "One.\n\nTwo.") == separates
        assert stop == "\n\n"


def test_stop_strings_hold_where_an_answer_spells_a_tag(
    default_model: Model, template: ChatTemplate
) -> None:
    pieces = ["Write ", "<think>", " first", " END", " more"]
    assert said(default_model, form_of(template), pieces, "END") == (
        "Write <think> first ",
        "",
        "END",
    )


def test_without_a_thought_stop_strings_hold_from_the_start(
    default_model: Model, template: ChatTemplate
) -> None:
    assert said(default_model, form_of(template), ["\n\n", "Hello"], "\n\n")[2] == "\n\n"


# ---- grammars ------------------------------------------------------------------------------


def test_a_grammar_that_waits_and_one_that_does_not(template: ChatTemplate) -> None:
    forms = [form_of(template), form_of(template, tools=TOOLS),
             form_of(template, tools=TOOLS, tool_choice="none"),
             form_of(template, tools=TOOLS, tool_choice="required"),
             form_of(template, json_schema={"type": "object"})]  # fmt: skip
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
