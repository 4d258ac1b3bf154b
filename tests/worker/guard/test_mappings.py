"""Pages that are dropped leave memory, and can still be read."""

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmlite.worker.guard import mappings
from tests import REPOSITORY

pytestmark = pytest.mark.skipif(not mappings.MAPS.exists(), reason="needs /proc, as Linux has it")

MIB = 1 << 20
# Writes zeros to two regions of 8 MiB, with a byte in the middle of one, and to one that is shared.
# Prints the number of threads, whether 15 MiB and more were given back and missing from this
# process, and whether the content is as it was.
TRIM = """
import mmap
from lmlite.worker.guard import mappings
from lmlite.worker.llama import capi

lib, n = capi.load(), 8 << 20
zeros, mixed = (mmap.mmap(-1, n, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
shared = mmap.mmap(-1, n)
for region in zeros, mixed, shared:
    region.write(bytes(n))
mixed[n // 2] = shared[n // 2] = 7
before, n_threads = mappings.own_bytes(), mappings.n_threads()
n_bytes = lib.lml_trim()
print(n_threads, n_bytes >> 20 in (15, 16), before - mappings.own_bytes() > 15 << 20)
print(zeros[:] == bytes(n) and mixed[:] == shared[:] and mixed[n // 2] == 7)
"""
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
    private = (
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # new pages, not some that an earlier test freed
    before = mappings.own_bytes()
    with mapped(tmp_path / "weights", mmap.ACCESS_READ), mmap.mmap(-1, 64 * MIB, private) as own:
        for page in range(0, len(own), mmap.PAGESIZE):
            own[page] = 1
        n_grown = mappings.own_bytes() - before
    assert 60 * MIB < n_grown < 67 * MIB


def test_zeros_are_given_back_and_all_else_is_kept() -> None:
    """In a process of its own, because this one has threads."""
    done = subprocess.run(
        [sys.executable, "-c", TRIM], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "True", "True", "True"], done.stderr


def test_without_proc_pages_stay_and_own_memory_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "STATUS", tmp_path / "status")
    monkeypatch.setattr(mappings, "MAPS", tmp_path / "maps")
    path = tmp_path / "weights"
    with mapped(path, mmap.ACCESS_READ):
        mappings.drop_pages([path.stat().st_ino])
        assert (mappings.own_bytes(), pages_of(path)) == (0, 4 * MIB)
