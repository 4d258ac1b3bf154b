"""Damaged images are refused or seen, and whoever waits for a worker knows a death from a wait."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import gguf as fuzz_gguf
from tests.fuzz import images as fuzz_images
from tests.fuzz.gguf import Patience
from tests.fuzz.images import SeeingWorker
from tests.support import projectors
from tests.support.image_files import RED, RED_JPEG, png


@pytest.mark.parametrize("kind", fuzz_images.KINDS)
def test_two_hundred_damaged_images_end_no_worker(kind: str) -> None:
    totals = fuzz_images.run(1, kind, range(200))
    others = set(totals) - {
        "refused by the worker"
    }  # of GIF, whose data was measured, it refuses none
    assert others == {"refused", "seen by the worker", "MiB at most"}
    assert totals["MiB at most"] < 200


def test_a_mutant_depends_on_its_numbers_alone() -> None:
    for kind in fuzz_images.KINDS:
        first = fuzz_images.mutant(1, kind, 2)
        assert first == fuzz_images.mutant(1, kind, 2) != fuzz_images.mutant(1, kind, 3)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeeingWorker]:
    monkeypatch.setattr(Patience, "LOOK_S", 0.01)
    projectors.mlp(tmp_path / "mmproj.gguf", fuzz_images.N_EMBD)
    made = SeeingWorker(tmp_path / "mmproj.gguf")
    yield made
    made.close()


def test_a_worker_that_ends_has_died_and_another_one_takes_its_place(worker: SeeingWorker) -> None:
    os.kill(worker._process.pid, signal.SIGABRT)
    worker._process.wait()
    assert worker.ask(RED_JPEG) == "died"
    assert worker.ask(png(4, 4, RED)) == "seen"


def test_a_worker_that_uses_no_cpu_time_counts_as_hanging(
    worker: SeeingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fuzz_gguf, "WAIT_S", 0.05)
        os.kill(worker._process.pid, signal.SIGSTOP)
        assert worker.ask(RED_JPEG) == "hung"
    assert worker.ask(RED_JPEG) == "seen"


def test_a_starved_process_gets_more_time_and_a_busy_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Patience, "LOOK_S", 0.01)
    monkeypatch.setattr(fuzz_gguf, "WORK_S", 0.2)
    for code, verdict in (("while True: pass", "it worked for 0.2 s without an end"),
                          ("import time; time.sleep(0.5)", None)):  # fmt: skip
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            patience = Patience(process)
            with patience:
                process.wait()
            assert patience.verdict == verdict
