"""What `http.py` asks of an answer, whichever API it is for.

An answer is made from the request, takes the events of the worker, and says what the client gets.
Pure; knows no sockets.
"""

from typing import Any, Protocol, runtime_checkable

from lmlite.errors import ApiError
from lmlite.messages import ReplyEvent


class Answer(Protocol):
    """An answer in one piece: `add` each event, then `whole`."""

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""

    def whole(self) -> dict[str, Any]:
        """The JSON object, after the last event. Raises ApiError."""


@runtime_checkable
class StreamedAnswer(Answer, Protocol):
    """An answer that can also be server-sent events: `sse` of each event, then `sse_tail`."""

    def sse(self, event: ReplyEvent) -> bytes:
        """The bytes that an event becomes; b"" for none."""

    def sse_tail(self) -> bytes:
        """What follows the last event, the end of the stream included. Never empty."""

    def sse_error(self, error: ApiError) -> bytes:
        """What stands in place of the rest, when the answer fails after its beginning."""
