"""Events -> Anthropic's message object, or the typed events of its stream.

Each event of the worker changes the message and becomes the stream events that tell so; an
answer in one piece is the message after the last of them. Pure; knows no sockets. The formats
are those of the types in Anthropic's Python package.
"""

from typing import Any

from lmlite.errors import ApiError, BadRequest
from lmlite.messages import Chat, Delta, Finished, Planned, ReplyEvent, Started
from lmlite.server.api.call import Call
from lmlite.server.api.error_bodies import message_error
from lmlite.server.front import wire

Json = dict[str, Any]

# By the type of a block: the type of its deltas, and the field that they lengthen.
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"),
           "tool_use": ("input_json_delta", "partial_json")}  # fmt: skip
_STOP_REASONS = {"end_token": "end_turn", "stop_string": "end_turn", "max_tokens": "max_tokens",
                 "time_limit": "max_tokens",
                 "context_full": "model_context_window_exceeded"}  # fmt: skip


class MessageReply:
    """The answer to POST /v1/messages."""

    def __init__(self, call: Call, reply_id: str, model: str, _created: int) -> None:
        assert isinstance(call.request, Chat)
        self._stops = call.request.params.stop
        last = call.request.messages[-1]
        is_begun = last.role == "assistant"
        self._begun = {
            "thinking": (last.reasoning or "") if is_begun else "",
            "text": last.content if is_begun else "",
        }
        self._content: list[Json] = []  # complete blocks
        self._block: Json | None = None  # the one that grows, as it began
        self._pieces: list[str] = []  # its text
        self._held: list[tuple[str, str]] = []  # by kind, what came amid a call
        self._message: Json = {
            "id": reply_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    # ---- what http.py asks for -------------------------------------------------------------

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""
        self._changes(event)

    def whole(self) -> Json:
        """The message, after the last event."""
        return self._message

    def sse(self, event: ReplyEvent) -> bytes:
        """The bytes that an event becomes on a stream; b"" for none."""
        return b"".join(map(_sse_event, self._changes(event)))

    def sse_tail(self) -> bytes:
        """What follows the last event."""
        return _sse_event({"type": "message_stop"})

    def sse_error(self, error: ApiError) -> bytes:
        """The error object, as an event; no end follows it."""
        return _sse_event(message_error(error))

    # ---- the message as it grows -----------------------------------------------------------

    def _changes(self, event: ReplyEvent) -> list[Json]:
        """What an event changes, as stream events."""
        match event:
            case Started():
                return self._start(event)
            case Delta():
                return self._lengthen(event)
            case Finished():
                return [*self._close_block(), self._stop(event)]
        return []

    def _start(self, event: Started) -> list[Json]:
        self._message["usage"] = {
            "input_tokens": event.n_prompt - event.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": event.n_cached,
            "output_tokens": 0,
        }
        return [{"type": "message_start", "message": self._message}, {"type": "ping"}]

    def _lengthen(self, event: Delta) -> list[Json]:
        changes = []
        # Thoughts in front of a text that the client began were its own.
        if event.reasoning and not self._begun["text"]:
            changes += self._say("thinking", event.reasoning)
        calls = list(event.calls)
        while calls and calls[0].id is None:  # the end of a call that the text may follow
            changes += self._add_arguments(calls.pop(0).arguments)
        if event.text:
            changes += self._say("text", event.text)
        for call in calls:
            if call.id is not None:
                head: Json = {"type": "tool_use", "id": call.id, "name": call.name}
                changes += self._open_block(head | {"input": {}})
            changes += self._add_arguments(call.arguments)
        return changes

    def _say(self, kind: str, text: str) -> list[Json]:
        """More of a block of this kind; amid a call it waits, as blocks follow each other."""
        if self._is_amid_call():
            self._held.append((kind, text))
            return []
        return self._add_text(kind, text)

    def _is_amid_call(self) -> bool:
        if self._block is None or self._block["type"] != "tool_use":
            return False
        arguments = "".join(self._pieces)
        return bool(self._held) or not arguments or _input(arguments) is None

    def _add_arguments(self, text: str) -> list[Json]:
        """More of the last call's; behind a whole object, which a text has ended, it is nothing."""
        assert self._block is not None
        return self._add_pieces(text) if self._block["type"] == "tool_use" else []

    def _add_text(self, kind: str, text: str) -> list[Json]:
        """More of a block of this kind, which may be a new one."""
        # A continued answer comes with what the client had begun, which the client has.
        text, self._begun[kind] = text.removeprefix(self._begun[kind]), ""
        changes = []
        if text and (self._block is None or self._block["type"] != kind):
            signature = {"signature": ""} if kind == "thinking" else {}
            changes += self._open_block({"type": kind, kind: "", **signature})
        return changes + self._add_pieces(text)

    def _open_block(self, block: Json) -> list[Json]:
        changes = self._close_block()
        self._block = block
        return [*changes, self._about_block("content_block_start", content_block=block)]

    def _add_pieces(self, text: str) -> list[Json]:
        if not text:
            return []
        assert self._block is not None
        self._pieces.append(text)
        kind, field = _DELTAS[self._block["type"]]
        return [self._about_block("content_block_delta", delta={"type": kind, field: text})]

    def _close_block(self) -> list[Json]:
        """The open block is complete, if there is one."""
        if self._block is None:
            return []
        changes = []
        if self._block["type"] == "thinking":
            # There is nobody who would check one; but clients wait for it.
            delta = {"type": "signature_delta", "signature": ""}
            changes.append(self._about_block("content_block_delta", delta=delta))
        changes.append(self._about_block("content_block_stop"))
        self._content.append(_complete(self._block, "".join(self._pieces)))
        self._block, self._pieces = None, []
        held, self._held = self._held, []
        for kind, text in held:
            changes += self._add_text(kind, text)
        return [*changes, *self._close_block()] if held else changes

    def _about_block(self, kind: str, **more: Json) -> Json:
        return {"type": kind, "index": len(self._content), **more}

    def _stop(self, event: Finished) -> Json:
        reason, sequence = _STOP_REASONS[event.cause], None
        if event.stop_string in self._stops:  # and not one of the template's own
            reason, sequence = "stop_sequence", event.stop_string
        elif event.reason == "tool_calls":
            reason = "tool_use"
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = {"output_tokens": event.n_completion}
        self._message |= delta
        self._message["usage"] = self._message["usage"] | usage
        return {"type": "message_delta", "delta": delta, "usage": usage}


class TokenCount:
    """The answer to POST /v1/messages/count_tokens."""

    def __init__(self, _call: Call, _reply_id: str, _model: str, _created: int) -> None:
        self._n_prompt = 0

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Planned):
            self._n_prompt = len(event.tokens)

    def whole(self) -> Json:
        """The JSON object."""
        return {"input_tokens": self._n_prompt}


def _complete(block: Json, text: str) -> Json:
    """A block with its text; a call whose arguments are no JSON object is text itself."""
    if block["type"] != "tool_use":
        return block | {block["type"]: text}
    arguments = _input(text)
    return {"type": "text", "text": text} if arguments is None else block | {"input": arguments}


def _input(arguments: str) -> Json | None:
    """The object that a call's arguments are; None: they are none, or not yet."""
    try:
        return wire.parse_json(arguments.encode() or b"{}")
    except BadRequest:
        return None


def _sse_event(change: Json) -> bytes:
    name: str = change["type"]
    return b"event: %b\n%b" % (name.encode(), wire.sse_event(wire.to_json(change)))
