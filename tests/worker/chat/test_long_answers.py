"""Long answers read token by token: the same message as at once, in time, at a steady cost."""

import json
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions, ToolCall
from lmlite.worker.chat.answer import Answer, Form, Part
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.renderer import TemplateError
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests.support.template_tree import NAMES, source_of, specials

FIELDS = {
    "path": {"type": "string"},
    "text": {"type": "string"},
    "edits": {"type": "array", "items": {"type": "object", "properties": {
        "old": {"type": "string"}, "line": {"type": "integer"}}}},
}  # fmt: skip
TOOLS = tuple(
    {"type": "function", "function": {
        "name": name, "description": "",
        "parameters": {"type": "object", "properties": FIELDS, "required": ["path"]}}}
     for name in ("write_file", "get_time")
)  # fmt: skip
OFFERED = ChatOptions(tools=TOOLS)
ASK = ChatMessage("user", "Please do.")
WORDS = ("alpha", "x < 3", "東京", '{"k": 1}', "\n\n", "it's", "\\n", '"q"', "end.", "<b>", "é🙂",
         "- item", "a, b: c")  # fmt: skip


def prose(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(WORDS, k=n)).strip() + " done."


def long_messages(rng: random.Random) -> Iterator[ChatMessage]:
    """A long text, a long thought, a long argument, and many short ones in two calls."""
    yield ChatMessage("assistant", prose(rng, 500))
    yield ChatMessage("assistant", "Short, done.", reasoning=prose(rng, 500))
    text = {"path": "/a b", "text": prose(rng, 400)}
    edits = {"path": "/a b", "edits": [{"old": prose(rng, 3), "line": i} for i in range(150)]}
    calls = [ToolCall(f"call0000{i}", "write_file", json.dumps(arguments, ensure_ascii=False))
             for i, arguments in enumerate((text, edits))]  # fmt: skip
    other = ToolCall("call00002", "get_time", '{"path": "done."}')
    yield ChatMessage("assistant", "", tool_calls=(calls[0],))
    yield ChatMessage("assistant", "I look.", tool_calls=(calls[1], other))


class Message(NamedTuple):
    """The parts, joined to one message."""

    content: str
    reasoning: str
    calls: list[list[str | None]]


def joined(parts: Sequence[Part | None]) -> Message:
    found = [part for part in parts if part]
    calls: list[list[str | None]] = []
    for call in (call for part in found for call in part.calls):
        if call.number == len(calls):
            calls.append([call.name, ""])
        calls[call.number][1] = f"{calls[call.number][1]}{call.arguments}"
    texts = "".join(p.content for p in found), "".join(p.reasoning for p in found)
    return Message(*texts, calls)


def pieces_of(text: str, rng: random.Random) -> Iterator[str]:
    while text:
        n = rng.choice((1, 2, 3, 4, 7, 12))
        yield text[:n]
        text = text[n:]


def written(template: ChatTemplate, name: str, message: ChatMessage) -> tuple[Form, str] | None:
    """The message as the template writes it, from behind the prompt to the end of the turn."""
    if message.tool_calls:
        call = message.tool_calls[0]
        then = ChatMessage("tool", "fine", name=call.name, tool_call_id=call.id)
    else:
        then = ChatMessage("user", "Go on.")
    try:
        form = template.render([ASK], OFFERED).form
        prompt, whole = (
            str(template._own.reply(request_of(messages, OFFERED))["prompt"])
            for messages in ([ASK], [ASK, message, then])
        )
    except BadRequest:
        return None
    text = whole.removeprefix(prompt.removesuffix(form.opening))
    text = text[len(commonprefix([text, form.opening])) :]
    last = max(text.rfind(mark) for mark in ("done.", "149"))
    ends = [at for tag in specials(name) if (at := text.find(tag, last)) > 0 and "tool" not in tag]
    return form, text[: min(ends, default=len(text))]


def is_in_form(model: Model, form: Form, text: str) -> bool:
    answer = Answer(model.lib, form)
    answer.push(text)
    found = answer._read(model.lib.lml_answer_finish(answer._pointer, True)) or {}
    answer.close()
    return "error" not in found


def read(model: Model, form: Form, pieces: Iterable[str]) -> tuple[Message, int]:
    """The message, and how many characters of it came only at the end."""
    answer = Answer(model.lib, form)
    parts = [answer.push(piece) for piece in pieces]
    late = answer.finish(is_whole=True) or Part()
    answer.close()
    n_late = sum(map(len, (late.content, late.reasoning, *(c.arguments for c in late.calls))))
    return joined([*parts, late]), n_late


def answers_in_form(model: Model) -> Iterator[tuple[str, Form, str]]:
    rng = random.Random(5)
    for name in NAMES:
        try:
            template = ChatTemplate(model, source_of(name))
        except TemplateError:
            continue
        for message in long_messages(rng):
            found = written(template, name, message)
            if found is not None and is_in_form(model, *found):
                yield name, *found
        template.close()


@pytest.mark.long
def test_the_answers_of_every_template_read_the_same_at_once_and_token_by_token(
    default_model: Model, llama_cpp: Path
) -> None:
    assert llama_cpp.is_dir()
    rng = random.Random(7)
    lengths = []
    for name, form, text in answers_in_form(default_model):
        whole, _ = read(default_model, form, [text])
        in_pieces, n_late = read(default_model, form, pieces_of(text, rng))
        assert in_pieces == whole, name
        assert n_late < 64, name
        lengths.append([len(whole.content), len(whole.reasoning),
                        sum(len(arguments or "") for _, arguments in whole.calls)])  # fmt: skip
    # Most of the 70 write a long text, a long thought and long arguments that their parser takes.
    n_long = [sum(n > 1000 for n in column) for column in zip(*lengths, strict=True)]
    assert min(n_long) > 50


def test_where_nothing_can_be_cut_held_back_text_is_sent_once(default_model: Model) -> None:
    template = ChatTemplate(default_model, None)
    form = template.render([ASK], OFFERED).form
    rng = random.Random(3)
    for middle in ('\\"', "</", "<tool_", "東<", "\\n<b>"):
        for n_before in range(150, 170):  # the tag that is only begun may be where a cut begins
            text = f"{'w' * n_before}<{middle * 600}"
            whole, _ = read(default_model, form, [text])
            assert read(default_model, form, pieces_of(text, rng))[0] == whole
    template.close()


# ---- what a token costs ----------------------------------------------------------------------

TAGS = '<tool_call>\n{"name": "write_file", "arguments": {"'
LONG = {
    "a thought": ("<think>\n", " word"),
    "text": ("I see.", " word"),
    "an argument": (f'{TAGS}text": "', " word"),
    "an argument full of escapes": (f'{TAGS}text": "', '\\n\\"x\\u00e9\\\\'),
    "an argument of small parts": (f'{TAGS}edits": [', '{"old": "a", "line": 1}, '),
}


@pytest.mark.parametrize(("begin", "piece"), LONG.values(), ids=LONG.keys())
def test_a_token_late_in_an_answer_takes_no_longer_than_an_early_one(
    default_model: Model, begin: str, piece: str
) -> None:
    template = ChatTemplate(default_model, None)
    answer = Answer(default_model.lib, template.render([ASK], OFFERED).form)
    answer.push(begin)
    times = []
    for _ in range(8000):
        begin_s = time.perf_counter()
        answer.push(piece)
        times.append(time.perf_counter() - begin_s)
    answer.close()
    template.close()
    assert statistics.median(times[-1000:]) < 4 * statistics.median(times[100:1000])
