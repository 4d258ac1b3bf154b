"""Requests that were let in: what a worker is told of them, and what the next one is not."""

from typing import Any

import pytest

from lmlite import frames
from lmlite.errors import Unavailable
from lmlite.messages import Cancel, Chat, ChatMessage, SamplingParams
from lmlite.server.models.event_queue import Reply
from lmlite.server.models.open_requests import OpenRequests

FIRST, SECOND = "a worker's process", "the next one"


@pytest.fixture
def requests() -> OpenRequests:
    return OpenRequests(most=2)


def reply(requests: OpenRequests, number: int) -> Reply:
    """Of a request that was let in."""
    chat = Chat(number, (ChatMessage("user", "Hi"),), SamplingParams())
    made = Reply(chat, requests.forget)
    requests.add(made, b"frame %d" % number)
    return made


def told(requests: OpenRequests, process: Any) -> list[bytes]:
    found = []
    while (frame := requests.next_frame(process)) is not None:
        found.append(frame)
    assert not requests.has_frames
    return found


def test_a_worker_is_told_of_each_once_and_in_order(requests: OpenRequests) -> None:
    for number in (1, 2):
        reply(requests, number)
    assert told(requests, FIRST) == [b"frame 1", b"frame 2"]
    assert len(requests) == 2


def test_a_cancellation_comes_before_what_waits(requests: OpenRequests) -> None:
    first = reply(requests, 1)
    told(requests, FIRST)
    reply(requests, 2)
    first.close()
    first.close()
    assert told(requests, FIRST) == [frames.encode(Cancel(1)), b"frame 2"]


def test_a_cancellation_is_for_the_worker_that_had_the_request(requests: OpenRequests) -> None:
    had = reply(requests, 1)
    told(requests, FIRST)
    had.close()
    assert told(requests, SECOND) == []


def test_who_left_while_it_waited_is_told_to_nobody(requests: OpenRequests) -> None:
    reply(requests, 1).close()
    assert told(requests, FIRST) == []
    assert len(requests) == 0


def test_there_is_room_for_as_many_as_may_be_open(requests: OpenRequests) -> None:
    first, _ = reply(requests, 1), reply(requests, 2)
    told(requests, FIRST)
    with pytest.raises(Unavailable, match=r"^2 requests are waiting already$"):
        requests.check_room()
    first.close()
    requests.check_room()


def test_a_worker_takes_along_what_it_had_and_nothing_else(requests: OpenRequests) -> None:
    had = reply(requests, 1)
    told(requests, FIRST)
    waiting = reply(requests, 2)
    requests.fail(Unavailable, "it died", FIRST)
    with pytest.raises(Unavailable, match="it died"):
        had.next(0)
    assert waiting.next(0) is None
    assert told(requests, SECOND) == [b"frame 2"]
    requests.fail(Unavailable, "the end")
    with pytest.raises(Unavailable, match="the end"):
        waiting.next(0)
    assert len(requests) == 0
