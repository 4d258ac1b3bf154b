"""The worker's events become the reply of /api/v1/chat, or the events of its stream."""

from typing import Any

import pytest

from lmlite.errors import BadRequest, InternalError
from lmlite.messages import ChatMessage, Delta, Finished, Queued, Reading, Started
from lmlite.server.api.lmstudio.chat import parse_native_chat
from lmlite.server.api.lmstudio.replies import NativeReply
from lmlite.server.api.reply import Incoming
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.models import life
from tests.support.listed_models import SWITCH, listed_model
from tests.support.streams import typed_events


class Clock:
    """Goes on by a quarter of a second whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


def reply_of(stored: StoredResponses | None = None, model: Any = None, **body: Any) -> NativeReply:
    call = parse_native_chat(stored or StoredResponses(), {"input": "Hi", **body})
    return NativeReply(call, "resp_1", model or listed_model("m", template=SWITCH), 0, Clock())


def whole(events: list[Incoming], **body: Any) -> Any:
    reply = reply_of(**body)
    for event in events:
        reply.add(event)
    return reply.whole()


def streamed(events: list[Incoming], **body: Any) -> list[Any]:
    reply = reply_of(**body, stream=True)
    return typed_events(b"".join(map(reply.add, events)) + reply.tail())


LOADS: list[Incoming] = [
    life.Loading(0.0),
    life.Loading(0.0),
    life.Loading(0.65432),
    Queued(0, 0, 0),
]
ANSWERS: list[Incoming] = [
    Started(0, 0, n_prompt=900, n_cached=4),
    Reading(0, 0, 450, 900),
    Delta(0, 0, "", reasoning="Need "),
    Delta(0, 0, "", reasoning="to."),
    Delta(0, 0, "Hel"),
    Delta(0, 0, "lo"),
    Finished(0, 0, "stop", 7, n_reasoning=3),
]
# The clock's steps: 1 is when the reply was made, 2 is Started, 3 is Reading, 4 the first token.
RESULT = {
    "model_instance_id": "m",
    "output": [
        {"type": "reasoning", "content": "Need to."},
        {"type": "message", "content": "Hello"},
    ],
    "stats": {
        "input_tokens": 900,
        "total_output_tokens": 7,
        "reasoning_output_tokens": 3,
        "tokens_per_second": 6 / 1.0,
        "time_to_first_token_seconds": 0.75,
    },
    "response_id": "resp_1",
}


def named(*names: str) -> list[dict[str, str]]:
    return [{"type": name} for name in names]


ANSWER_EVENTS = [
    *named("prompt_processing.start"),
    {"type": "prompt_processing.progress", "progress": 0.5},
    *named("prompt_processing.end", "reasoning.start"),
    {"type": "reasoning.delta", "content": "Need "},
    {"type": "reasoning.delta", "content": "to."},
    *named("reasoning.end", "message.start"),
    {"type": "message.delta", "content": "Hel"},
    {"type": "message.delta", "content": "lo"},
    *named("message.end"),
]
CHAT_START = {"type": "chat.start", "model_instance_id": "m"}


def test_events_become_a_reply() -> None:
    assert whole(ANSWERS) == RESULT


def test_events_become_typed_events_that_end_with_the_whole_reply() -> None:
    assert streamed(ANSWERS) == [
        CHAT_START, *ANSWER_EVENTS, {"type": "chat.end", "result": RESULT},
    ]  # fmt: skip


def test_a_load_is_shown_and_measured() -> None:
    stats = RESULT["stats"] | {"model_load_time_seconds": 1.0}  # type: ignore[operator]
    result = RESULT | {"stats": stats}
    assert streamed(LOADS + ANSWERS) == [
        CHAT_START,
        {"type": "model_load.start", "model_instance_id": "m"},
        {"type": "model_load.progress", "model_instance_id": "m", "progress": 0.0},
        {"type": "model_load.progress", "model_instance_id": "m", "progress": 0.654},
        {"type": "model_load.end", "model_instance_id": "m", "load_time_seconds": 1.0},
        *ANSWER_EVENTS,
        {"type": "chat.end", "result": result},
    ]
    assert whole(LOADS + ANSWERS) == result


def test_nothing_is_sent_before_the_prompt_is_accepted_or_a_load_begins() -> None:
    reply = reply_of(stream=True)
    assert reply.add(Queued(0, 0, 2)) == b""
    assert typed_events(reply.add(ANSWERS[0]))[0] == CHAT_START


def test_a_reply_of_one_token_has_no_speed() -> None:
    events: list[Incoming] = [ANSWERS[0], Finished(0, 0, "stop", 1)]
    shown = whole(events)
    assert shown["output"] == []
    assert shown["stats"] == {
        "input_tokens": 900,
        "total_output_tokens": 1,
        "reasoning_output_tokens": 0,
        "tokens_per_second": 0.0,
        "time_to_first_token_seconds": 0.5,
    }


# ---- failures --------------------------------------------------------------------------------


def test_a_failure_is_an_event_and_the_end_follows_with_what_there_is() -> None:
    reply = reply_of(stream=True)
    data = b"".join(map(reply.add, ANSWERS[:-1]))
    *_, error, end = typed_events(data + reply.failure(InternalError("the worker ended")))
    told = {"type": "internal_error", "message": "the worker ended"}
    assert error == {"type": "error", "error": told}
    assert (end["type"], end["result"]["output"]) == ("chat.end", RESULT["output"])
    assert "response_id" not in end["result"]


def test_a_failure_before_the_first_event_starts_the_chat_all_the_same() -> None:
    failed = typed_events(reply_of(stream=True).failure(BadRequest("no", param="input")))
    assert [event["type"] for event in failed] == ["chat.start", "error", "chat.end"]
    assert failed[1]["error"] == {"type": "invalid_request", "message": "no", "param": "input"}
    assert failed[2]["result"]["output"] == []


def test_a_model_that_cannot_do_what_is_asked_is_known_at_once() -> None:
    with pytest.raises(BadRequest, match="reasoning is low, but m takes off, on"):
        reply_of(reasoning="low")


def test_a_context_that_is_too_short_is_known_once_the_model_is_loaded() -> None:
    model = listed_model("m", n_ctx=None)
    reply = reply_of(model=model, context_length=9999)
    reply.add(life.Loading(0.5))
    model.ready = listed_model("m", n_ctx=512).ready
    with pytest.raises(BadRequest, match="context_length is 9,999, but m is loaded with 512"):
        reply.add(ANSWERS[0])


# ---- conversations ---------------------------------------------------------------------------


@pytest.fixture
def stored() -> StoredResponses:
    return StoredResponses()


def test_a_complete_reply_is_stored_with_its_conversation(stored: StoredResponses) -> None:
    whole(ANSWERS, stored=stored, system_prompt="Be brief.")
    assert stored.find("resp_1") == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Hello", reasoning="Need to."),
    )


def test_a_reply_that_is_not_stored_has_no_id(stored: StoredResponses) -> None:
    assert "response_id" not in whole(ANSWERS, stored=stored, store=False)
    with pytest.raises(BadRequest):
        stored.find("resp_1")


def test_the_name_that_a_load_gave_the_model_is_shown() -> None:
    model = listed_model("m", template=SWITCH)
    model.identifiers.append("mine")
    assert whole(ANSWERS, model=model)["model_instance_id"] == "mine"
