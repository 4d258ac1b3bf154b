"""The worker that runs before any model is asked for goes to one model, or ends."""

import sys
from collections.abc import Callable
from typing import cast

from lmlite.gguf.file import ModelFile
from lmlite.gguf.memory_estimate import plan
from lmlite.messages import Load, SamplingParams
from lmlite.server.logs import Log
from lmlite.server.models.catalog import Catalog
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.loading import ModelOptions, Shelf
from lmlite.server.models.worker_process import WorkerProcess
from tests.conftest import DEFAULT_MODEL

SLEEPER = (sys.executable, "-c", "import sys; sys.stdin.read()")


class Process(WorkerProcess):
    """A worker that first calls back when it is to be killed."""

    on_kill: Callable[[], None] = staticmethod(lambda: None)

    def kill(self, why: str | None = None) -> None:
        """Calls back, then kills the process."""
        self.on_kill()
        super().kill(why)


def shelf_with(worker: WorkerProcess, log: Log) -> Shelf:
    def defaults(_file: ModelFile, _takes_images: bool) -> Defaults:
        return Defaults(SamplingParams(), {}, separate_reasoning=True)

    return Shelf(Catalog([str(DEFAULT_MODEL)]), ModelOptions(Load(""), defaults), log, worker)


def test_a_worker_that_is_being_ended_is_given_to_no_model() -> None:
    log = Log("error")
    worker = Process(SLEEPER, log)
    shelf = shelf_with(worker, log)
    (model,) = shelf.models()
    made = []
    worker.on_kill = lambda: made.append(
        shelf.supervisor(model, plan(model.file, model.wanted or Load(""), None))
    )
    shelf.close()
    assert [supervisor._prestarted for supervisor in made] == [None]


def test_a_worker_that_a_model_has_taken_goes_on() -> None:
    log = Log("error")
    worker = Process(SLEEPER, log)
    shelf = shelf_with(worker, log)
    (model,) = shelf.models()
    supervisor = shelf.supervisor(model, plan(model.file, cast(Load, model.wanted), None))
    killed: list[bool] = []
    worker.on_kill = lambda: killed.append(True)
    shelf.close()
    assert (supervisor._prestarted, killed) == (worker, [])
    worker.kill()
    worker.reap()
