"""How much memory the machine has left for a worker, and the control group that it runs in."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
MAX_LIMIT = 1 << 60  # version 1 writes a larger number where there is no limit


class Bound(NamedTuple):
    """Bytes that may be taken, and the words that introduce them in a sentence."""

    because: str
    n_bytes: int


def least_bound(n_asked: int | None) -> Bound | None:
    """The bound that holds: `n_asked` replaces what the machine has, not what its groups have.

    None where nothing is known.
    """
    machine = machine_bytes()
    bounds = [Bound("the control group has", n_bytes) for n_bytes in group_bytes()]
    if n_asked is not None:
        bounds.append(Bound("--memory allows", n_asked))
    elif machine is not None:
        bounds.append(Bound("the machine has", machine))
    return min(bounds, key=lambda bound: bound.n_bytes, default=None)


def machine_bytes() -> int | None:
    """What the machine can give without swapping: free memory, and caches that make room."""
    return _bytes(PROC / "meminfo", "MemAvailable")


def group_bytes() -> Iterator[int]:
    """What is left to each control group that this process is in, of either version."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit = CGROUPS / "memory", "memory.limit_in_bytes"
            usage, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which does not exist inside.
        for group in (folder, *folder.parents) if folder.is_dir() else (root,):
            n_limit = _number(group / limit)  # None also for the word "max"
            if n_limit is not None and n_limit < MAX_LIMIT:
                n_cached = _number(group / "memory.stat", rf"^{cache} (\d+)$") or 0
                yield max(0, n_limit - (_number(group / usage) or 0) + n_cached)
            if group == root:
                break


class Held(NamedTuple):
    """Bytes that a process holds in memory now."""

    own: int
    of_files: int  # pages of files, which the system may take back


def held_by(pid: int) -> Held | None:
    """None when the process is gone."""
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
        return path.read_text(errors="surrogateescape")  # names of groups may be any bytes
    except OSError:
        return ""
