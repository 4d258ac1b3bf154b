"""Requests that were let in: bounded, in their order, each with the worker that has it, if any.

Belongs to the supervisor, under whose lock everything here runs. Writes to no pipe.
"""

import collections

from lmlite import frames
from lmlite.errors import Unavailable
from lmlite.messages import Cancel, Failed
from lmlite.server.models.event_queue import Reply
from lmlite.server.models.quarantine import Suspects


class OpenRequests:
    """The replies that somebody waits for."""

    def __init__(self, most: int) -> None:
        """`most`: how many there may be, whatever the worker does."""
        self._most = most
        self._replies: dict[int, Reply] = {}  # by request
        self._unsent: dict[int, bytes] = {}  # frames of those that no worker has
        self._cancels: collections.deque[tuple[object, bytes]] = collections.deque()  # and for whom
        self._suspects = Suspects()

    def __len__(self) -> int:
        return len(self._replies)

    def check_room(self) -> None:
        """Raises Unavailable."""
        if len(self) >= self._most:
            raise Unavailable(f"{len(self)} requests are waiting already")

    def add(self, reply: Reply, frame: bytes) -> None:
        """Lets one in, to wait for a worker. Raises HarmfulRequest for one that workers die of."""
        if self._suspects:
            self._suspects.check(reply.fingerprint)
        self._replies[reply.request_id] = reply
        self._unsent[reply.request_id] = frame

    def find(self, request_id: int) -> Reply | None:
        """The reply to a request, unless nobody waits for it any more."""
        return self._replies.get(request_id)

    def forget(self, reply: Reply) -> None:
        """Nobody waits for it: its worker is to stop working on it, or never gets it."""
        if self._replies.pop(reply.request_id, None) is None:
            return
        if reply.is_complete:
            if self._suspects:
                self._suspects.clear(reply.fingerprint)
        elif self._unsent.pop(reply.request_id, None) is None:
            self._cancels.append((reply.process, frames.encode(Cancel(reply.request_id))))

    @property
    def has_frames(self) -> bool:
        """Whether a worker is to be told something."""
        return bool(self._unsent or self._cancels)

    def next_frame(self, process: object) -> bytes | None:
        """What to tell the worker next, which has that request from now on."""
        while self._cancels:  # first, as they make room
            addressee, frame = self._cancels.popleft()
            if addressee is process:
                return frame
        for request_id in self._unsent:
            self._replies[request_id].process = process
            return self._unsent.pop(request_id)
        return None

    def blame(self, process: object) -> None:
        """A worker died: once for each text that was at work, however many had asked for it."""
        replies = [reply for reply in self._replies.values() if reply.process is process]
        for suspect in {reply.fingerprint for reply in replies if reply.may_be_running}:
            self._suspects.blame(suspect)

    def fail(self, kind: type[Unavailable], message: str, process: object | None = None) -> None:
        """Ends those that this worker had; without one, all."""
        for reply in list(self._replies.values()):
            if process is None or reply.process is process:
                del self._replies[reply.request_id]
                self._unsent.pop(reply.request_id, None)
                reply.put(Failed(reply.request_id, kind.__name__, message))
