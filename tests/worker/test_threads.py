"""The number of threads follows the load: on a simulated machine, with a fixed seed and no clock.

The simulated step takes what a real one was measured to take on two cores: 15 ms on both, 26 ms on
one, and 38 ms on both when another process keeps one of them busy.
"""

import random
from collections.abc import Callable, Iterator

import pytest

from lmlite.worker.threads import ThreadGovernor

ALONE_S = 0.026  # a step on one thread
OVERHEAD = 0.15  # of ALONE_S: what more than one thread costs
CROWDED = 2.5  # times as long: threads that share a core make all others wait


class Machine:
    """Cores, other processes that keep some of them busy, and steps that take their time."""

    def __init__(self, n_cores: int, *, noise: float = 0.0, scale: float = 1.0) -> None:
        self.n_cores, self.n_busy = n_cores, 0
        self._noise, self._scale = noise, scale
        self._rng = random.Random(1)
        self.clock_s = 0.0
        self.changes: list[tuple[int, int]] = []
        self.governor = ThreadGovernor(n_cores, on_change=lambda *pair: self.changes.append(pair))

    def step_s(self, n_threads: int) -> float:
        """How long a step takes with this many threads."""
        elapsed_s = ALONE_S * (1 / n_threads + OVERHEAD * (n_threads > 1))
        if n_threads > self.n_cores - self.n_busy:
            elapsed_s *= CROWDED
        return elapsed_s * self._scale * (1 + self._noise * self._rng.random())

    def generate(self, seconds: float, kinds: Iterator[int] | None = None) -> float:
        """Generates for some time; the steps per second."""
        n_steps, end_s = 0, self.clock_s + seconds
        while self.clock_s < end_s:
            kind = next(kinds) if kinds else 1
            elapsed_s = self.step_s(self.governor.choose(kind))
            self.governor.note(kind, elapsed_s)
            self.clock_s += elapsed_s
            n_steps += 1
        return n_steps / seconds

    def read(self, seconds: float, n_tokens: Callable[[], int]) -> None:
        """Reads prompts for some time; a token takes a twentieth of a step."""
        end_s = self.clock_s + seconds
        while self.clock_s < end_s:
            n = n_tokens()
            elapsed_s = self.step_s(self.governor.choose(n, reads=True)) * n / 20
            self.governor.note(n, elapsed_s, reads=True)
            self.clock_s += elapsed_s

    def share_of_best(self, seconds: float) -> float:
        """The speed, as a share of the speed with the best number of threads."""
        best_s = min(self.step_s(n) for n in range(1, self.n_cores + 1))
        return self.generate(seconds) * best_s


@pytest.mark.parametrize("n_cores", [2, 4, 8])
def test_a_quiet_machine_uses_every_core_and_loses_under_one_percent(n_cores: int) -> None:
    machine = Machine(n_cores)
    assert machine.share_of_best(600) > 0.99
    assert machine.changes == []


@pytest.mark.parametrize("n_cores", [2, 4, 8])
def test_one_thread_less_runs_soon_after_another_process_takes_a_core(n_cores: int) -> None:
    machine = Machine(n_cores)
    machine.generate(60)
    machine.n_busy = 1
    machine.generate(5)
    assert machine.changes == [(n_cores, n_cores - 1)]
    assert machine.share_of_best(120) > 0.97


def test_every_core_is_used_again_soon_after_the_other_process_is_gone() -> None:
    machine = Machine(2)
    machine.n_busy = 1
    machine.generate(60)
    machine.n_busy = 0
    machine.generate(60)
    assert machine.changes == [(2, 1), (1, 2)]
    assert machine.governor.n_threads == 2


def test_a_load_that_was_there_before_the_first_step_is_found() -> None:
    machine = Machine(2)
    machine.n_busy = 1
    machine.generate(20)
    assert machine.changes == [(2, 1)]


def test_many_busy_processes_take_as_many_threads() -> None:
    machine = Machine(8)
    machine.generate(30)
    machine.n_busy = 4
    machine.generate(60)
    assert machine.governor.n_threads == 4


def test_noise_changes_nothing() -> None:
    machine = Machine(2, noise=0.5)
    machine.generate(600)
    assert machine.changes == []


def test_an_intermittent_load_causes_few_changes() -> None:
    machine = Machine(2)
    for _ in range(300):
        machine.n_busy = 1 - machine.n_busy
        machine.generate(0.4)
    assert len(machine.changes) <= 6


def test_steps_that_slow_down_with_the_context_change_nothing() -> None:
    machine = Machine(2)
    for grown in range(200):
        machine._scale = 1 + grown / 50
        machine.generate(1)
    assert machine.changes == []


def test_steps_of_half_a_millisecond_are_joined() -> None:
    machine = Machine(2, scale=0.02, noise=0.2)
    machine.n_busy = 1
    machine.generate(20)
    assert machine.changes == [(2, 1)]


def test_steps_with_more_sequences_change_nothing() -> None:
    machine = Machine(2)
    rng = random.Random(2)

    def kinds() -> Iterator[int]:
        while True:
            kind = rng.randint(1, 8)
            machine._scale = 1 + kind / 4
            yield from [kind] * rng.randint(1, 40)

    machine.generate(600, kinds())
    assert machine.changes == []


def test_after_a_pause_all_threads_are_tried_again_soon() -> None:
    machine = Machine(2)
    machine.n_busy = 1
    machine.generate(300)  # by now a trial is rare
    machine.n_busy = 0
    machine.governor.pause()
    machine.generate(5)
    assert machine.governor.n_threads == 2


def test_short_steps_that_read_count_whatever_their_length() -> None:
    machine = Machine(2, scale=0.1, noise=0.2)
    rng = random.Random(3)
    machine.read(60, lambda: rng.randint(12, 80))
    assert machine.changes == []
    machine.n_busy = 1
    machine.read(10, lambda: rng.randint(12, 80))
    assert machine.changes == [(2, 1)]


def test_a_long_step_that_reads_has_every_thread_and_changes_nothing() -> None:
    machine = Machine(2)
    machine.n_busy = 1
    machine.read(600, lambda: 512)
    assert machine.changes == []
    machine.generate(20)
    assert machine.changes == [(2, 1)]
    assert machine.governor.choose(512, reads=True) == 2


def test_the_first_step_that_reads_is_taken_for_a_long_one() -> None:
    machine = Machine(2)
    machine.n_busy = 1
    machine.generate(20)
    assert machine.governor.choose(2, reads=True) == 2


def test_one_core_leaves_nothing_to_choose() -> None:
    machine = Machine(1)
    machine.n_busy = 1
    machine.generate(60)
    assert (machine.changes, machine.governor.choose(1)) == ([], 1)
