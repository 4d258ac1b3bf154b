"""A request over which two workers died is refused for ten minutes; others are not."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import HarmfulRequest
from lmlite.messages import Chat, ChatMessage, ChatOptions, Complete, Embed, SamplingParams
from lmlite.server.models import quarantine as module
from lmlite.server.models.quarantine import MAX_KEPT, Quarantine, fingerprint


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def complete(token: int) -> Complete:
    return Complete(0, ((token,),), SamplingParams())


def is_refused(quarantine: Quarantine, request: int) -> bool:
    try:
        quarantine.check(complete(request))
    except HarmfulRequest:
        return True
    return False


def test_the_second_death_is_one_too_many() -> None:
    quarantine = Quarantine()
    quarantine.blame([complete(5)])
    assert not is_refused(quarantine, 5)
    quarantine.blame([complete(5)])
    assert is_refused(quarantine, 5)
    assert not is_refused(quarantine, 6)


def test_the_refusal_says_for_how_long(clock: SimpleNamespace) -> None:
    quarantine = Quarantine()
    quarantine.blame([complete(5)])
    quarantine.blame([complete(5)])
    clock.s += 120
    with pytest.raises(HarmfulRequest) as caught:
        quarantine.check(complete(5))
    assert (caught.value.status, caught.value.code) == (422, "request_ended_worker")
    assert caught.value.retry_after_s == 481
    assert caught.value.message == (
        "the model's worker died 2 times while it ran this request; it is refused for 8 minutes"
    )


def test_ten_minutes_after_the_last_death_it_may_be_tried_again(clock: SimpleNamespace) -> None:
    quarantine = Quarantine()
    quarantine.blame([complete(5)])
    clock.s += 599
    quarantine.blame([complete(5)])
    clock.s += 599
    assert is_refused(quarantine, 5)
    clock.s += 1
    assert not is_refused(quarantine, 5)


def test_deaths_more_than_ten_minutes_apart_do_not_add_up(clock: SimpleNamespace) -> None:
    quarantine = Quarantine()
    for _ in range(5):
        quarantine.blame([complete(5)])
        assert not is_refused(quarantine, 5)
        clock.s += 601


def test_a_request_that_comes_to_its_end_is_cleared() -> None:
    quarantine = Quarantine()
    quarantine.blame([complete(5)])
    quarantine.clear(complete(5))
    quarantine.clear(complete(6))
    quarantine.blame([complete(5)])
    assert not is_refused(quarantine, 5)


def test_the_list_is_bounded_and_forgets_the_oldest_entry() -> None:
    quarantine = Quarantine()
    for request in (1, 2):
        quarantine.blame([complete(request)])
        quarantine.blame([complete(request)])
    for request in range(3, 2 + MAX_KEPT):
        quarantine.blame([complete(request)])
    assert not is_refused(quarantine, 1)
    assert is_refused(quarantine, 2)


# ---- which requests are equal ----------------------------------------------------------------

CHAT = Chat(1, (ChatMessage("user", "Hi"),), SamplingParams(seed=7))
COMPLETE = Complete(1, ("Once", (1, 2)), SamplingParams(seed=7), n=3)
EMBED = Embed(1, ("a", "b"))


@pytest.mark.parametrize("request_", [CHAT, COMPLETE, EMBED])
def test_a_request_that_is_sent_again_is_the_same(request_: Any) -> None:
    assert fingerprint(replace(request_, id=2)) == fingerprint(request_)


@pytest.mark.parametrize("request_", [CHAT, COMPLETE])
def test_tracing_and_seeds_do_not_make_another_request(request_: Any) -> None:
    watched = replace(request_, trace=True)
    assert fingerprint(watched) == fingerprint(request_)
    for seed in (8, None):
        params = replace(request_.params, seed=seed)
        assert fingerprint(replace(request_, params=params)) == fingerprint(request_)


def test_another_text_or_another_way_to_answer_is_another_request() -> None:
    others = [
        replace(CHAT, messages=(ChatMessage("user", "Ho"),)),
        replace(CHAT, n=2),
        replace(CHAT, params=replace(CHAT.params, temperature=0.1)),
        replace(CHAT, grammar="root ::= [a]"),
        replace(CHAT, options=ChatOptions(({"type": "function"},))),
    ]
    assert len({fingerprint(request) for request in (CHAT, *others)}) == 6
