"""How much memory a worker will take, from what the model's header says: arithmetic alone.

What is counted is what is written to: llama.cpp reserves more than that, and the system gives
memory out as it is used. Weights are mapped from their file, and count as much as all else:
a worker whose weights do not stay in memory reads them from the disk at each step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

from lmlite.contexts import (
    EMBEDDING_BATCH,
    EMBEDDING_LANES,
    MAX_OUTPUT_PIECE,
    context_size,
    n_ctx_max,
    n_lanes,
    n_ubatch,
)
from lmlite.gguf.file import ModelFile
from lmlite.gguf.header import TENSOR_TYPES
from lmlite.gguf.projector import Projector
from lmlite.messages import Load

LEAST_N_CTX = 512  # below that, a model is refused
N_CTX_BLOCK = 256  # llama.cpp rounds up to that

PROCESS_BYTES = 34 << 20  # Python, the library, and what the library notes of a graph
TOKEN_BYTES, MERGE_BYTES, TRIE_TOKEN_BYTES = 150, 160, 530  # of a vocabulary, in the library
CELL_BYTES = 64  # that the library and the engine note of a cell
_NUMBER_BYTES = 4

_BYTES_PER_NUMBER = {name.lower(): size / block for name, block, size in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what takes them."""

    weights: int
    cells: int  # keys and values of the context
    states: int  # of recurrent layers
    buffers: int  # of a step
    logits: int  # of the tokens of a step whose logits are wanted
    vocabulary: int
    checkpoints: int  # what `--checkpoint-memory` lets them take
    projector: int = 0  # its weights, and buffers for the largest picture
    images: int = 0  # what `--image-memory` lets those take that were encoded
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(f"{name} {in_words(n_bytes)}" for name, n_bytes in parts if n_bytes)


class DoesNotFit(Exception):
    """The model cannot run in the memory that there is; the message has the numbers."""


@dataclass(frozen=True)
class Plan:
    """How to load a model, and what that will take."""

    load: Load
    estimate: Estimate
    n_allowed: int | None  # bytes
    notes: tuple[str, ...] = ()  # what is less than was asked for, a line each


def estimate(file: ModelFile, load: Load, projector: Projector | None = None) -> Estimate:
    """What a worker will take that answers, but for embeddings of a model that generates.

    Nor are the pixels of a picture counted, for the moment in which it is decoded.
    """
    n_vocab, shape = file.n_vocab, file.shape
    n_ctx = _padded(context_size(load, file.n_ctx_train))
    n_seq = n_lanes(load.n_parallel, not shape.n_state)
    per_token = TRIE_TOKEN_BYTES if shape.has_trie else TOKEN_BYTES
    if load.generates:
        n_batch = max(min(load.n_batch, n_ctx), n_seq)
        n_outputs = max(n_seq, min(n_batch, load.n_parallel + MAX_OUTPUT_PIECE))
    else:
        n_batch = n_outputs = context_size(load, file.n_ctx_train)
    return Estimate(
        weights=file.n_tensor_bytes,
        cells=_cells(file, load, n_ctx) if load.generates else 0,
        states=_states(file, n_seq),
        buffers=_buffers(
            file, load.flash_attn, n_ctx, n_ubatch(load, n_batch, n_seq), n_outputs, n_seq
        ),
        logits=_NUMBER_BYTES * n_vocab * n_outputs,
        vocabulary=per_token * n_vocab + MERGE_BYTES * shape.n_merges,
        checkpoints=load.checkpoint_memory if load.generates else 0,
        projector=_projector(projector, n_ctx) if projector else 0,
        images=load.image_memory if projector else 0,
    )


def embedding_bytes(file: ModelFile, load: Load) -> int:
    """What the first input to embed takes more, in a worker that generates."""
    n_ctx_seq = min(context_size(load, file.n_ctx_train), n_ctx_max(load, file.n_ctx_train))
    n_batch = min(EMBEDDING_BATCH, n_ctx_seq)
    n_ctx = _padded(n_ctx_seq)
    return (
        _cells(file, replace(load, cache_type_k="f16", cache_type_v="f16"), n_ctx)
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
) -> Plan:
    """What of the Load fits into n_allowed bytes, and `because` of what. Raises DoesNotFit.

    What only saves time gives way first, images before checkpoints, and then the context.
    """
    reckon = partial(estimate, file, projector=projector)
    n_usable = n_ctx_max(load, file.n_ctx_train) * load.n_parallel
    wanted = replace(load, n_ctx=min(context_size(load, file.n_ctx_train), n_usable))
    unused = _unused(file, load, wanted)
    if n_allowed is None:
        return Plan(wanted, reckon(wanted), None, unused)
    bare = replace(wanted, checkpoint_memory=0, image_memory=0)
    fitting = replace(bare, n_ctx=_largest_context(reckon, bare, n_allowed))
    n_left = n_allowed - reckon(fitting).total
    if n_left < 0:
        raise DoesNotFit(
            f"{file.name} needs {in_words(n_allowed - n_left)} with the least context "
            f"({reckon(fitting)}), and {because} {in_words(n_allowed)}"
        )
    n_embedding = embedding_bytes(file, fitting) if load.generates else 0
    embeds = n_embedding <= n_left
    n_left -= n_embedding if embeds else 0
    n_checkpoints = min(load.checkpoint_memory, n_left)
    n_images = min(load.image_memory, n_left - n_checkpoints) if projector else load.image_memory
    fitting = replace(
        fitting, checkpoint_memory=n_checkpoints, image_memory=n_images, embeds=embeds
    )
    notes = _notes(reckon, wanted, fitting, n_embedding, f"{because} {in_words(n_allowed)}")
    return Plan(fitting, reckon(fitting), n_allowed, (*unused, *notes))


def _largest_context(reckon: Callable[[Load], Estimate], load: Load, n_allowed: int) -> int:
    """The largest context that fits, or the least one."""
    assert load.n_ctx is not None
    if reckon(load).total <= n_allowed:
        return load.n_ctx
    low, high = 1, math.ceil(load.n_ctx / N_CTX_BLOCK)  # in blocks; `high` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        fits = reckon(replace(load, n_ctx=middle * N_CTX_BLOCK)).total <= n_allowed
        low, high = (middle, high) if fits else (low, middle)
    return min(load.n_ctx, max(low * N_CTX_BLOCK, LEAST_N_CTX))


def _unused(file: ModelFile, load: Load, wanted: Load) -> tuple[str, ...]:
    """A note when more context was asked for than a sequence, or all of them, can use."""
    n_most = n_ctx_max(load, file.n_ctx_train)
    if load.n_ctx is None or load.n_ctx <= n_most:
        return ()
    assert wanted.n_ctx is not None
    why = f"the model was trained for {file.n_ctx_train}; --rope-scaling stretches that"
    if wanted.n_ctx < load.n_ctx:
        return (f"the context is {wanted.n_ctx} tokens instead of {load.n_ctx}: {why}",)
    return (f"a sequence has at most {n_most} of the {load.n_ctx} tokens of --ctx: {why}",)


def _notes(
    reckon: Callable[[Load], Estimate],
    wanted: Load,
    fitting: Load,
    n_embedding: int,
    because: str,
) -> list[str]:
    notes = []
    if fitting.n_ctx != wanted.n_ctx:
        n_needed = reckon(replace(wanted, checkpoint_memory=0, image_memory=0)).total
        notes.append(
            f"the context is {fitting.n_ctx:,} tokens instead of {wanted.n_ctx:,}, which would "
            f"need {in_words(n_needed)}: {because}"
        )
    for what, n_bytes, n_wanted in (
        ("checkpoints", fitting.checkpoint_memory, wanted.checkpoint_memory),
        ("images", fitting.image_memory, wanted.image_memory),
    ):
        if n_bytes < n_wanted:
            notes.append(
                f"{what} have {in_words(n_bytes)} instead of {in_words(n_wanted)}: {because}"
            )
    if not fitting.embeds:
        notes.append(f"no embeddings, which need {in_words(n_embedding)} more: {because}")
    return notes


def _cells(file: ModelFile, load: Load, n_ctx: int) -> int:
    per_key = _BYTES_PER_NUMBER[load.cache_type_k]
    per_value = _BYTES_PER_NUMBER[load.cache_type_v]
    n_bytes = sum(key * per_key + value * per_value for key, value in file.shape.cells)
    return n_ctx * (round(n_bytes) + CELL_BYTES)


def _states(file: ModelFile, n_seq: int) -> int:
    return _NUMBER_BYTES * file.shape.n_state * file.shape.n_state_layers * n_seq


def _buffers(
    file: ModelFile, attention: str, n_ctx: int, n_batch: int, n_outputs: int, n_seq: int
) -> int:
    """Of a step: the widest layer or the logits, whichever is more, beside the masks."""
    shape = file.shape
    numbers = n_batch * shape.n_wide + n_seq * shape.n_state
    mask_bytes = 2
    if attention == "off":  # a weight of each head for each token and cell
        mask_bytes = 4
        numbers = max(numbers, n_batch * (shape.n_head * n_ctx + 6 * shape.n_embd))
    if not file.embeds_only:  # an encoder makes none
        numbers = max(numbers, n_outputs * file.n_vocab + 2 * n_batch * shape.n_embd)
    n_masks = shape.n_masks if shape.cells else 0
    return _NUMBER_BYTES * numbers + n_masks * mask_bytes * n_ctx * n_batch


def _projector(projector: Projector, n_ctx: int) -> int:
    """Weights, which are read and not mapped, and what lives at once of a picture."""
    n_patches = min(projector.n_patches, n_ctx * projector.n_token_patches)
    return projector.n_tensor_bytes + _NUMBER_BYTES * n_patches * projector.n_wide


def _padded(n_ctx: int) -> int:
    return math.ceil(n_ctx / N_CTX_BLOCK) * N_CTX_BLOCK


def in_words(n_bytes: int) -> str:
    """For people.

    >>> in_words(1 << 20), in_words(1536 << 20)
    ('1 MiB', '1.5 GiB')
    """
    if n_bytes < 1 << 30:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{n_bytes / (1 << 30):.1f} GiB"
