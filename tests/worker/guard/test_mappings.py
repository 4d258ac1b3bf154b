"""Pages that are dropped leave memory, and can still be read."""

import mmap
import os
import re
from pathlib import Path

import pytest

from lmlite.worker.guard import mappings

pytestmark = pytest.mark.skipif(not mappings.MAPS.exists(), reason="needs /proc, as Linux has it")

MIB = 1 << 20
CONTENT = os.urandom(MIB) * 4


def pages_of(path: Path) -> int:
    """Bytes of a file that are in memory for this process's mappings."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps)
    return sum(int(n_kib) << 10 for n_kib in found)


def mapped(path: Path, access: int) -> mmap.mmap:
    path.write_bytes(CONTENT)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0, access=access)
    assert memory[:] == CONTENT
    return memory


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with mapped(path, mmap.ACCESS_READ) as memory:
        assert pages_of(path) == 4 * MIB
        mappings.drop_pages([path.stat().st_ino])
        assert pages_of(path) == 0
        assert memory[:] == CONTENT


def test_other_files_keep_their_pages(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    with mapped(path, mmap.ACCESS_READ), mapped(other, mmap.ACCESS_READ):
        mappings.drop_pages([path.stat().st_ino])
        assert (pages_of(path), pages_of(other)) == (0, 4 * MIB)


def test_a_writable_mapping_is_left_alone(tmp_path: Path) -> None:
    """Pages of a private mapping may differ from the file: dropping them would lose data."""
    path = tmp_path / "weights"
    with mapped(path, mmap.ACCESS_COPY) as memory:
        memory[:4] = b"mine"
        mappings.drop_pages([path.stat().st_ino])
        assert memory[:4] == b"mine"


def test_own_memory_excludes_mapped_files(tmp_path: Path) -> None:
    before = mappings.own_bytes()
    with mapped(tmp_path / "weights", mmap.ACCESS_READ):
        own = b"x" * (64 * MIB)
        n_grown = mappings.own_bytes() - before
    assert 60 * MIB < n_grown < 67 * MIB
    assert len(own) == 64 * MIB


def test_without_proc_pages_stay_and_own_memory_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "STATUS", tmp_path / "status")
    monkeypatch.setattr(mappings, "MAPS", tmp_path / "maps")
    path = tmp_path / "weights"
    with mapped(path, mmap.ACCESS_READ):
        mappings.drop_pages([path.stat().st_ino])
        assert (mappings.own_bytes(), pages_of(path)) == (0, 4 * MIB)
