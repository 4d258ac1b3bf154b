"""Stored conversations are found again, within limits; the least recently used are dropped."""

import contextlib
import itertools
import threading

import pytest

from lmlite.errors import BadRequest
from lmlite.frames import MAX_FRAME_BYTES
from lmlite.messages import ChatMessage, ToolCall
from lmlite.server.api.responses.stored import (
    MAX_CONVERSATION_BYTES,
    MESSAGE_BYTES,
    Record,
    StoredResponses,
    size_of,
)

HI = (ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello"))


def remembered(stored: StoredResponses, *names: str) -> list[str]:
    """The names that can still be found."""
    found = []
    for name in names:
        with contextlib.suppress(BadRequest):
            assert stored.find(name)
            found.append(name)
    return found


def test_a_conversation_is_found_by_the_id_of_its_response() -> None:
    stored = StoredResponses()
    stored.keep("resp_1", Record(HI))
    assert stored.find("resp_1") is HI


def test_an_unknown_id_is_refused_as_openai_does() -> None:
    with pytest.raises(BadRequest) as caught:
        StoredResponses().find("resp_" + "x" * 100)
    error = caught.value
    assert (error.status, error.code, error.param) == (
        400, "previous_response_not_found", "previous_response_id")  # fmt: skip
    assert "resp_" + "x" * 59 + "'" in error.message


def test_the_least_recently_used_is_dropped_first() -> None:
    stored = StoredResponses(max_responses=2)
    stored.keep("a", Record(HI))
    stored.keep("b", Record(HI))
    stored.find("a")
    stored.keep("c", Record(HI))
    assert remembered(stored, *"abc") == ["a", "c"]


def test_the_limit_of_bytes_holds() -> None:
    stored = StoredResponses(max_bytes=3 * size_of(HI))
    for name in "abcd":
        stored.keep(name, Record(HI))
    assert remembered(stored, *"abcd") == ["b", "c", "d"]


def test_a_conversation_that_is_too_long_is_not_stored_and_displaces_nothing() -> None:
    stored = StoredResponses()
    stored.keep("short", Record(HI))
    stored.keep("long", Record((ChatMessage("user", "x" * MAX_CONVERSATION_BYTES),)))
    assert remembered(stored, "short", "long") == ["short"]


def test_the_longest_one_and_the_largest_body_fit_a_frame_together() -> None:
    largest_body, escaped = 4 << 20, len(r"\u0000")
    assert (MAX_CONVERSATION_BYTES + largest_body) * escaped < MAX_FRAME_BYTES


def test_size_counts_everything_that_a_client_or_a_model_has_written() -> None:
    empty = size_of((ChatMessage("user", ""),))
    assert empty == MESSAGE_BYTES
    call = ToolCall("i" * 1000, "n" * 100, "a" * 10)
    message = ChatMessage("assistant", "c" * 500, None, "r" * 50, (call,), "t" * 5)
    n_bytes = size_of((message,))
    assert 1665 < n_bytes - 2 * MESSAGE_BYTES < 1665 + 6 * 60


def test_threads_do_not_lose_count() -> None:
    stored = StoredResponses(max_bytes=10 * size_of(HI))

    names = [[f"{thread}-{i}" for i in range(200)] for thread in range(4)]

    def keep_and_find(names: list[str]) -> None:
        for name in names:
            stored.keep(name, Record(HI))
            remembered(stored, name)

    threads = [threading.Thread(target=keep_and_find, args=(some,)) for some in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(remembered(stored, *itertools.chain(*names))) == 10
