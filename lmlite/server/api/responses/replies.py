"""Events -> what POST /v1/responses answers: typed events, and the response that they build.

The worker's events lengthen output items, and each change is an event of its own. An answer in
one piece is the response that the last of them shows. Pure, but for the conversation that a
complete response leaves behind; knows no sockets.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import (
    CallDelta,
    Chat,
    ChatMessage,
    Delta,
    Finished,
    ReplyEvent,
    Started,
    ToolCall,
)
from lmlite.server.api.call import Call
from lmlite.server.api.chat.custom_tools import CustomCalls, as_arguments
from lmlite.server.api.chat.requests import says_something
from lmlite.server.api.openai.replies import Usage, logprob_object
from lmlite.server.api.responses.requests import ResponseCall, rename
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.responses.tools import SEARCH
from lmlite.server.front import wire

Json = dict[str, Any]


class _Item:
    """An output item as it grows."""

    type: str
    slot: str  # of one kind only one grows at a time
    id_prefix: str
    text_event: str  # of its text: with .delta for more, .done for all; "": there is none

    def __init__(self, suffix: str, index: int) -> None:
        self.id = f"{self.id_prefix}_{suffix}{index}"
        self.index = index  # among the output items
        self.status = "in_progress"
        self.pieces: list[str] = []
        self.logprobs: list[Json] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def place(self) -> Json:
        """Where an event about its text belongs."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def parts(self) -> list[Json]:
        """Its content: one part, if it has parts."""
        raise NotImplementedError

    def done(self) -> Json:
        """What the event says that ends its text."""
        return {"text": self.text}

    def as_json(self) -> Json:
        """The item; its content is told of by events, until it is complete."""
        content = self.parts() if self.status != "in_progress" else []
        return {"id": self.id, "type": self.type, "status": self.status, "content": content}


class _Reasoning(_Item):
    type, id_prefix, text_event = "reasoning", "rs", "response.reasoning_text"
    slot = "reasoning"

    def parts(self) -> list[Json]:
        return [{"type": "reasoning_text", "text": self.text}]

    def as_json(self) -> Json:
        return super().as_json() | {"summary": []}


class _Message(_Item):
    type, id_prefix, text_event = "message", "msg", "response.output_text"
    slot = "message"

    def parts(self) -> list[Json]:
        text = {"type": "output_text", "text": self.text}
        return [text | {"annotations": [], "logprobs": list(self.logprobs)}]

    def done(self) -> Json:
        return {"text": self.text, "logprobs": list(map(_without_bytes, self.logprobs))}

    def as_json(self) -> Json:
        return super().as_json() | {"role": "assistant"}


class _FunctionCall(_Item):
    type, id_prefix, text_event = "function_call", "fc", "response.function_call_arguments"
    slot = "call"
    field = "arguments"

    def __init__(self, suffix: str, index: int, call: CallDelta, tool: Json) -> None:
        """`tool` has the name, and the namespace if there is one, that the client knows it by."""
        super().__init__(suffix, index)
        self.call_id, self.tool = call.id or "", tool
        self._flat_name = call.name or ""

    @property
    def arguments(self) -> str:
        """As the model wrote them."""
        return self.text or "{}"

    def in_history(self) -> ToolCall:
        """The call as a part of the conversation."""
        return ToolCall(self.call_id, self._flat_name, self.arguments)

    def place(self) -> Json:
        return {"item_id": self.id, "output_index": self.index}

    def parts(self) -> list[Json]:
        return []

    def done(self) -> Json:
        return {"name": self.tool["name"], "arguments": self.text}

    def as_json(self) -> Json:
        return {"id": self.id, "type": self.type, "status": self.status, "call_id": self.call_id,
                **self.tool, self.field: self.text}  # fmt: skip


class _CustomCall(_FunctionCall):
    type, id_prefix, text_event = "custom_tool_call", "ctc", "response.custom_tool_call_input"
    field = "input"

    @property
    def arguments(self) -> str:
        return as_arguments(self.text)

    def done(self) -> Json:
        return {"input": self.text}


class _SearchCall(_FunctionCall):
    type, id_prefix, text_event = "tool_search_call", "tsc", ""  # it comes as a whole

    def as_json(self) -> Json:
        try:
            arguments = wire.parse_json(self.text.encode() or b"{}")
        except BadRequest:  # not all of it yet, or cut short
            arguments = {}
        return {"id": self.id, "type": self.type, "status": self.status, "call_id": self.call_id,
                "execution": "client", "arguments": arguments}  # fmt: skip


class ResponseReply:
    """The answer to POST /v1/responses."""

    def __init__(
        self, stored: StoredResponses, call: Call, reply_id: str, model: str, created: int
    ) -> None:
        """A complete response goes to `stored`, if the request lets it."""
        assert isinstance(call, ResponseCall) and isinstance(call.request, Chat)
        self._stored, self._call, self._id = stored, call, reply_id
        self._envelope: Json = {"id": reply_id, "object": "response", "created_at": created,
                                "model": model}  # fmt: skip
        self._wants_logprobs = call.request.params.n_logprobs is not None
        self._usage = Usage(1)
        self._items: list[_Item] = []
        self._open: dict[str, _Item] = {}  # by slot
        self._custom = CustomCalls(call.custom_tools)
        self._heads: dict[str, bytes] = {}  # of the events that lengthen an item, by its id
        self._entries: list[Json] = []  # log-probabilities of tokens whose text is still to come
        self._finish_reason: str | None = None
        self._n_events = 0

    # ---- in one piece ----------------------------------------------------------------------

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""
        self.sse(event)

    def whole(self) -> Json:
        """The response object, after the last event."""
        return self._response("incomplete" if self._finish_reason == "length" else "completed")

    def _response(self, status: str) -> Json:
        output = [item.as_json() for item in self._items]
        more: Json = {"status": status, "output": output, "error": None, "incomplete_details": None}
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        if self._finish_reason is not None:
            more["usage"] = _usage(self._usage)
        return self._envelope | self._call.settings | more

    # ---- streamed --------------------------------------------------------------------------

    def sse(self, event: ReplyEvent) -> bytes:
        """The bytes that an event becomes on a stream; b"" for none."""
        match event:
            case Started():
                self._usage.add(event)
                response = {"response": self._response("in_progress")}
                begin = self._event("response.created", response)
                return begin + self._event("response.in_progress", response)
            case Delta():
                return b"".join(self._grow(self._custom.read(event)))
            case Finished():
                self._usage.add(event)
                rest = Delta(event.id, event.index, "", calls=self._custom.rest(event.index))
                return b"".join([*self._grow(rest), *self._finish(event.reason)])
        return b""

    def sse_tail(self) -> bytes:
        """The last event: the whole response."""
        response = self.whole()
        return self._event(f"response.{response['status']}", {"response": response})

    def sse_error(self, error: ApiError) -> bytes:
        """A failed response with what there is of it; an error, when none has begun."""
        rename(error)
        if self._n_events == 0:
            about = {"code": error.code, "message": error.message, "param": error.param}
            return self._event("error", about)
        for item in self._open.values():
            item.status = "incomplete"
        # OpenAI lists the codes that may stand here; these two are about requests and servers.
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        failure = {"error": {"code": code, "message": error.message}}
        return self._event("response.failed", {"response": self._response("failed") | failure})

    def _grow(self, delta: Delta) -> Iterator[bytes]:
        if self._wants_logprobs:
            self._entries += map(logprob_object, delta.logprobs)
        if delta.reasoning:
            yield from self._say(_Reasoning, delta.reasoning, [])
        if delta.text:
            yield from self._say(_Message, delta.text, self._entries_of(delta.text))
        for call in delta.calls:
            if call.id is not None:
                yield from self._close("completed", list(self._open))
                yield from self._begin(self._call_item(call))
            if call.arguments:
                yield self._lengthen(self._open["call"], call.arguments, [])
        if delta.reasoning or delta.text or delta.calls:
            self._entries = []

    def _call_item(self, call: CallDelta) -> _FunctionCall:
        tools = self._call.tools
        namespace, name = tools.apart.get(call.name or "", (None, call.name or ""))
        tool = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
        kind = _CustomCall if call.name in self._call.custom_tools else _FunctionCall
        if call.name == SEARCH and tools.has_search:
            kind = _SearchCall
        return kind(self._suffix, len(self._items), call, tool)

    def _say(self, kind: type[_Item], text: str, entries: list[Json]) -> Iterator[bytes]:
        """More text or thoughts. A call may still be going on: only another call ends it."""
        if kind.slot not in self._open:
            yield from self._close("completed", [slot for slot in self._open if slot != "call"])
            yield from self._begin(kind(self._suffix, len(self._items)))
        yield self._lengthen(self._open[kind.slot], text, entries)

    def _entries_of(self, text: str) -> list[Json]:
        """The last log-probabilities, as many as tokens make up the text: others wrote tags."""
        n_bytes, n = len(text.encode()), 0
        while n_bytes > 0 and n < len(self._entries):
            n += 1
            n_bytes -= len(self._entries[-n]["bytes"])
        return self._entries[len(self._entries) - n :]

    def _finish(self, reason: str) -> Iterator[bytes]:
        self._finish_reason = reason
        if reason == "stop" and all(isinstance(item, _Reasoning) for item in self._items):
            # Clients look for a message where there is no call, though nothing was said.
            yield from self._close("completed", list(self._open))
            yield from self._begin(_Message(self._suffix, len(self._items)))
        status = "incomplete" if reason == "length" else "completed"
        yield from self._close(status, list(self._open))
        if self._call.is_stored:
            turns = filter(says_something, (*self._call.conversation, self._turn()))
            self._stored.keep(self._id, tuple(turns))

    def _begin(self, item: _Item) -> Iterator[bytes]:
        self._items.append(item)
        self._open[item.slot] = item
        about = {"output_index": item.index, "item": item.as_json()}
        yield self._event("response.output_item.added", about)
        for part in item.parts():
            yield self._event("response.content_part.added", item.place() | {"part": part})

    def _close(self, status: str, slots: Iterable[str]) -> Iterator[bytes]:
        for item in [self._open.pop(slot) for slot in slots]:
            item.status = status
            if item.text_event:
                yield self._event(f"{item.text_event}.done", item.place() | item.done())
            for part in item.parts():
                yield self._event("response.content_part.done", item.place() | {"part": part})
            about = {"output_index": item.index, "item": item.as_json()}
            yield self._event("response.output_item.done", about)

    def _lengthen(self, item: _Item, text: str, entries: list[Json]) -> bytes:
        """More of an item's text: many times a second, so only what differs is made each time."""
        item.pieces.append(text)
        item.logprobs += entries
        if not item.text_event:
            return b""
        kind = f"{item.text_event}.delta"
        if entries:
            logprobs = list(map(_without_bytes, entries))
            return self._event(kind, item.place() | {"delta": text, "logprobs": logprobs})
        if item.id not in self._heads:
            empty: Json = {"logprobs": []} if isinstance(item, _Message) else {}
            data = wire.to_json({"type": kind} | item.place() | empty)
            self._heads[item.id] = b"event: %b\ndata: %b" % (kind.encode(), data[:-1])
        delta = wire.to_json(text)
        number = self._number()
        return b'%b,"delta":%b,"sequence_number":%d}\n\n' % (self._heads[item.id], delta, number)

    def _event(self, kind: str, about: Json) -> bytes:
        data = wire.to_json({"type": kind} | about | {"sequence_number": self._number()})
        return b"event: %b\n%b" % (kind.encode(), wire.sse_event(data))

    def _number(self) -> int:
        self._n_events += 1
        return self._n_events - 1

    @property
    def _suffix(self) -> str:
        """What ids of items have after their prefix: the response's, to which a number comes."""
        return self._id.removeprefix("resp_") + "_"

    def _turn(self) -> ChatMessage:
        """The answer as a turn of the conversation."""
        calls = [item for item in self._items if isinstance(item, _FunctionCall)]
        return ChatMessage(
            "assistant",
            self._all(_Message),
            reasoning=self._all(_Reasoning) or None,
            tool_calls=tuple(call.in_history() for call in calls),
        )

    def _all(self, kind: type[_Item]) -> str:
        return "".join(item.text for item in self._items if isinstance(item, kind))


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.n_prompt,
        # What is read stays in memory: every token that was not there is written.
        "input_tokens_details": {
            "cached_tokens": usage.n_cached,
            "cache_write_tokens": usage.n_prompt - usage.n_cached,
        },
        "output_tokens": usage.n_completion,
        "output_tokens_details": {"reasoning_tokens": usage.n_reasoning},
        "total_tokens": usage.n_prompt + usage.n_completion,
    }


def _without_bytes(entry: Json) -> Json:
    """A token's log-probability as events have it; only the item has the bytes, too."""
    top = [{"token": one["token"], "logprob": one["logprob"]} for one in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}
