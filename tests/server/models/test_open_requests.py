"""Open requests: what a worker gets of them, and what the next worker does not get."""

from typing import Any

import pytest

from lmlite import frames
from lmlite.errors import CHAT_NAMES, FieldNames, Unavailable
from lmlite.messages import Cancel, Chat, ChatMessage, Complete, Embed, Failed, SamplingParams
from lmlite.server.models.open_requests import OpenRequest, OpenRequests, error_of, n_results

FIRST, SECOND = "a worker's process", "the next one"


@pytest.fixture
def requests() -> OpenRequests:
    return OpenRequests(2)


def let_in(requests: OpenRequests, number: int) -> OpenRequest:
    chat = Chat(number, (ChatMessage("user", "Hi"),), SamplingParams())
    made = OpenRequest(chat, requests.forget)
    requests.add(made, b"frame %d" % number)
    return made


def told(requests: OpenRequests, process: Any) -> list[bytes]:
    found = []
    while (frame := requests.next_frame(process)) is not None:
        found.append(frame)
    assert not requests.has_frames
    return found


def test_a_worker_gets_each_request_once_and_in_order(requests: OpenRequests) -> None:
    for number in (1, 2):
        let_in(requests, number)
    assert told(requests, FIRST) == [b"frame 1", b"frame 2"]
    assert len(requests) == 2


def test_a_cancellation_comes_before_waiting_requests(requests: OpenRequests) -> None:
    first = let_in(requests, 1)
    told(requests, FIRST)
    let_in(requests, 2)
    first.close()
    first.close()
    assert told(requests, FIRST) == [frames.encode(Cancel(1)), b"frame 2"]


def test_a_cancellation_is_for_the_worker_that_had_the_request(requests: OpenRequests) -> None:
    had = let_in(requests, 1)
    told(requests, FIRST)
    had.close()
    assert told(requests, SECOND) == []


def test_a_request_whose_client_left_while_it_waited_reaches_no_worker(
    requests: OpenRequests,
) -> None:
    let_in(requests, 1).close()
    assert told(requests, FIRST) == []
    assert len(requests) == 0


def test_requests_beyond_the_maximum_are_refused(requests: OpenRequests) -> None:
    first, _ = let_in(requests, 1), let_in(requests, 2)
    told(requests, FIRST)
    with pytest.raises(Unavailable, match=r"^2 requests are waiting already$"):
        requests.check_room()
    first.close()
    requests.check_room()


def test_a_dead_worker_fails_the_requests_that_it_had_and_no_others(requests: OpenRequests) -> None:
    had = let_in(requests, 1)
    told(requests, FIRST)
    waiting = let_in(requests, 2)
    requests.fail(Unavailable("it died"), FIRST)
    with pytest.raises(Unavailable, match="it died"):
        had.next(0)
    assert waiting.next(0) is None
    assert told(requests, SECOND) == [b"frame 2"]
    requests.fail(Unavailable("the end"))
    with pytest.raises(Unavailable, match="the end"):
        waiting.next(0)
    assert len(requests) == 0


@pytest.mark.parametrize(
    ("request_", "n"),
    [
        (Chat(1, (ChatMessage("user", "Hi"),), SamplingParams(), n=2), 2),
        (Complete(1, ("Once", (1, 2)), SamplingParams(), n=3), 6),
        (Embed(1, ("a", "b")), 2),
    ],
)
def test_a_request_has_an_end_for_each_choice_and_input(request_: Any, n: int) -> None:
    assert n_results(request_) == n


RESPONSE_NAMES = FieldNames(messages="input", form="text.format")


@pytest.mark.parametrize(
    ("param", "message", "renamed"),
    [
        ("messages", "the messages are too long", ("input", "the messages are too long")),
        ("messages", "this is not what response_format allows",
         ("input", "this is not what text.format allows")),
        ("response_format", "no grammar can be made of response_format: x",
         ("text.format", "no grammar can be made of text.format: x")),
        ("tools", "no grammar can be made of tools: x",
         ("tools", "no grammar can be made of tools: x")),
        (None, "the server is stopping", (None, "the server is stopping")),
    ],
)  # fmt: skip
def test_an_error_of_the_worker_names_the_fields_of_the_clients_api(
    param: str | None, message: str, renamed: tuple[str | None, str]
) -> None:
    event = Failed(1, "BadRequest", message, param)
    error = error_of(event, RESPONSE_NAMES)
    assert (error.param, error.message) == renamed
    same = error_of(event, CHAT_NAMES)
    assert (same.param, same.message) == (param, message)


def test_a_prompt_that_is_too_long_is_that_of_the_clients_field() -> None:
    error = error_of(Failed(1, "PromptTooLong", "Shorten it.", "messages", (9, 5)), RESPONSE_NAMES)
    assert "your input resulted in 9 tokens. Shorten it." in error.message
