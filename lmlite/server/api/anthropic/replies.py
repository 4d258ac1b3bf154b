"""The worker's events -> Anthropic's message object, or the typed events of its stream.

The formats follow the types in Anthropic's Python package. Pure: does no input or output.
"""

from collections.abc import Sequence
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import Chat, Finished, Json, Started
from lmlite.server.api.anthropic.errors import message_error
from lmlite.server.api.call import Call
from lmlite.server.api.reply import ComputedReply, ContinuedReply, typed_event
from lmlite.server.api.turn import Part
from lmlite.server.front import wire
from lmlite.server.models.served_model import ServedModel

# For each kind of part: the type of its deltas, and the field of a delta that has the text.
_DELTAS = {"text": ("text_delta", "text"), "reasoning": ("thinking_delta", "thinking"),
           "call": ("input_json_delta", "partial_json")}  # fmt: skip
_STOP_REASONS = {"end_token": "end_turn", "stop_string": "end_turn", "max_tokens": "max_tokens",
                 "time_limit": "max_tokens",
                 "context_full": "model_context_window_exceeded"}  # fmt: skip


class MessageReply(ContinuedReply):
    """The reply to POST /v1/messages."""

    is_sequential = True  # a content block must end before the next one starts

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        assert isinstance(call.request, Chat)
        self._stops = call.request.params.stop
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # by block: bytes around a delta's text

    def whole(self) -> Json:
        """The message, after the last event."""
        end = self.turns[0].end
        assert end is not None
        content = [_block(part) for part in self.turns[0].parts]
        return self._message(content, self._stop(end), end.n_completion)

    # ---- streamed --------------------------------------------------------------------------

    def started(self, _event: Started) -> None:
        """Writes the message, still without content."""
        message = self._message([], {"stop_reason": None, "stop_sequence": None}, 0)
        self._write("message_start", message=message)
        self._write("ping")

    def finished(self, event: Finished) -> None:
        """Writes the stop reason and the number of output tokens."""
        usage = {"output_tokens": event.n_completion}
        self._write("message_delta", delta=self._stop(event), usage=usage)

    def tail(self) -> bytes:
        """The end of a stream."""
        return typed_event({"type": "message_stop"})

    def failure(self, error: ApiError) -> bytes:
        """The error object as an event. It is the last event of the stream."""
        return typed_event(message_error(error))

    def begun(self, part: Part) -> None:
        """Writes the start of a content block."""
        self._write("content_block_start", index=part.index, content_block=_block(part))

    def grown(self, part: Part, text: str, _logprobs: Sequence[Json]) -> None:
        """Writes more text of a block. Called often, so it encodes only the text each time."""
        frame = self._frames.get(part.index)
        if frame is None:
            head, _, tail = _delta_event(part, *_DELTAS[part.kind]).rpartition(b'""')
            frame = self._frames[part.index] = head, tail
        self.written.append(frame[0] + wire.to_json(text) + frame[1])

    def ended(self, part: Part) -> None:
        """Writes the end of a block."""
        if part.kind == "reasoning":  # clients expect a signature; an empty one is enough
            self.written.append(_delta_event(part, "signature_delta", "signature"))
        self._write("content_block_stop", index=part.index)

    def _write(self, kind: str, **more: Any) -> None:
        self.written.append(typed_event({"type": kind, **more}))

    # ---- the objects -----------------------------------------------------------------------

    def _message(self, content: list[Json], stop: Json, n_completion: int) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model.name,
            "content": content,
            **stop,
            "usage": {
                "input_tokens": self.n_prompt - self.n_cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": self.n_cached,
                "output_tokens": n_completion,
            },
        }

    def _stop(self, end: Finished) -> Json:
        reason, sequence = _STOP_REASONS[end.cause], None
        if end.stop_string in self._stops:  # the client's, not one of the template's
            reason, sequence = "stop_sequence", end.stop_string
        elif end.reason == "tool_calls":
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": sequence}


class TokenCount(ComputedReply):
    """The reply to POST /v1/messages/count_tokens."""

    def whole(self) -> Json:
        """The JSON object."""
        (planned,) = self.results()
        return {"input_tokens": len(planned.tokens)}


def _block(part: Part) -> Json:
    """A content block. A call whose arguments are not a JSON object becomes text."""
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    arguments = part.arguments() if part.call else None
    if part.call is None or arguments is None:
        return {"type": "text", "text": part.text}
    return {"type": "tool_use", "id": part.call.id, "name": part.call.name, "input": arguments}


def _delta_event(part: Part, kind: str, field: str) -> bytes:
    """A delta event with an empty text."""
    delta = {"type": kind, field: ""}
    return typed_event({"type": "content_block_delta", "index": part.index, "delta": delta})
