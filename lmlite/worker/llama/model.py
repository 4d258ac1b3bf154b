"""Model, Vocab, Context, Batch: each C object has one owner with a close().

Here a C code becomes a meaning: negative raises LlamaError, recoverable is a value, a
returned length is honoured. Nothing here knows requests or events. A Context and its Batch
belong to one thread; a Vocab's tokenizer may be used from any.
"""

import ctypes
import functools
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lmlite.messages import RopeScaling
from lmlite.worker.llama import capi

INVALID_NUMBERS = "the model produced invalid numbers"
MIN_LOGPROB = -9999.0  # for a probability of 0: OpenAI's number, as JSON has no infinity
_GUARDS = "\n.0a東"  # they are so unlike that hardly any text makes a token with each of them
MAX_TOKENS = 1 << 26  # of a text; C answers -(1 << 31) when it cannot count them


class LlamaError(Exception):
    """A library call failed."""


class Model:
    """The weights of one GGUF, and its vocabulary."""

    def __init__(
        self,
        lib: Any,
        path: str,
        *,
        n_gpu_layers: int = -1,
        vocab_only: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Loads the file, calling on_progress with 0..1. Raises LlamaError."""
        self.lib = lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.vocab_only = vocab_only

        # The reference must outlive the call below, or C would call freed memory.
        def report(fraction: float, _data: Any) -> bool:
            if on_progress is not None:
                on_progress(fraction)
            return True

        callback = capi.progress_callback(report)
        params.progress_callback = ctypes.cast(callback, ctypes.c_void_p).value
        self.pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise LlamaError(f"llama.cpp cannot load {path}")
        self.vocab = Vocab(lib, lib.llama_model_get_vocab(self.pointer))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self.pointer)
        self.n_embd: int = lib.llama_model_n_embd_out(self.pointer)
        self.n_gpu_layers = 0
        if lib.llama_supports_gpu_offload():
            n_layers = lib.llama_model_n_layer(self.pointer) + 1  # and the output layer
            self.n_gpu_layers = n_layers if n_gpu_layers < 0 else min(n_gpu_layers, n_layers)
        self.has_encoder: bool = lib.llama_model_has_encoder(self.pointer)
        # A state that sums up all tokens cannot be cut, so no beginning of it can be shared.
        is_recurrent: bool = lib.llama_model_is_recurrent(self.pointer)
        self.can_cut_memory: bool = not (is_recurrent or lib.llama_model_is_hybrid(self.pointer))
        self.takes_cells: bool = not is_recurrent  # of memory, one for each token
        self.n_swa: int = lib.llama_model_n_swa(self.pointer)  # tokens of a sliding window, or 0

    def close(self) -> None:
        """Frees the weights; every context of this model must be closed before."""
        self.lib.llama_model_free(self.pointer)


class Vocab:
    """The tokenizer of a model: text to tokens, tokens to pieces."""

    def __init__(self, lib: Any, pointer: Any) -> None:
        self._lib = lib
        self.pointer = self._pointer = pointer
        self.n_tokens: int = lib.llama_vocab_n_tokens(pointer)
        self._adds_eos: bool = lib.llama_vocab_get_add_eos(pointer)

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        continues: bool = False,
        is_whole: bool = False,
    ) -> list[int]:
        """Tokens of the text.

        `add_special` adds what the model wants before a text (BOS), and behind one that
        `is_whole` (EOS): behind others, a completion follows. `parse_special` lets the text spell
        control tokens, and `continues` says that other text stands before this one, so that no
        space is put in between. Raises LlamaError.
        """
        for guard, before in self._guards if continues else ():
            tokens = self._tokenize(guard + text, False, parse_special)
            if tokens[: len(before)] == before:  # else a token holds the guard and some of the text
                return tokens[len(before) :]
        tokens = self._tokenize(text, add_special, parse_special)
        return tokens[:-1] if add_special and self._adds_eos and not is_whole else tokens

    @functools.cached_property
    def _guards(self) -> list[tuple[str, list[int]]]:
        """What can stand before a text that continues another, to be taken off again; its tokens.

        None where the tokenizer puts no space before the texts that it is given.
        """
        guards = [(text, self._tokenize(text, False, False)) for text in _GUARDS]
        return [(text, tokens) for text, tokens in guards if self._spelled(tokens) == f" {text}"]

    def _spelled(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        n_max = len(data) + 2  # most tokens hold a byte or more; BOS and EOS hold none
        while True:
            tokens = (ctypes.c_int32 * n_max)()
            n = self._lib.llama_tokenize(
                self._pointer, data, len(data), tokens, n_max, add_special, parse_special
            )
            if n >= 0:
                return tokens[:n]
            if not n_max < -n <= MAX_TOKENS:
                raise LlamaError("the text is too long to tokenize")
            n_max = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The token's bytes; control tokens have none unless `special`."""
        buffer = ctypes.create_string_buffer(64)
        while True:
            n: int = self._lib.llama_token_to_piece(
                self._pointer, token, buffer, len(buffer), 0, special
            )
            if n >= 0:
                return buffer.raw[:n]
            buffer = ctypes.create_string_buffer(-n)  # C asks for -n bytes

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each of some tokens, which add up to the text that they were made of."""
        pieces = [self.piece(token, special=True) for token in tokens]
        if pieces and self._has_space_in_front:
            pieces[0] = pieces[0].removeprefix(b" ")
        return pieces

    @functools.cached_property
    def _has_space_in_front(self) -> bool:
        """Whether tokenizing puts a space before a text."""
        (first, *_) = self._tokenize("a", False, False)
        return self.piece(first).startswith(b" ")

    def spelling(self, name: str) -> str | None:
        """How the token is spelt that ends (`eos`), begins (`bos`) or fills up (`pad`) a text."""
        token: int = getattr(self._lib, f"llama_vocab_{name}")(self._pointer)
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else None

    @property
    def adds_bos(self) -> bool:
        """Whether each prompt begins with the token `bos`."""
        return bool(self._lib.llama_vocab_get_add_bos(self._pointer))

    def ends_generation(self, token: int) -> bool:
        """Whether the model says with this token that it is done."""
        return bool(self._lib.llama_vocab_is_eog(self._pointer, token))

    def control_texts(self) -> list[str]:
        """How each control token is spelled: the texts that only `parse_special` understands."""
        pieces = {self.piece(token, special=True) for token in self.control_tokens}
        return sorted({piece.decode("utf-8", "replace") for piece in pieces} - {""})

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end generation."""
        return tuple(filter(self.ends_generation, range(self.n_tokens)))

    @functools.cached_property
    def control_tokens(self) -> list[int]:
        """The tokens that are no text."""
        wanted = capi.TOKEN_ATTR_CONTROL | capi.TOKEN_ATTR_UNKNOWN
        attribute, pointer = self._lib.llama_vocab_get_attr, self._pointer
        return [t for t in range(self.n_tokens) if attribute(pointer, t) & wanted]


class Batch:
    """The tokens of one decode, in arrays that live as long as the batch."""

    def __init__(self, n_max: int) -> None:
        """Room for n_max tokens, each of one sequence."""
        self.n_max = n_max
        self._seq_ids = (ctypes.c_int32 * n_max)()
        self._n_seq_ids = (ctypes.c_int32 * n_max)(*[1] * n_max)
        self._tokens = (ctypes.c_int32 * n_max)()
        self._positions = (ctypes.c_int32 * n_max)()
        self._outputs = (ctypes.c_int8 * n_max)()
        # Each row of C's seq_id points into the one flat array above.
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
        """Tokens that still fit."""
        return self.n_max - len(self)

    def clear(self) -> None:
        """Empties the batch for the next step."""
        self.struct.n_tokens = 0

    def add(self, token: int, position: int, seq_id: int, output: bool) -> int:
        """Appends a token; `output` asks for its logits, found at the returned index."""
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
        """Appends a piece of a prompt that starts at `position`; the index of its last token."""
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
    """A model at work: its memory and its compute buffers. One thread, the engine's."""

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
        """`pooling_type` makes a context for embeddings. Raises LlamaError.

        A sequence has at most n_ctx_max tokens, those that the model was trained for if None.
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
        # C pads what it was asked for; a sequence ends where the model's training did.
        self.n_ctx: int = lib.llama_n_ctx(self.pointer)
        n_ctx_max = n_ctx_max or model.n_ctx_train
        self.n_ctx_seq: int = min(lib.llama_n_ctx_seq(self.pointer), n_ctx_max)
        self.n_batch: int = lib.llama_n_batch(self.pointer)
        self.n_seq_max = n_seq_max
        self.n_vocab, self.n_embd = model.vocab.n_tokens, model.n_embd
        self._can_cut, self._n_swa = model.can_cut_memory, model.n_swa
        self.pooling_type: int = lib.llama_pooling_type(self.pointer)
        self._memory = lib.llama_get_memory(self.pointer)  # NULL for an encoder, which keeps none

    def close(self) -> None:
        """Frees memory and buffers."""
        self._lib.llama_free(self.pointer)

    def set_n_threads(self, n_threads: int) -> None:
        """How many threads the next decode uses, whatever is in its batch."""
        self._lib.llama_set_n_threads(self.pointer, n_threads, n_threads)

    def decode(self, batch: Batch) -> bool:
        """Runs the batch. False: memory has no room for it, and is as before. Raises LlamaError."""
        code = self._lib.llama_decode(self.pointer, batch.struct)
        if code not in (0, 1):
            raise LlamaError(f"llama_decode failed with code {code}")
        return bool(code == 0)

    def can_begin(self, seq_id: int, n_tokens: int) -> bool:
        """Whether a prompt can go on behind a sequence's first n_tokens.

        A recurrent memory knows only the end of all its tokens, and a sliding window may have
        forgotten what it has to see there.
        """
        n_held = self._lib.llama_memory_seq_pos_max(self._memory, seq_id) + 1
        if n_tokens in (0, n_held):
            return True
        first = self._lib.llama_memory_seq_pos_min(self._memory, seq_id)
        return self._can_cut and bool(first <= max(0, n_tokens - self._n_swa))

    def keep(self, seq_id: int, n_tokens: int) -> None:
        """Drops all of a sequence's memory behind its first n_tokens: `can_begin` must say so."""
        if not self._lib.llama_memory_seq_rm(self._memory, seq_id, n_tokens, -1):
            raise LlamaError(f"llama.cpp cannot cut a sequence behind token {n_tokens:,}")

    def share(self, source_id: int, seq_id: int, n_tokens: int) -> None:
        """Lets a sequence, whose memory is empty, begin with the first n_tokens of another."""
        self._lib.llama_memory_seq_cp(self._memory, source_id, seq_id, 0, n_tokens)

    def n_state_bytes(self, seq_id: int) -> int:
        """How large `state` would be."""
        return int(self._lib.llama_state_seq_get_size(self.pointer, seq_id))

    def state(self, seq_id: int) -> bytes:
        """A copy of what memory holds of a sequence."""
        n_bytes = self.n_state_bytes(seq_id)
        buffer = (ctypes.c_uint8 * n_bytes)()
        n = self._lib.llama_state_seq_get_data(self.pointer, buffer, n_bytes, seq_id)
        return memoryview(buffer)[:n].tobytes()

    def restore(self, seq_id: int, state: bytes) -> bool:
        """Fills a sequence, whose memory is empty, with such a copy. False: it found no room."""
        return bool(self._lib.llama_state_seq_set_data(self.pointer, state, len(state), seq_id))

    def clear_memory(self, *, data: bool = False) -> None:
        """Forgets every sequence; `data`: down to the numbers, which others may still stumble on.

        What is no number stays none, even where attention weighs it with zero.
        """
        if self._memory:
            self._lib.llama_memory_clear(self._memory, data)

    def logprobs(self, index: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """log p(token) at a batch index, and the n_top likeliest (token, log p), best first.

        Raises LlamaError for a row of logits that is not of numbers.
        """
        tokens, values = (ctypes.c_int32 * n_top)(), (ctypes.c_float * n_top)()
        logits = self._logits(index)
        chosen = self._lib.lml_logprobs(logits, self.n_vocab, token, n_top, tokens, values)
        if chosen != chosen:  # NaN anywhere in the row makes the softmax NaN
            raise LlamaError(INVALID_NUMBERS)
        n = min(n_top, self.n_vocab)
        finite = [max(value, MIN_LOGPROB) for value in values[:n]]
        return max(chosen, MIN_LOGPROB), list(zip(tokens[:n], finite, strict=True))

    def check_numbers(self, index: int) -> None:
        """Raises LlamaError for a row of logits that is not of numbers.

        A damaged model gives NaN, which samplers take for a choice, always the same one, or pass
        over; one damaged row of an output matrix gives it for one token alone.
        """
        if not self._lib.lml_are_numbers(self._logits(index), self.n_vocab):
            raise LlamaError(INVALID_NUMBERS)

    @contextmanager
    def without(self, tokens: Sequence[int], index: int) -> Iterator[None]:
        """Makes tokens impossible at a batch index, for as long as it takes to choose one."""
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
        """The pooled vector of a sequence of the last decode. Raises LlamaError."""
        pointer = self._lib.llama_get_embeddings_seq(self.pointer, seq_id)
        if not pointer:
            raise LlamaError("llama.cpp returned no embedding")
        return array("f", pointer[: self.n_embd])


def _scale_rope(params: Any, rope: RopeScaling) -> None:
    """Writes what is said of it into the parameters of a context; the library has the rest."""
    params.rope_scaling_type = capi.ROPE_SCALING_TYPES[rope.kind]
    values = asdict(rope)
    del values["kind"]
    for name, value in values.items():
        if value is not None:
            field = name if name.startswith("yarn_") else f"rope_{name}"
            setattr(params, field, value)
