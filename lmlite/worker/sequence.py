"""One prompt and its completion: its tokens, its text, and the events that they become.

The engine decides what happens to a sequence and when; what a client is told of it is made
here. Belongs to the engine thread. Knows no C but the samplers and the parser that it carries.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lmlite.messages import (
    Cause,
    Delta,
    Finished,
    Planned,
    Queued,
    Reading,
    ReplyEvent,
    Returned,
    SamplingParams,
    Started,
    TokenLogprob,
)
from lmlite.worker.chat.answer import Answer, Part
from lmlite.worker.llama.model import Vocab
from lmlite.worker.llama.samplers import Grammar, SamplerChain
from lmlite.worker.media import InputChunk, Picture
from lmlite.worker.memory import lanes as prefix
from lmlite.worker.memory.lanes import Lane
from lmlite.worker.text import LogprobQueue, TextStream

MAX_ENTRIES = 4096  # log-probabilities of one event: 8 MB in a frame, with 20 alternatives each


@dataclass(eq=False)
class Sequence:
    """One choice of a request, from its arrival to its end."""

    request_id: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    ends: tuple[str, ...]  # strings that end it beside the client's, those of its template
    echo: str | None = None  # text to send in front of the completion; None once it is sent
    trace: bool = False  # someone watches the log stream
    dry_run: bool = False  # nothing is generated, only told
    chunks: dict[int, InputChunk] = field(default_factory=dict)  # to be seen, by their first token
    pictures: tuple[Picture, ...] = ()  # whose chunks they are
    answer: Answer | None = None  # reads a chat's message; None: the text is sent as it is
    preserved: frozenset[int] = frozenset()  # control tokens that are text here
    grammar: Grammar | None = None
    stops_thoughts: bool = False  # the client's stop strings end thoughts, too
    tokens: list[int] = field(init=False)  # the prompt's, and those sampled so far
    lane: Lane | None = None  # None while it waits
    n_cached: int = 0  # tokens that it last started from
    checkpoints_at: list[int] = field(
        default_factory=list
    )  # tokens still to read up to a checkpoint
    chain: SamplerChain | None = None  # None until it was first admitted
    end_s: float = math.inf  # when it has to end, on the monotonic clock
    suspect: bool = False  # it took part in a decode that failed, perhaps for its fault
    n_completion: int = 0
    n_reasoning: int = 0  # those of them that were thoughts
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _n_ahead: int | None = None  # how many wait in front of it, as last told

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self._text = TextStream(self.params.stop, self.ends)
        self._logprobs = LogprobQueue()
        self._entries: tuple[TokenLogprob, ...] = ()  # released, but no event carried them yet
        self._said: list[str] = []  # all of its text, while someone watches

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether each prompt token's probability is asked for (echo with logprobs)."""
        return self.echo is not None and self.params.n_logprobs is not None

    @property
    def reusable(self) -> list[int]:
        """The tokens that memory may give it, but for the last: those whose logits nobody wants."""
        return self.tokens[:1] if self.wants_prompt_logprobs else self.tokens

    @property
    def n_pending(self) -> int:
        """Tokens that memory lacks."""
        assert self.lane is not None
        return len(self.tokens) - len(self.lane.tokens)

    @property
    def n_next(self) -> int:
        """Tokens that may be read at once: all that are pending, or those up to a checkpoint.

        Or up to a picture, which is no text: 0 when it is next.
        """
        assert self.lane is not None
        n_held = len(self.lane.tokens)
        end = self.checkpoints_at[0] if self.checkpoints_at else len(self.tokens)
        return min([end, *(begin for begin in self.chunks if begin >= n_held)]) - n_held

    @property
    def next_chunk(self) -> InputChunk | None:
        """The picture, or the part of one, that has to be seen next."""
        assert self.lane is not None
        return self.chunks.get(len(self.lane.tokens))

    def n_cells(self, n_tokens: int) -> int:
        """Cells of memory that its first tokens take: a picture's may be more than they are."""
        seen = (chunk for begin, chunk in self.chunks.items() if begin < n_tokens)
        return n_tokens + sum(chunk.n_tokens - chunk.n_positions for chunk in seen)

    def pieces(self, vocab: Vocab) -> Iterator[bytes]:
        """The prompt's tokens for people; a picture's first one tells of all."""
        for place, token in enumerate(self.prompt):
            if token >= 0:
                yield vocab.piece(token, special=True)
            else:
                yield self.chunks[place].label.encode() if place in self.chunks else b""

    @property
    def may_end(self) -> bool:
        """Whether the model may end it with the next token."""
        params = self.params
        return not params.ignore_eos and self.n_completion >= params.min_tokens

    def cause_to_end(self, n_ctx: int) -> Cause | None:
        """Why it ends with the token that it has just got; None: it goes on."""
        if self._text.stopped:
            return "stop_string"
        if self.answer is not None and self.answer.call_done:
            return "end_token"  # the one call that it may make: as if the model had ended in time
        if self.n_completion == self.params.max_tokens:
            return "max_tokens"
        if time.monotonic() >= self.end_s:
            return "time_limit"
        return "context_full" if len(self.tokens) >= n_ctx else None

    def lose_memory(self) -> None:
        """Its lane holds nothing any more: all of its tokens are pending again."""
        self.n_cached, self.checkpoints_at = 0, []
        self.prompt_logprobs.clear()  # they come again with the tokens

    # ---- events ----------------------------------------------------------------------------

    def queued(self, n_ahead: int) -> list[ReplyEvent]:
        """While it waits: how many are in front, when that has changed."""
        if self._n_ahead == n_ahead or self.chain is not None:
            return []
        self._n_ahead = n_ahead
        return [Queued(self.request_id, self.index, n_ahead)]

    def planned(self, n_cached: int, vocab: Vocab) -> Planned:
        """In place of all others, for a dry run."""
        tokens = tuple(max(token, -1) for token in self.prompt)  # a picture's are none
        pieces = tuple(self.pieces(vocab))
        grammar = self.grammar.text if self.grammar else None
        ids = self.request_id, self.index
        return Planned(*ids, tokens, pieces, self.n_cells(n_cached), grammar)

    def started(self, closest: list[int], vocab: Vocab) -> Started:
        """When it is admitted for the first time; `closest` is what memory held that is closest."""

        def spell(token: int) -> str:
            piece = vocab.piece(token, special=True) if token >= 0 else b"<image>"
            return piece.decode("utf-8", "replace")

        cache = prefix.account(closest, self.prompt, self.n_cached, spell) if self.trace else ""
        n_prompt, n_cached = self.n_cells(len(self.prompt)), self.n_cells(self.n_cached)
        return Started(self.request_id, self.index, n_prompt, n_cached, cache)

    def reading(self) -> Reading:
        """While its prompt is read: how much of it is. Read again, its completion is part of it."""
        assert self.lane is not None
        n_read = len(self.lane.tokens)
        return Reading(self.request_id, self.index, n_read, len(self.tokens))

    def echoed(self) -> list[ReplyEvent]:
        """In front of the completion: the prompt's text, where it is asked for."""
        if self.echo is None:
            return []
        text, self.echo = self.echo, None
        entries = tuple(self.prompt_logprobs)
        begins = range(0, len(entries), MAX_ENTRIES) or (0,)
        return [
            self._delta("" if begin else text, entries[begin : begin + MAX_ENTRIES])
            for begin in begins
        ]

    def extended(self, piece: bytes, logprob: TokenLogprob | None) -> list[ReplyEvent]:
        """What a sampled token's piece makes safe to send."""
        thinks = self.answer is not None and self.answer.is_thinking
        self.n_reasoning += thinks
        begin = self._text.n_decoded
        is_early = 0 < self.n_completion <= self.params.min_tokens  # this token is counted already
        text = self._text.push(
            piece,
            may_stop=self._may_stop(thinks) and not is_early,
            may_end=not (is_early or self.params.ignore_eos),
            skips_space=self._is_between(thinks),
        )
        if logprob is not None:
            self._logprobs.push(begin, self._text.n_decoded, logprob)
        self._entries += self._logprobs.released(self._text.n_released)
        if self.trace:
            self._said.append(text)
        if self.answer is None:
            return self._deltas(Part(text), bool(text or self._entries))
        part = self.answer.push(text) if text else None
        return self._deltas(part, part is not None)

    def finished(self, cause: Cause) -> list[ReplyEvent]:
        """At its end: what was held back, and why it ended."""
        text = self._text.finish()
        self._entries += self._logprobs.rest(self._text)
        is_stop = cause in ("end_token", "stop_string")
        reason: Literal["stop", "length", "tool_calls"] = "stop" if is_stop else "length"
        events: list[ReplyEvent] = []
        if self.answer is None:
            events += self._deltas(Part(text), bool(text or self._entries))
        else:
            part = self.answer.push(text) if text else None
            events += self._deltas(part, part is not None)
            part = self.answer.finish(is_whole=is_stop)
            events += self._deltas(part, part is not None or bool(self._entries))
            if is_stop and self.answer.has_calls:
                reason = "tool_calls"
        ids = self.request_id, self.index
        if self.trace:
            events.append(Returned(*ids, "".join([*self._said, text])))
        stop = self._text.stop_string
        end = Finished(*ids, reason, self.n_completion, cause, self.n_reasoning, stop)
        return [*events, end]

    def close(self) -> None:
        """Frees what C holds for it."""
        for owned in (self.chain, self.grammar, self.answer):
            if owned is not None:
                owned.close()
        self.chain = self.grammar = self.answer = None
        self.chunks, self.pictures = {}, ()

    def _may_stop(self, thinks: bool) -> bool:
        """Whether the client's stop strings hold here: arguments of calls have to stay whole."""
        is_calling = self.answer is not None and self.answer.has_calls
        return not is_calling and (self.stops_thoughts or not thinks)

    def _is_between(self, thinks: bool) -> bool:
        """Whether a thought has ended, and nothing has followed: spaces there are nobody's text."""
        answer = self.answer
        return answer is not None and answer.has_thought and not (thinks or answer.has_begun)

    @property
    def active_grammar(self) -> Grammar | None:
        """The grammar that the next token is held to; one that waits sleeps through thoughts."""
        sleeps = self.answer and self.answer.form.grammar_waits and self.answer.is_thinking
        return None if sleeps else self.grammar

    def piece_is_text(self, token: int) -> bool:
        """Whether a control token is part of the answer's form, and so of its text."""
        return token in self.preserved

    def _deltas(self, part: Part | None, wanted: bool) -> list[ReplyEvent]:
        if not wanted:
            return []
        part = part or Part()
        entries, self._entries = self._entries, ()
        ids = self.request_id, self.index
        return [Delta(*ids, part.content, entries, part.reasoning, part.calls)]

    def _delta(self, text: str, entries: tuple[TokenLogprob, ...]) -> Delta:
        return Delta(self.request_id, self.index, text, entries)
