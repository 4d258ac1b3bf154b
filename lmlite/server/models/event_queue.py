"""One request that was let in: which worker has it, and its events, for the thread that waits.

The supervisor puts events in, the thread of the connection takes them out. Knows no HTTP.
"""

import queue
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from lmlite import frames
from lmlite.errors import KINDS, ApiError, PromptTooLong
from lmlite.messages import (
    Chat,
    Complete,
    Embed,
    Embedded,
    Failed,
    Finished,
    Planned,
    Queued,
    ReplyEvent,
    Tokenize,
    Work,
)

END_EVENTS = (Finished, Embedded, Planned)  # of a choice or an input


class Reply:
    """The events of one request, for the one thread that waits for them."""

    def __init__(self, request: Work, forget: Callable[["Reply"], None]) -> None:
        self.request_id = request.id
        self._request = request
        # The worker's process that has the request; later ones know nothing of it. None: it waits.
        self.process: object | None = None
        self._n_unfinished = n_results(request)  # choices or inputs of which no end has come
        self._was_queued = self._was_begun = False
        self._forget = forget
        self._events: queue.SimpleQueue[ReplyEvent] = queue.SimpleQueue()
        self._n_open = self._n_unfinished  # those whose end has not been taken yet

    @cached_property
    def fingerprint(self) -> int:
        """What tells the request from others: few are ever asked for it."""
        return fingerprint(self._request)

    @property
    def is_complete(self) -> bool:
        """Whether the last event has been taken."""
        return self._n_open == 0

    @property
    def may_be_running(self) -> bool:
        """Whether the worker may be at work on it: all of it has not ended, nor only waited."""
        return bool(self._n_unfinished) and (self._was_begun or not self._was_queued)

    def put(self, event: ReplyEvent) -> None:
        """Called by the supervisor's thread."""
        is_queued = isinstance(event, Queued)
        self._was_queued |= is_queued
        self._was_begun |= not is_queued
        if isinstance(event, Failed):
            self._n_unfinished = 0
        self._n_unfinished -= isinstance(event, END_EVENTS)
        self._events.put(event)

    def next(self, timeout_s: float) -> ReplyEvent | None:
        """The next event, or None after timeout_s without one. Raises the ApiError of a Failed."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Failed):
            self._n_open = 0
            raise _error_of(event)
        self._n_open -= isinstance(event, END_EVENTS)
        return event

    def close(self) -> None:
        """Lets go; what is not complete is cancelled."""
        self._forget(self)


def n_results(request: Work) -> int:
    """How many choices or vectors a request ends in."""
    match request:
        case Chat():
            return request.n
        case Complete():
            return request.n * len(request.prompts)
        case Embed():
            return len(request.inputs)
        case Tokenize():
            return 1


def fingerprint(request: Work) -> int:
    """The same for requests that ask for the same, whoever watches and whatever chance decides."""
    if isinstance(request, Chat | Complete):
        request = replace(request, trace=False, params=replace(request.params, seed=None))
    return hash(frames.encode(replace(request, id=0)))


def _error_of(event: Failed) -> ApiError:
    if event.kind == PromptTooLong.__name__:
        assert event.tokens is not None
        return PromptTooLong(event.message, param=event.param or "", tokens=event.tokens)
    return KINDS.get(event.kind, ApiError)(event.message, param=event.param)
