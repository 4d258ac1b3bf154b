"""Composes a step's batch: which sequences take part, with how many tokens. Pure policy.

A sequence that generates has one pending token, and a draft may follow it. It always takes part.
Prompts have more, and share the rest of the batch. While any sequence generates, prompts are cut so
that the step stays within a time budget: another client's long prompt never stalls a stream.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lmlite.contexts import MAX_OUTPUT_PIECE
from lmlite.worker.sequence import Sequence

ROW_BLOCK = 16  # CPU kernels take 16 rows at a time; 17 tokens cost nearly as much as 32


@dataclass(slots=True)
class Piece:
    """The tokens of one sequence in a batch."""

    sequence: Sequence
    begin: int  # tokens that memory holds before these
    tokens: list[int]
    last_index: int  # batch index of its last token
    ends: bool  # nothing is pending after it: its last token needs logits
    wants_all: bool  # each of its tokens needs logits
    n_draft: int = 0  # its last tokens are a draft


def compose(
    sequences: Iterable[Sequence], n_max: int, n_in_time: float, *, others_wait: bool = False
) -> list[Piece]:
    """The next batch, of at most n_max tokens. Changes nothing.

    `n_in_time` is how many tokens fit the time budget of a step, as measured on this machine.
    `others_wait`: sequences with other adapters generate, too, in a later step.
    """
    pieces: list[Piece] = []
    reading = []
    n_left = n_max
    for sequence in sequences:
        if sequence.n_pending > 1:
            reading.append(sequence)
        elif n_left:
            piece = _piece(sequence, 1, n_max - n_left)
            _append_draft(piece, sequence.draft)
            pieces.append(piece)
            n_left -= len(piece.tokens)
    n_used = n_max - n_left
    if pieces or others_wait:
        n_left = min(n_left, _prompt_budget(n_in_time, n_used))
    for sequence in reading:
        n = min(sequence.n_next, n_left)
        if sequence.wants_prompt_logprobs:
            n = min(n, MAX_OUTPUT_PIECE)
        if n > 0:
            pieces.append(_piece(sequence, n, n_used))
            n_used, n_left = n_used + n, n_left - n
    return pieces


def _piece(sequence: Sequence, n_tokens: int, index: int) -> Piece:
    """The first n_tokens pending tokens; `index` tokens of the batch come before them."""
    begin = sequence.n_held
    return Piece(
        sequence,
        begin,
        sequence.tokens[begin : begin + n_tokens],
        index + n_tokens - 1,
        n_tokens == sequence.n_pending,
        sequence.wants_prompt_logprobs,
    )


def _append_draft(piece: Piece, draft: list[int]) -> None:
    if draft:
        piece.tokens += draft
        piece.last_index += len(draft)
        piece.wants_all, piece.n_draft = True, len(draft)


def _prompt_budget(n_in_time: float, n_generating: int) -> int:
    """Prompt tokens to add to n_generating tokens, so that the step fills whole blocks of rows.

    >>> _prompt_budget(100, 4), _prompt_budget(0, 4)
    (92, 28)
    """
    n_blocks = round(n_in_time / ROW_BLOCK)
    n_least = math.ceil(n_generating / ROW_BLOCK) + 1  # however slow the machine is
    return max(n_blocks, n_least) * ROW_BLOCK - n_generating
