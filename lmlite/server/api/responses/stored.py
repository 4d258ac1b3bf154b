"""Stored conversations, which clients continue by the id of a response. In memory, with limits.

The least recently used conversation is dropped first. All are lost when the server ends. Any
thread may call these functions.
"""

import sys
import threading

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage

MAX_BYTES = 8 << 20  # for all conversations together
MAX_RESPONSES = 1000
# A conversation of this size and the largest body together fit in one frame to the worker.
MAX_CONVERSATION_BYTES = 1 << 20
MESSAGE_BYTES = 256  # most that a message or a call takes without its texts

Conversation = tuple[ChatMessage, ...]


class StoredResponses:
    """The conversation of each response: with the response itself, without instructions."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_responses: int = MAX_RESPONSES) -> None:
        self._max_bytes, self._max_responses = max_bytes, max_responses
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Conversation, int]] = {}  # + its size; last used comes last
        self._n_bytes = 0

    def keep(self, response_id: str, conversation: Conversation) -> None:
        """Stores a conversation unless it is too long. Drops others to make room."""
        n_bytes = size_of(conversation)
        if n_bytes > min(self._max_bytes, MAX_CONVERSATION_BYTES):
            return
        with self._lock:
            self._kept[response_id] = conversation, n_bytes
            self._n_bytes += n_bytes
            while self._n_bytes > self._max_bytes or len(self._kept) > self._max_responses:
                self._n_bytes -= self._kept.pop(next(iter(self._kept)))[1]

    def find(self, response_id: str) -> Conversation:
        """The conversation that ended with this response. Raises BadRequest."""
        with self._lock:
            found = self._kept.pop(response_id, None)
            if found is not None:
                self._kept[response_id] = found
                return found[0]
        raise BadRequest(
            f"there is no response '{response_id[:64]}': it was not stored, or may have been "
            "forgotten; the conversation can be sent as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )


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
