"""How much memory is left, read from files as Linux writes them; a file may be missing."""

import os
from pathlib import Path

import pytest

from lmlite.server.models import machine_memory as module
from lmlite.server.models.machine_memory import Bound, least_bound

MIB = 1 << 20
MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    2048000 kB\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 2,000 MiB left and no control groups."""
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_group(folder: Path, limit: str, used: int = 0, cached: int = 0) -> None:
    """A group of version 2."""
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    stat = f"anon 5\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}\n"
    write(folder / "memory.stat", stat)


def test_the_machine_has_what_it_can_give_without_swapping(root: Path) -> None:
    assert root.is_dir()
    assert least_bound(None) == Bound("the machine has", 2000 * MIB)


def test_the_memory_flag_replaces_what_the_machine_has(root: Path) -> None:
    assert root.is_dir()
    assert least_bound(3000 * MIB) == Bound("--memory allows", 3000 * MIB)


def test_a_process_of_32_bits_has_2_gib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESSABLE", (2 << 30) - 1)
    assert least_bound(3000 * MIB) == Bound("a process of 32 bits has", (2 << 30) - 1)
    write(root / "proc/meminfo", MEMINFO)
    assert least_bound(None) == Bound("the machine has", 2000 * MIB)


def test_a_control_group_has_what_it_does_not_use_and_what_it_can_drop(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write_group(root / "cgroup", str(500 * MIB), used=200 * MIB, cached=50 * MIB)
    assert least_bound(None) == Bound("the control group has", 350 * MIB)
    assert least_bound(3000 * MIB) == Bound("the control group has", 350 * MIB)
    assert least_bound(300 * MIB) == Bound("--memory allows", 300 * MIB)


def test_a_worker_may_keep_what_it_holds(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write_group(root / "cgroup", str(500 * MIB), used=200 * MIB)
    write(root / "proc/77/status", "RssAnon:\t  10240 kB\nRssFile:\t  20480 kB\n")
    assert least_bound(None, 77) == Bound("the control group has", 310 * MIB)
    assert least_bound(310 * MIB - 1, 77) == Bound("--memory allows", 310 * MIB - 1)


def test_limits_of_outer_groups_hold_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/outer/inner\n")
    write_group(root / "cgroup/outer/inner", "max")
    write_group(root / "cgroup/outer", str(400 * MIB), used=100 * MIB)
    write_group(root / "cgroup", str(900 * MIB))
    assert list(module.group_bytes()) == [300 * MIB, 900 * MIB]


def test_a_group_that_uses_more_than_its_limit_has_nothing(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write_group(root / "cgroup", "1000", used=2000)
    assert list(module.group_bytes()) == [0]


def test_a_group_without_a_limit_gives_no_bound(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write_group(root / "cgroup", "max")
    assert list(module.group_bytes()) == []


def test_limits_of_version_1_hold_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n1:name=systemd:/\n")
    folder = root / "cgroup/memory"  # from inside the container, the path is not there
    write(folder / "memory.limit_in_bytes", f"{600 * MIB}\n")
    write(folder / "memory.usage_in_bytes", f"{100 * MIB}\n")
    stat = f"cache 1\ninactive_file 3\ntotal_inactive_file {20 * MIB}\ntotal_active_file {MIB}\n"
    write(folder / "memory.stat", stat)
    assert list(module.group_bytes()) == [521 * MIB]


def test_version_1_without_a_limit_gives_no_bound(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/\n")
    write(root / "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert list(module.group_bytes()) == []


def test_a_system_that_tells_nothing_bounds_nothing(root: Path) -> None:
    (root / "proc/meminfo").unlink()
    assert least_bound(None) is None
    assert module.held_by(1) is None


def test_this_process_holds_memory() -> None:
    held = module.held_by(os.getpid())
    assert held is not None
    assert held.own > 5 * MIB and held.of_files > 5 * MIB
