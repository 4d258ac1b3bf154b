"""Events -> response JSON, field by field as OpenAI's schemas have it.

A streamed answer is what `sse` makes of each event, and `sse_tail` at the end; an answer in
one piece is the same events given to `add`, and then `whole`. Pure; knows no sockets.
"""

import base64
import codecs
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import (
    CallDelta,
    Chat,
    Complete,
    Delta,
    Embed,
    Embedded,
    Finished,
    ReplyEvent,
    Started,
    TokenLogprob,
)
from lmlite.server.api.call import Call
from lmlite.server.api.chat.custom_tools import CustomCalls
from lmlite.server.front import wire

Json = dict[str, Any]

NO_LOGPROB = -9999.0  # OpenAI's number where there is none


@dataclass
class Usage:
    """Tokens of a request. A prompt that several choices share counts once."""

    n_choices_per_prompt: int
    n_prompt: int = 0
    n_cached: int = 0
    n_completion: int = 0
    n_reasoning: int = 0

    def add(self, event: ReplyEvent) -> None:
        """Counts what the event says."""
        match event:
            case Started() if event.index % self.n_choices_per_prompt == 0:
                self.n_prompt += event.n_prompt
                self.n_cached += event.n_cached
            case Finished():
                self.n_completion += event.n_completion
                self.n_reasoning += event.n_reasoning

    def as_json(self) -> Json:
        """The `usage` object."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_completion,
            "total_tokens": self.n_prompt + self.n_completion,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
            "completion_tokens_details": {"reasoning_tokens": self.n_reasoning},
        }


@dataclass
class _Choice:
    """One choice of an answer in one piece, as it grows."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add_call(self, delta: CallDelta) -> None:
        """Begins a tool call, or lengthens the arguments of one."""
        if delta.number == len(self.calls):
            self.calls.append(delta)
        else:
            begun = self.calls[delta.number]
            arguments = begun.arguments + delta.arguments
            self.calls[delta.number] = replace(begun, arguments=arguments)


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


class CompletionReply:
    """The answer to POST /v1/completions; ChatReply differs in the shape of a choice."""

    object_whole = object_chunk = "text_completion"

    def __init__(self, call: Call, reply_id: str, model: str, created: int) -> None:
        assert isinstance(call.request, Chat | Complete)
        self._envelope: Json = {"id": reply_id, "created": created, "model": model,
                                "system_fingerprint": "lmlite"}  # fmt: skip
        self._include_usage = call.include_usage
        self._wants_logprobs = call.request.params.n_logprobs is not None
        self._usage = Usage(call.request.n)
        self._custom = CustomCalls(call.custom_tools)
        self._choices: dict[int, _Choice] = {}
        self._offsets: dict[int, _Offset] = {}  # by index
        self._templates: dict[int, tuple[bytes, bytes]] = {}

    # ---- in one piece ----------------------------------------------------------------------

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""
        self._usage.add(event)
        match event:
            case Started():
                self._choices[event.index] = _Choice()
            case Delta():
                event, choice = self._custom.read(event), self._choices[event.index]
                choice.text.append(event.text)
                choice.reasoning.append(event.reasoning)
                choice.logprobs += event.logprobs
                for call in event.calls:
                    choice.add_call(call)
            case Finished():
                choice = self._choices[event.index]
                choice.finish_reason = event.reason
                for call in self._custom.rest(event.index):
                    choice.add_call(call)

    def whole(self) -> Json:
        """The response object, after the last event."""
        choices = [
            self._whole_choice(index, "".join(choice.text), choice)
            for index, choice in sorted(self._choices.items())
        ]
        usage = self._usage.as_json()
        return self._envelope | {"object": self.object_whole, "choices": choices, "usage": usage}

    def _whole_choice(self, index: int, text: str, choice: _Choice) -> Json:
        logprobs = self._legacy_logprobs(index, choice.logprobs)
        return {"index": index, "text": text, "logprobs": logprobs,
                "finish_reason": choice.finish_reason}  # fmt: skip

    # ---- streamed --------------------------------------------------------------------------

    def sse(self, event: ReplyEvent) -> bytes:
        """The bytes that an event becomes on a stream; b"" for none."""
        if isinstance(event, Delta) and self._is_text_only(event):
            return self._text_chunk(event)
        self._usage.add(event)
        match event:
            case Started():
                return self._chunk(self._first_choice(event.index))
            case Delta():
                return self._delta_chunks(self._custom.read(event))
            case Finished():
                rest = Delta(event.id, event.index, "", calls=self._custom.rest(event.index))
                calls = self._delta_chunks(rest) if rest.calls else b""
                return calls + self._chunk(self._last_choice(event))
        return b""

    def sse_tail(self) -> bytes:
        """What follows the last event: the usage, if the client asked for it, and the end."""
        if not self._include_usage:
            return wire.SSE_DONE
        chunk = {"object": self.object_chunk, "choices": [], "usage": self._usage.as_json()}
        return wire.sse_event(wire.to_json(self._envelope | chunk)) + wire.SSE_DONE

    def sse_error(self, error: ApiError) -> bytes:
        """The error object, as an event; no end follows it."""
        return wire.sse_event(wire.to_json(error.body()))

    def _is_text_only(self, event: Delta) -> bool:
        return not (self._wants_logprobs or event.reasoning or event.calls)

    def _text_chunk(self, event: Delta) -> bytes:
        """The common case, many times a second: only the text differs from chunk to chunk."""
        if event.index not in self._templates:
            mark = "<text>"
            chunk = self._chunk(self._delta_choice(Delta(event.id, event.index, mark)))
            # The last one, since a model may be called as the mark is.
            head, _, tail = chunk.rpartition(wire.to_json(mark))
            self._templates[event.index] = (head, tail)
        head, tail = self._templates[event.index]
        return head + wire.to_json(event.text) + tail

    def _chunk(self, choice: Json | None) -> bytes:
        if choice is None:
            return b""
        chunk = self._envelope | {"object": self.object_chunk, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return wire.sse_event(wire.to_json(chunk))

    def _delta_chunks(self, event: Delta) -> bytes:
        pieces = (one for one in _chunked(event) if one != Delta(one.id, one.index, ""))
        return b"".join(self._chunk(self._delta_choice(one)) for one in pieces)

    def _first_choice(self, _index: int) -> Json | None:
        return None  # completions have no role to announce

    def _delta_choice(self, event: Delta) -> Json:
        logprobs = self._legacy_logprobs(event.index, event.logprobs)
        return {"index": event.index, "text": event.text, "logprobs": logprobs,
                "finish_reason": None}  # fmt: skip

    def _last_choice(self, event: Finished) -> Json:
        return {"index": event.index, "text": "", "logprobs": None,
                "finish_reason": event.reason}  # fmt: skip

    def _legacy_logprobs(self, index: int, entries: Iterable[TokenLogprob]) -> Json | None:
        """Four parallel lists; offsets count characters of the choice's text, over all chunks."""
        if not self._wants_logprobs:
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
    """The answer to POST /v1/chat/completions."""

    object_whole, object_chunk = "chat.completion", "chat.completion.chunk"

    def _whole_choice(self, index: int, text: str, choice: _Choice) -> Json:
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if reasoning := "".join(choice.reasoning):
            message["reasoning_content"] = reasoning
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [
                self._whole_call(index, number, call) for number, call in enumerate(choice.calls)
            ]
        logprobs = self._chat_logprobs(choice.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs,
                "finish_reason": choice.finish_reason}  # fmt: skip

    def _first_choice(self, index: int) -> Json | None:
        # An empty text and not null: clients add deltas up without looking.
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta_choice(self, event: Delta) -> Json:
        logprobs = self._chat_logprobs(event.logprobs)
        delta: Json = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.calls:
            delta["tool_calls"] = [self._call_delta(event.index, call) for call in event.calls]
        if event.text or not delta:
            delta["content"] = event.text
        return {"index": event.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _last_choice(self, event: Finished) -> Json:
        return {"index": event.index, "delta": {}, "logprobs": None,
                "finish_reason": event.reason}  # fmt: skip

    def _whole_call(self, index: int, number: int, call: CallDelta) -> Json:
        """Arguments of a function, or the text that a custom tool takes."""
        if self._custom.has(index, number):
            custom = {"name": call.name, "input": call.arguments}
            return {"id": call.id, "type": "custom", "custom": custom}
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": function}

    def _call_delta(self, index: int, call: CallDelta) -> Json:
        """The first of a call is one without arguments; then they come in pieces."""
        if call.id is not None:
            return {"index": call.number, **self._whole_call(index, call.number, call)}
        if self._custom.has(index, call.number):
            return {"index": call.number, "custom": {"input": call.arguments}}
        return {"index": call.number, "function": {"arguments": call.arguments}}

    def _chat_logprobs(self, entries: Iterable[TokenLogprob]) -> Json | None:
        if not self._wants_logprobs:
            return None
        return {"content": list(map(logprob_object, entries)), "refusal": None}


class EmbeddingReply:
    """The answer to POST /v1/embeddings; there is no streamed one."""

    def __init__(self, call: Call, _reply_id: str, model: str, _created: int) -> None:
        assert isinstance(call.request, Embed)
        self._dimensions, self._format = call.request.dimensions, call.encoding_format
        self._model = model
        self._rows: dict[int, Embedded] = {}

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Embedded):
            self._rows[event.index] = event

    def whole(self) -> Json:
        """The response object."""
        rows = [event for _, event in sorted(self._rows.items())]
        n_prompt = sum(event.n_prompt for event in rows)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": event.index, "embedding": self._vector(event)}
                for event in rows
            ],
            "model": self._model,
            "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
        }

    def _vector(self, event: Embedded) -> str | list[float]:
        vector = array("f", event.vector)
        n = self._dimensions
        if n is not None:
            length = math.hypot(*vector[:n]) or 1.0
            vector = array("f", (x / length for x in vector[:n]))
        if self._format == "base64":
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector.tolist()


def logprob_object(entry: TokenLogprob) -> Json:
    """A token and what else it might have been, as chats and responses show it."""
    top = [_chat_token(piece, value) for piece, value in entry.top]
    return _chat_token(entry.piece, entry.logprob) | {"top_logprobs": top}


def _chunked(event: Delta) -> Iterator[Delta]:
    """The same, a piece of one call in each; as OpenAI's, a call begins without arguments."""
    pieces = []
    for call in event.calls:
        if call.id is not None:
            pieces.append(replace(call, arguments=""))
        if call.arguments:
            pieces.append(CallDelta(call.number, call.arguments))
    yield replace(event, calls=tuple(pieces[:1]))
    for piece in pieces[1:]:
        yield Delta(event.id, event.index, "", calls=(piece,))


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _chat_token(piece: bytes, logprob: float | None) -> Json:
    # The bytes let a client put characters together that several tokens share.
    value = NO_LOGPROB if logprob is None else logprob
    return {"token": _text(piece), "logprob": value, "bytes": list(piece)}
