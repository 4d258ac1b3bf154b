"""The worker's events -> the reply to POST /api/v1/chat, or the typed events of its stream.

Does no input or output, but stores a complete conversation in memory.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from lmlite.errors import ApiError
from lmlite.messages import ChatMessage, Delta, Finished, Json, Reading, Started
from lmlite.server.api.call import Call
from lmlite.server.api.chat.messages import says_something
from lmlite.server.api.lmstudio.chat import NativeCall
from lmlite.server.api.lmstudio.errors import native_error
from lmlite.server.api.lmstudio.models import instance_id
from lmlite.server.api.lmstudio.pace import Pace
from lmlite.server.api.reply import GeneratedReply, Incoming, typed_event
from lmlite.server.api.responses.stored import Record
from lmlite.server.api.turn import Part
from lmlite.server.models import life
from lmlite.server.models.served_model import ServedModel

# No tools are offered here, so what a model writes as a call is text.
_KINDS = {"text": "message", "reasoning": "reasoning", "call": "message"}


class NativeReply(GeneratedReply):
    """The reply to POST /api/v1/chat."""

    call: NativeCall
    is_sequential = True  # an item of the output must end before the next one starts

    def __init__(
        self,
        call: Call,
        reply_id: str,
        model: ServedModel,
        created: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises BadRequest if the model cannot do what the call asks for."""
        super().__init__(call, reply_id, model, created)
        self.call.check_model(model)
        self._pace = Pace(model, clock)
        self._stage = "new"  # then: loading, loaded, reading, writing
        self._progress = -1.0  # of the load, as written last
        self._is_kept = False

    def whole(self) -> Json:
        """The reply, after the last event; after a failure, what there is of it."""
        parts = [part for turn in self.turns.values() for part in turn.parts]
        found: Json = {
            "model_instance_id": instance_id(self.model),
            "output": [{"type": _KINDS[part.kind], "content": part.text} for part in parts],
            "stats": self._stats(),
        }
        return found | {"response_id": self.id} if self._is_kept else found

    def add(self, event: Incoming) -> bytes:
        """Takes the next event; the last one stores the conversation."""
        self._pace.note(event)
        if isinstance(event, life.Loading):
            self._load(event.progress)
        else:
            self._read(event)
        data = super().add(event)
        if isinstance(event, Finished) and self.call.stored:
            messages = filter(says_something, (*self.call.conversation, self._message()))
            self.call.stored.keep(self.id, Record(tuple(messages)))
            self._is_kept = True
        return data

    def _load(self, progress: float) -> None:
        """Writes how far the model is loaded, whenever that changes."""
        self._start_chat()
        if self._stage != "loading":
            self._stage, self._progress = "loading", -1.0
            self._write("model_load.start", model_instance_id=instance_id(self.model))
        if self._progress != (progress := round(progress, 3)):
            self._progress = progress
            about = {"model_instance_id": instance_id(self.model), "progress": progress}
            self._write("model_load.progress", **about)

    def _read(self, event: Incoming) -> None:
        """Writes how far the prompt is read."""
        if self._stage == "loading":
            self._stage = "loaded"
            about = {"load_time_seconds": self._pace.load_s}
            self._write("model_load.end", model_instance_id=instance_id(self.model), **about)
        if isinstance(event, Started):
            self.call.check_model(self.model)  # again, if it was loaded just now
            self._start_chat()
            self._stage = "reading"
            self._write("prompt_processing.start")
        elif isinstance(event, Reading) and self._stage == "reading":
            progress = round(event.n_read / event.n_prompt, 3)
            self._write("prompt_processing.progress", progress=progress)
        elif isinstance(event, Delta | Finished) and self._stage == "reading":
            self._stage = "writing"
            self._write("prompt_processing.end")

    def _message(self) -> ChatMessage:
        (turn,) = self.turns.values()
        return ChatMessage("assistant", turn.said("text"), reasoning=turn.said("reasoning") or None)

    def _stats(self) -> Json:
        pace = self._pace
        stats = {
            "input_tokens": self.n_prompt,
            "total_output_tokens": self.n_completion,
            "reasoning_output_tokens": self.n_reasoning,
            "tokens_per_second": pace.tokens_per_s(self.n_completion),
            "time_to_first_token_seconds": pace.first_token_s,
        }
        return stats if pace.load_s is None else stats | {"model_load_time_seconds": pace.load_s}

    # ---- streamed --------------------------------------------------------------------------

    def begun(self, part: Part) -> None:
        """Writes the start of an item."""
        self._write(f"{_KINDS[part.kind]}.start")

    def grown(self, part: Part, text: str, _logprobs: Sequence[Json]) -> None:
        """Writes more text of an item."""
        self._write(f"{_KINDS[part.kind]}.delta", content=text)

    def ended(self, part: Part) -> None:
        """Writes the end of an item."""
        self._write(f"{_KINDS[part.kind]}.end")

    def tail(self) -> bytes:
        """The last event: the whole reply."""
        return typed_event({"type": "chat.end", "result": self.whole()})

    def failure(self, error: ApiError) -> bytes:
        """The error, then the end with the output so far."""
        self._start_chat()
        self._write("error", **native_error(error))
        return b"".join(self.written) + self.tail()

    def _start_chat(self) -> None:
        if self._stage == "new":
            self._stage = "started"
            self._write("chat.start", model_instance_id=instance_id(self.model))

    def _write(self, kind: str, **more: Any) -> None:
        self.written.append(typed_event({"type": kind, **more}))
