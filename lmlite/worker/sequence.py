"""One prompt and its completion: its tokens, its text, and the events that they become.

The engine decides what happens to a sequence and when; what a client is told of it is made
here. Belongs to the engine thread. Knows no C but the sampler chain that it carries.
"""

from dataclasses import dataclass, field
from typing import Literal

from lmlite.messages import (
    Cause,
    Delta,
    Finished,
    Queued,
    Reading,
    ReplyEvent,
    SamplingParams,
    Started,
    TokenLogprob,
)
from lmlite.worker.llama import SamplerChain
from lmlite.worker.prefix import Lane
from lmlite.worker.text import LogprobQueue, TextStream


@dataclass(eq=False)
class Sequence:
    """One choice of a request, from its arrival to its end."""

    request_id: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    stops: tuple[str, ...]
    echo: str | None = None  # text to send in front of the completion; None once it is sent
    tokens: list[int] = field(init=False)  # the prompt's, and those sampled so far
    lane: Lane | None = None  # None while it waits
    n_shared: int = 0  # tokens whose memory another running sequence holds too
    chain: SamplerChain | None = None  # None until it was first admitted
    n_completion: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _n_ahead: int | None = None  # how many wait in front of it, as last told

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self._text = TextStream(self.stops)
        self._logprobs = LogprobQueue()

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether each prompt token's probability is asked for (echo with logprobs)."""
        return self.echo is not None and self.params.n_logprobs is not None

    @property
    def n_pending(self) -> int:
        """Tokens that memory lacks."""
        assert self.lane is not None
        return len(self.tokens) - len(self.lane.tokens)

    @property
    def has_stopped(self) -> bool:
        """Whether the text has come to a stop string."""
        return self._text.stopped

    # ---- events ----------------------------------------------------------------------------

    def queued(self, n_ahead: int) -> list[ReplyEvent]:
        """While it waits: how many are in front, when that has changed."""
        if self._n_ahead == n_ahead or self.chain is not None:
            return []
        self._n_ahead = n_ahead
        return [Queued(self.request_id, self.index, n_ahead)]

    def started(self, n_cached: int) -> Started:
        """When it is admitted for the first time."""
        return Started(self.request_id, self.index, len(self.prompt), n_cached)

    def reading(self) -> Reading:
        """While its prompt is read: how much of it is."""
        assert self.lane is not None
        n_read = len(self.lane.tokens)
        return Reading(self.request_id, self.index, n_read, len(self.prompt))

    def echoed(self) -> list[ReplyEvent]:
        """In front of the completion: the prompt's text, where it is asked for."""
        if self.echo is None:
            return []
        text, self.echo = self.echo, None
        return [self._delta(text, tuple(self.prompt_logprobs))]

    def extended(self, piece: bytes, logprob: TokenLogprob | None) -> list[ReplyEvent]:
        """What a sampled token's piece makes safe to send."""
        begin = self._text.n_decoded
        text = self._text.push(piece)
        if logprob is not None:
            self._logprobs.push(begin, self._text.n_decoded, logprob)
        entries = self._logprobs.released(self._text.n_released)
        return [self._delta(text, entries)] if text or entries else []

    def finished(self, cause: Cause) -> list[ReplyEvent]:
        """At its end: what was held back, and why it ended."""
        text = self._text.finish()
        entries = self._logprobs.rest(self._text)
        events: list[ReplyEvent] = [self._delta(text, entries)] if text or entries else []
        is_stop = cause in ("end_token", "stop_string")
        reason: Literal["stop", "length"] = "stop" if is_stop else "length"
        return [*events, Finished(self.request_id, self.index, reason, self.n_completion, cause)]

    def _delta(self, text: str, entries: tuple[TokenLogprob, ...]) -> Delta:
        return Delta(self.request_id, self.index, text, entries)
