"""One prompt and its completion: tokens, text, and the events made from them.

The generator decides what happens to a sequence and when; the events for clients are made here.
Belongs to the engine thread. Its only C objects are samplers, grammar and parser.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
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
    Scales,
    Started,
    TokenLogprob,
)
from lmlite.worker.chat.answer import Answer, Part
from lmlite.worker.llama.samplers import Grammar, SamplerChain
from lmlite.worker.llama.vocab import Vocab
from lmlite.worker.media import InputChunk
from lmlite.worker.memory.lanes import Lane, n_common
from lmlite.worker.text import TextStream

MAX_ENTRIES = 4096  # log-probabilities per event: 8 MB in a frame, with 20 alternatives each


@dataclass(eq=False)
class Sequence:
    """One choice of a request, from its arrival to its end."""

    request_id: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    ends: tuple[str, ...]  # the template's stop strings, besides the client's
    echo: str | None = None  # text to send before the completion; None once sent
    trace: bool = False  # a client is reading the log stream
    dry_run: bool = False  # nothing is generated: a `Planned` event is the answer
    chunks: dict[int, InputChunk] = field(default_factory=dict)  # of pictures, by first token index
    scales: Scales = ()  # of the adapters that it runs with
    answer: Answer | None = None  # parser of a chat's message; None: text is sent unparsed
    preserved: frozenset[int] = frozenset()  # control tokens that are part of the answer's text
    grammar: Grammar | None = None
    stops_thoughts: bool = False  # the client's stop strings also end reasoning
    thought_end: tuple[int, ...] = ()  # tokens that end thoughts which reach their budget
    tokens: list[int] = field(init=False)  # of the prompt, then those sampled so far
    lane: Lane | None = None  # None while waiting
    n_cached: int = 0  # tokens in memory when it last started
    checkpoints_at: list[int] = field(default_factory=list)  # numbers of tokens, ascending
    chain: SamplerChain | None = None  # None until first admitted
    end_s: float = math.inf  # when it must end, on the monotonic clock
    suspect: bool = False  # it took part in a decode that failed
    draft: list[int] = field(default_factory=list)  # what a draft model expects after `tokens`
    n_drafted: int = 0  # tokens of all drafts that were checked
    n_accepted: int = 0  # those of them that were right
    n_completion: int = 0
    n_reasoning: int = 0  # completion tokens that are reasoning
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _n_ahead: int | None = None  # queue position last sent to the client

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self._text = TextStream(self.params.stop, self.ends)
        self._forced = deque[int]()  # tokens that have to come next
        self._said: list[str] = []  # all generated text, if `trace`

    # ---- pending tokens --------------------------------------------------------------------

    @property
    def n_held(self) -> int:
        """Tokens that memory holds."""
        assert self.lane is not None
        return len(self.lane.tokens)

    @property
    def n_pending(self) -> int:
        """Tokens that memory does not hold yet."""
        return len(self.tokens) - self.n_held

    @property
    def n_next(self) -> int:
        """Tokens to read next: up to the next checkpoint or picture, or all pending tokens.

        0 if a picture is next, because pictures are read separately.
        """
        n_held = self.n_held
        end = self.checkpoints_at[0] if self.checkpoints_at else len(self.tokens)
        return min([end, *(begin for begin in self.chunks if begin >= n_held)]) - n_held

    @property
    def next_chunk(self) -> InputChunk | None:
        """The picture, or part of one, that must be encoded next."""
        return self.chunks.get(self.n_held) if self.chunks else None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the client wants each prompt token's probability (echo with logprobs)."""
        return self.echo is not None and self.params.n_logprobs is not None

    @property
    def reusable(self) -> list[int]:
        """Tokens that may come from memory, except the last one, whose logits are needed."""
        return self.tokens[:1] if self.wants_prompt_logprobs else self.tokens

    def n_cells(self, n_tokens: int) -> int:
        """Cells of memory for its first n_tokens; a picture may take several cells per token."""
        seen = (chunk for begin, chunk in self.chunks.items() if begin < n_tokens)
        return n_tokens + sum(chunk.n_tokens - chunk.n_positions for chunk in seen)

    def lose_memory(self) -> None:
        """Called when its lane was emptied: all of its tokens are pending again."""
        self.n_cached, self.checkpoints_at = 0, []
        self.prompt_logprobs.clear()  # computed again when the tokens are read again

    # ---- the next token --------------------------------------------------------------------

    @property
    def may_end(self) -> bool:
        """Whether the next token may be an end token."""
        return not self.params.ignore_eos and self.n_completion >= self.params.min_tokens

    def forced_token(self) -> int | None:
        """The token that has to come next to end the thoughts; None: the model chooses."""
        n_most, answer = self.params.reasoning_budget_tokens, self.answer
        is_over = self.thought_end and self.n_reasoning >= n_most and not self._forced
        if is_over and answer and answer.is_thinking and not self._text.holds_back:
            self._forced.extend(self.thought_end)
        return self._forced.popleft() if self._forced else None

    @property
    def active_grammar(self) -> Grammar | None:
        """The grammar for the next token. A lazy grammar does not apply during reasoning."""
        sleeps = self.answer and self.answer.form.grammar_waits and self.answer.is_thinking
        return None if sleeps else self.grammar

    def cause_to_end(self, n_ctx: int) -> Cause | None:
        """Why the sequence ends after its newest token; None: it continues."""
        if self._text.stopped:
            return "stop_string"
        if self.answer is not None and self.answer.call_done:
            return "end_token"  # only one call is allowed, and it is complete
        if self.n_completion == self.params.max_tokens:
            return "max_tokens"
        if time.monotonic() >= self.end_s:
            return "time_limit"
        return "context_full" if len(self.tokens) >= n_ctx else None

    def close(self) -> None:
        """Frees its C objects."""
        for owned in (self.chain, self.grammar, self.answer):
            if owned is not None:
                owned.close()
        self.chain = self.grammar = self.answer = None
        self.chunks = {}

    # ---- events before the completion ------------------------------------------------------

    def pieces(self, vocab: Vocab) -> Iterator[bytes]:
        """The text of each prompt token; a picture's first token has the picture's label."""
        for place, token in enumerate(self.prompt):
            if token >= 0:
                yield vocab.piece(token, special=True)
            else:
                yield self.chunks[place].label.encode() if place in self.chunks else b""

    def planned(self, n_cached: int, vocab: Vocab) -> Planned:
        """The answer to a dry run."""
        tokens = tuple(max(token, -1) for token in self.prompt)  # -1: a part of a picture
        pieces, n_cells = tuple(self.pieces(vocab)), self.n_cells(n_cached)
        grammar = self.grammar.text if self.grammar else None
        return Planned(self.request_id, self.index, tokens, pieces, n_cells, grammar)

    def queued(self, n_ahead: int) -> list[ReplyEvent]:
        """While waiting: its place in the queue, if that has changed."""
        if self._n_ahead == n_ahead or self.chain is not None:
            return []
        self._n_ahead = n_ahead
        return [Queued(self.request_id, self.index, n_ahead)]

    def started(self, closest: list[int], vocab: Vocab) -> Started:
        """The event of its first admission; `closest`: tokens in memory most like its prompt."""

        def spell(token: int) -> str:
            piece = vocab.piece(token, special=True) if token >= 0 else b"<image>"
            return piece.decode("utf-8", "replace")

        note = cache_note(closest, self.prompt, self.n_cached, spell) if self.trace else ""
        n_prompt, n_cached = self.n_cells(len(self.prompt)), self.n_cells(self.n_cached)
        return Started(self.request_id, self.index, n_prompt, n_cached, note)

    def reading(self) -> Reading:
        """How much of it is read; if it is read again, this includes the completion so far."""
        return Reading(self.request_id, self.index, self.n_held, len(self.tokens))

    def echoed(self) -> list[ReplyEvent]:
        """The prompt's text, before the completion, if the client wants it."""
        if self.echo is None:
            return []
        text, self.echo = self.echo, None
        ids, entries, n = (self.request_id, self.index), tuple(self.prompt_logprobs), MAX_ENTRIES
        rest = [Delta(*ids, "", entries[i : i + n]) for i in range(n, len(entries), n)]
        return [Delta(*ids, text, entries[:n]), *rest]

    # ---- events of the completion ----------------------------------------------------------

    def extended(self, piece: bytes, logprob: TokenLogprob | None) -> list[ReplyEvent]:
        """The text that is safe to send after a sampled token's piece."""
        answer = self.answer
        thinks = answer is not None and answer.is_thinking
        self.n_reasoning += thinks
        is_early = 0 < self.n_completion <= self.params.min_tokens  # this token is counted already
        # Stop strings do not apply to a call's arguments, so these stay complete.
        may_stop = (self.stops_thoughts or not thinks) and not (answer and answer.has_calls)
        # Spaces after the reasoning belong neither to it nor to the content.
        is_between = answer is not None and answer.has_thought and not (thinks or answer.has_begun)
        text = self._text.push(
            piece,
            logprob,
            may_stop=may_stop and not is_early,
            may_end=not (is_early or self.params.ignore_eos),
            skips_space=is_between,
        )
        return self._deltas(self._part(text))

    def finished(self, cause: Cause) -> list[ReplyEvent]:
        """The events at its end: held-back text, and why it ended."""
        is_stop = cause in ("end_token", "stop_string")
        reason: Literal["stop", "length", "tool_calls"] = "stop" if is_stop else "length"
        events = self._deltas(self._part(self._text.finish()))
        if self.answer is not None:
            events += self._deltas(self.answer.finish(is_whole=is_stop) or Part())
            if is_stop and self.answer.has_calls:
                reason = "tool_calls"
        ids = self.request_id, self.index
        if self.trace:
            events.append(Returned(*ids, "".join(self._said)))
        stop = self._text.stop_string
        counts = self.n_drafted, self.n_accepted
        events.append(
            Finished(*ids, reason, self.n_completion, cause, self.n_reasoning, stop, *counts)
        )
        return events

    def _part(self, text: str) -> Part | None:
        """The part of the message that new text adds; None if nothing yet."""
        if self.trace:
            self._said.append(text)
        if self.answer is None:
            return Part(text)
        return self.answer.push(text) if text else None

    def _deltas(self, part: Part | None) -> list[ReplyEvent]:
        """The event for a part of the message and its log-probabilities; [] if both are empty."""
        if part is None:
            return []
        entries = self._text.take_logprobs()
        if not (part.content or part.reasoning or part.calls or entries):
            return []
        ids = self.request_id, self.index
        return [Delta(*ids, part.content, entries, part.reasoning, part.calls)]


def cache_note(
    held: list[int], prompt: list[int], n_reused: int, spell: Callable[[int], str]
) -> str:
    """A text for the log: how much of a prompt was in memory, and why not more.

    `held` are the tokens in memory with the longest prefix in common; `spell` shows a token.
    """
    note = f"reused {n_reused:,} of {len(prompt):,}"
    n = n_common(held, prompt)
    if n_reused > n:
        return f"{note}, from a checkpoint"
    if n_reused < min(n, len(prompt) - 1):
        return f"{note}: this model's memory cannot be cut at token {n:,}"
    if n == 0 or n >= min(len(held), len(prompt) - 1):
        return note
    now, was = spell(prompt[n]), spell(held[n])
    return f"{note}; first difference at token {n:,}: {now!r} was {was!r}"
