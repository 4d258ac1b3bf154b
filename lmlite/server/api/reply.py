"""What http.py asks of a reply, whichever API it is for, and what all replies share.

A reply is made from the request, takes the events of the worker, and says what the client gets.
Pure; knows no sockets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import Chat, Complete, Delta, Embedded, Finished, Planned, ReplyEvent, Started
from lmlite.server.api.call import Call
from lmlite.server.api.turn import Turn, Writer
from lmlite.server.front import wire

Json = dict[str, Any]


class Reply:
    """A reply in one piece: `add` each event, then `whole`."""

    def __init__(self, call: Call, reply_id: str, model: str, created: int) -> None:
        """`created`: seconds since 1970."""
        self.call, self.id, self.model, self.created = call, reply_id, model, created

    def add(self, event: ReplyEvent) -> bytes:
        """Takes the next event; returns the bytes that it becomes on a stream, b"" for none."""
        raise NotImplementedError

    def whole(self) -> Json:
        """The JSON object, after the last event."""
        raise NotImplementedError


class ComputedReply(Reply):
    """A reply for which nothing is generated: the worker sends one event for each input."""

    def __init__(self, call: Call, reply_id: str, model: str, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._results: dict[int, Any] = {}

    def add(self, event: ReplyEvent) -> bytes:
        """Takes the next event."""
        if isinstance(event, Embedded | Planned):
            self._results[event.index] = event
        return b""

    def results(self) -> list[Any]:
        """The `Embedded` or `Planned` events, in the order of their inputs."""
        return [event for _, event in sorted(self._results.items())]


@dataclass
class Usage:
    """Tokens of a request. A prompt that several choices share counts once."""

    n_prompt: int = 0
    n_cached: int = 0
    n_completion: int = 0
    n_reasoning: int = 0


class GeneratedReply(Reply, Writer):
    """A reply that is server-sent events if its call asks for a stream: those of `add`, a tail."""

    is_sequential = has_text = False  # see Turn

    def __init__(self, call: Call, reply_id: str, model: str, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        assert isinstance(call.request, Chat | Complete)
        self.has_logprobs = call.request.params.n_logprobs is not None
        self.turns: dict[int, Turn] = {}  # by the index of the choice
        self.usage = Usage()
        self.told: list[bytes] = []  # what the event at hand has become on the stream
        self._n_choices = call.request.n  # of each prompt

    def add(self, event: ReplyEvent) -> bytes:
        """Takes the next event; returns the bytes that it becomes on a stream, b"" for none."""
        if isinstance(event, Delta):
            logprobs = self.text_logprobs(event) if self.has_logprobs else ()
            self.turns[event.index].add(event, logprobs)
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Finished):
            self.usage.n_completion += event.n_completion
            self.usage.n_reasoning += event.n_reasoning
            self.turns[event.index].finish(event, has_text=self.has_text)
            if self.call.stream:
                self.finished(event)
        data, self.told = b"".join(self.told), []
        return data

    def _start(self, event: Started) -> None:
        writer = self if self.call.stream else None
        turn = Turn(self.call.custom_tools, writer, is_sequential=self.is_sequential)
        self.turns[event.index] = turn
        if event.index % self._n_choices == 0:
            self.usage.n_prompt += event.n_prompt
            self.usage.n_cached += event.n_cached
        if self.call.stream:
            self.started(event)

    def text_logprobs(self, _delta: Delta) -> Sequence[Json]:
        """Log-probabilities for the part that gets the text of this event."""
        return ()

    def started(self, event: Started) -> None:
        """A choice has started: tells so on the stream."""

    def finished(self, event: Finished) -> None:
        """A choice has finished: tells so on the stream."""

    def tail(self) -> bytes:
        """What follows the last event on a stream. Never empty."""
        raise NotImplementedError

    def failure(self, error: ApiError) -> bytes:
        """What stands in place of the rest when a stream fails after its beginning."""
        raise NotImplementedError


def typed_event(data: Json) -> bytes:
    """A server-sent event that is named after the `type` of its data."""
    return b"event: %b\n%b" % (data["type"].encode(), wire.sse_event(wire.to_json(data)))
