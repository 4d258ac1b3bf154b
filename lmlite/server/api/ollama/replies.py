"""The worker's events -> Ollama's replies, or the lines of their streams.

The formats follow docs/openapi.yaml of Ollama. Times are in nanoseconds. Does no input or output.
"""

import time
from collections.abc import Sequence
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import Chat, Complete, Delta, Embedded, Json
from lmlite.server.api.call import Call
from lmlite.server.api.lmstudio.pace import Pace, PacedReply
from lmlite.server.api.ollama.errors import ollama_error
from lmlite.server.api.openai.replies import EmbeddingReply, logprob_object
from lmlite.server.api.reply import ComputedReply, ContinuedReply, Reply
from lmlite.server.api.turn import Part
from lmlite.server.front import wire


def envelope(model: str, created: int) -> Json:
    """The first fields of a reply."""
    return {"model": model, "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))}


def completion_text(text: str, **more: Any) -> Json:
    """What a model says, in a reply to POST /api/generate."""
    return {"response": text, **more}


def chat_text(text: str, **more: Any) -> Json:
    """What a model says, in a reply to POST /api/chat."""
    return {"message": {"role": "assistant", "content": text, **more}}


class GenerateReply(PacedReply, ContinuedReply):
    """The reply to POST /api/generate. The subclass ChatReply says the same in a message."""

    is_sequential = True  # a call comes whole, between texts
    content_type = "application/x-ndjson"
    said = staticmethod(completion_text)

    def whole(self) -> Json:
        """The JSON object, after the last event."""
        turn = self.turns[0]
        calls = [part for part in turn.parts if part.kind == "call"]
        text = turn.said("text") + "".join(part.text for part in calls if not _call(part))
        more = {
            "thinking": turn.said("reasoning"),
            "tool_calls": [*filter(None, map(_call, calls))],
        }
        said = self.said(text, **{name: value for name, value in more.items() if value})
        logprobs = {"logprobs": [*map(logprob_object, turn.logprobs)]} if self.has_logprobs else {}
        return self._envelope() | said | self._end() | logprobs

    def _envelope(self) -> Json:
        return envelope(self.model.name, self.created)

    def _end(self) -> Json:
        (turn,) = self.turns.values()
        assert turn.end is not None
        return {
            "done": True,
            "done_reason": "length" if turn.end.reason == "length" else "stop",
            **_durations(self._pace),
            "prompt_eval_count": self.n_prompt,
            "prompt_eval_duration": _ns(self._pace.first_token_s),
            "eval_count": self.n_completion,
            "eval_duration": _ns(self._pace.generation_s),
        }

    # ---- streamed --------------------------------------------------------------------------

    def text_logprobs(self, delta: Delta) -> Sequence[Json]:
        """Of each token of the text."""
        return [*map(logprob_object, delta.logprobs)]

    def grown(self, part: Part, text: str, logprobs: Sequence[Json]) -> None:
        """Writes more text or thoughts."""
        more = {"logprobs": logprobs} if logprobs else {}
        if part.kind == "text":
            self._write(self.said(text) | more)
        elif part.kind == "reasoning":
            self._write(self.said("", thinking=text) | more)

    def ended(self, part: Part) -> None:
        """Writes a call, whole; as text if it was cut off."""
        if part.kind == "call":
            call = _call(part)
            self._write(self.said("", tool_calls=[call]) if call else self.said(part.text))

    def _write(self, said: Json) -> None:
        self.written.append(_line(self._envelope() | said | {"done": False}))

    def ping(self, _progress: str) -> bytes:
        """A space before the next line, because lines have no comments."""
        return b" "

    def tail(self) -> bytes:
        """The last line, with the numbers."""
        return _line(self._envelope() | self.said("") | self._end())

    def failure(self, error: ApiError) -> bytes:
        """The error as the last line."""
        return _line(ollama_error(error))


class ChatReply(GenerateReply):
    """The reply to POST /api/chat."""

    said = staticmethod(chat_text)


class LoadReply(ComputedReply):
    """The reply to a request that only loads the model."""

    said = staticmethod(completion_text)

    def whole(self) -> Json:
        """The JSON object."""
        more = {"done": True, "done_reason": "load"}
        return envelope(self.model.name, self.created) | self.said("") | more


class ChatLoadReply(LoadReply):
    """The same for POST /api/chat."""

    said = staticmethod(chat_text)


def generate_reply(call: Call, *about: Any) -> Reply:
    """The reply to POST /api/generate."""
    return (GenerateReply if _generates(call) else LoadReply)(call, *about)


def chat_reply(call: Call, *about: Any) -> Reply:
    """The reply to POST /api/chat."""
    return (ChatReply if _generates(call) else ChatLoadReply)(call, *about)


class EmbedReply(PacedReply, EmbeddingReply):
    """The reply to POST /api/embed."""

    def whole(self) -> Json:
        """The JSON object; without embeddings if the request only loads the model."""
        found = [event for event in self.results() if isinstance(event, Embedded)]
        return {
            "model": self.model.name,
            "embeddings": [self.vector(event) for event in found],
            **_durations(self._pace),
            "prompt_eval_count": sum(event.n_prompt for event in found),
        }


class OldEmbedReply(EmbedReply):
    """The reply to POST /api/embeddings."""

    def whole(self) -> Json:
        """The JSON object."""
        return {"embedding": [x for vector in super().whole()["embeddings"] for x in vector]}


def _generates(call: Call) -> bool:
    return isinstance(call.request, Chat | Complete)


def _call(part: Part) -> Json | None:
    """A tool call; None if its arguments are not an object."""
    arguments = part.arguments()
    if part.call is None or arguments is None:
        return None
    function = {"index": part.call.number, "name": part.call.name, "arguments": arguments}
    return {"id": part.call.id, "function": function}


def _durations(pace: Pace) -> Json:
    return {"total_duration": _ns(pace.total_s), "load_duration": _ns(pace.load_s or 0.0)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _line(found: Json) -> bytes:
    return wire.to_json(found) + b"\n"
