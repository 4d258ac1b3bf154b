"""How soon another worker is started: attempts count, until one proves itself. No clock runs."""

from types import SimpleNamespace

import pytest

from lmlite.server.models.restarts import LATELY_S, MAX_DEATHS, PROOF_S, Restarts


@pytest.fixture
def now() -> SimpleNamespace:
    return SimpleNamespace(s=1000.0)


@pytest.fixture
def restarts(now: SimpleNamespace) -> Restarts:
    return Restarts(lambda: now.s)


def attempt(restarts: Restarts) -> float:
    """An attempt that fails; returns the pause after it."""
    restarts.begin()
    restarts.end()
    return restarts.pause_s


def test_pauses_grow_with_every_attempt_and_are_bounded(restarts: Restarts) -> None:
    assert [attempt(restarts) for _ in range(7)] == [0.0, 0.1, 0.5, 1.0, 5.0, 5.0, 5.0]


def test_attempts_after_the_death_of_a_proven_worker_count_like_others(
    restarts: Restarts,
) -> None:
    restarts.begin()
    restarts.reset()
    restarts.die()
    restarts.end()
    assert restarts.pause_s == 0.0
    assert [attempt(restarts) for _ in range(5)] == [0.0, 0.1, 0.5, 1.0, 5.0]


def test_an_answer_is_a_proof_and_the_next_failures_begin_anew(restarts: Restarts) -> None:
    for _ in range(4):
        attempt(restarts)
    restarts.begin()
    restarts.reset()
    restarts.end()
    assert restarts.pause_s == 0.0
    assert attempt(restarts) == 0.0


@pytest.mark.parametrize(("lived_s", "pause_s"), [(PROOF_S - 1, 5.0), (PROOF_S, 0.0)])
def test_a_minute_of_being_ready_is_a_proof_too(
    restarts: Restarts, now: SimpleNamespace, lived_s: float, pause_s: float
) -> None:
    for _ in range(4):
        attempt(restarts)
    restarts.begin()
    now.s += 1000  # to load takes as long as it takes
    restarts.ready()
    now.s += lived_s
    restarts.end()
    assert restarts.pause_s == pause_s


def test_the_fifth_death_in_a_row_is_one_too_many_however_long_the_model_took_to_load(
    restarts: Restarts, now: SimpleNamespace
) -> None:
    for number in range(1, MAX_DEATHS + 1):
        restarts.begin()
        now.s += 100
        restarts.die()
        assert restarts.are_hopeless == (number == MAX_DEATHS)


def test_attempts_that_were_no_deaths_make_nothing_hopeless(restarts: Restarts) -> None:
    for _ in range(20):
        attempt(restarts)
    restarts.begin()
    restarts.die()
    assert not restarts.are_hopeless


def test_a_death_counts_as_recent_for_a_minute(restarts: Restarts, now: SimpleNamespace) -> None:
    assert not restarts.were_lately
    restarts.die()
    now.s += LATELY_S - 1
    assert restarts.were_lately
    now.s += 1
    assert not restarts.were_lately
