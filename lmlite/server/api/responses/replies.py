"""The worker's events -> the reply to POST /v1/responses: output items and their stream events.

Does no input or output, but stores a complete response in memory.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from typing import NamedTuple

from lmlite.errors import ApiError, InternalError
from lmlite.messages import ChatMessage, Delta, Finished, Json, Started, ToolCall
from lmlite.server.api.call import Call
from lmlite.server.api.chat.custom_tools import as_arguments
from lmlite.server.api.chat.messages import says_something
from lmlite.server.api.openai.replies import logprob_object
from lmlite.server.api.reply import BackgroundReply, Incoming, typed_event
from lmlite.server.api.responses.requests import ResponseCall
from lmlite.server.api.responses.stored import Record, input_items
from lmlite.server.api.responses.tools import SEARCH
from lmlite.server.api.turn import Part
from lmlite.server.front import wire
from lmlite.server.models.served_model import ServedModel


class _Form(NamedTuple):
    """The format of the output items of one type."""

    type: str
    id_prefix: str
    event: str  # followed by ".delta" for more text, ".done" for all text; "": no such events
    field: str  # the field with the text
    more: Json = {}  # constant fields


_REASONING = _Form("reasoning", "rs", "response.reasoning_text", "text", {"summary": []})
_MESSAGE = _Form("message", "msg", "response.output_text", "text", {"role": "assistant"})
_CALL = _Form("function_call", "fc", "response.function_call_arguments", "arguments")
_CUSTOM = _Form("custom_tool_call", "ctc", "response.custom_tool_call_input", "input")
_SEARCH = _Form("tool_search_call", "tsc", "", "arguments")


class ResponseReply(BackgroundReply):
    """The reply to POST /v1/responses."""

    call: ResponseCall
    has_text = True  # clients expect a message if there is no call

    def __init__(self, call: Call, reply_id: str, model: ServedModel, created: int) -> None:
        super().__init__(call, reply_id, model, created)
        self._frames: dict[int, bytes] = {}  # by item: the format string of its delta events
        self._unsaid: list[Json] = []  # log-probabilities of tokens whose text has not arrived
        self._numbers = count()  # sequence numbers of events

    def whole(self) -> Json:
        """The response object, after the last event."""
        end = self.turns[0].end
        return self._response("incomplete" if end and end.reason == "length" else "completed")

    def add(self, event: Incoming) -> bytes:
        """Takes the next event; the last one stores the response."""
        data = super().add(event)
        if isinstance(event, Started) and self.call.is_background:
            self._change(self._record("in_progress"))
        elif isinstance(event, Finished) and self.call.stored:
            messages = filter(says_something, (*self.call.conversation, self._message()))
            record = Record(
                tuple(messages), wire.to_json(self.whole()), self._items(),
                is_background=self.call.is_background,
            )  # fmt: skip
            if not self.call.is_background:
                self.call.stored.keep(self.id, record)
            elif record.is_small:
                self._change(record)
            else:
                self.fail(InternalError("the response is too long to be stored"))
        return data

    # ---- in the background -----------------------------------------------------------------

    def begin(self) -> Json:
        """Stores that it waits; returns the object for the client. Raises an ApiError."""
        assert self.call.stored
        self.call.stored.begin(self.id, self._record("queued"))
        return self._response("queued")

    def is_unwanted(self) -> bool:
        """Whether the client has cancelled or deleted it, or it was forgotten."""
        assert self.call.stored
        return not self.call.stored.is_running(self.id)

    def fail(self, error: ApiError) -> None:
        """Stores that it has failed."""
        failed = wire.to_json(self._failed(error) | {"output": []})
        self._change(Record((), failed, self._items(), is_background=True, can_continue=False))

    def _record(self, status: str) -> Record:
        """The record of a response that is being made, whose output nobody sees yet."""
        response = wire.to_json(self._response(status) | {"output": []})
        return Record(self.call.conversation, response, self._items(),
                      is_background=True, is_running=True, can_continue=False)  # fmt: skip

    def _items(self) -> bytes:
        return wire.to_json(input_items(self.call.input, self.id))

    def _change(self, record: Record) -> None:
        assert self.call.stored
        self.call.stored.change(self.id, record)

    def text_logprobs(self, delta: Delta) -> Sequence[Json]:
        """The entries of the last tokens that cover the text; earlier tokens were tags."""
        self._unsaid += map(logprob_object, delta.logprobs)
        entries, n_bytes, n = self._unsaid, len(delta.text.encode()), 0
        while n_bytes > 0 and n < len(entries):
            n += 1
            n_bytes -= len(entries[-n]["bytes"])
        if delta.reasoning or delta.text or delta.calls:
            self._unsaid = []
        return entries[len(entries) - n :]

    # ---- streamed --------------------------------------------------------------------------

    def tail(self) -> bytes:
        """The last event: the whole response."""
        response = self.whole()
        return self._event(f"response.{response['status']}", {"response": response})

    def failure(self, error: ApiError) -> bytes:
        """The failed response with its output so far; only the error if there is no response."""
        if not self.turns:
            about = {"code": error.code, "message": error.message, "param": error.param}
            return self._event("error", about)
        for part in self.turns[0].parts:
            if part.status == "in_progress":
                part.status = "incomplete"
        return self._event("response.failed", {"response": self._failed(error)})

    def started(self, _event: Started) -> None:
        """Writes the response, still without output."""
        response = {"response": self._response("in_progress")}
        self._write("response.created", response)
        self._write("response.in_progress", response)

    def begun(self, part: Part) -> None:
        """Writes the start of an item, and of its content part if it has one."""
        self._write_item("added", part)
        self._write_content("added", part)

    def grown(self, part: Part, text: str, logprobs: Sequence[Json]) -> None:
        """Writes more text of an item. Called often, so a plain text fills a format string."""
        if logprobs:
            about = self._place(part) | {"delta": text, "logprobs": _without_bytes(logprobs)}
            self._write(f"{self._form(part).event}.delta", about)
            return
        frame = self._frames.get(part.index)
        if frame is None:
            frame = self._frames[part.index] = self._text_frame(part)
        if frame:
            self.written.append(frame % (wire.to_json(text), next(self._numbers)))

    def ended(self, part: Part) -> None:
        """Writes the end events: with the whole text, the content part and the item."""
        form = self._form(part)
        if form.event:
            self._write(f"{form.event}.done", self._place(part) | self._all_text(part))
        self._write_content("done", part)
        self._write_item("done", part)

    def _text_frame(self, part: Part) -> bytes:
        """The format string of an item's delta events; b"" for items without such events."""
        form = self._form(part)
        if not form.event:
            return b""
        logprobs: Json = {"logprobs": []} if form is _MESSAGE else {}
        event = typed_event({"type": f"{form.event}.delta"} | self._place(part) | logprobs)
        return event.removesuffix(b"}\n\n") + b',"delta":%b,"sequence_number":%d}\n\n'

    def _write_item(self, state: str, part: Part) -> None:
        about = {"output_index": part.index, "item": self._item(part)}
        self._write(f"response.output_item.{state}", about)

    def _write_content(self, state: str, part: Part) -> None:
        if part.call is None:
            about = self._place(part) | {"part": _content(part)}
            self._write(f"response.content_part.{state}", about)

    def _write(self, kind: str, about: Json) -> None:
        self.written.append(self._event(kind, about))

    def _event(self, kind: str, about: Json) -> bytes:
        return typed_event({"type": kind} | about | {"sequence_number": next(self._numbers)})

    # ---- the objects -----------------------------------------------------------------------

    def _response(self, status: str) -> Json:
        turn = self.turns.get(0)
        found: Json = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model.name,
            **self.call.settings,
            "status": status,
            "output": [self._item(part) for part in turn.parts] if turn else [],
            "error": None,
            "incomplete_details": None,
        }
        if status == "incomplete":
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        if turn and turn.end is not None:
            found["usage"] = self._usage()
        return found

    def _failed(self, error: ApiError) -> Json:
        # OpenAI allows only certain codes here. These two are the general ones.
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        return self._response("failed") | {"error": {"code": code, "message": error.message}}

    def _item(self, part: Part) -> Json:
        """An output item. While it is in progress its content is empty: events carry the text."""
        form = self._form(part)
        item: Json = {"id": self._item_id(part), "type": form.type, "status": part.status}
        if part.call is None:
            item["content"] = [_content(part)] if part.status != "in_progress" else []
            return item | form.more
        item["call_id"] = part.call.id
        if form is _SEARCH:
            return item | {"execution": "client", "arguments": part.arguments() or {}}
        return item | self._tool(part) | {form.field: part.text}

    def _form(self, part: Part) -> _Form:
        if part.call is None:
            return _MESSAGE if part.kind == "text" else _REASONING
        if part.call.name == SEARCH and self.call.tools.has_search:
            return _SEARCH
        return _CUSTOM if part.custom else _CALL

    def _tool(self, part: Part) -> Json:
        """The client's name for a tool, and its namespace if it has one."""
        assert part.call is not None and part.call.name is not None
        namespace, name = self.call.tools.apart.get(part.call.name, (None, part.call.name))
        return {"name": name} if namespace is None else {"name": name, "namespace": namespace}

    def _item_id(self, part: Part) -> str:
        return f"{self._form(part).id_prefix}_{self.id.removeprefix('resp_')}_{part.index}"

    def _place(self, part: Part) -> Json:
        """The fields that name the item and content part of an event."""
        place = {"item_id": self._item_id(part), "output_index": part.index}
        return place if part.kind == "call" else place | {"content_index": 0}

    def _all_text(self, part: Part) -> Json:
        form = self._form(part)
        if form is _CALL:
            return {"name": self._tool(part)["name"], "arguments": part.text}
        text: Json = {form.field: part.text}
        if form is _MESSAGE:
            text["logprobs"] = _without_bytes(part.logprobs)
        return text

    def _usage(self) -> Json:
        return {
            "input_tokens": self.n_prompt,
            # Each prompt token that was not in memory is in memory now.
            "input_tokens_details": {
                "cached_tokens": self.n_cached,
                "cache_write_tokens": self.n_prompt - self.n_cached,
            },
            "output_tokens": self.n_completion,
            "output_tokens_details": {"reasoning_tokens": self.n_reasoning},
            "total_tokens": self.n_prompt + self.n_completion,
        }

    def _message(self) -> ChatMessage:
        """The response as a message of the stored conversation."""
        turn = self.turns[0]
        calls = []
        for call, part in turn.calls():
            arguments = as_arguments(part.text) if part.custom else part.text or "{}"
            calls.append(ToolCall(call.id or "", call.name or "", arguments))
        text, reasoning = turn.said("text"), turn.said("reasoning") or None
        return ChatMessage("assistant", text, reasoning=reasoning, tool_calls=tuple(calls))


def _content(part: Part) -> Json:
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": part.text}
    text = {"type": "output_text", "text": part.text}
    return text | {"annotations": [], "logprobs": part.logprobs}


def _without_bytes(logprobs: Iterable[Json]) -> list[Json]:
    """Log-probabilities in the format of events, which lack the bytes that items have."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [
                {"token": one["token"], "logprob": one["logprob"]} for one in entry["top_logprobs"]
            ],
        }
        for entry in logprobs
    ]
