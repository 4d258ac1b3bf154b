"""Measures a reply: how long its model was loading, when its first token came, and its speed."""

import time
from collections.abc import Callable

from lmlite.messages import Delta, Finished
from lmlite.server.api.call import Call
from lmlite.server.api.reply import Incoming, Reply
from lmlite.server.models import life
from lmlite.server.models.served_model import ServedModel


class Pace:
    """Times in seconds, of a clock that only goes forward. It starts when this is made."""

    def __init__(self, model: ServedModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._clock = model, clock
        # Of the request; later when its model was loaded.
        self._asked_s = self._began_s = clock()
        self._is_loading = False
        self.load_s: float | None = None  # None: nothing was loaded for this reply
        self._first_s: float | None = None
        self._last_s = self._began_s

    def note(self, event: Incoming) -> None:
        """Call it with each event as it comes."""
        now = self._clock()
        if isinstance(event, life.Loading):
            self._is_loading = True
            return
        if self._is_loading:
            # The first event of the reply comes later, once its prompt is read.
            ready = self._model.ready
            loaded_s = min(now, max(ready.since_s, self._began_s)) if ready else now
            self._is_loading, self.load_s = False, loaded_s - self._began_s
            self._began_s = loaded_s
        if isinstance(event, Delta | Finished):
            self._first_s = now if self._first_s is None else self._first_s
            self._last_s = now

    @property
    def total_s(self) -> float:
        """From the request until now."""
        return self._clock() - self._asked_s

    @property
    def first_token_s(self) -> float:
        """From the request, or the end of its load, to the first token; 0 if there is none."""
        return 0.0 if self._first_s is None else self._first_s - self._began_s

    @property
    def generation_s(self) -> float:
        """From the first token to the last."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    def tokens_per_s(self, n_tokens: int) -> float:
        """The speed after the first of n_tokens; 0 if that took no time."""
        return max(0, n_tokens - 1) / self.generation_s if self.generation_s else 0.0


class PacedReply(Reply):
    """A reply that is measured. In a list of bases it stands before the reply's own class."""

    def __init__(
        self,
        call: Call,
        reply_id: str,
        model: ServedModel,
        created: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(call, reply_id, model, created)
        self._pace = Pace(model, clock)

    def add(self, event: Incoming) -> bytes:
        """Takes the next event, and measures when it came."""
        self._pace.note(event)
        return super().add(event)  # type: ignore[safe-super]  # of the next base
