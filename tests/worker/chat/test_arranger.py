"""No chat template in llama.cpp's tree refuses a conversation, or loses a text of it."""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions, ToolCall
from lmlite.worker.chat.arranger import MAX_SHAPES, Arranger, shape_of, without_repetition
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests.support.template_tree import NAMES, source_of

Json = dict[str, Any]
OWN_ID = "call_0123456789abcdef01234567"  # as lmlite writes them
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = ({"type": "function", "function": {
    "name": "get_weather", "description": "", "parameters": PARAMETERS}},)  # fmt: skip

numbers = count()


def word() -> str:
    """Another one each time, which no template writes."""
    return f"zqword{next(numbers):06d}"


def said(role: str) -> ChatMessage:
    return ChatMessage(role, word())


def calling(*ids: str, content: str = "", arguments: str | None = None) -> ChatMessage:
    calls = (ToolCall(each, "get_weather", arguments or f'{{"city": "{word()}"}}') for each in ids)
    return ChatMessage("assistant", content, tool_calls=tuple(calls))


def result(call_id: str) -> ChatMessage:
    return ChatMessage("tool", word(), name="get_weather", tool_call_id=call_id)


def shapes() -> dict[str, list[ChatMessage]]:
    """The conversations that agents send, each text another word."""
    system, user, assistant = "system", "user", "assistant"
    return {
        "usual": [said(system), said(user), said(assistant), said(user)],
        "two systems": [said(system), said(system), said(user)],
        "system in the middle": [*map(said, (system, user, assistant, system, user))],
        "system at the end": [said(system), said(user), said(system)],
        "system alone": [said(system)],
        "two users": [said(user), said(user)],
        "two answers": [said(user), said(assistant), said(assistant), said(user)],
        "assistant first": [said(system), said(assistant), said(user)],
        "trailing assistant": [said(user), said(assistant)],
        "trailing call": [said(user), calling("call00001", content=word())],
        "call": [said(user), calling(OWN_ID), result(OWN_ID)],
        "text and call": [said(user), calling(OWN_ID, content=word()), result(OWN_ID),
                          said(assistant), said(user)],
        "result after a text": [said(user), said(assistant), result("call00001"), said(user)],
        "text between call and result": [said(user), calling("call00001"), said(assistant),
                                         result("call00001"), said(user)],
        "results": [said(user), calling("call00001", "call00002"), result("call00001"),
                    result("call00002"), said(assistant)],
        "user after a result": [said(user), calling("call00001"), result("call00001"), said(user)],
        "call without a result": [said(user), calling("call00001"), said(user)],
        "cut call": [said(user), calling("call00001", arguments='{"city": "Par'),
                     result("call00001")],
    }  # fmt: skip


@pytest.fixture(params=NAMES)
def template(request: Any, special_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(special_model, source_of(request.param))
    yield made
    made.close()


def lost(
    template: ChatTemplate, messages: Sequence[ChatMessage], tools: Sequence[Json]
) -> list[str]:
    """The roles of the messages whose texts are not in the prompt."""
    request = template.adapted(request_of(messages, ChatOptions(tools=tuple(tools))))
    arranged, _, _ = template.accepted(request)
    prompt = template._own.reply(arranged)["prompt"]
    return [message.role for message in messages if message.content not in prompt]


def test_no_conversation_is_refused_and_no_text_lost(template: ChatTemplate) -> None:
    for title, messages in shapes().items():
        uses_tools = any(message.role == "tool" or message.tool_calls for message in messages)
        assert (title, lost(template, messages, TOOLS if uses_tools else ())) == (title, [])


@pytest.mark.long
def test_no_random_conversation_is_refused_and_no_text_lost(template: ChatTemplate) -> None:
    rng = random.Random(7)
    for _ in range(5):
        messages = [random_message(rng) for _ in range(rng.randrange(1, 8))]
        tools = rng.choice([TOOLS, ()])
        assert lost(template, messages, tools) == [], [message.role for message in messages]


def random_message(rng: random.Random) -> ChatMessage:
    call_id = rng.choice(["call00001", "call00002", OWN_ID])
    match rng.choice(["system", "user", "user", "assistant", "thinking", "calling", "tool"]):
        case "tool":
            return result(call_id)
        case "calling":
            arguments = rng.choice([None, None, '{"city": "Par', "[1]", '""'])
            ids = [call_id] + ["call00003"] * rng.randrange(2)
            return calling(*ids, content=rng.choice(["", word()]), arguments=arguments)
        case "thinking":
            return ChatMessage("assistant", word(), reasoning="Hm.")
        case role:
            return said(role)


# What those templates are given that do not take the conversation as it is.
NEEDED = {
    "two systems": ("openai-gpt-oss-120b", ["join_leading_systems"]),
    "system in the middle": ("Qwen3.5-4B", ["move_later_systems"]),
    "system at the end": ("mistralai-Mistral-Nemo-Instruct-2407",
                          ["move_later_systems", "join_neighbours"]),
    "system alone": ("google-gemma-2-2b-it", ["alternate"]),
    "two users": ("google-gemma-2-2b-it", ["join_neighbours"]),
    "two answers": ("mistralai-Ministral-3-14B-Reasoning-2512", ["join_neighbours"]),
    "assistant first": ("google-gemma-2-2b-it", ["alternate"]),
    "call": ("mistralai-Mistral-Nemo-Instruct-2407", ["shorten_ids"]),
    "text and call": ("openai-gpt-oss-120b", ["split_texts"]),
    "result after a text": ("openai-gpt-oss-120b", ["orphans_to_text"]),
    "text between call and result": ("MiniMax-M2", ["move_results"]),
    "results": ("meta-llama-Llama-3.1-8B-Instruct", ["split_calls"]),
    "user after a result": ("mistralai-Mistral-Nemo-Instruct-2407", ["alternate"]),
    "call without a result": ("mistralai-Mistral-Nemo-Instruct-2407", ["alternate"]),
    "cut call": ("Qwen3-Coder", ["repair_arguments"]),
}  # fmt: skip


@pytest.mark.parametrize("title", NEEDED)
def test_only_the_needed_steps_are_taken(special_model: Model, title: str) -> None:
    name, steps = NEEDED[title]
    template, messages = ChatTemplate(special_model, source_of(name)), shapes()[title]
    request = template.adapted(request_of(messages, ChatOptions()))
    assert [step.__name__ for step in template._arranger._steps(request)] == steps
    template.close()


# ---- how it is found out -------------------------------------------------------------------


class Reader:
    """A template in Python: what it writes, and how often it was asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.n_asked, self.refuses = 0, refuses

    def render(self, request: Json) -> str:
        self.n_asked += 1
        if self.refuses:
            raise BadRequest("no", param="messages")
        first, *others = request["messages"]
        return str([first, *(each for each in others if each["role"] != "system")])


def request(*roles: str) -> Json:
    return {"messages": [{"role": role, "content": word()} for role in roles]}


def first(arranger: Arranger, request: Json) -> list[str]:
    messages = next(arranger.arrangements(request))
    return [message["role"] for message in messages]


def test_a_template_is_tried_once_for_each_shape() -> None:
    reader = Reader()
    arranger = Arranger(reader.render)
    usual = request("system", "user", "assistant", "user")
    assert first(arranger, usual) == ["system", "user", "assistant", "user"]
    assert reader.n_asked == 1
    for _ in range(3):
        first(arranger, request("system", "user", "assistant", "user"))
    assert reader.n_asked == 1


def test_a_lost_text_is_found_and_kept_with_the_smallest_change() -> None:
    reader = Reader()
    arranger = Arranger(reader.render)
    roles, mended = ["system", "system", "user", "user"], ["system", "user", "user"]
    assert first(arranger, request(*roles)) == mended
    n_asked = reader.n_asked
    assert first(arranger, request(*roles)) == mended
    assert reader.n_asked == n_asked


def test_a_template_that_refuses_everything_gets_each_arrangement_once() -> None:
    reader = Reader(refuses=True)
    arranger = Arranger(reader.render)
    tried = [*arranger.arrangements(request("system", "user", "user"))]
    assert tried[0] == [*map(tried[0].__getitem__, range(3))]
    assert [len(messages) for messages in tried] == [3, 2, 1]


def test_a_conversation_that_continues_keeps_its_shape() -> None:
    turns = ["system"] + ["user", "assistant"] * 3 + ["user"]
    assert shape_of(request(*turns)) == shape_of(request(*turns, "assistant", "user"))
    assert shape_of(request("user", "user")) != shape_of(request("user"))
    with_tools = request("user") | {"tools": []}
    assert shape_of(with_tools) != shape_of(request("user"))


def test_a_long_conversation_is_probed_by_a_short_one() -> None:
    rounds = [calling(OWN_ID), result(OWN_ID)] * 500
    long = request_of([said("system"), said("user"), *rounds, said("assistant")], ChatOptions())
    short = without_repetition(long["messages"])
    roles = [message["role"] for message in short]
    assert roles == ["system", "user", *["assistant", "tool"] * 3, "assistant"]
    assert short[-1] == long["messages"][-1]


def test_the_short_conversation_has_the_same_shape_and_results_for_each_call() -> None:
    rng = random.Random(3)
    n_messages = n_asked = 0
    for _ in range(200):
        messages = []
        for n in range(rng.randrange(1, 60)):
            call_id = f"call{n:05d}"
            round_ = [calling(call_id), result(call_id), result(call_id)]
            messages += rng.choice([[said("user")], [said("assistant")], round_, round_[:2]])
        long = request_of(messages, ChatOptions())
        short = without_repetition(long["messages"])
        assert shape_of(long | {"messages": short}) == shape_of(long)
        answered = [message["tool_call_id"] for message in short if message["role"] == "tool"]
        calls = [call["id"] for each in short for call in each.get("tool_calls", ())]
        assert set(answered) == set(calls)
        n_messages, n_asked = n_messages + len(messages), n_asked + len(short)
    assert n_asked < n_messages / 1.5


def test_shapes_are_forgotten() -> None:
    reader = Reader()
    arranger = Arranger(reader.render)
    rng = random.Random(1)
    for _ in range(MAX_SHAPES + 100):
        first(arranger, request(*rng.choices(["user", "assistant", "tool"], k=12)))
    assert len(arranger._found) == MAX_SHAPES


def test_a_template_that_refuses_whatever_it_is_given_says_why(special_model: Model) -> None:
    source = "{{ raise_exception('never ' ~ messages | length) }}"
    template = ChatTemplate(special_model, source)
    with pytest.raises(BadRequest, match="the chat template refuses the messages: never 2"):
        template.render([ChatMessage("user", "a"), ChatMessage("user", "b")])
    template.close()
