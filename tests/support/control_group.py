"""A control group with little memory and one core, as a small machine has it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lmlite.server.models.machine_memory import CGROUPS

# Folders of groups, of version 1 and of version 2, and the files of a group that limit it.
VERSIONS = (
    (CGROUPS / "memory", "memory.limit_in_bytes", "memory.swappiness"),
    (CGROUPS, "memory.max", "memory.swap.max"),
)


@contextmanager
def small_machine(n_mib: int) -> Iterator[tuple[str, ...]]:
    """The first words of a command that runs on one core with this much memory, without swap.

    Pages of files that were read before, outside the group, do not count. Skips the test if no
    group can be made.
    """
    group = _made(n_mib << 20)
    if group is None:
        pytest.skip("needs the right to make a control group with a limit on memory")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # processes that start from here on inherit it
    try:
        yield "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"
    finally:
        os.sched_setaffinity(0, allowed)
        group.rmdir()


def _made(n_bytes: int) -> Path | None:
    for folder, limit, swap in VERSIONS:
        group = folder / f"lmlite-test-{uuid.uuid4().hex[:8]}"
        with suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                (group / limit).write_text(str(n_bytes))
                (group / swap).write_text("0")
                return group
            group.rmdir()
    return None
