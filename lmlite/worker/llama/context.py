"""Batch and Context: the tokens of a step, and the state of a running model.

Both belong to the engine thread. C's negative codes raise LlamaError; recoverable codes are values.
"""

import ctypes
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lmlite.messages import RopeScaling, Scales
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.model import Model

INVALID_NUMBERS = "the model produced invalid numbers"
MIN_LOGPROB = -9999.0  # OpenAI's value for a probability of 0, because JSON has no infinity


class Batch:
    """The tokens of one decode, in arrays that live as long as the batch."""

    def __init__(self, n_max: int) -> None:
        """Makes room for n_max tokens. Each token belongs to one sequence."""
        self.n_max = n_max
        self._seq_ids = (ctypes.c_int32 * n_max)()
        self._n_seq_ids = (ctypes.c_int32 * n_max)(*[1] * n_max)
        self._tokens = (ctypes.c_int32 * n_max)()
        self._positions = (ctypes.c_int32 * n_max)()
        self._outputs = (ctypes.c_int8 * n_max)()
        # C's seq_id is an array of pointers; each points to an element of _seq_ids.
        start, size = ctypes.addressof(self._seq_ids), ctypes.sizeof(ctypes.c_int32)
        row = ctypes.POINTER(ctypes.c_int32)
        self._rows = (row * n_max)()
        for i in range(n_max):
            self._rows[i] = ctypes.cast(start + i * size, row)
        self.struct = capi.llama_batch(
            0, self._tokens, None, self._positions, self._n_seq_ids, self._rows, self._outputs
        )

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    @property
    def n_free(self) -> int:
        """How many more tokens fit."""
        return self.n_max - len(self)

    def clear(self) -> None:
        """Empties the batch for the next step."""
        self.struct.n_tokens = 0

    def add(self, token: int, position: int, seq_id: int, output: bool) -> int:
        """Appends a token and returns its index. `output`: compute logits at this index."""
        i = int(self.struct.n_tokens)
        self._tokens[i] = token
        self._positions[i] = position
        self._seq_ids[i] = seq_id
        self._outputs[i] = output
        self.struct.n_tokens = i + 1
        return i

    def extend(
        self,
        tokens: Sequence[int],
        position: int,
        seq_id: int,
        output_last: bool,
        output_all: bool = False,
    ) -> int:
        """Appends prompt tokens, the first at `position`. Returns the index of the last token."""
        begin = int(self.struct.n_tokens)
        end, n = begin + len(tokens), len(tokens)
        self._tokens[begin:end] = list(tokens)
        self._positions[begin:end] = list(range(position, position + n))
        self._seq_ids[begin:end] = [seq_id] * n
        self._outputs[begin:end] = [output_all] * n
        self._outputs[end - 1] = output_last or output_all
        self.struct.n_tokens = end
        return end - 1


class Context:
    """The memory (KV cache) and compute buffers of a model. Used by the engine thread only."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        n_seq_max: int,
        n_threads: int,
        n_ubatch: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        flash_attn: str = "auto",
        rope: RopeScaling | None = None,
        n_ctx_max: int | None = None,
        pooling_type: int | None = None,
    ) -> None:
        """With a `pooling_type`, the context is for embeddings. Raises LlamaError.

        n_ctx_max: most tokens of a sequence; None: as many as the model was trained for.
        """
        self._lib = lib = model.lib
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n_ctx, n_batch, n_seq_max
        params.n_ubatch = n_ubatch or n_batch
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = capi.CACHE_TYPES[cache_type_k]
        params.type_v = capi.CACHE_TYPES[cache_type_v]
        params.flash_attn_type = capi.FLASH_ATTN_TYPES[flash_attn]
        _scale_rope(params, rope or RopeScaling())
        params.kv_unified = True  # one pool of cells that all sequences share
        if pooling_type is not None:
            params.embeddings, params.pooling_type = True, pooling_type
        self.pointer = lib.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise LlamaError(
                f"llama.cpp cannot make a context of {n_ctx:,} tokens: too little memory, "
                "or options that exclude each other"
            )
        # C rounds the context up; a sequence is still limited by the model's training.
        self.n_ctx: int = lib.llama_n_ctx(self.pointer)
        n_ctx_max = n_ctx_max or model.n_ctx_train
        self.n_ctx_seq: int = min(lib.llama_n_ctx_seq(self.pointer), n_ctx_max)
        self.n_batch: int = lib.llama_n_batch(self.pointer)
        self.n_seq_max = n_seq_max
        self.n_vocab, self.n_embd = model.vocab.n_tokens, model.n_embd
        self._can_cut, self._n_swa = model.can_cut_memory, model.n_swa
        self.pooling_type: int = lib.llama_pooling_type(self.pointer)
        ranks = self.pooling_type == capi.POOLING_TYPE_RANK
        self._n_pooled = model.n_scores if ranks else self.n_embd
        self._memory = lib.llama_get_memory(self.pointer)  # NULL for an encoder
        self._n_threads_max = n_threads
        self._adapters = model.adapters
        self._scales: Scales = ()
        self._threads: Any = None  # started by the first decode

    def close(self) -> None:
        """Frees the memory and buffers, and ends the threads."""
        self._lib.llama_free(self.pointer)
        if self._threads is not None:
            self._lib.lml_threads_free(self._threads)

    def set_n_threads(self, n_threads: int) -> None:
        """Sets the number of threads from the next decode on, at most as many as at the start."""
        self._lib.llama_set_n_threads(self.pointer, n_threads, n_threads)

    def set_adapters(self, scales: Scales) -> None:
        """Sets the scales of the model's LoRA adapters from the next decode on; (): all are off.

        Raises LlamaError.
        """
        if scales == self._scales:
            return
        pairs = zip(self._adapters, scales, strict=True) if scales else ()
        used = [(adapter, scale) for adapter, scale in pairs if scale]
        adapters = (ctypes.c_void_p * len(used))(*(adapter for adapter, _ in used))
        values = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        if self._lib.llama_set_adapters_lora(self.pointer, adapters, len(used), values):
            raise LlamaError("llama.cpp cannot use these adapters")
        self._scales = scales

    def decode(self, batch: Batch) -> bool:
        """Runs the batch. False: no room in memory, which is unchanged. Raises LlamaError.

        The first call starts the threads, because a sandbox covers only threads that start in it.
        """
        if self._threads is None:
            self._threads = self._lib.lml_threads_init(self.pointer, self._n_threads_max)
        code = self._lib.llama_decode(self.pointer, batch.struct)
        if code not in (0, 1):
            raise LlamaError(f"llama_decode failed with code {code}")
        return bool(code == 0)

    def can_begin(self, seq_id: int, n_tokens: int) -> bool:
        """Whether a prompt can continue after a sequence's first n_tokens.

        A recurrent memory can continue only after its last token. With a sliding window, memory may
        have dropped tokens that the window would need.
        """
        n_held = self._lib.llama_memory_seq_pos_max(self._memory, seq_id) + 1
        if n_tokens in (0, n_held):
            return True
        first = self._lib.llama_memory_seq_pos_min(self._memory, seq_id)
        return self._can_cut and bool(first <= max(0, n_tokens - self._n_swa))

    def keep(self, seq_id: int, n_tokens: int) -> None:
        """Drops a sequence's memory after its first n_tokens. `can_begin` must allow this."""
        if not self._lib.llama_memory_seq_rm(self._memory, seq_id, n_tokens, -1):
            raise LlamaError(f"llama.cpp cannot cut a sequence behind token {n_tokens:,}")

    def share(self, source_id: int, seq_id: int, n_tokens: int) -> None:
        """Makes an empty sequence begin with the first n_tokens of `source_id`."""
        self._lib.llama_memory_seq_cp(self._memory, source_id, seq_id, 0, n_tokens)

    def n_state_bytes(self, seq_id: int) -> int:
        """The size of `state`."""
        return int(self._lib.llama_state_seq_get_size(self.pointer, seq_id))

    def state(self, seq_id: int) -> bytes:
        """A copy of a sequence's memory."""
        n_bytes = self.n_state_bytes(seq_id)
        buffer = (ctypes.c_uint8 * n_bytes)()
        n = self._lib.llama_state_seq_get_data(self.pointer, buffer, n_bytes, seq_id)
        return memoryview(buffer)[:n].tobytes()

    def restore(self, seq_id: int, state: bytes) -> bool:
        """Fills an empty sequence from a copy by `state`. False: no room in memory."""
        return bool(self._lib.llama_state_seq_set_data(self.pointer, state, len(state), seq_id))

    def clear_memory(self, *, data: bool = False) -> None:
        """Forgets all sequences. `data`: also overwrite the memory with zeros.

        This removes NaNs. A NaN in a free cell would spread to other sequences: attention gives it
        the weight zero, and zero times NaN is NaN.
        """
        if self._memory:
            self._lib.llama_memory_clear(self._memory, data)

    def logprobs(self, index: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of `token`, and the n_top likeliest (token, log p), best first.

        Raises LlamaError if a logit is NaN.
        """
        tokens, values = (ctypes.c_int32 * n_top)(), (ctypes.c_float * n_top)()
        logits = self._logits(index)
        chosen = self._lib.lml_logprobs(logits, self.n_vocab, token, n_top, tokens, values)
        if chosen != chosen:  # NaN: if any logit is NaN, the softmax is NaN
            raise LlamaError(INVALID_NUMBERS)
        n = min(n_top, self.n_vocab)
        finite = [max(value, MIN_LOGPROB) for value in values[:n]]
        return max(chosen, MIN_LOGPROB), list(zip(tokens[:n], finite, strict=True))

    def check_numbers(self, index: int) -> None:
        """Raises LlamaError if a logit is NaN or positive infinity.

        A damaged model can produce NaN, maybe for one token only (a damaged row of the output
        matrix). Samplers do not detect it: they ignore NaN or choose the same token each time.
        """
        if not self._lib.lml_are_numbers(self._logits(index), self.n_vocab):
            raise LlamaError(INVALID_NUMBERS)

    @contextmanager
    def without(self, tokens: Sequence[int], index: int) -> Iterator[None]:
        """Excludes tokens at a batch index inside the `with` block."""
        logits = self._logits(index)
        saved = [logits[token] for token in tokens]
        for token in tokens:
            logits[token] = -math.inf
        try:
            yield
        finally:
            for token, logit in zip(tokens, saved, strict=True):
                logits[token] = logit

    def _logits(self, index: int) -> Any:
        logits = self._lib.llama_get_logits_ith(self.pointer, index)
        if not logits:
            raise LlamaError("llama.cpp returned no logits")
        return logits

    def embedding(self, seq_id: int) -> "array[float]":
        """The pooled embedding of a sequence in the last decode, or its scores for labels.

        Raises LlamaError.
        """
        pointer = self._lib.llama_get_embeddings_seq(self.pointer, seq_id)
        if not pointer:
            raise LlamaError("llama.cpp returned no embedding")
        return array("f", pointer[: self._n_pooled])


def _scale_rope(params: Any, rope: RopeScaling) -> None:
    """Sets the given parameters; the library takes the others from the model."""
    params.rope_scaling_type = capi.ROPE_SCALING_TYPES[rope.kind]
    values = asdict(rope)
    del values["kind"]
    for name, value in values.items():
        if value is not None:
            field = name if name.startswith("yarn_") else f"rope_{name}"
            setattr(params, field, value)
