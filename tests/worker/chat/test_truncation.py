"""Which turns of a conversation that is too long are left out, and which stay."""

from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.messages import Chat, ChatMessage, Image, SamplingParams, ToolCall
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.chat.truncation import n_turns, without_oldest
from lmlite.worker.llama.model import Model
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence
from tests.support.server_process import RunningServer


def said(*texts: str) -> list[ChatMessage]:
    """Messages by the first letter of their role: "c1" calls, "r1" is that call's result."""
    roles = {"s": "system", "u": "user", "a": "assistant", "c": "assistant", "r": "tool"}
    return [
        ChatMessage(
            roles[text[0]],
            text,
            tool_calls=(ToolCall(text[1:], "f", "{}"),) if text[0] == "c" else (),
            tool_call_id=text[1:] if text[0] == "r" else None,
        )
        for text in texts
    ]


def left(messages: list[ChatMessage], n: int) -> str:
    return " ".join(message.content for message in without_oldest(messages, n))


@pytest.mark.parametrize(
    ("texts", "steps"),
    [
        ("s u1 a1 u2 a2 u3", ["s u2 a2 u3", "s u3"]),
        ("s u1 c1 r1 a1 u2", ["s u2"]),
        ("u1 a1 u2 c1 r1 c2 r2", ["u2 c1 r1 c2 r2", "u2 c2 r2"]),
        ("u1 c1 c2 r1 r2 c3 r3", ["u1 c2 r2 c3 r3", "u1 c3 r3"]),
        ("s1 u1 s2 a1 u2 a2", ["s1 s2 u2 a2"]),
        ("a0 u1 a1 u2", ["u1 a1 u2", "u2"]),
        ("u1 c1 u2 r1 a1 u3", ["u2 a1 u3", "u3"]),
        ("u1 c1 u2 r1 a1", ["u2 a1"]),
        ("c1 r1 c2 r2", ["c2 r2"]),
        ("s u1", []),
        ("u1 a1", []),
        ("s", []),
    ],
)
def test_the_oldest_turns_go_first(texts: str, steps: list[str]) -> None:
    messages = said(*texts.split())
    assert left(messages, 0) == texts
    assert [left(messages, n + 1) for n in range(n_turns(messages))] == steps


# ---- until it fits ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(default_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(default_model)
    yield made
    made.close()


class Counted:
    """A template that notes how many messages it renders."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.rendered: list[int] = []

    def render(self, messages: Any, *rest: Any) -> Any:
        self.rendered.append(len(messages))
        return self._template.render(messages, *rest)


def prepared(model: Model, template: Any, turns: int, **params: Any) -> tuple[str, list[Any]]:
    """The text of the prompt in a context of 256 tokens, and what is noted."""
    noted: list[Any] = []
    messages = said("s", *(f"{role}{n}" for n in range(turns) for role in "ua"), "u!")
    chat = Chat(1, tuple(messages), SamplingParams(**params), truncates=True)
    (sequence,) = Preparer(model, template, 256, noted.extend).prepare(chat)
    assert isinstance(sequence, Sequence)
    text = b"".join(model.vocab.piece(token) for token in sequence.prompt).decode()
    sequence.close()
    return text, noted


def test_a_conversation_that_fits_is_rendered_once_and_stays(
    default_model: Model, template: Any
) -> None:
    counted = Counted(template)
    text, noted = prepared(default_model, counted, 5)
    assert "u0" in text
    assert (counted.rendered, noted) == ([12], [])


def test_a_conversation_that_does_not_fit_is_cut_in_few_steps(
    default_model: Model, template: Any
) -> None:
    counted = Counted(template)
    text, (note,) = prepared(default_model, counted, 100)
    assert "u0\n" not in text
    assert text.startswith("system\ns\nuser\n")
    assert "u!" in text
    assert len(counted.rendered) < 12
    assert note.text.startswith("a conversation was cut: without its ")


def test_there_is_room_for_the_answer(default_model: Model, template: Any) -> None:
    def n_tokens(**params: Any) -> int:
        text, _ = prepared(default_model, template, 100, **params)
        return text.count("user\n")

    assert n_tokens(max_tokens=1) > n_tokens() == n_tokens(max_tokens=10_000)


def test_only_a_request_that_asks_for_it_is_cut() -> None:
    assert Chat(1, (), SamplingParams()).truncates is False


def test_images_go_with_their_messages() -> None:
    image = Image(b"", 0, "")
    first = ChatMessage("user", "u1", images=(image,))
    assert without_oldest([first, *said("a1", "u2")], 1) == tuple(said("u2"))


# ---- over HTTP -------------------------------------------------------------------------------

PATH = "/v1/responses"
LONG = [
    {"role": role, "content": f"{role} {n} " + "word " * 20}
    for n in range(20)
    for role in ("user", "assistant")
] + [{"role": "user", "content": "Say hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--ctx", "256", "--parallel", "1") as running:
        yield running


def test_a_response_may_be_cut_and_says_so(server: RunningServer) -> None:
    body = {"input": LONG, "instructions": "Be kind.", "temperature": 0}
    assert server.post(PATH, **body).error["code"] == "context_length_exceeded"
    response = server.post(PATH, **body, truncation="auto").json
    assert response["truncation"] == "auto"
    assert response["output"][0]["content"][0]["text"] == "hello"
    assert 64 < response["usage"]["input_tokens"] <= 192
    server.wait_for_log(r"a conversation was cut: without its \d+ oldest turns")


def test_a_conversation_continues_after_a_cut(server: RunningServer) -> None:
    body = {"truncation": "auto", "temperature": 0}
    first = server.post(PATH, input=LONG, **body).json
    again = server.post(PATH, input="Say hello", previous_response_id=first["id"], **body)
    assert again.json["output"][0]["content"][0]["text"] == "hello"


def test_the_last_words_of_the_user_are_not_cut(server: RunningServer) -> None:
    long = [*LONG[:4], {"role": "user", "content": "word " * 400}]
    answer = server.post(PATH, input=long, truncation="auto")
    assert answer.error["code"] == "context_length_exceeded"
