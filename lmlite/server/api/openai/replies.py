"""The worker's events -> replies of OpenAI's chats, completions and embeddings.

Fields are those of OpenAI's schemas, in their order. Pure; knows no sockets.
"""

import base64
import codecs
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import (
    CallDelta,
    Delta,
    Embed,
    Embedded,
    Finished,
    ReplyEvent,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.reply import ComputedReply, GeneratedReply, Usage
from lmlite.server.api.turn import Part, Turn
from lmlite.server.front import wire

Json = dict[str, Any]

NO_LOGPROB = -9999.0  # OpenAI's number where there is none


class CompletionReply(GeneratedReply):
    """The reply to POST /v1/completions; ChatReply differs in the shape of a choice."""

    object_whole = object_chunk = "text_completion"
    key = "text"  # of what a chunk's choice adds
    nothing: Any = ""

    def __init__(self, call: Call, reply_id: str, model: str, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._envelope: Json = {"id": reply_id, "created": created, "model": model,
                                "system_fingerprint": "lmlite"}  # fmt: skip
        self._text_frames: dict[int, tuple[bytes, bytes]] = {}  # by choice: around a chunk's text
        self._offsets: dict[int, _Offset] = {}  # by choice
        self._calls: list[Json] = []  # pieces of tool calls that are still to be told

    def whole(self) -> Json:
        """The response object, after the last event."""
        choices = []
        for index, turn in sorted(self.turns.items()):
            logprobs = self.logprobs(index, turn.logprobs)
            choices.append(_choice(index, *self.whole_text(turn), logprobs, turn.end))
        usage = _usage(self.usage)
        return self._envelope | {"object": self.object_whole, "choices": choices, "usage": usage}

    def whole_text(self, turn: Turn) -> tuple[str, Any]:
        """The key and the value by which a choice has its text."""
        return self.key, turn.said("text")

    # ---- streamed --------------------------------------------------------------------------

    def add(self, event: ReplyEvent) -> bytes:
        """Takes the next event. A chunk needs nothing of the texts before it."""
        if not isinstance(event, Delta):
            return super().add(event)
        is_streamed = self.call.stream
        if is_streamed and not (self.has_logprobs or event.reasoning or event.calls):
            return self._text_chunk(event)
        self.turns[event.index].add(event)
        return self._chunks(event) if is_streamed else b""

    def begun(self, part: Part) -> None:
        """A call begins without arguments."""
        if part.call:
            self._calls.append({"index": part.call.number, **_whole_call(part.call, part)})

    def grown(self, part: Part, text: str, _logprobs: Sequence[Json]) -> None:
        """Arguments come in pieces."""
        if part.call:
            kind, field = _call_form(part)
            self._calls.append({"index": part.call.number, kind: {field: text}})

    def finished(self, event: Finished) -> None:
        """The end has a chunk of its own."""
        rest = self._chunks(Delta(event.id, event.index, ""))
        self.told += rest, self.chunk(_choice(event.index, self.key, self.nothing, None, event))

    def tail(self) -> bytes:
        """The usage, if the client asked for it, and the end of the stream."""
        if not self.call.include_usage:
            return wire.SSE_DONE
        chunk = {"object": self.object_chunk, "choices": [], "usage": _usage(self.usage)}
        return wire.sse_event(wire.to_json(self._envelope | chunk)) + wire.SSE_DONE

    def failure(self, error: ApiError) -> bytes:
        """The error object, as an event; no end follows it."""
        return wire.sse_event(wire.to_json(error.body()))

    def _text_chunk(self, event: Delta) -> bytes:
        """The chunk of a token: many times a second, so only the text is written each time."""
        frame = self._text_frames.get(event.index)
        if frame is None:
            # The last one, since a model may have this name.
            head, _, tail = self._chunks(replace(event, text="<text>")).rpartition(b'"<text>"')
            frame = self._text_frames[event.index] = head, tail
        return frame[0] + wire.to_json(event.text) + frame[1]

    def _chunks(self, event: Delta) -> bytes:
        """A chunk, and one more for each further piece of a call."""
        calls, self._calls = self._calls, []
        chunks, logprobs = [], self.logprobs(event.index, event.logprobs)
        if event.text or event.reasoning or event.logprobs or calls:
            delta = self.delta(event, calls[:1])
            chunks.append(self.chunk(_choice(event.index, self.key, delta, logprobs)))
        for call in calls[1:]:
            logprobs = self.logprobs(event.index, ())
            delta = {"tool_calls": [call]}
            chunks.append(self.chunk(_choice(event.index, self.key, delta, logprobs)))
        return b"".join(chunks)

    def delta(self, event: Delta, _calls: list[Json]) -> Any:
        """What a choice has of an event."""
        return event.text

    def chunk(self, choice: Json) -> bytes:
        """A choice as an event of the stream."""
        chunk = self._envelope | {"object": self.object_chunk, "choices": [choice]}
        if self.call.include_usage:
            chunk["usage"] = None
        return wire.sse_event(wire.to_json(chunk))

    def logprobs(self, index: int, entries: Iterable[TokenLogprob]) -> Json | None:
        """Four parallel lists; offsets count characters of the choice's text, over all chunks."""
        if not self.has_logprobs:
            return None
        offset = self._offsets.setdefault(index, _Offset())
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token = _text(entry.piece)
            found["tokens"].append(token)
            found["token_logprobs"].append(entry.logprob)
            # Two pieces may print alike; reversed, so that the likelier one stays.
            top = {_text(piece): value for piece, value in reversed(entry.top)}
            if entry.logprob is not None:
                top.setdefault(token, entry.logprob)  # the token itself, however unlikely
            found["top_logprobs"].append(top if entry.logprob is not None else None)
            found["text_offset"].append(offset.pass_over(entry.piece))
        return found


class ChatReply(CompletionReply):
    """The reply to POST /v1/chat/completions."""

    object_whole, object_chunk = "chat.completion", "chat.completion.chunk"
    key = "delta"
    nothing: Any = {}

    def whole_text(self, turn: Turn) -> tuple[str, Any]:
        """A message, with thoughts and calls."""
        message: Json = {"role": "assistant", "content": turn.said("text"), "refusal": None}
        if reasoning := turn.said("reasoning"):
            message["reasoning_content"] = reasoning
        if calls := turn.calls():
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(*call) for call in calls]
        return "message", message

    def started(self, event: Started) -> None:
        """The role has a chunk of its own."""
        # An empty text and not null: clients add deltas up without looking.
        delta = {"role": "assistant", "content": ""}
        self.told.append(self.chunk(_choice(event.index, self.key, delta)))

    def delta(self, event: Delta, calls: list[Json]) -> Any:
        """More of the message."""
        delta: Json = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if calls:
            delta["tool_calls"] = calls
        if event.text or not delta:
            delta["content"] = event.text
        return delta

    def logprobs(self, _index: int, entries: Iterable[TokenLogprob]) -> Json | None:
        """A list of objects."""
        if not self.has_logprobs:
            return None
        return {"content": list(map(logprob_object, entries)), "refusal": None}


class EmbeddingReply(ComputedReply):
    """The reply to POST /v1/embeddings."""

    def whole(self) -> Json:
        """The response object."""
        n_prompt = sum(event.n_prompt for event in self.results())
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": event.index, "embedding": self._vector(event)}
                for event in self.results()
            ],
            "model": self.model,
            "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
        }

    def _vector(self, event: Embedded) -> str | list[float]:
        assert isinstance(self.call.request, Embed)
        vector, n = array("f", event.vector), self.call.request.dimensions
        if n is not None:
            length = math.hypot(*vector[:n]) or 1.0
            vector = array("f", (x / length for x in vector[:n]))
        if self.call.encoding_format == "base64":
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector.tolist()


class _Offset:
    """Where in a text each of its tokens begins, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def pass_over(self, piece: bytes) -> int:
        """Where the piece begins; the rest of a character begins where the character does."""
        begin = self._n_characters
        self._n_characters += len(self._decoder.decode(piece))
        return begin


def logprob_object(entry: TokenLogprob) -> Json:
    """A token and the likeliest instead of it, as chats and responses show it."""
    top = [_token(piece, value) for piece, value in entry.top]
    return _token(entry.piece, entry.logprob) | {"top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> Json:
    # The bytes let a client put characters together that several tokens share.
    value = NO_LOGPROB if logprob is None else logprob
    return {"token": _text(piece), "logprob": value, "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _choice(
    index: int, key: str, value: Any, logprobs: Json | None = None, end: Finished | None = None
) -> Json:
    reason = end.reason if end else None
    return {"index": index, key: value, "logprobs": logprobs, "finish_reason": reason}


def _whole_call(begin: CallDelta, part: Part) -> Json:
    kind, field = _call_form(part)
    return {"id": begin.id, "type": kind, kind: {"name": begin.name, field: part.text}}


def _call_form(part: Part) -> tuple[str, str]:
    """The type of a call, and the field of its text."""
    return ("custom", "input") if part.custom else ("function", "arguments")


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
        "completion_tokens_details": {"reasoning_tokens": usage.n_reasoning},
    }
