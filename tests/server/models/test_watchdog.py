"""A worker that owes an answer is given up once it neither sends events nor works."""

import os
from collections.abc import Iterator

import pytest

from lmlite.server.models import watchdog as module
from lmlite.server.models.watchdog import LOOKS, PATIENCE, Watchdog

WORKING = iter(range(10**9))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does nothing."""
    monkeypatch.setattr(module, "work_of", lambda _pid: (3, 4, 5))


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that works all the time."""
    monkeypatch.setattr(module, "work_of", lambda _pid: (next(WORKING), 4, 5))


def looks_until_overdue(watchdog: Watchdog, n_most: int = 10_000) -> int:
    return next(n for n in range(n_most) if watchdog.is_overdue(7, 1))


def test_there_are_ten_looks_in_the_limit() -> None:
    assert (LOOKS, Watchdog(30.0).look_s) == (10, 3.0)


@pytest.mark.usefixtures("still")
def test_a_worker_that_neither_speaks_nor_works_is_overdue_after_the_limit() -> None:
    assert looks_until_overdue(Watchdog(30.0)) == LOOKS


@pytest.mark.usefixtures("working")
def test_a_worker_that_works_in_silence_has_ten_times_as_long() -> None:
    assert looks_until_overdue(Watchdog(30.0)) == LOOKS * PATIENCE


def test_a_moment_of_work_begins_the_limit_again(monkeypatch: pytest.MonkeyPatch) -> None:
    work: Iterator[int] = iter([0] * 6 + [1] * 10_000)
    monkeypatch.setattr(module, "work_of", lambda _pid: (next(work), 0, 0))
    assert looks_until_overdue(Watchdog(30.0)) == 6 + LOOKS


@pytest.mark.usefixtures("still")
def test_an_event_is_a_sign_of_life() -> None:
    watchdog = Watchdog(30.0)
    assert not any(watchdog.is_overdue(7, n_events) for n_events in range(1000))


@pytest.mark.usefixtures("still")
def test_another_worker_begins_afresh() -> None:
    watchdog = Watchdog(30.0)
    assert not any(watchdog.is_overdue(pid, 1) for pid in range(1000))


@pytest.mark.usefixtures("still")
def test_time_without_anything_owed_does_not_count() -> None:
    watchdog = Watchdog(30.0)
    for _ in range(100):
        assert not any(watchdog.is_overdue(7, 1) for _ in range(LOOKS))
        watchdog.rest()


def test_the_work_of_a_process_grows_while_it_computes() -> None:
    before = module.work_of(os.getpid())
    assert before is not None
    while (after := module.work_of(os.getpid())) == before:
        pass
    assert after is not None and sum(after) > sum(before)


def test_the_work_of_a_process_that_is_gone_is_unknown() -> None:
    assert module.work_of(2**22 + 1) is None
