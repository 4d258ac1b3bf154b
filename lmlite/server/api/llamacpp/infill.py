"""POST /infill: a completion in the middle of a file, as editors ask llama.cpp's server for it.

Formats: tools/server/README.md of llama.cpp. Pure.
"""

from collections.abc import Sequence
from dataclasses import replace

from lmlite.errors import ApiError
from lmlite.messages import Complete, Finished, Json
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.fields import Field
from lmlite.server.api.openai.requests import COMPLETION_FIELDS, completion_call
from lmlite.server.api.reply import GeneratedReply
from lmlite.server.api.turn import Part
from lmlite.server.front import wire
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

_OTHERS = {"n", "best_of", "suffix", "echo", "logprobs", "stream_options"}  # of completions alone
FIELDS = COMPLETION_FIELDS - _OTHERS | {"input_prefix", "input_suffix", "input_extra", "n_predict"}
_STOP_TYPES = {"end_token": "eos", "stop_string": "word"}  # all others: "limit"


def parse_infill(body: Json, defaults: Defaults = NO_DEFAULTS) -> Call:
    """A body of POST /infill. Raises BadRequest."""
    asked = Field(body)
    before = asked["input_prefix"].text() + (asked["prompt"].string() or "")
    limit = asked["n_predict"]
    call = completion_call(
        asked,
        defaults,
        (before,),
        max_tokens=limit if limit.value is not None else asked["max_tokens"],
        suffix=asked["input_suffix"].text(),
    )
    assert isinstance(call.request, Complete)
    request = replace(call.request, files=_files(asked["input_extra"]), truncates=True)
    return replace(call, request=request, ignored=ignored_fields(body, FIELDS))


def _files(field: Field) -> tuple[tuple[str, str], ...]:
    files = [each.entry("a file") for each in field.items()]
    return tuple((file["filename"].string() or "tmp", file["text"].text()) for file in files)


class InfillReply(GeneratedReply):
    """The reply to POST /infill, whole or streamed."""

    def whole(self) -> Json:
        """The JSON object."""
        turn = self.turns[0]
        assert turn.end
        return self._last(turn.said("text"), turn.end)

    def grown(self, _part: Part, text: str, _logprobs: Sequence[Json]) -> None:
        """Adds a piece of the text to the stream."""
        event = {"index": 0, "content": text, "tokens": [], "stop": False}
        self.written.append(wire.sse_event(wire.to_json(event)))

    def tail(self) -> bytes:
        """The last event, which has the numbers and no text."""
        end = self.turns[0].end
        assert end
        return wire.sse_event(wire.to_json(self._last("", end)))

    def failure(self, error: ApiError) -> bytes:
        """The error object as the last event."""
        return wire.sse_event(wire.to_json(error.body()))

    def _last(self, text: str, end: Finished) -> Json:
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "stop": True,
            "model": self.model.name,
            "tokens_predicted": end.n_completion,
            "tokens_evaluated": self.n_prompt,
            "tokens_cached": self.n_cached,
            "truncated": end.cause == "context_full",
            "stop_type": _STOP_TYPES.get(end.cause, "limit"),
            "stopping_word": end.stop_string or "",
        }
