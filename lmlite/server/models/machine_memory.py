"""How much memory is left for a worker on this machine and in its control groups (cgroups)."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# Bytes for a process with addresses of 32 bits: the kernel keeps up to half of the 4 GiB.
ADDRESSABLE = (2 << 30) - 1 if sys.maxsize < 1 << 32 else None
MAX_LIMIT = 1 << 60  # bytes; cgroup version 1 writes a larger number if there is no limit


class Bound(NamedTuple):
    """Bytes that a worker may take, and the words before that number in a log line or error."""

    because: str
    n_bytes: int


class Share(NamedTuple):
    """Bytes that a worker may take."""

    n_bytes: int
    pid: int | None  # None: it has no process now


def least_bound(
    n_asked: int | None, worker_pid: int | None = None, others: Sequence[Share] = ()
) -> Bound | None:
    """The smallest bound, or None if none is known.

    `n_asked` is for all workers, and replaces the machine's free memory; the limits of control
    groups still apply. What a worker that was started early holds already is part of what it may
    take. What other workers may take but do not hold yet is not free.
    """
    n_held = _own(worker_pid)
    n_due = sum(max(0, other.n_bytes - _own(other.pid)) for other in others)
    machine = machine_bytes()
    bounds = [Bound("the control group has", n_bytes + n_held - n_due) for n_bytes in group_bytes()]
    if n_asked is not None:
        n_taken = sum(other.n_bytes for other in others)
        bounds.append(Bound("--memory allows", n_asked - n_taken))
    elif machine is not None:
        bounds.append(Bound("the machine has", machine + n_held - n_due))
    if ADDRESSABLE is not None:
        bounds.append(Bound("a process of 32 bits has", ADDRESSABLE))
    return min(bounds, key=lambda bound: bound.n_bytes, default=None)


def _own(pid: int | None) -> int:
    held = held_by(pid) if pid is not None else None
    return held.own if held else 0


def machine_bytes() -> int | None:
    """Memory that can be taken without swapping: free memory and reclaimable caches."""
    return _bytes(PROC / "meminfo", "MemAvailable")


def group_bytes() -> Iterator[int]:
    """Bytes left in each control group that this process is in (cgroup versions 1 and 2)."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, total = CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, limit = CGROUPS / "memory", "memory.limit_in_bytes"
            usage, total = "memory.usage_in_bytes", "total_"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container this may be a path of the host, which does not exist in the container.
        for group in (folder, *folder.parents) if folder.is_dir() else (root,):
            n_limit = _number(group / limit)  # None also for the word "max"
            if n_limit is not None and n_limit < MAX_LIMIT:
                # Pages of files, which the kernel drops when memory is short.
                counts = (rf"^{total}{kind}_file (\d+)$" for kind in ("active", "inactive"))
                n_cached = sum(_number(group / "memory.stat", count) or 0 for count in counts)
                yield max(0, n_limit - (_number(group / usage) or 0) + n_cached)
            if group == root:
                break


class Held(NamedTuple):
    """Bytes of a process that are in RAM now."""

    own: int
    of_files: int  # pages of mapped files, which the kernel can drop


def held_by(pid: int) -> Held | None:
    """The memory that a process holds, or None if it has ended."""
    status = PROC / str(pid) / "status"
    own, of_files = _bytes(status, "RssAnon"), _bytes(status, "RssFile")
    return None if own is None or of_files is None else Held(own, of_files)


def _bytes(path: Path, name: str) -> int | None:
    n_kib = _number(path, rf"^{name}:\s+(\d+) kB$")
    return None if n_kib is None else n_kib << 10


def _number(path: Path, pattern: str = r"^(\d+)$") -> int | None:
    found = re.search(pattern, _text(path), re.MULTILINE)
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")  # a group's name may not be valid UTF-8
    except OSError:
        return ""
