"""Resources that a Linux process uses: memory, descriptors, threads, children, CPU time."""

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from lmlite.server.models.machine_memory import held_by

KIB, MIB = 1 << 10, 1 << 20


def own_bytes(pid: int) -> int:
    """Anonymous memory (not backed by files); a leak makes it grow."""
    held = held_by(pid)
    assert held is not None, f"process {pid} is gone"
    return held.own


def all_bytes(pid: int) -> int:
    """Memory, including mapped pages of files."""
    held = held_by(pid)
    assert held is not None, f"process {pid} is gone"
    return sum(held)


def peak_bytes(pid: int) -> int:
    """Peak memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def cpu_seconds(pid: int) -> float:
    """CPU time of all its threads, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def handles(pid: int) -> Counter[str]:
    """Counts of open descriptors, threads, children, and zombies among them."""
    states = [_state(child) for child in children(pid)]
    return Counter(
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        children=len(states) - states.count(""),
        zombies=states.count("Z"),
    )


def children(pid: int) -> list[int]:
    """Processes that it has started but not waited for."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
            found += map(int, path.read_text().split())
    return found


def _state(pid: int) -> str:
    """The letter of a process's state; "" if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def grown(before: int, after: int) -> str:
    """A difference in bytes, as text."""
    return f"{(after - before) / KIB:+,.0f} KiB"


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
