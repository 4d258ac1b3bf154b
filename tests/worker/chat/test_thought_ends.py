"""Thoughts that reach their budget are ended as each template ends them, and grammars agree."""

from contextlib import closing, suppress

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Chat, ChatMessage, ChatOptions, SamplingParams
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import NothingAllowed
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence
from tests.support.template_tree import NAMES, source_of

SENTENCE = "Time is up."
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = ({"type": "function", "function": {"name": "f", "description": "", "parameters": SCHEMA}},)
FORMS = {
    "free": ChatOptions(),
    "tools": ChatOptions(tools=TOOLS),
    "a call": ChatOptions(tools=TOOLS, tool_choice="required"),
    "a form": ChatOptions(json_schema=SCHEMA),
}
# llama.cpp reads what these write between their tags as content.
WITHOUT_THOUGHTS = {"LFM2-8B-A1B", "LFM2.5-Instruct", "tencent-Hy3"}
N_TEMPLATES_THAT_THINK = 40  # of llama.cpp's tree, at least


def prepared(model: Model, template: ChatTemplate, options: ChatOptions, budget: int) -> Sequence:
    params = SamplingParams(temperature=0, reasoning_budget_tokens=budget)
    chat = Chat(1, (ChatMessage("user", "Hello!"),), params, options=options)
    preparer = Preparer(model, template, 1 << 16, lambda _: None, last_thought=SENTENCE)
    (sequence,) = preparer.prepare(chat)
    assert isinstance(sequence, Sequence)
    return sequence


def say(model: Model, sequence: Sequence, token: int) -> None:
    """The token as the model's next one."""
    grammar = sequence.active_grammar
    if grammar and grammar.is_active:
        grammar.accept([token])
    elif grammar:
        grammar.accept_free(token)
    sequence.n_completion += 1
    sequence.extended(model.vocab.piece(token, special=True), None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_thought_ends_after_its_budget(default_model: Model, name: str, form: str) -> None:
    with closing(ChatTemplate(default_model, source_of(name))) as template:
        try:
            sequence = prepared(default_model, template, FORMS[form], budget=3)
        except BadRequest:
            assert form == "a form"  # llama.cpp makes no grammar of it for this template
            return
    with closing(sequence), suppress(NothingAllowed):  # some grammars have no place for thoughts
        if not sequence.thought_end:
            return
        assert sequence.answer is not None
        tokenize, start = default_model.vocab.tokenize, sequence.answer.form.thinking_start
        text = "" if sequence.answer.is_thinking else start
        for token in tokenize(f"{text}\nHm", add_special=False, parse_special=True, continues=True):
            assert sequence.forced_token() is None
            say(default_model, sequence, token)
        assert sequence.answer.is_thinking == (name not in WITHOUT_THOUGHTS)
        while sequence.answer.is_thinking and sequence.n_reasoning < 3:
            (token, *_) = tokenize(" a", add_special=False, parse_special=True, continues=True)
            say(default_model, sequence, token)
        end = list(iter(lambda: forced(default_model, sequence), None))
        assert end == list(sequence.thought_end if name not in WITHOUT_THOUGHTS else ())
        assert not sequence.answer.is_thinking


def forced(model: Model, sequence: Sequence) -> int | None:
    """The next token of a forced end, said. A grammar must take it."""
    token = sequence.forced_token()
    if token is not None:
        try:
            say(model, sequence, token)
        except NothingAllowed:
            pytest.fail("the grammar refuses the end of the thought")
    return token


def test_many_templates_think(default_model: Model) -> None:
    thinking = []
    for name in NAMES:
        template = ChatTemplate(default_model, source_of(name))
        sequence = prepared(default_model, template, ChatOptions(), budget=0)
        thinking += [name] if sequence.thought_end else []
        sequence.close()
        template.close()
    assert len(thinking) >= N_TEMPLATES_THAT_THINK


def test_a_budget_of_none_asks_the_template_for_no_thoughts(default_model: Model) -> None:
    template = ChatTemplate(default_model)
    texts = []
    for budget, options in ((0, ChatOptions()), (-1, ChatOptions(thinks=False))):
        sequence = prepared(default_model, template, options, budget)
        texts.append(sequence.prompt)
        sequence.close()
    template.close()
    assert texts[0] == texts[1]


def test_a_character_is_not_cut_by_the_end_of_a_thought(default_model: Model) -> None:
    template = ChatTemplate(default_model)
    sequence = prepared(default_model, template, ChatOptions(), budget=1)
    template.close()
    tokens = default_model.vocab.tokenize("<think>", add_special=False, parse_special=True)
    for token in tokens:
        say(default_model, sequence, token)
    euro = "€".encode()
    for byte in euro[:-1]:
        sequence.n_completion += 1
        sequence.extended(bytes([byte]), None)
        assert sequence.forced_token() is None
    sequence.extended(euro[-1:], None)
    assert sequence.forced_token() == sequence.thought_end[0]
    sequence.close()
