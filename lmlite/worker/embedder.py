"""Embeddings: inputs -> unit vectors, many inputs in one decode.

A context of its own on the model's weights, made when the first input comes. An encoder
(BERT and its kind) needs each input whole in one batch; a generating model reads a long
input in pieces, and the mean over all tokens is put together from the means of the pieces.
Belongs to the engine thread, which calls `step` between its own steps.
"""

import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lmlite.messages import Embedded, ReplyEvent
from lmlite.worker.llama import INVALID_NUMBERS, Batch, Context, LlamaError

N_SEQ_MAX = 64  # inputs of one decode


@dataclass(frozen=True)
class Input:
    """One text to embed."""

    request_id: int
    index: int
    tokens: list[int]


class Embedder:
    """Turns submitted inputs into `Embedded` events, a batch per step."""

    def __init__(self, make_context: Callable[[], Context]) -> None:
        """`make_context` is called once, for the first input; it may raise LlamaError."""
        self._make_context = make_context
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

    def fail_all(self) -> set[int]:
        """Forgets everything; the requests concerned."""
        request_ids = {item.request_id for item in self._waiting}
        self._waiting.clear()
        return request_ids

    def close(self) -> None:
        """Frees the context, if there ever was one."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def step(self) -> list[ReplyEvent]:
        """Embeds as many inputs as fit one batch. Raises LlamaError."""
        if not self._waiting:
            return []
        if self._context is None:
            self._context = self._make_context()
            self._batch = Batch(self._context.n_batch)
        items = self._next_inputs(self._context.n_batch)
        if len(items[0].tokens) > self._context.n_batch:
            vectors = [self._read_in_pieces(self._context, items[0].tokens)]
        else:
            vectors = self._read_together(self._context, items)
        events: list[ReplyEvent] = [
            Embedded(item.request_id, item.index, len(item.tokens), normalised(vector))
            for item, vector in zip(items, vectors, strict=True)
        ]
        for _ in items:  # only now: what fails before this must still be found by fail_all
            self._waiting.popleft()
        return events

    def _next_inputs(self, n_batch: int) -> list[Input]:
        """The first inputs that fit together; one alone when it is longer than a batch."""
        items: list[Input] = []
        n_tokens = 0
        for item in self._waiting:
            n_tokens += len(item.tokens)
            if items and (n_tokens > n_batch or len(items) == N_SEQ_MAX):
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
        total = array("f", bytes(4 * context.n_embd))
        for begin in range(0, len(tokens), context.n_batch):
            piece = tokens[begin : begin + context.n_batch]
            self._batch.clear()
            self._batch.extend(piece, begin, 0, True, True)
            self._decode(context)
            mean = context.embedding(0)
            total = array("f", (a + b * len(piece) for a, b in zip(total, mean, strict=True)))
        context.clear_memory()
        return total  # the sum; its direction is the mean's

    def _decode(self, context: Context) -> None:
        if not context.decode(self._batch):
            context.clear_memory()
            raise LlamaError("the inputs do not fit the memory for embeddings")


def normalised(vector: "array[float]") -> bytes:
    """The vector at length 1, as little-endian float32. Raises LlamaError if it has no direction.

    >>> array("f", normalised(array("f", [3, 4]))).tolist() == array("f", [0.6, 0.8]).tolist()
    True
    """
    length = math.hypot(*vector)
    if not math.isfinite(length) or length == 0:
        raise LlamaError(INVALID_NUMBERS)
    return array("f", (x / length for x in vector)).tobytes()
