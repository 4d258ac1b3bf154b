"""A request over which two workers died is refused for ten minutes, and no other is."""

from types import SimpleNamespace

import pytest

from lmlite.errors import HarmfulRequest
from lmlite.server.models import quarantine as module
from lmlite.server.models.quarantine import MAX_SUSPECTS, Suspects


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def is_refused(suspects: Suspects, request: int) -> bool:
    try:
        suspects.check(request)
    except HarmfulRequest:
        return True
    return False


def test_the_second_death_is_one_too_many() -> None:
    suspects = Suspects()
    suspects.blame(5)
    assert not is_refused(suspects, 5)
    suspects.blame(5)
    assert is_refused(suspects, 5)
    assert not is_refused(suspects, 6)


def test_the_refusal_says_for_how_long(clock: SimpleNamespace) -> None:
    suspects = Suspects()
    suspects.blame(5)
    suspects.blame(5)
    clock.s += 120
    with pytest.raises(HarmfulRequest) as caught:
        suspects.check(5)
    assert (caught.value.status, caught.value.code) == (422, "request_ended_worker")
    assert caught.value.retry_after_s == 481
    assert caught.value.message == (
        "the model's worker died 2 times while it ran this request; it is refused for 8 minutes"
    )


def test_ten_minutes_after_the_last_death_it_may_be_tried_again(clock: SimpleNamespace) -> None:
    suspects = Suspects()
    suspects.blame(5)
    clock.s += 599
    suspects.blame(5)
    clock.s += 599
    assert is_refused(suspects, 5)
    clock.s += 1
    assert not is_refused(suspects, 5)


def test_deaths_more_than_ten_minutes_apart_do_not_add_up(clock: SimpleNamespace) -> None:
    suspects = Suspects()
    for _ in range(5):
        suspects.blame(5)
        assert not is_refused(suspects, 5)
        clock.s += 601


def test_a_request_that_comes_to_its_end_is_cleared() -> None:
    suspects = Suspects()
    suspects.blame(5)
    suspects.clear(5)
    suspects.clear(6)
    suspects.blame(5)
    assert not is_refused(suspects, 5)


def test_the_list_is_bounded_and_forgets_who_was_blamed_longest_ago() -> None:
    suspects = Suspects()
    for request in (1, 2):
        suspects.blame(request)
        suspects.blame(request)
    for request in range(3, 2 + MAX_SUSPECTS):
        suspects.blame(request)
    assert not is_refused(suspects, 1)
    assert is_refused(suspects, 2)
