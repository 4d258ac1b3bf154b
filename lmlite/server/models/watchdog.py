"""Decides whether a busy worker is alive: it sends events, or its process uses the CPU or disk.

A worker that is stopped or in a deadlock does neither. A worker that is silent but uses the CPU
or disk gets more time: on a slow board, a step of many tokens takes minutes, and so does the
first step of a model that is read from a slow disk. Time is counted in looks, not read from a
clock, so that it does not pass while this process itself is stopped. The supervisor does the kill.
"""

LOOKS = 10  # per limit
PATIENCE = 10  # a silent worker that uses the CPU or disk gets this many times the limit


class Watchdog:
    """Looks at the current worker every `look_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: how long a worker may show no sign of life while requests wait."""
        self.look_s = limit_s / LOOKS
        self.rest()

    def rest(self) -> None:
        """Starts to count anew: no request waits, or the worker has just sent an event."""
        self._seen: tuple[int, int] | None = None
        self._work: tuple[int, ...] | None = None
        self._n_silent = self._n_still = 0  # looks since its last event, and since its last work

    def is_overdue(self, pid: int, n_events: int) -> bool:
        """Looks once at a busy worker, which has sent n_events; True if it should be killed."""
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
    """Numbers that grow while a process works: pages read from disk, CPU time.

    None if they are unknown: then only events are a sign of life.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    major_faults, user_time, system_time = 9, 11, 12  # proc(5); 0 is the field after the name
    return tuple(int(fields[i]) for i in (major_faults, user_time, system_time))
