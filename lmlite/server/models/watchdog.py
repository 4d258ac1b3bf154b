"""Whether a worker that owes an answer is alive: it sends events, or at least its process works.

A worker that was stopped, or whose threads wait for each other, does neither. One that works in
silence gets more time: on a slow board a step of many tokens, or the first step of a model that
is still on a slow disk, takes minutes. Time is counted in looks and not read from a clock, so
that it stands still while this process, too, is stopped. Knows no frames and kills nobody.
"""

LOOKS = 10  # within the limit
PATIENCE = 10  # times the limit, for a silent worker whose process works


class Watchdog:
    """Looks at one worker after the other, every `look_s`."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: how long a worker may owe an answer and show no sign of life."""
        self.look_s = limit_s / LOOKS
        self.rest()

    def rest(self) -> None:
        """The worker owes nothing."""
        self._seen: tuple[int, int] | None = None
        self._work: tuple[int, ...] | None = None
        self._n_silent = self._n_still = 0  # looks since it last sent an event, and last worked

    def is_overdue(self, pid: int, n_events: int) -> bool:
        """One look at a worker that owes something and has sent so many events."""
        work = work_of(pid)
        if self._seen != (pid, n_events):
            self.rest()
            self._seen, self._work = (pid, n_events), work
            return False
        self._n_silent += 1
        self._n_still = self._n_still + 1 if work == self._work else 0
        self._work = work
        return self._n_still >= LOOKS or self._n_silent >= LOOKS * PATIENCE


def work_of(pid: int) -> tuple[int, ...] | None:
    """Numbers that grow while a process works: pages read from a disk, processor time.

    None where the system does not tell: then only events are a sign of life.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    major_faults, user_time, system_time = 9, 11, 12  # proc(5), from the field behind the name
    return tuple(int(fields[i]) for i in (major_faults, user_time, system_time))
