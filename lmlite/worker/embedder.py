"""Embeddings: inputs -> unit vectors or scores, many inputs in one decode.

The embedder has its own context on the model's weights, made for the first input. An encoder
(such as BERT) needs each input whole in one batch. A generating model reads a long input in
pieces, and the input's vector is combined from the pieces' vectors. Belongs to the engine thread.
"""

import math
import operator
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lmlite.contexts import EMBEDDING_LANES
from lmlite.messages import Embedded, ReplyEvent, Scales, Scored
from lmlite.worker.failures import failed
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import INVALID_NUMBERS, Batch, Context

# Tokens of one step on a CPU. With more, streams wait longer, and attention cost grows with the
# batch: pairs of tokens of different inputs are computed, then masked.
CPU_TOGETHER = 256


@dataclass
class Query:
    """The query of a request, which its documents are compared with."""

    vector: "array[float]" = field(default_factory=lambda: array("f"))  # set before it is needed
    n_tokens: int = 0


@dataclass(frozen=True)
class Input:
    """One text to embed."""

    request_id: int
    index: int  # -1: the query's own text
    tokens: list[int]
    query: Query | None = None  # the event has a score instead of the vector
    scales: Scales = ()  # of the adapters that it is read with


class Embedder:
    """Turns submitted inputs into `Embedded` events, a batch per step."""

    def __init__(self, make_context: Callable[[], Context], n_together: int | None = None) -> None:
        """`make_context` is called once, for the first input; it may raise LlamaError.

        A step takes whole inputs of n_together tokens in total; None: as many as fit a batch.
        """
        self._make_context, self._n_together = make_context, n_together
        self._context: Context | None = None
        self._batch = Batch(1)
        self._waiting: deque[Input] = deque()
        self._n_suspects = 0  # how many first inputs are tried alone, after failing together

    @property
    def has_work(self) -> bool:
        """Whether any input is waiting."""
        return bool(self._waiting)

    def submit(self, item: Input) -> None:
        """Queues an input, which must not be empty or longer than the context."""
        self._waiting.append(item)

    def cancel(self, request_id: int) -> None:
        """Drops the inputs of a request."""
        self._waiting = deque(i for i in self._waiting if i.request_id != request_id)

    def close(self) -> None:
        """Frees the context, if it was made."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def step(self) -> list[ReplyEvent]:
        """Embeds as many inputs as fit one batch. Inputs that fail together are retried alone."""
        if not self._waiting:
            return []
        try:
            context = self._ready_context()
        except Exception as err:
            return self._fail({item.request_id for item in self._waiting}, err)
        items = self._next_inputs(context.n_batch)
        self._n_suspects = max(0, self._n_suspects - 1)
        try:
            context.set_adapters(items[0].scales)
            vectors = self._vectors(context, [item.tokens for item in items])
            events = [
                event
                for item, vector in zip(items, vectors, strict=True)
                if (event := self._event(item, vector))
            ]
        except Exception as err:
            context.clear_memory(data=True)  # invalid numbers would spread to the next inputs
            if len(items) == 1:
                return self._fail({items[0].request_id}, err)
            self._n_suspects = len(items)
            return []
        for _ in items:
            self._waiting.popleft()
        return events

    def _event(self, item: Input, vector: "array[float]") -> ReplyEvent | None:
        """What an input's request is told; None for the query, which comes before its documents."""
        n_tokens, query = len(item.tokens), item.query
        if self._ready_context().pooling_type == capi.POOLING_TYPE_RANK:
            return Scored(item.request_id, item.index, n_tokens, checked(vector[0]))
        data = normalised(vector)
        if query is None:
            return Embedded(item.request_id, item.index, n_tokens, data)
        unit = array("f", data)
        if item.index < 0:
            query.vector, query.n_tokens = unit, n_tokens
            return None
        n_tokens += query.n_tokens if item.index == 0 else 0
        cosine = sum(map(operator.mul, query.vector, unit))
        return Scored(item.request_id, item.index, n_tokens, cosine)

    def _ready_context(self) -> Context:
        if self._context is None:
            self._context = self._make_context()
            self._batch = Batch(self._context.n_batch)
        return self._context

    def _fail(self, request_ids: set[int], error: Exception) -> list[ReplyEvent]:
        """Fails these requests and drops all of their inputs."""
        for request_id in request_ids:
            self.cancel(request_id)
        return [failed(request_id, error) for request_id in request_ids]

    def _next_inputs(self, n_batch: int) -> list[Input]:
        """The first inputs of the same adapters that fit together; a longer one is taken alone."""
        n_most = min(n_batch, self._n_together or n_batch)
        items: list[Input] = []
        n_tokens = 0
        for item in self._waiting:
            n_tokens += len(item.tokens)
            is_full = n_tokens > n_most or len(items) == EMBEDDING_LANES
            if items and (is_full or self._n_suspects or item.scales != items[0].scales):
                break
            items.append(item)
        return items

    def _vectors(self, context: Context, inputs: list[list[int]]) -> "list[array[float]]":
        """Vectors of inputs that fit one batch, or of one longer input, read in pieces."""
        n_batch = context.n_batch
        if len(inputs[0]) <= n_batch:
            vectors = self._decoded(context, inputs, 0)
        else:
            parts = []
            for begin in range(0, len(inputs[0]), n_batch):
                piece = inputs[0][begin : begin + n_batch]
                parts.append((len(piece), self._decoded(context, [piece], begin)[0]))
            vectors = [combined(parts, context.pooling_type)]
        context.clear_memory()
        return vectors

    def _decoded(
        self, context: Context, inputs: list[list[int]], position: int
    ) -> "list[array[float]]":
        self._batch.clear()
        for seq_id, tokens in enumerate(inputs):
            self._batch.extend(tokens, position, seq_id, True, True)
        if not context.decode(self._batch):
            raise LlamaError("the inputs do not fit the memory for embeddings")
        return [context.embedding(seq_id) for seq_id in range(len(inputs))]


def combined(parts: "list[tuple[int, array[float]]]", pooling_type: int) -> "array[float]":
    """The pooled vector of an input, from (n_tokens, vector) of its pieces, not yet normalised.

    For mean pooling it is the weighted sum, which points in the direction of the mean.
    """
    if pooling_type in (capi.POOLING_TYPE_LAST, capi.POOLING_TYPE_RANK):
        return parts[-1][1]
    if pooling_type == capi.POOLING_TYPE_CLS:
        return parts[0][1]
    columns = zip(*(vector for _, vector in parts), strict=True)
    weights = [n_tokens for n_tokens, _ in parts]
    return array("f", (sum(map(operator.mul, column, weights)) for column in columns))


def checked(score: float) -> float:
    """The same score. Raises LlamaError if it is not finite."""
    if not math.isfinite(score):
        raise LlamaError(INVALID_NUMBERS)
    return score


def normalised(vector: "array[float]") -> bytes:
    """The vector at length 1, as little-endian float32. Raises LlamaError if zero or not finite.

    >>> array("f", normalised(array("f", [3, 4]))).tolist() == array("f", [0.6, 0.8]).tolist()
    True
    """
    length = math.hypot(*vector)
    if not math.isfinite(length) or length == 0:
        raise LlamaError(INVALID_NUMBERS)
    return array("f", (x / length for x in vector)).tobytes()
