"""When something that a worker needs is missing, its start is repeated, with pauses."""

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ModelFailed, Unavailable
from lmlite.gguf.file import read_model_file
from lmlite.messages import Chat, ChatMessage, Delta, Load, SamplingParams
from lmlite.server.logs import Log
from lmlite.server.models import supervisor as module
from lmlite.server.models.life import Failed, Loading, Ready
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.models.worker_process import WorkerProcess
from tests.support.gguf_writer import tiny_llama
from tests.support.house import FAKE_WORKER, WAIT_S, until


class Pauses:
    """Stands in for the clock: pauses take no time, and are kept while they count."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.counted: list[float] = []
        self._supervisor = supervisor

    def __call__(self, seconds: float) -> bool:
        self.counted.append(seconds)
        return self._supervisor._stopping.wait(0.001)


@pytest.fixture
def supervise() -> Iterator[Callable[..., Supervisor]]:
    """Starts supervisors of fake workers whose pauses take no time."""
    made: list[Supervisor] = []

    def start(load: Load, mode: str = "", **options: Any) -> Supervisor:
        log = Log("debug", io.StringIO())
        supervisor = Supervisor(load, log, (*FAKE_WORKER, mode), **options)
        supervisor._pause = Pauses(supervisor)
        made.append(supervisor)
        supervisor.start()
        supervisor.wait_until_settled(WAIT_S)
        return supervisor

    yield start
    for each in made:
        each.stop()


def answer(supervisor: Supervisor, content: str) -> str:
    """The text of an answer. Raises the ApiError of one that failed."""
    reply = supervisor.submit(Chat(0, (ChatMessage("user", content),), SamplingParams()))
    text = ""
    while not reply.is_complete:
        event = reply.next(WAIT_S)
        assert event is not None, "no event in time"
        text += event.text if isinstance(event, Delta) else ""
    reply.close()
    return text


def end_worker(supervisor: Supervisor) -> None:
    """Kills the worker; returns when the next one is ready or cannot be started."""
    pid = supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: supervisor.pid != pid)
    until(
        lambda: (
            isinstance(supervisor.state, Ready | Failed)
            or (isinstance(supervisor.state, Loading) and supervisor.state.reason is not None)
        )
    )


def wait_for_attempts(supervisor: Any, n: int) -> None:
    """Returns after n more pauses."""
    n_before = len(supervisor._pause.counted)
    until(lambda: len(supervisor._pause.counted) >= n_before + n)


def is_refused_with(supervisor: Supervisor, kind: type[Unavailable], message: str) -> None:
    with pytest.raises(kind) as caught:
        supervisor.check_admission()
    assert caught.value.message == message
    assert caught.value.retry_after_s == (None if kind is ModelFailed else 1)


# ---- processes -------------------------------------------------------------------------------


def test_a_process_that_cannot_be_restarted_is_tried_ever_more_rarely(
    supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise(Load("model.gguf"))
    assert answer(supervisor, "echo before") == "before"
    n_left = 8

    def start(*arguments: Any) -> WorkerProcess:
        nonlocal n_left
        n_left -= 1
        if n_left >= 0:
            raise OSError(24, "Too many open files")
        return WorkerProcess(*arguments)

    monkeypatch.setattr(module, "WorkerProcess", start)
    pauses = supervisor._pause.counted
    pauses.clear()
    end_worker(supervisor)
    until(lambda: supervisor.ready is not None)
    assert pauses == [0.0, 0.0, 0.1, 0.5, 1.0, 5.0, 5.0, 5.0, 5.0]
    assert answer(supervisor, "echo after") == "after"


def test_clients_are_told_why_no_process_can_be_started_and_to_come_back(
    supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise(Load("model.gguf"))
    with monkeypatch.context() as patch:

        def start(*_arguments: Any) -> WorkerProcess:
            raise OSError(24, "Too many open files")

        patch.setattr(module, "WorkerProcess", start)
        end_worker(supervisor)
        is_refused_with(
            supervisor,
            Unavailable,
            "the model is not available now: another worker could not be started: "
            "[Errno 24] Too many open files",
        )
    until(lambda: supervisor.ready is not None)
    supervisor.check_admission()


def test_a_model_that_was_loaded_once_is_loaded_again_as_soon_as_possible(
    supervise: Any, tmp_path: Path
) -> None:
    marker = tmp_path / "model.gguf"
    supervisor = supervise(Load(str(marker)), "fragile")
    marker.touch()
    end_worker(supervisor)
    is_refused_with(
        supervisor,
        Unavailable,
        f"the model is not available now: llama.cpp cannot load {marker}",
    )
    marker.unlink()
    until(lambda: supervisor.ready is not None)
    assert answer(supervisor, "echo back") == "back"


# ---- files -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.fixture
def supervisor(supervise: Any, path: Path) -> Supervisor:
    """A supervisor whose worker is ready."""
    made: Supervisor = supervise(Load(str(path)), file=read_model_file(path))
    assert made.ready
    return made


def test_a_file_that_is_away_between_two_workers_is_named_and_taken_when_it_is_back(
    supervisor: Supervisor, path: Path
) -> None:
    away = path.rename(path.with_suffix(".away"))
    end_worker(supervisor)
    is_refused_with(
        supervisor,
        Unavailable,
        "the model is not available now: model.gguf cannot be loaded: it does not exist",
    )
    wait_for_attempts(supervisor, 20)
    assert isinstance(supervisor.state, Loading)
    away.rename(path)
    until(lambda: supervisor.ready is not None)
    assert answer(supervisor, "echo back") == "back"


def test_a_file_that_is_away_is_told_once_in_the_log(supervisor: Supervisor, path: Path) -> None:
    path.unlink()
    end_worker(supervisor)
    wait_for_attempts(supervisor, 20)
    supervisor.stop()
    log: Any = supervisor._log
    log.flush(WAIT_S)
    assert log._lines._write.__self__.getvalue().count("it does not exist") == 1


def test_a_file_that_is_at_fault_fails_the_model_until_another_one_takes_its_place(
    supervisor: Supervisor, path: Path
) -> None:
    good = Path(shutil.copy(path, path.with_suffix(".good")))
    path.write_bytes(b"GGUF")
    end_worker(supervisor)
    fault = "model.gguf cannot be loaded: it is GGUF version 0; 2 and 3 can be loaded"
    assert supervisor.state == Failed(fault)
    is_refused_with(supervisor, ModelFailed, f"the model is not available: {fault}")
    good.rename(path)
    until(lambda: supervisor.ready is not None)
    assert answer(supervisor, "echo back") == "back"


def test_a_model_that_was_given_up_gets_another_chance_with_another_file(
    supervise: Any, path: Path
) -> None:
    supervisor = supervise(Load(str(path)), "crash", file=read_model_file(path))
    assert isinstance(supervisor.state, Failed)
    assert supervisor.n_started == 5
    Path(shutil.copy(path, path.with_suffix(".new"))).rename(path)
    until(lambda: supervisor.n_started == 10)
