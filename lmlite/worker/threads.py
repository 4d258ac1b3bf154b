"""How many threads a step gets: fewer while other processes keep this machine busy.

The threads of a step wait for each other after each operation, hundreds of times in a step. A
thread that shares its core with another process delays all others; then one thread less is faster.
The start of such a load shows in the time of a step. Its end does not: load on an unused core is
invisible; only a trial shows it. So from time to time a different number of threads takes turns
with the current number, on comparable steps. It becomes the current number if it wins every turn.

Steps that generate take part in trials, and so do short steps that read prompts, which are common
when a small model answers many short requests. A long step that reads a prompt always gets all
threads: a trial of a worse number would make a client wait.

Pure policy: no C, no threads, no clock. `note` gets the times of steps. Waits are counted in
samples, so that trials take the same share of the time whether a step takes 1 ms or 1 s.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from statistics import median

SAMPLE_S = 0.02  # least time of a sample: a scheduler's time slices take milliseconds
N_SAMPLES = 5  # samples in a median, which ignores one or two disturbed samples
MAJORITY = N_SAMPLES // 2 + 1
GAIN = 0.9  # a new number must need less than this share of the current step time
UNUSUAL = 1.4  # a step this many times slower than usual suggests a new load
FIRST_WAIT, MAX_WAIT = 64, 512  # samples between surveys; doubled after each one without a winner
SHORT_S = 0.02  # longest step that reads prompts and takes part in trials
READS, UNIT = 0, 16  # the kind of these steps; their times are compared per UNIT tokens


class _Times:
    """Times of comparable steps; short steps are joined into samples."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=N_SAMPLES)  # samples, in seconds per step
        self.usual_s = 0.0  # the median when numbers of threads were last compared; 0 before that
        self._n_steps, self._sum_s = 0, 0.0

    def add(self, elapsed_s: float) -> bool:
        """Adds a step's time. True if this completes a sample."""
        self._n_steps += 1
        self._sum_s += elapsed_s
        if self._sum_s < SAMPLE_S:
            return False
        self.recent.append(self._sum_s / self._n_steps)
        self._n_steps, self._sum_s = 0, 0.0
        return True

    @property
    def is_full(self) -> bool:
        """Whether there are enough samples for a median."""
        return len(self.recent) == N_SAMPLES

    @property
    def median_s(self) -> float:
        """The median of the last N_SAMPLES samples, in seconds per step."""
        return median(self.recent)


def _trial(n_new: int, n_current: int, before_s: float) -> Generator[int, float, bool]:
    """Compares a new number of threads with the current one in three turns: new, current, new.

    Yields the number for the next step and is sent that step's time. Returns whether the new number
    has won. Each turn is compared with the turn before it (`before_s` per step), so that a load
    that starts or ends during the trial does not decide it. Three of five samples win a turn. The
    first turn that the new number loses ends the trial.
    """
    for n_threads in (n_new, n_current, n_new):
        times, n_won, n_lost = _Times(), 0, 0
        while n_won < MAJORITY:
            if not times.add((yield n_threads)):
                continue
            sample_s = times.recent[-1]
            new_s, current_s = (sample_s, before_s) if n_threads == n_new else (before_s, sample_s)
            if new_s < GAIN * current_s:
                n_won += 1
            else:
                n_lost += 1
            if n_lost == MAJORITY:
                return False
        before_s = times.median_s
    return True


class ThreadGovernor:
    """Chooses the number of threads of each step, from 1 to `n_max`."""

    def __init__(self, n_max: int, *, on_change: Callable[[int, int], None] | None = None) -> None:
        """`on_change` is called with the old and the new number."""
        self.n_max = self.n_threads = n_max
        self._on_change = on_change
        self._token_s = math.inf  # seconds per token in steps that read prompts
        self._times: dict[int, _Times] = {}  # by kind: how many sequences generate, or READS
        self._survey: Generator[int, float, int | None] | None = None
        self._surveyed, self._on_trial = READS, n_max  # the survey's kind; threads of its next step
        self._n_foreign = 0  # samples of other kinds since the survey's last step
        self._n_samples = 0  # samples of all kinds: the clock for waits
        self._compared_at, self._due, self._wait = 0, FIRST_WAIT, FIRST_WAIT

    def choose(self, n_tokens: int, *, reads: bool = False) -> int:
        """How many threads the next step gets. Unless it `reads`, it has a token per sequence."""
        kind = self._kind(n_tokens, reads)
        if kind is None:
            return self.n_max
        is_trial = self._survey is not None and self._surveyed == kind
        return self._on_trial if is_trial else self.n_threads

    def note(self, n_tokens: int, elapsed_s: float, *, reads: bool = False) -> None:
        """Takes the time of a step for which `choose` was called."""
        kind = self._kind(n_tokens, reads)
        if reads:
            token_s = elapsed_s / n_tokens
            self._token_s = token_s if math.isinf(self._token_s) else (self._token_s + token_s) / 2
            elapsed_s = token_s * UNIT
        if self.n_max == 1 or kind is None:
            return
        if self._survey is None or self._surveyed != kind:
            self._watch(kind, elapsed_s)
            return
        self._n_foreign = 0
        try:
            self._on_trial = self._survey.send(elapsed_s)
        except StopIteration as end:
            self._end_survey(end.value)

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
        steps = [1 << i for i in range(self.n_max.bit_length())]
        nearest = (self.n_threads + sign * step for sign in (1, -1) for step in steps)
        for other in dict.fromkeys((self.n_max, *nearest)):
            if 1 <= other <= self.n_max and other != self.n_threads:
                yield other

    def _watch(self, kind: int, elapsed_s: float) -> None:
        """Takes the time of a step with the current number; begins a survey when one is due."""
        times = self._times.setdefault(kind, _Times())
        if not times.add(elapsed_s):
            return
        self._n_samples += 1
        if self._survey is not None:
            self._n_foreign += 1
            if self._n_foreign > 2 * N_SAMPLES:  # there are no more steps of the survey's kind
                self._survey = None
        elif times.is_full:
            times.usual_s = times.usual_s or times.median_s
            if times.median_s > UNUSUAL * times.usual_s:
                self._hurry()
            if self._n_samples >= self._due:
                self._survey, self._surveyed = self._make_survey(times), kind
                self._on_trial = next(self._survey)

    def _make_survey(self, times: _Times) -> Generator[int, float, int | None]:
        """Tries the candidates one after the other; returns the first that wins, or None."""
        for n_new in self.candidates():
            if (yield from _trial(n_new, self.n_threads, times.median_s)):
                return n_new
        return None

    def _end_survey(self, winner: int | None) -> None:
        self._survey = None
        if winner is None:
            for times in self._times.values():
                times.usual_s = times.median_s if times.is_full else 0.0
            n_wait, self._wait = self._wait, min(2 * self._wait, MAX_WAIT)
        else:
            self._times.clear()
            n_wait = self._wait = FIRST_WAIT
        self._compared_at, self._due = self._n_samples, self._n_samples + n_wait
        if winner is not None:
            old, self.n_threads = self.n_threads, winner
            if self._on_change is not None:
                self._on_change(old, winner)

    def _hurry(self) -> None:
        """Makes the next survey due early, but at least FIRST_WAIT samples after the last one."""
        self._due = min(self._due, self._compared_at + FIRST_WAIT)
