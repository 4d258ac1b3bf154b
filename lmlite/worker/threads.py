"""How many threads a step gets: fewer while other processes keep this machine busy.

The threads of a step wait for each other after each operation, hundreds of times in a step. A
thread that shares its core with another process delays all others; then one thread less is faster.
The start of such a load shows in the time of a step. Its end does not: load on an unused core is
invisible; only a trial shows it. So from time to time a different number of threads takes turns
with the current number, on comparable steps. It becomes the current number if it wins every turn.

Steps that generate take part in trials, and so do short steps that read prompts, which are common
when a small model answers many short requests. A long step that reads a prompt always gets all
threads: a trial of a worse number would make a client wait.

Pure policy: no C, no threads, no clock. `note` gets the times of steps; their sum is the clock.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

SAMPLE_S = 0.02  # least time of a sample: a scheduler's time slices take milliseconds
N_SAMPLES = 5  # samples in a median, which ignores one or two disturbed samples
MAJORITY = N_SAMPLES // 2 + 1
GAIN = 0.9  # a new number must need less than this share of the current step time
UNUSUAL = 1.4  # a step this many times slower than usual suggests a new load
LEVEL_WEIGHT = 1 / 16  # weight of a new sample in the usual time, which grows with the context
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0  # between surveys; doubled after each one without a winner
SHORT_S = 0.02  # longest step that reads prompts and takes part in trials
READS, UNIT = 0, 16  # the kind of these steps; their times are compared per UNIT tokens
SHARE, HASTY_SHARE = (
    0.005,
    0.02,
)  # share of time that surveys may lose: usually; if a load may have changed


class _Samples:
    """Times of comparable steps; short steps are joined into samples."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=N_SAMPLES)  # seconds per step
        self._n_steps, self._sum_s = 0, 0.0

    def add(self, elapsed_s: float) -> float | None:
        """Adds a step's time; the sample that it completes, if any, in seconds per step."""
        self._n_steps += 1
        self._sum_s += elapsed_s
        if self._sum_s < SAMPLE_S:
            return None
        sample_s = self._sum_s / self._n_steps
        self._n_steps, self._sum_s = 0, 0.0
        self.recent.append(sample_s)
        return sample_s

    @property
    def is_full(self) -> bool:
        """Whether there are enough samples for a median."""
        return len(self.recent) == N_SAMPLES

    @property
    def median_s(self) -> float:
        """The median of the last N_SAMPLES samples, in seconds per step."""
        return median(self.recent)


class _Usual(_Samples):
    """The times of steps of one kind with the current number of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.level_s = 0.0  # a slow average of the samples; 0 before the first

    def add(self, elapsed_s: float) -> float | None:
        """Adds a step's time, and updates the usual time."""
        sample_s = super().add(elapsed_s)
        if sample_s is not None and self.is_full:
            level_s = self.level_s or self.median_s
            self.level_s = level_s + (sample_s - level_s) * LEVEL_WEIGHT
        return sample_s

    def accept(self) -> None:
        """Makes the current time the usual one."""
        if self.is_full:
            self.level_s = self.median_s


class _Trial:
    """Compares a new number of threads with the current one in three turns: new, current, new.

    Each turn is compared with the turn before it, so that a load that starts or ends during the
    trial does not decide it. Three of five samples win a turn. The first turn that the new number
    loses ends the trial.
    """

    N_TURNS = 3

    def __init__(self, n_new: int, n_current: int, before_s: float) -> None:
        self.n_new = n_new
        self._numbers = n_new, n_current
        self._before_s = before_s  # seconds per step in the turn before
        self._turn = 0
        self._samples = _Samples()
        self._n_good = self._n_bad = 0
        self.lost_s = 0.0  # seconds lost in turns of the new number

    @property
    def n_threads(self) -> int:
        """The number for the next step."""
        return self._numbers[self._turn % 2]

    def add(self, elapsed_s: float) -> bool | None:
        """Adds a step's time. Whether the new number has won; None while undecided."""
        is_new = self._turn % 2 == 0
        if is_new:
            self.lost_s += elapsed_s - self._before_s
        sample_s = self._samples.add(elapsed_s)
        if sample_s is None:
            return None
        fast_s, slow_s = (sample_s, self._before_s) if is_new else (self._before_s, sample_s)
        if fast_s < GAIN * slow_s:
            self._n_good += 1
        else:
            self._n_bad += 1
        if self._n_bad == MAJORITY:
            return False
        return self._next_turn() if self._n_good == MAJORITY else None

    def _next_turn(self) -> bool | None:
        self._turn += 1
        self._before_s = self._samples.median_s
        self._samples = _Samples()
        self._n_good = self._n_bad = 0
        return True if self._turn == self.N_TURNS else None


@dataclass
class _Survey:
    """Trials of the candidates, one after the other, until one wins; on steps of one kind."""

    kind: int
    candidates: Iterator[int]
    trial: _Trial
    lost_s: float = 0.0
    n_foreign: int = 0  # samples of other kinds since its last step


class ThreadGovernor:
    """Chooses the number of threads of each step, from 1 to `n_max`."""

    def __init__(self, n_max: int, *, on_change: Callable[[int, int], None] | None = None) -> None:
        """`on_change` is called with the old and the new number."""
        self.n_max = self.n_threads = n_max
        self._on_change = on_change
        self._clock_s = 0.0  # seconds spent in steps that take part
        self._token_s = math.inf  # seconds per token in steps that read prompts
        self._usual: dict[int, _Usual] = {}  # by kind: how many sequences generate, or READS
        self._survey: _Survey | None = None
        self._surveyed_s = 0.0  # on that clock: when the last survey ended
        self._lost_s = 0.0  # seconds lost by it
        self._wait_s = FIRST_WAIT_S
        self._due_s: float | None = None  # when the next survey begins; None: not known yet

    def choose(self, n_tokens: int, *, reads: bool = False) -> int:
        """How many threads the next step gets. Unless it `reads`, it has a token per sequence."""
        kind = self._kind(n_tokens, reads)
        if kind is None:
            return self.n_max
        if self._survey is not None and self._survey.kind == kind:
            return self._survey.trial.n_threads
        return self.n_threads

    def note(self, n_tokens: int, elapsed_s: float, *, reads: bool = False) -> None:
        """Takes the time of a step for which `choose` was called."""
        kind = self._kind(n_tokens, reads)
        if reads:
            token_s = elapsed_s / n_tokens
            self._token_s = token_s if math.isinf(self._token_s) else (self._token_s + token_s) / 2
            elapsed_s = token_s * UNIT
        if self.n_max == 1 or kind is None:
            return
        self._clock_s += elapsed_s
        if self._survey is not None and self._survey.kind == kind:
            self._go_on(self._survey, elapsed_s)
        else:
            self._watch(kind, elapsed_s)

    def _kind(self, n_tokens: int, reads: bool) -> int | None:
        """The kind of a step; steps of one kind are comparable. None: a long step that reads."""
        if not reads:
            return n_tokens
        return READS if n_tokens * self._token_s < SHORT_S else None

    def pause(self) -> None:
        """Generation pauses. Afterwards the other load may be gone, so a survey is due early."""
        if self.n_threads < self.n_max:
            self._hurry()

    def candidates(self) -> Iterator[int]:
        """Other numbers of threads, the most promising first.

        First all threads, because the load may have gone. Then 1, 2, 4, ... more or fewer, because
        each busy process takes one core, and there may be one such process or many.
        """
        n, seen = self.n_threads, {self.n_threads}
        steps = [1 << i for i in range(self.n_max.bit_length())]
        for other in (self.n_max, *(n + step for step in steps), *(n - step for step in steps)):
            if 1 <= other <= self.n_max and other not in seen:
                seen.add(other)
                yield other

    # ---- between surveys -------------------------------------------------------------------

    def _watch(self, kind: int, elapsed_s: float) -> None:
        usual = self._usual.setdefault(kind, _Usual())
        if usual.add(elapsed_s) is None or not usual.is_full:
            return
        if self._survey is not None:
            self._survey.n_foreign += 1
            if self._survey.n_foreign > 2 * N_SAMPLES:  # its kind of steps has ended
                self._survey = None
            return
        if self._due_s is None:
            self._due_s = self._clock_s + self._first_wait_s(usual)
        if self._is_unusual(usual):
            self._hurry()
        if self._clock_s >= self._due_s:
            others = self.candidates()
            trial = _Trial(next(others), self.n_threads, usual.median_s)
            self._survey = _Survey(kind, others, trial)

    def _first_wait_s(self, usual: _Usual) -> float:
        """Long enough that the first survey costs little, as it may find nothing."""
        n_samples = MAJORITY * len(list(self.candidates()))
        return n_samples * max(usual.level_s, SAMPLE_S) / (2 * HASTY_SHARE)

    def _is_unusual(self, usual: _Usual) -> bool:
        """Whether steps became much slower; or faster, which may mean that a load has gone."""
        if usual.median_s > UNUSUAL * usual.level_s:
            return True
        return self.n_threads < self.n_max and UNUSUAL * usual.median_s < usual.level_s

    def _hurry(self) -> None:
        """Makes the next survey due as soon as the cost of the last one allows."""
        soonest_s = self._surveyed_s + max(FIRST_WAIT_S, self._lost_s / HASTY_SHARE)
        self._due_s = soonest_s if self._due_s is None else min(self._due_s, soonest_s)

    # ---- during a survey -------------------------------------------------------------------

    def _go_on(self, survey: _Survey, elapsed_s: float) -> None:
        survey.n_foreign = 0
        has_won = survey.trial.add(elapsed_s)
        if has_won is None:
            return
        survey.lost_s += max(0.0, survey.trial.lost_s)
        if has_won:
            self._change(survey.trial.n_new)
            return
        other = next(survey.candidates, None)
        if other is None:
            self._stay(survey)
        else:
            before_s = self._usual[survey.kind].median_s
            survey.trial = _Trial(other, self.n_threads, before_s)

    def _stay(self, survey: _Survey) -> None:
        """No number was better: the next survey comes later, and later each time."""
        self._end_survey(survey.lost_s)
        self._due_s = self._clock_s + max(self._wait_s, self._lost_s / SHARE)
        self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)
        for usual in self._usual.values():
            usual.accept()

    def _change(self, n_threads: int) -> None:
        self._end_survey(0.0)
        self._due_s = self._clock_s + FIRST_WAIT_S
        self._wait_s = FIRST_WAIT_S
        self._usual.clear()
        old, self.n_threads = self.n_threads, n_threads
        if self._on_change is not None:
            self._on_change(old, n_threads)

    def _end_survey(self, lost_s: float) -> None:
        self._survey = None
        self._surveyed_s, self._lost_s = self._clock_s, lost_s
