"""The worker's events -> the replies of OpenAI's chats, completions and embeddings.

The fields are those of OpenAI's schemas. Pure: does no input or output.
"""

import base64
import codecs
import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import (
    CallDelta,
    Delta,
    Embed,
    Embedded,
    Finished,
    Json,
    Reading,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.openai.timings import Timings
from lmlite.server.api.reply import ComputedReply, GeneratedReply, Incoming
from lmlite.server.api.turn import Part, Turn
from lmlite.server.front import wire
from lmlite.server.models.served_model import ServedModel

NO_LOGPROB = -9999.0  # OpenAI's value for a token without a log-probability


class CompletionReply(GeneratedReply):
    """The reply to POST /v1/completions. The subclass ChatReply has other fields in a choice."""

    object_whole = object_chunk = "text_completion"
    key = "text"  # the field of a chunk's choice that has the text
    nothing: Any = ""  # the value of that field in the last chunk

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._envelope: Json = {"id": reply_id, "created": created, "model": model.name,
                                "system_fingerprint": "lmlite"}  # fmt: skip
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # by choice: bytes around a chunk's text
        self._offsets: dict[int, _Offset] = {}  # by choice
        self._timings: dict[int, Timings] = {}  # by choice, if the client asks for times
        self._calls: list[Json] = []  # pieces of tool calls for the next chunks

    def whole(self) -> Json:
        """The response object, after the last event."""
        choices = [
            self._choice(index, *self._whole_text(turn), turn.logprobs, turn.end)
            for index, turn in sorted(self.turns.items())
        ]
        more = {"object": self.object_whole, "choices": choices, "usage": _usage(self)}
        return self._envelope | more | self.more() | self._times_of(0)

    def more(self) -> Json:
        """Fields of APIs that extend OpenAI's: of the whole reply, and of a choice's last chunk."""
        return {}

    def _times_of(self, index: int) -> Json:
        timings = self._timings.get(index)
        return {"timings": timings.whole()} if timings and self.call.include_timings else {}

    def _whole_text(self, turn: Turn) -> tuple[str, Any]:
        return "text", turn.said("text")

    def _choice(
        self,
        index: int,
        key: str,
        value: Any,
        entries: Sequence[TokenLogprob] | None = None,
        end: Finished | None = None,
    ) -> Json:
        has_logprobs = self.has_logprobs and entries is not None
        return {
            "index": index,
            key: value,
            "logprobs": self._logprobs(index, entries or ()) if has_logprobs else None,
            "finish_reason": end.reason if end else None,
        }

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> Json:
        """Four parallel lists. An offset is a number of characters in the choice's whole text."""
        offset = self._offsets.setdefault(index, _Offset())
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token = _text(entry.piece)
            found["tokens"].append(token)
            found["token_logprobs"].append(entry.logprob)
            # Two pieces may have the same text. Reversed, so that the likelier one is kept.
            top = {_text(piece): value for piece, value in reversed(entry.top)}
            if entry.logprob is not None:
                top.setdefault(token, entry.logprob)  # OpenAI always includes the chosen token
            found["top_logprobs"].append(top if entry.logprob is not None else None)
            found["text_offset"].append(offset.pass_over(entry.piece))
        return found

    # ---- streamed --------------------------------------------------------------------------

    def add(self, event: Incoming) -> bytes:
        """Takes the next event. Plain text goes to the stream at once, past the Turn."""
        if self.call.include_timings or self.call.return_progress:
            self._note(event)
        if not isinstance(event, Delta):
            return super().add(event)
        if self.is_streamed and not (self.has_logprobs or event.reasoning or event.calls):
            return self._text_chunk(event)
        self.turns[event.index].add(event)
        return self._chunks(event) if self.is_streamed else b""

    def _note(self, event: Incoming) -> None:
        """Takes an event's time, and tells how much of the prompt is read."""
        if isinstance(event, Started):
            self._timings[event.index] = Timings(event)
        if isinstance(event, Started | Reading | Delta | Finished):
            self._timings[event.index].note(event)
        if isinstance(event, Started | Reading) and self.call.return_progress and self.is_streamed:
            progress = self._timings[event.index].progress(event)
            self.written.append(self._chunk(event.index, self.nothing, prompt_progress=progress))

    def begun(self, part: Part) -> None:
        """Keeps the start of a call, without arguments, for the next chunk."""
        if part.call:
            self._calls.append({"index": part.call.number, **_whole_call(part.call, part)})

    def grown(self, part: Part, text: str, _logprobs: Sequence[Json]) -> None:
        """Keeps a piece of a call's arguments for the next chunk."""
        if part.call:
            kind, field = _call_form(part)
            self._calls.append({"index": part.call.number, kind: {field: text}})

    def finished(self, event: Finished) -> None:
        """Adds the last chunk of a choice."""
        self.written.append(self._chunks(Delta(event.id, event.index, "")))
        more = self.more() | self._times_of(event.index)
        self.written.append(self._chunk(event.index, self.nothing, None, event, **more))

    def tail(self) -> bytes:
        """The usage, if the client asked for it, and the end of the stream."""
        if not self.call.include_usage:
            return wire.SSE_DONE
        chunk = {"object": self.object_chunk, "choices": [], "usage": _usage(self)}
        return wire.sse_event(wire.to_json(self._envelope | chunk)) + wire.SSE_DONE

    def failure(self, error: ApiError) -> bytes:
        """The error object as an event. It is the last event of the stream."""
        return wire.sse_event(wire.to_json(error.body()))

    def _text_chunk(self, event: Delta) -> bytes:
        """A chunk of plain text. Called often, so it encodes only the text each time."""
        frame = self._frames.get(event.index)
        if frame is None:
            # Search from the end: the model's name, which comes before, may contain <text>.
            parts = self._chunks(replace(event, text="<text>")).rpartition(b'"<text>"')
            frame = self._frames[event.index] = parts[0], parts[2]
        head, tail = frame
        return head + wire.to_json(event.text) + tail

    def _chunks(self, event: Delta) -> bytes:
        """The chunks of an event. A chunk has at most one piece of a call."""
        calls, self._calls = self._calls, []
        found = []
        if event.text or event.reasoning or event.logprobs or calls:
            found.append(self._chunk(event.index, self._delta(event, calls[:1]), event.logprobs))
        found += [self._chunk(event.index, {"tool_calls": [call]}, ()) for call in calls[1:]]
        return b"".join(found)

    def _delta(self, event: Delta, _calls: list[Json]) -> Any:
        return event.text

    def _chunk(self, index: int, delta: Any, *of_choice: Any, **more: Any) -> bytes:
        choice = self._choice(index, self.key, delta, *of_choice)
        chunk = self._envelope | {"object": self.object_chunk, "choices": [choice]} | more
        if self.call.include_usage:
            chunk["usage"] = None
        return wire.sse_event(wire.to_json(chunk))


class ChatReply(CompletionReply):
    """The reply to POST /v1/chat/completions."""

    object_whole, object_chunk = "chat.completion", "chat.completion.chunk"
    key = "delta"
    nothing: Any = {}

    def _whole_text(self, turn: Turn) -> tuple[str, Any]:
        message: Json = {"role": "assistant", "content": turn.said("text"), "refusal": None}
        if reasoning := turn.said("reasoning"):
            message["reasoning_content"] = reasoning
        if calls := turn.calls():
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(*call) for call in calls]
        return "message", message

    def _logprobs(self, _index: int, entries: Sequence[TokenLogprob]) -> Json:
        return {"content": list(map(logprob_object, entries)), "refusal": None}

    def started(self, event: Started) -> None:
        """Adds a chunk that announces the role."""
        # "" instead of null because some clients concatenate contents without a check.
        self.written.append(self._chunk(event.index, {"role": "assistant", "content": ""}))

    def _delta(self, event: Delta, calls: list[Json]) -> Any:
        delta: Json = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if calls:
            delta["tool_calls"] = calls
        if event.text or not delta:
            delta["content"] = event.text
        return delta


class EmbeddingReply(ComputedReply):
    """The reply to POST /v1/embeddings."""

    def whole(self) -> Json:
        """The response object."""
        n_prompt = sum(event.n_prompt for event in self.results())
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": event.index, "embedding": self.vector(event)}
                for event in self.results()
            ],
            "model": self.model.name,
            "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
        }

    def vector(self, event: Embedded) -> str | list[float]:
        """The vector of an input, as the request wants it."""
        assert isinstance(self.call.request, Embed)
        vector, n = array("f", event.vector), self.call.request.dimensions
        if n is not None:
            length = math.hypot(*vector[:n]) or 1.0
            vector = array("f", (x / length for x in vector[:n]))
        if self.call.encoding_format == "base64":
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector.tolist()


class _Offset:
    """Counts the characters before each token of a text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def pass_over(self, piece: bytes) -> int:
        """The index of the character at which the piece begins, or which it continues."""
        begin = self._n_characters
        self._n_characters += len(self._decoder.decode(piece))
        return begin


def logprob_object(entry: TokenLogprob) -> Json:
    """A token and its likeliest alternatives, in the format of chats and responses."""
    top = [_token(piece, value) for piece, value in entry.top]
    return _token(entry.piece, entry.logprob) | {"top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> Json:
    # A character may be split over several tokens; clients can join their bytes.
    value = NO_LOGPROB if logprob is None else logprob
    return {"token": _text(piece), "logprob": value, "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _whole_call(begin: CallDelta, part: Part) -> Json:
    kind, field = _call_form(part)
    return {"id": begin.id, "type": kind, kind: {"name": begin.name, field: part.text}}


def _call_form(part: Part) -> tuple[str, str]:
    """The type of a call, and the name of the field with its text."""
    return ("custom", "input") if part.custom else ("function", "arguments")


def _usage(reply: GeneratedReply) -> Json:
    return {
        "prompt_tokens": reply.n_prompt,
        "completion_tokens": reply.n_completion,
        "total_tokens": reply.n_prompt + reply.n_completion,
        "prompt_tokens_details": {"cached_tokens": reply.n_cached},
        "completion_tokens_details": {"reasoning_tokens": reply.n_reasoning},
    }
