"""The events of an answer, from the wait for its model to its last token."""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TypeAlias

from lmlite.errors import Unavailable
from lmlite.messages import Chat, Complete, Queued, Reading, ReplyEvent
from lmlite.server.api.call import Call
from lmlite.server.logs import Log
from lmlite.server.models import life
from lmlite.server.models.open_requests import OpenRequest
from lmlite.server.models.registry import Lease
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.watch.request_count import RequestCount

POLL_S = 0.1  # between a waiting thread's checks whether its answer is still wanted

# What a reply is made of; a state of the model while that is being loaded, None for a pause.
Events: TypeAlias = Generator[ReplyEvent | life.State | None, None, None]


class Waiting:
    """Waits for the worker's events, as long as somebody wants them."""

    def __init__(self, is_unwanted: Callable[[], bool], limit_s: float) -> None:
        """`limit_s`: how long a request may wait for its turn."""
        self._is_unwanted, self._limit_s = is_unwanted, limit_s

    def events(self, lease: Lease, call: Call, count: RequestCount) -> Events:
        """The events of a reply; None now and then while waiting for one.

        While the model is being loaded, each is its state. Raises ConnectionAbortedError when
        nobody wants the answer any more, ApiError when the request failed.
        """
        began_s = time.monotonic()
        if count.is_traced and isinstance(call.request, Chat | Complete):
            call = replace(call, request=replace(call.request, trace=True))
        while (supervisor := lease.supervisor(POLL_S)) is None:
            self.check(began_s, f"no room for {lease.model.name}", lease.shortage)
            yield life.Loading()
        opened = supervisor.submit(call.request, call.field_names)
        with contextlib.closing(opened):
            yield from self._events_of(opened, supervisor, count, began_s)

    def _events_of(
        self, opened: OpenRequest, supervisor: Supervisor, count: RequestCount, began_s: float
    ) -> Events:
        looked_s = began_s
        is_queued = False
        while not opened.is_complete:
            event = opened.next(POLL_S)
            now = time.monotonic()
            is_queued = isinstance(event, Queued) or (is_queued and event is None)
            is_queued = is_queued or opened.process is None
            if now - looked_s >= POLL_S:
                looked_s = now
                self.check(began_s if is_queued and not count.n_prompt else None)
            if event is not None:
                count.add(event)
            state = supervisor.state
            yield state if event is None and isinstance(state, life.Loading) else event

    def check(
        self,
        began_s: float | None = None,
        why: str = "not its turn",
        details: Callable[[], str] | None = None,
    ) -> None:
        """Raises if the answer is not wanted, or if it has waited too long since began_s."""
        if self._is_unwanted():
            raise ConnectionAbortedError
        if began_s is not None and time.monotonic() - began_s >= self._limit_s:
            end = f": {details()}" if details else ""
            raise Unavailable(f"{why} within {self._limit_s:g} seconds{end}")


def counted(log: Log, reply_id: str, lease: Lease) -> RequestCount:
    """The count of a request that holds this lease."""
    model = lease.model
    return RequestCount(
        log, reply_id, model.name, model.file.path,
        lambda: ready.loaded.n_gpu_layers if (ready := model.ready) else 0,
    )  # fmt: skip


def progress_of(event: ReplyEvent | life.State | None) -> str:
    """A progress message for a waiting client; "" for events that are not about waiting."""
    match event:
        case life.Loading(progress):
            return f"model_load {progress:.2f}"
        case Queued():
            return f"queued {event.n_ahead}"
        case Reading():
            return f"prompt {event.n_read}/{event.n_prompt}"
    return ""
