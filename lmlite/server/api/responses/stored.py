"""Stored responses, which clients continue, fetch and delete by their id. In memory, with limits.

The least recently used is dropped first, but none that is still being made. All are lost when the
server ends. Any thread may call these functions.
"""

import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

from lmlite.errors import BadRequest, NotFound, Unavailable
from lmlite.messages import ChatMessage, Json
from lmlite.server.front import wire

MAX_BYTES = 8 << 20  # for all together
MAX_RESPONSES = 1000
MAX_RUNNING = 64  # in the background; as many as --queue lets wait
# A conversation of this size and the largest body together fit in one frame to the worker.
MAX_CONVERSATION_BYTES = 1 << 20
MAX_RECORD_BYTES = 2 << 20  # a conversation, and what was asked and answered as the client saw it
MESSAGE_BYTES = 256  # most that a message or a call takes without its texts

Conversation = tuple[ChatMessage, ...]


@dataclass(frozen=True)
class Record:
    """A stored response."""

    conversation: Conversation  # with the response, unless it has none; without instructions
    response: bytes = b""  # the object for the client, as JSON
    items: bytes = b""  # the input items, as JSON
    is_background: bool = False
    is_running: bool = False
    can_continue: bool = True  # it was answered to its end

    @property
    def n_bytes(self) -> int:
        """Approximate size in memory."""
        return size_of(self.conversation) + len(self.response) + len(self.items)

    @property
    def is_small(self) -> bool:
        """Whether it may be stored."""
        fits = size_of(self.conversation) <= MAX_CONVERSATION_BYTES
        return fits and self.n_bytes <= MAX_RECORD_BYTES


class StoredResponses:
    """Records by the id of the response."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_responses: int = MAX_RESPONSES) -> None:
        self._max_bytes, self._max_responses = max_bytes, max_responses
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Record, int]] = {}  # + its size; last used comes last
        self._n_bytes = 0

    def keep(self, response_id: str, record: Record) -> None:
        """Stores a complete response unless it is too long. Drops others to make room."""
        if record.is_small and record.n_bytes <= self._max_bytes:
            with self._lock:
                self._put(response_id, record)

    def begin(self, response_id: str, record: Record) -> None:
        """Stores one that is about to be made. Raises BadRequest or Unavailable without room."""
        if not record.is_small:
            raise BadRequest("this is too long for a background response, which has to be stored",
                             param="input")  # fmt: skip
        with self._lock:
            running = [n for each, n in self._kept.values() if each.is_running]
            if len(running) >= MAX_RUNNING or sum(running) + record.n_bytes > self._max_bytes:
                raise Unavailable("too many background responses are being made")
            self._put(response_id, record)

    def change(self, response_id: str, record: Record) -> bool:
        """Replaces one that is being made; False if that has been cancelled or deleted."""
        with self._lock:
            if is_running := self._is_running(response_id):
                self._put(response_id, record)
            return is_running

    def is_running(self, response_id: str) -> bool:
        """Whether it is being made; False once it has been cancelled or deleted."""
        with self._lock:
            return self._is_running(response_id)

    def find(self, response_id: str) -> Conversation:
        """The conversation that ended with this response. Raises BadRequest."""
        with self._lock:
            record = self._used(response_id)
        if record is not None and record.can_continue:
            return record.conversation
        state = "it is not complete" if record else "it was not stored, or may have been forgotten"
        raise BadRequest(
            f"there is no response '{response_id[:64]}': {state}; the conversation can be sent as "
            "input",
            param="previous_response_id",
            code="previous_response_not_found",
        )

    def response(self, response_id: str) -> Json:
        """The object for the client. Raises NotFound."""
        with self._lock:
            found: Json = json.loads(self._known(response_id).response)
            return found

    def items(self, response_id: str) -> list[Json]:
        """The input items, first to last. Raises NotFound."""
        with self._lock:
            found: list[Json] = json.loads(self._known(response_id).items)
            return found

    def delete(self, response_id: str) -> None:
        """Forgets a response, and ends it if it is being made. Raises NotFound."""
        with self._lock:
            self._known(response_id)
            self._drop(response_id)

    def cancel(self, response_id: str) -> Json:
        """Ends a background response; returns what it is then. Raises NotFound or BadRequest."""
        with self._lock:
            record = self._known(response_id)
            if not record.is_background:
                raise BadRequest("only a response with background: true can be cancelled")
            found: Json = json.loads(record.response)
            if record.is_running:
                found["status"] = "cancelled"
                self._put(response_id, Record((), wire.to_json(found), record.items,
                                              is_background=True, can_continue=False))  # fmt: skip
            return found

    # ---- under the lock ----------------------------------------------------------------------

    def _put(self, response_id: str, record: Record) -> None:
        if response_id in self._kept:
            self._drop(response_id)
        self._kept[response_id] = record, record.n_bytes
        self._n_bytes += record.n_bytes
        while self._n_bytes > self._max_bytes or len(self._kept) > self._max_responses:
            idle = (name for name, (each, _) in self._kept.items() if not each.is_running)
            self._drop(next(idle, response_id))

    def _drop(self, response_id: str) -> None:
        self._n_bytes -= self._kept.pop(response_id)[1]

    def _is_running(self, response_id: str) -> bool:
        return response_id in self._kept and self._kept[response_id][0].is_running

    def _used(self, response_id: str) -> Record | None:
        found = self._kept.pop(response_id, None)
        if found is None:
            return None
        self._kept[response_id] = found
        return found[0]

    def _known(self, response_id: str) -> Record:
        record = self._used(response_id)
        if record is None or not record.response:  # LM Studio's chats have none
            raise NotFound(f"there is no response '{response_id[:64]}': it was not stored, or may "
                           "have been forgotten")  # fmt: skip
        return record


def size_of(conversation: Conversation) -> int:
    """Approximate size in memory, in bytes. A text shared by several conversations counts fully."""
    n_bytes = 0
    for message in conversation:
        texts = [message.content, message.reasoning, message.tool_call_id]
        for call in message.tool_calls:
            texts += [call.id, call.name, call.arguments]
        n_bytes += (1 + len(message.tool_calls)) * MESSAGE_BYTES
        n_bytes += sum(sys.getsizeof(text) for text in texts if text)
        n_bytes += sum(sys.getsizeof(image.data) for image in message.images)
    return n_bytes


def input_items(given: Any, response_id: str) -> list[Json]:
    """The input of a request as the items that a client may list: each has an id and a type."""
    items = [{"role": "user", "content": given}] if type(given) is str else given
    return [_item(item, f"{response_id.removeprefix('resp_')}_{i}") for i, item in enumerate(items)]


def _item(item: Json, stem: str) -> Json:
    kind = str(item.get("type") or "message")
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}.get(kind, "item")
    found: Json = {"id": f"{prefix}_in_{stem}", "type": kind, "status": "completed"}
    found |= {name: value for name, value in item.items() if value is not None}
    found["id"] = found["id"] if type(found["id"]) is str else f"item_in_{stem}"
    if kind == "message" and type(content := item.get("content")) is str:
        is_answer = item.get("role") == "assistant"
        text: Json = {"type": "output_text" if is_answer else "input_text", "text": content}
        more: Json = {"annotations": [], "logprobs": []} if is_answer else {}
        found["content"] = [text | more]
    return found
