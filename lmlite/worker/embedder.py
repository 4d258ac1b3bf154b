"""Embeddings: inputs -> unit vectors, many inputs in one decode.

A context of its own on the model's weights, made when the first input comes. An encoder
(BERT and its kind) needs each input whole in one batch; a generating model reads a long
input in pieces, and its vector is put together from theirs.
Belongs to the engine thread, which calls `step` between its own steps.
"""

import math
import operator
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lmlite.contexts import EMBEDDING_LANES
from lmlite.messages import Embedded, ReplyEvent
from lmlite.worker.failures import failed
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import INVALID_NUMBERS, Batch, Context

# Tokens that a CPU takes together: with more, every token is weighed against more tokens of others
# before those are left out, and who is being answered meanwhile waits longer.
CPU_TOGETHER = 256


@dataclass(frozen=True)
class Input:
    """One text to embed."""

    request_id: int
    index: int
    tokens: list[int]


class Embedder:
    """Turns submitted inputs into `Embedded` events, a batch per step."""

    def __init__(self, make_context: Callable[[], Context], n_together: int | None = None) -> None:
        """`make_context` is called once, for the first input; it may raise LlamaError.

        A step takes whole inputs of n_together tokens at most; None: of a whole batch.
        """
        self._make_context, self._n_together = make_context, n_together
        self._context: Context | None = None
        self._batch = Batch(1)
        self._waiting: deque[Input] = deque()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something."""
        return bool(self._waiting)

    def submit(self, item: Input) -> None:
        """Queues an input; it must not be longer than the context, nor empty."""
        self._waiting.append(item)

    def cancel(self, request_id: int) -> None:
        """Forgets the inputs of a request."""
        self._waiting = deque(i for i in self._waiting if i.request_id != request_id)

    def close(self) -> None:
        """Frees the context, if there ever was one."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def step(self) -> list[ReplyEvent]:
        """Embeds as many inputs as fit one batch; what fails together is tried one by one."""
        if not self._waiting:
            return []
        try:
            context = self._ready_context()
        except Exception as err:
            return self._fail(list(self._waiting), err)
        items = self._next_inputs(context.n_batch)
        try:
            return self._embed(context, items)
        except Exception as err:
            context.clear_memory(data=True)  # what is left of it would be in the next one's way
            return self._fail(items, err) if len(items) == 1 else self._embed_each(context, items)

    def _ready_context(self) -> Context:
        if self._context is None:
            self._context = self._make_context()
            self._batch = Batch(self._context.n_batch)
        return self._context

    def _embed(self, context: Context, items: list[Input]) -> list[ReplyEvent]:
        """All of them, or none: then they still wait. Raises LlamaError."""
        if len(items[0].tokens) > context.n_batch:
            vectors = [self._read_in_pieces(context, items[0].tokens)]
        else:
            vectors = self._read_together(context, items)
        events: list[ReplyEvent] = [
            Embedded(item.request_id, item.index, len(item.tokens), normalised(vector))
            for item, vector in zip(items, vectors, strict=True)
        ]
        for _ in items:
            self._waiting.popleft()
        return events

    def _embed_each(self, context: Context, items: list[Input]) -> list[ReplyEvent]:
        events: list[ReplyEvent] = []
        for item in items:
            if item not in self._waiting:  # its request has failed
                continue
            try:
                events += self._embed(context, [item])
            except Exception as err:
                context.clear_memory(data=True)
                events += self._fail([item], err)
        return events

    def _fail(self, items: list[Input], error: Exception) -> list[ReplyEvent]:
        """Ends their requests, with all of their inputs."""
        request_ids = {item.request_id for item in items}
        for request_id in request_ids:
            self.cancel(request_id)
        return [failed(request_id, error) for request_id in request_ids]

    def _next_inputs(self, n_batch: int) -> list[Input]:
        """The first inputs that fit together; one alone when it is longer than that."""
        n_most = min(n_batch, self._n_together or n_batch)
        items: list[Input] = []
        n_tokens = 0
        for item in self._waiting:
            n_tokens += len(item.tokens)
            if items and (n_tokens > n_most or len(items) == EMBEDDING_LANES):
                break
            items.append(item)
        return items

    def _read_together(self, context: Context, items: list[Input]) -> "list[array[float]]":
        self._batch.clear()
        for seq_id, item in enumerate(items):
            self._batch.extend(item.tokens, 0, seq_id, True, True)
        self._decode(context)
        vectors = [context.embedding(seq_id) for seq_id in range(len(items))]
        context.clear_memory()
        return vectors

    def _read_in_pieces(self, context: Context, tokens: list[int]) -> "array[float]":
        parts = []
        for begin in range(0, len(tokens), context.n_batch):
            piece = tokens[begin : begin + context.n_batch]
            self._batch.clear()
            self._batch.extend(piece, begin, 0, True, True)
            self._decode(context)
            parts.append((len(piece), context.embedding(0)))
        context.clear_memory()
        return combined(parts, context.pooling_type)

    def _decode(self, context: Context) -> None:
        if not context.decode(self._batch):
            context.clear_memory()
            raise LlamaError("the inputs do not fit the memory for embeddings")


def combined(parts: "list[tuple[int, array[float]]]", pooling_type: int) -> "array[float]":
    """What a whole input's pooling gives, from (n_tokens, vector) of its pieces, up to its length.

    The last token's vector is that of the last piece, the first one's that of the first. Of means
    it is their sum by weight: normalising makes it the mean.
    """
    if pooling_type == capi.POOLING_TYPE_LAST:
        return parts[-1][1]
    if pooling_type == capi.POOLING_TYPE_CLS:
        return parts[0][1]
    columns = zip(*(vector for _, vector in parts), strict=True)
    weights = [n_tokens for n_tokens, _ in parts]
    return array("f", (sum(map(operator.mul, column, weights)) for column in columns))


def normalised(vector: "array[float]") -> bytes:
    """The vector at length 1, as little-endian float32. Raises LlamaError if it has no direction.

    >>> array("f", normalised(array("f", [3, 4]))).tolist() == array("f", [0.6, 0.8]).tolist()
    True
    """
    length = math.hypot(*vector)
    if not math.isfinite(length) or length == 0:
        raise LlamaError(INVALID_NUMBERS)
    return array("f", (x / length for x in vector)).tobytes()
