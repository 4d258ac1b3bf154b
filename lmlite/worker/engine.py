"""The loop: takes commands, runs a step of each part, emits its events. One thread.

Continuous batching means that requests never wait for each other to finish. Time is cut into steps;
in each step one call into the library computes something for every active request, and requests
may come and go between steps. There are two parts: a `Generator` completes sequences
(`generator.py` says how, step by step), and an `Embedder` turns inputs into vectors. Both have
`submit`, `cancel`, `step` and `has_work`.

`submit`, `cancel` and `stop` may be called from any thread. All else belongs to the engine thread,
which alone touches the contexts. Knows nothing of templates, frames or HTTP.
"""

import queue
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmlite.messages import EngineState, ReplyEvent
from lmlite.worker.embedder import Embedder, Input
from lmlite.worker.failures import failed
from lmlite.worker.generator import Generator
from lmlite.worker.sequence import Sequence

REPORT_S = 1.0  # between two reports of the engine's state


@dataclass(frozen=True)
class _Cancel:
    request_id: int


class Engine:
    """Runs sequences and embeddings on one model."""

    def __init__(
        self,
        generator: Generator | None,
        embedder: Embedder,
        emit: Callable[[list[ReplyEvent | EngineState]], None],
    ) -> None:
        """A model that only embeds has no generator.

        `emit` is called once per step. If it raises, it must not have sent any of the events.
        """
        self._generator, self._embedder, self._emit = generator, embedder, emit
        self._parts = (generator, embedder) if generator else (embedder,)
        self._inbox: queue.SimpleQueue[Sequence | Input | _Cancel | None] = queue.SimpleQueue()
        self._is_stopped = False
        self._report_due_s = 0.0  # on the monotonic clock

    # ---- from any thread -------------------------------------------------------------------

    def submit(self, work: Iterable[Sequence | Input]) -> None:
        """Queues work; its events come through `emit`."""
        for item in work:
            self._inbox.put(item)

    def cancel(self, request_id: int) -> None:
        """Drops a request in any phase, before the next step."""
        self._inbox.put(_Cancel(request_id))

    def stop(self) -> None:
        """Ends `run` after the current step."""
        self._inbox.put(None)

    # ---- the loop --------------------------------------------------------------------------

    def run(self) -> None:
        """Runs steps until stopped; sleeps while there is no work."""
        while not self._is_stopped:
            if not self.has_work:
                self._obey(self._inbox.get())
            self.step()

    @property
    def has_work(self) -> bool:
        """Whether there are commands, sequences or inputs."""
        return not self._inbox.empty() or any(part.has_work for part in self._parts)

    def step(self) -> None:
        """Carries out queued commands, runs a step of each part, and emits the events."""
        while not (self._is_stopped or self._inbox.empty()):
            self._obey(self._inbox.get())
        if self._is_stopped:
            return
        events: list[ReplyEvent | EngineState] = []
        for part in self._parts:
            events += part.step()
        if self._generator and (time.monotonic() >= self._report_due_s or not self.has_work):
            events.append(self._report(self._generator))
        if events:
            try:
                self._emit(events)
            except Exception:
                self._emit_each(events)

    def _obey(self, command: Sequence | Input | _Cancel | None) -> None:
        match command:
            case None:
                self._is_stopped = True
            case _Cancel(request_id):
                for part in self._parts:
                    part.cancel(request_id)
            case Input():
                self._embedder.submit(command)
            case Sequence() if self._generator:
                self._generator.submit(command)

    def _report(self, generator: Generator) -> EngineState:
        self._report_due_s = time.monotonic() + REPORT_S
        return generator.state()

    def _emit_each(self, events: list[ReplyEvent | EngineState]) -> None:
        """Sends events one by one. A request fails at its first event that cannot be sent."""
        failures: dict[int, ReplyEvent | EngineState] = {}
        for event in events:
            if isinstance(event, EngineState) or event.id in failures:
                continue
            try:
                self._emit([event])
            except Exception as err:
                traceback.print_exc()
                self._obey(_Cancel(event.id))
                failures[event.id] = failed(event.id, err)
        report = [self._report(self._generator)] if self._generator else []
        self._emit([*failures.values(), *report])
