"""Estimates a worker's memory from the model's header, and shrinks a Load to fit into memory.

Counts the memory that is written to: llama.cpp reserves more, but the kernel provides pages only
when they are used. Weights are mapped from their file and count in full, because a worker that
cannot keep them in memory reads them from the disk at each step.

llama.cpp can compute this itself by loading without weights (`no_alloc`), but that takes a process
and 0.12 s for the embedded model, 0.5 s for a vocabulary of 262,144 tokens. Tests compare both.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

from lmlite.contexts import (
    EMBEDDING_LANES,
    MAX_OUTPUT_PIECE,
    context_size,
    embedding_batch,
    n_ctx_max,
    n_lanes,
    n_ubatch,
)
from lmlite.gguf.file import ModelFile
from lmlite.gguf.header import TENSOR_TYPES
from lmlite.gguf.projector import Projector
from lmlite.messages import Load

LEAST_N_CTX = 512  # tokens; if the memory allows only a smaller context, the model is refused
N_CTX_BLOCK = 256  # tokens; llama.cpp rounds context sizes up to a multiple of this

PROCESS_BYTES = 34 << 20  # Python, the library, and its graphs
TOKEN_BYTES, MERGE_BYTES, TRIE_TOKEN_BYTES = 150, 160, 530  # each, in the library's vocabulary
CELL_BYTES = 64  # bookkeeping of the library and the engine for each cell
_NUMBER_BYTES = 4

_BYTES_PER_NUMBER = {name.lower(): size / block for name, block, size in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Estimate:
    """A worker's memory in bytes, by use."""

    weights: int
    cells: int  # keys and values of the context
    states: int  # states of recurrent layers
    buffers: int  # compute buffers of a step
    logits: int  # output of a step, for the tokens that need logits
    vocabulary: int
    checkpoints: int  # the limit --checkpoint-memory
    projector: int = 0  # the projector's weights, and buffers for the largest picture
    images: int = 0  # the limit --image-memory
    adapters: int = 0  # their weights
    draft: int = 0  # all that the draft model takes
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """The sum of all fields."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(f"{name} {in_words(n_bytes)}" for name, n_bytes in parts if n_bytes)


class DoesNotFit(Exception):
    """There is too little memory for the model; the message has the numbers."""


@dataclass(frozen=True)
class Plan:
    """How to load a model, and how much memory that will take."""

    load: Load
    estimate: Estimate
    n_allowed: int | None  # bytes; None: no known limit
    notes: tuple[str, ...] = ()  # a line for each value that is smaller than asked for


def estimate(
    file: ModelFile,
    load: Load,
    projector: Projector | None = None,
    draft: ModelFile | None = None,
) -> Estimate:
    """The most memory that a worker takes while it answers.

    Not counted: embeddings by a model that generates (see `embedding_bytes`), and the pixels of a
    picture during its decoding.
    """
    shape = file.shape
    n_ctx = _padded(context_size(load, file.n_ctx_train))
    n_seq = n_lanes(load.n_parallel, not shape.n_state)
    if load.generates:
        cells = _cells(file, n_ctx, load.cache_type_k, load.cache_type_v)
        n_batch = max(min(load.n_batch, n_ctx), n_seq)
        n_outputs = max(n_seq, min(n_batch, load.n_parallel + MAX_OUTPUT_PIECE))
    else:
        cells = _cells(file, n_ctx, "f16", "f16") if load.ranker == "causal" else 0
        n_batch = n_outputs = embedding_batch(load, context_size(load, file.n_ctx_train))
    n_at_once = n_ubatch(load, n_batch, n_seq)
    token_bytes = TRIE_TOKEN_BYTES if shape.has_trie else TOKEN_BYTES
    return Estimate(
        weights=file.n_tensor_bytes,
        cells=cells,
        states=_states(file, n_seq),
        buffers=_buffers(file, load.flash_attn, n_ctx, n_at_once, n_outputs, n_seq),
        logits=_NUMBER_BYTES * file.n_vocab * n_outputs,
        vocabulary=token_bytes * file.n_vocab + MERGE_BYTES * shape.n_merges,
        checkpoints=load.checkpoint_memory if load.generates else 0,
        projector=_projector(projector, n_ctx) if projector else 0,
        images=load.image_memory if projector else 0,
        adapters=sum(part.n_bytes for part in load.adapters),
        draft=_draft(draft, load, n_ctx) if draft else 0,
    )


def embedding_bytes(file: ModelFile, load: Load) -> int:
    """The additional bytes of a worker that generates, from its first embedding request on."""
    n_ctx_seq = min(context_size(load, file.n_ctx_train), n_ctx_max(load, file.n_ctx_train))
    n_batch, n_ctx = embedding_batch(load, n_ctx_seq), _padded(n_ctx_seq)
    return (
        _cells(file, n_ctx, "f16", "f16")
        + _states(file, EMBEDDING_LANES)
        + _buffers(file, load.flash_attn, n_ctx, n_batch, n_batch, EMBEDDING_LANES)
        + _NUMBER_BYTES * file.n_vocab * n_batch
    )


def plan(
    file: ModelFile,
    load: Load,
    n_allowed: int | None,
    because: str = "",
    projector: Projector | None = None,
    draft: ModelFile | None = None,
) -> Plan:
    """Shrinks the Load to fit into n_allowed bytes. Raises DoesNotFit.

    Shrinks in this order: memory for images, checkpoints, embeddings, then the context.
    `because` names the limit in notes, for example "--memory allows".
    """
    reckon = partial(estimate, file, projector=projector, draft=draft)
    n_usable = n_ctx_max(load, file.n_ctx_train) * load.n_parallel
    wanted = replace(load, n_ctx=min(context_size(load, file.n_ctx_train), n_usable))
    notes = _unused(file, load, wanted)
    if n_allowed is None:
        return Plan(wanted, reckon(wanted), None, tuple(notes))
    because = f"{because} {in_words(n_allowed)}"
    bare = replace(wanted, checkpoint_memory=0, image_memory=0)
    fitting = replace(bare, n_ctx=_largest_context(reckon, bare, n_allowed))
    least = reckon(fitting)
    n_left = n_allowed - least.total
    if n_left < 0:
        raise DoesNotFit(
            f"{file.name} needs {in_words(least.total)} with the least context ({least}), "
            f"and {because}"
        )
    if fitting.n_ctx != wanted.n_ctx:
        notes.append(
            f"the context is {fitting.n_ctx:,} tokens instead of {wanted.n_ctx:,}, which would "
            f"need {in_words(reckon(bare).total)}: {because}"
        )
    fitting, cut = _with_caches(file, load, fitting, n_left, because, projector)
    return Plan(fitting, reckon(fitting), n_allowed, (*notes, *cut))


def _with_caches(
    file: ModelFile,
    load: Load,
    fitting: Load,
    n_left: int,
    because: str,
    projector: Projector | None,
) -> tuple[Load, list[str]]:
    """Divides the memory left by the context; returns a note for each cache that is smaller."""
    notes = []
    n_embedding = embedding_bytes(file, fitting) if load.generates else 0
    embeds = n_embedding <= n_left
    n_left -= n_embedding if embeds else 0
    n_checkpoints = min(load.checkpoint_memory, n_left)
    n_images = min(load.image_memory, n_left - n_checkpoints) if projector else load.image_memory
    for what, n_bytes, n_wanted in (
        ("checkpoints", n_checkpoints, load.checkpoint_memory),
        ("images", n_images, load.image_memory),
    ):
        if n_bytes < n_wanted:
            notes.append(
                f"{what} have {in_words(n_bytes)} instead of {in_words(n_wanted)}: {because}"
            )
    if not embeds:
        notes.append(f"no embeddings, which need {in_words(n_embedding)} more: {because}")
    given = replace(fitting, checkpoint_memory=n_checkpoints, image_memory=n_images, embeds=embeds)
    return given, notes


def _largest_context(reckon: Callable[[Load], Estimate], load: Load, n_allowed: int) -> int:
    """The largest context that fits, but at least LEAST_N_CTX tokens if that many were wanted."""
    assert load.n_ctx is not None
    n_ctx = load.n_ctx

    def n_bytes(n_blocks: int) -> int:
        return reckon(replace(load, n_ctx=min(n_blocks * N_CTX_BLOCK, n_ctx))).total

    blocks = range(1, math.ceil(n_ctx / N_CTX_BLOCK) + 1)
    n_fitting = bisect_right(blocks, n_allowed, key=n_bytes)
    return min(n_ctx, max(n_fitting * N_CTX_BLOCK, LEAST_N_CTX))


def _unused(file: ModelFile, load: Load, wanted: Load) -> list[str]:
    """A note if --ctx asks for more tokens than one sequence, or all sequences, can use."""
    n_most = n_ctx_max(load, file.n_ctx_train)
    if load.n_ctx is None or load.n_ctx <= n_most:
        return []
    why = f"the model was trained for {file.n_ctx_train}; --rope-scaling stretches that"
    if wanted.n_ctx != load.n_ctx:
        return [f"the context is {wanted.n_ctx} tokens instead of {load.n_ctx}: {why}"]
    return [f"a sequence has at most {n_most} of the {load.n_ctx} tokens of --ctx: {why}"]


def _cells(file: ModelFile, n_ctx: int, type_k: str, type_v: str) -> int:
    per_key, per_value = _BYTES_PER_NUMBER[type_k], _BYTES_PER_NUMBER[type_v]
    n_bytes = sum(key * per_key + value * per_value for key, value in file.shape.cells)
    return n_ctx * (round(n_bytes) + CELL_BYTES)


def _states(file: ModelFile, n_seq: int) -> int:
    return _NUMBER_BYTES * file.shape.n_state * file.shape.n_state_layers * n_seq


def _buffers(
    file: ModelFile, attention: str, n_ctx: int, n_batch: int, n_outputs: int, n_seq: int
) -> int:
    """Buffers of a step: the larger of the widest layer and the logits, and the masks."""
    shape = file.shape
    numbers = n_batch * shape.n_wide + n_seq * shape.n_state
    mask_bytes = 2
    if attention == "off":  # each head then stores a weight for each pair of token and cell
        mask_bytes = 4
        numbers = max(numbers, n_batch * (shape.n_head * n_ctx + 6 * shape.n_embd))
    if not file.embeds_only or file.ranker == "causal":  # an encoder has no logits
        numbers = max(numbers, n_outputs * file.n_vocab + 2 * n_batch * shape.n_embd)
    n_masks = shape.n_masks if shape.cells else 0
    return _NUMBER_BYTES * numbers + n_masks * mask_bytes * n_ctx * n_batch


def _projector(projector: Projector, n_ctx: int) -> int:
    """The projector's weights, which are read and not mapped, and its buffers for a picture."""
    n_patches = min(projector.n_patches, n_ctx * projector.n_token_patches)
    return projector.n_tensor_bytes + _NUMBER_BYTES * n_patches * projector.n_wide


def _draft(draft: ModelFile, load: Load, n_ctx: int) -> int:
    """A draft model's weights, vocabulary, and context, which is as large as the model's own."""
    found = estimate(draft, replace(load, n_ctx=n_ctx, checkpoint_memory=0, adapters=()))
    return found.total - found.process


def _padded(n_ctx: int) -> int:
    return math.ceil(n_ctx / N_CTX_BLOCK) * N_CTX_BLOCK


def in_words(n_bytes: int) -> str:
    """A number of bytes with a unit.

    >>> in_words(1 << 20), in_words(1536 << 20)
    ('1 MiB', '1.5 GiB')
    """
    if n_bytes < 1 << 30:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{n_bytes / (1 << 30):.1f} GiB"
