"""The interface of the replies of all APIs, and the code that they share.

A reply is made for one request. It takes the worker's events and returns the JSON or the stream
for the client. Pure: does no input or output.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from lmlite.errors import ApiError
from lmlite.messages import (
    Chat,
    Complete,
    Delta,
    Embedded,
    Finished,
    Json,
    Planned,
    ReplyEvent,
    Scored,
    Started,
)
from lmlite.server.api.call import Call
from lmlite.server.api.turn import Kind, Turn, Writer
from lmlite.server.front import wire
from lmlite.server.models.life import State
from lmlite.server.models.served_model import ServedModel

# The worker's events; the model's state while a request waits for that to be loaded.
Incoming: TypeAlias = ReplyEvent | State


class Reply(ABC):
    """A reply. For one JSON object: call `add` with each event, then `whole`."""

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        """`created`: seconds since 1970."""
        self.call, self.id, self.model, self.created = call, reply_id, model, created

    @abstractmethod
    def add(self, event: Incoming) -> bytes:
        """Takes the next event. Returns the bytes to stream for it, b"" if there are none.

        While the model is being loaded, an event is the model's state.
        """

    @abstractmethod
    def whole(self) -> Json:
        """The JSON object, after the last event."""


class ComputedReply(Reply):
    """A reply without generated text: the worker sends one event for each input."""

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._results: dict[int, Any] = {}

    def add(self, event: Incoming) -> bytes:
        """Takes the next event; nothing is streamed for it."""
        if isinstance(event, Embedded | Scored | Planned):
            self._results[event.index] = event
        return b""

    def results(self) -> list[Any]:
        """The `Embedded`, `Scored` or `Planned` events, in the order of their inputs."""
        return [event for _, event in sorted(self._results.items())]


class GeneratedReply(Reply, Writer):
    """A reply with generated text. A stream is the bytes from `add`, then `tail` or `failure`."""

    is_sequential = has_text = False  # see Turn
    content_type = "text/event-stream"  # of a stream

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        assert isinstance(call.request, Chat | Complete)
        self.is_streamed = call.stream
        self.has_logprobs = call.request.params.n_logprobs is not None
        self.turns: dict[int, Turn] = {}  # by the index of the choice
        self.n_prompt = self.n_cached = self.n_completion = self.n_reasoning = 0  # tokens
        self.written: list[bytes] = []  # stream events that `add` will return
        self._n_per_prompt = call.request.n  # choices for each prompt

    def add(self, event: Incoming) -> bytes:
        """Takes the next event. Returns the bytes to stream for it, b"" if there are none."""
        if isinstance(event, Delta):
            logprobs = self.text_logprobs(event) if self.has_logprobs else ()
            self.turns[event.index].add(event, logprobs)
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Finished):
            self.n_completion += event.n_completion
            self.n_reasoning += event.n_reasoning
            self.turns[event.index].finish(event, has_text=self.has_text)
        data, self.written = b"".join(self.written), []
        return data

    def _start(self, event: Started) -> None:
        writer = self if self.is_streamed else Writer()
        turn = Turn(self.call.custom_tools, writer, is_sequential=self.is_sequential)
        self.turns[event.index] = turn
        if event.index % self._n_per_prompt == 0:  # count a prompt once for all its choices
            self.n_prompt += event.n_prompt
            self.n_cached += event.n_cached
        writer.started(event)

    def text_logprobs(self, _delta: Delta) -> Sequence[Json]:
        """Log-probabilities of this delta that belong to the part that gets its text."""
        return ()

    def ping(self, progress: str) -> bytes:
        """What clients of a stream skip; it may tell how far the reply is."""
        return wire.sse_comment(progress)

    @abstractmethod
    def tail(self) -> bytes:
        """The end of a stream. Never empty."""

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that fails after its beginning."""


class ContinuedReply(GeneratedReply):
    """A reply that leaves out the beginning of the answer, if the client has sent that."""

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._begun: dict[Kind, str] = {}  # the worker's text repeats it
        last = call.request.messages[-1] if isinstance(call.request, Chat) else None
        if last and last.role == "assistant":
            self._begun = {"reasoning": last.reasoning or "", "text": last.content}

    def add(self, event: Incoming) -> bytes:
        """Takes the next event. Returns the bytes to stream for it, b"" if there are none."""
        if self._begun and isinstance(event, Delta):
            # If the client began the text, the thoughts before that text were the client's, too.
            thoughts = "" if self._begun.get("text") else event.reasoning
            reasoning = self._without_begun("reasoning", thoughts)
            event = replace(
                event, reasoning=reasoning, text=self._without_begun("text", event.text)
            )
        return super().add(event)

    def _without_begun(self, kind: Kind, text: str) -> str:
        return text.removeprefix(self._begun.pop(kind, "")) if text else ""


class BackgroundReply(GeneratedReply):
    """A reply that no connection waits for: it stores what becomes of it."""

    @abstractmethod
    def begin(self) -> Json:
        """Stores that it will be made; returns the object for the client. Raises an ApiError."""

    @abstractmethod
    def is_unwanted(self) -> bool:
        """Whether the client has cancelled or deleted it."""

    @abstractmethod
    def fail(self, error: ApiError) -> None:
        """Stores that it has failed."""


def typed_event(data: Json) -> bytes:
    """A server-sent event; its name is the `type` in its data."""
    return b"event: %b\n%b" % (data["type"].encode(), wire.sse_event(wire.to_json(data)))
