"""Accepted requests: each with its events and the worker process that it was sent to, if any.

The supervisor's thread adds events; the connection's thread takes them. All methods of
`OpenRequests` must be called with the supervisor's lock held. The supervisor writes to the pipe.
"""

import collections
import queue
from collections.abc import Callable

from lmlite import frames
from lmlite.errors import CHAT_NAMES, KINDS, ApiError, FieldNames, PromptTooLong, Unavailable
from lmlite.messages import (
    Cancel,
    Chat,
    Complete,
    Embed,
    Embedded,
    Failed,
    Finished,
    Planned,
    Queued,
    ReplyEvent,
    Scored,
    Tokenize,
    Work,
)
from lmlite.server.models.quarantine import Quarantine

END_EVENTS = (Finished, Embedded, Scored, Planned)  # each ends one choice or one input


class OpenRequest:
    """One request, and a queue of its events, which one connection's thread reads."""

    def __init__(
        self, request: Work, forget: Callable[["OpenRequest"], None], names: FieldNames = CHAT_NAMES
    ) -> None:
        """`names`: how the client's API names the fields that errors mention."""
        self.request, self._names = request, names
        self.process: object | None = None  # the worker process it was sent to; None: not sent yet
        self._n_unfinished = n_results(request)  # choices or inputs without an end event so far
        self._n_untaken = self._n_unfinished  # those whose end event `next` has not returned
        self._was_queued = self._was_begun = False
        self._forget = forget
        self._events: queue.SimpleQueue[ReplyEvent] = queue.SimpleQueue()

    @property
    def is_complete(self) -> bool:
        """Whether the last event has been taken."""
        return self._n_untaken == 0

    @property
    def may_be_running(self) -> bool:
        """Whether the worker may be running this request: it has not ended and is not queued."""
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
        """The next event, or None after timeout_s. Raises an ApiError for a Failed event."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Failed):
            self._n_untaken = 0
            raise error_of(event, self._names)
        self._n_untaken -= isinstance(event, END_EVENTS)
        return event

    def close(self) -> None:
        """Forgets the request; cancels it if it is not complete."""
        self._forget(self)


class OpenRequests:
    """The requests that clients wait for."""

    def __init__(self, n_most: int) -> None:
        self._n_most = n_most
        self._requests: dict[int, OpenRequest] = {}  # by id
        self._unsent: dict[int, bytes] = {}  # frames of requests not sent to a worker, by id
        self._cancels: collections.deque[tuple[object, bytes]] = collections.deque()  # + process
        self._quarantine = Quarantine()

    def __len__(self) -> int:
        return len(self._requests)

    def check_room(self) -> None:
        """Raises Unavailable if too many requests are open."""
        if len(self) >= self._n_most:
            raise Unavailable(f"{len(self)} requests are waiting already")

    def add(self, opened: OpenRequest, frame: bytes) -> None:
        """Accepts a request, which then waits for a worker. Raises HarmfulRequest."""
        self._quarantine.check(opened.request)
        self._requests[opened.request.id] = opened
        self._unsent[opened.request.id] = frame

    def find(self, request_id: int) -> OpenRequest | None:
        """The request, or None if its client has disconnected."""
        return self._requests.get(request_id)

    def forget(self, opened: OpenRequest) -> None:
        """Removes a request. If a worker is running it, the worker gets a Cancel."""
        request_id = opened.request.id
        if self._requests.pop(request_id, None) is None:
            return
        if opened.is_complete:
            self._quarantine.clear(opened.request)
        elif self._unsent.pop(request_id, None) is None:
            self._cancels.append((opened.process, frames.encode(Cancel(request_id))))

    @property
    def has_frames(self) -> bool:
        """Whether there is a frame to send to a worker."""
        return bool(self._unsent or self._cancels)

    def next_frame(self, process: object) -> bytes | None:
        """The next frame for this worker. A request in it counts as sent to this worker."""
        while self._cancels:  # cancels go first: they free places in the worker
            addressee, frame = self._cancels.popleft()
            if addressee is process:
                return frame
        for request_id in self._unsent:
            self._requests[request_id].process = process
            return self._unsent.pop(request_id)
        return None

    def blame(self, process: object) -> None:
        """Records a worker's death for each request that it may have been running."""
        had = [opened for opened in self._requests.values() if opened.process is process]
        self._quarantine.blame(opened.request for opened in had if opened.may_be_running)

    def fail(self, error: Unavailable, process: object | None = None) -> None:
        """Fails the requests that were sent to `process`, or all requests if it is None."""
        for request_id, opened in list(self._requests.items()):
            if process is None or opened.process is process:
                del self._requests[request_id]
                self._unsent.pop(request_id, None)
                opened.put(Failed(request_id, type(error).__name__, error.message))


def n_results(request: Work) -> int:
    """How many results a request has: choices or vectors. Each has its own end event."""
    match request:
        case Chat():
            return request.n
        case Complete():
            return request.n * len(request.prompts)
        case Embed():
            return len(request.inputs)
        case Tokenize():
            return 1


def error_of(event: Failed, names: FieldNames) -> ApiError:
    """The error of a request, with the field names of its client's API."""
    param, message = event.param, event.message
    if param == CHAT_NAMES.messages:
        param = names.messages
    elif param == CHAT_NAMES.form:
        param = names.form
    if event.kind == PromptTooLong.__name__:
        assert event.tokens is not None
        return PromptTooLong(message, param=param or "", tokens=event.tokens)
    return KINDS.get(event.kind, ApiError)(
        message.replace(CHAT_NAMES.form, names.form), param=param
    )
