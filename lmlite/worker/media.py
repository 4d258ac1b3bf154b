"""Pictures: image files -> input chunks -> embeddings -> memory, through libmtmd.

A projector file (mmproj) turns a picture into vectors that take the places of tokens. libmtmd
knows the differences between models: how many vectors, their positions, the tokens around them, and
whether they attend to each other. `MediaEncoder.read` belongs to the reader's thread, all else to
the engine's.
"""

import ctypes
import hashlib
import os
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from lmlite.worker.llama import capi, mtmd
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.memory.lanes import picture_ids

CONTENT_BITS = 47  # of a picture's hash in its ids, see `picture_ids`


class UnreadableImage(Exception):
    """The library cannot decode the file, or the model does not accept the picture."""


@dataclass(frozen=True, eq=False)
class InputChunk:
    """A part of a picture, encoded and read at once; large pictures may have several parts."""

    pointer: Any
    owner: "_Owner"  # keeps `pointer` valid
    key: bytes  # identifies its content
    n_tokens: int  # cells of memory that it takes
    n_positions: int  # fewer than n_tokens if the model's positions are 2D
    label: str  # shown in its place in logs and dry runs


class _Owner:
    """Frees the library's chunks when the last InputChunk that refers to it is gone.

    Choices of one request share a picture, and may end in any order.
    """

    def __init__(self, lib: Any, chunks: Any) -> None:
        weakref.finalize(self, lib.mtmd_input_chunks_free, chunks)


class Picture:
    """A decoded image file, as a part of a prompt."""

    def __init__(self, lib: Any, chunks: Any, digest: bytes, size: str) -> None:
        """Takes over the library's chunks."""
        owner = _Owner(lib, chunks)
        self.ids: list[int] = []  # per position: a token id, or one of `picture_ids`
        self.chunks: list[tuple[int, InputChunk]] = []  # (its first index in ids, chunk)
        for number in range(lib.mtmd_input_chunks_size(chunks)):
            pointer = lib.mtmd_input_chunks_get(chunks, number)
            n_tokens = lib.mtmd_input_chunk_get_n_tokens(pointer)
            if lib.mtmd_input_chunk_get_type(pointer) == mtmd.INPUT_CHUNK_TYPE_TEXT:
                n = ctypes.c_size_t()
                self.ids += lib.mtmd_input_chunk_get_tokens_text(pointer, n)[: n.value]
                continue
            n_positions = lib.mtmd_input_chunk_get_n_pos(pointer)
            key = hashlib.sha256(digest + bytes([number])).digest()
            label = f"<image {size} sha256:{digest.hex()[:8]} {n_tokens} tokens>"
            chunk = InputChunk(pointer, owner, key, n_tokens, n_positions, label)
            self.chunks.append((len(self.ids), chunk))
            content = int.from_bytes(key[:8], "big") >> (64 - CONTENT_BITS)
            self.ids += picture_ids(content, n_positions)


class MediaEncoder:
    """A loaded projector file, and a cache of embeddings of recent pictures."""

    def __init__(self, model: Model, path: str, *, n_threads: int, max_bytes: int) -> None:
        """Loads the file. `max_bytes` limits the cached embeddings. Raises LlamaError."""
        self._lib = lib = model.lib
        lib.mtmd_helper_log_set(ctypes.cast(lib.lml_log, ctypes.c_void_p), None)
        params = lib.mtmd_context_params_default()
        params.n_threads, params.print_timings = n_threads, False
        params.use_gpu = model.n_gpu_layers > 0
        self._pointer = lib.mtmd_init_from_file(os.fsencode(path), model.pointer, params)
        if not self._pointer:
            raise LlamaError(f"llama.cpp cannot load {path}, or it is made for another model")
        if not lib.mtmd_support_vision(self._pointer):
            lib.mtmd_free(self._pointer)
            raise LlamaError(f"{path} is not for pictures")
        self._n_embd: int = lib.llama_model_n_embd_inp(model.pointer)
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Any] = OrderedDict()  # embeddings by chunk key, oldest first

    def close(self) -> None:
        """Frees the projector; existing pictures stay valid."""
        self._lib.mtmd_free(self._pointer)

    def read(self, data: bytes) -> Picture:
        """The picture in an image file. Raises UnreadableImage."""
        bitmap = self._from_webp(data) if data.startswith(b"RIFF") else self._from_others(data)
        if not bitmap:
            raise UnreadableImage("the file is damaged")
        part = ctypes.pointer(capi.mtmd_input_part(None, bitmap))
        chunks = self._lib.mtmd_input_chunks_init()
        code = self._lib.mtmd_tokenize_from_parts(
            self._pointer, chunks, ctypes.pointer(part), 1, False
        )
        sides = self._lib.mtmd_bitmap_get_nx, self._lib.mtmd_bitmap_get_ny
        size = "x".join(str(side(bitmap)) for side in sides)
        self._lib.mtmd_bitmap_free(bitmap)
        if code != 0:
            self._lib.mtmd_input_chunks_free(chunks)
            raise UnreadableImage("the model takes no picture of this form")
        return Picture(self._lib, chunks, hashlib.sha256(data).digest(), size)

    def _from_others(self, data: bytes) -> Any:
        """The library's bitmap of a PNG, JPEG, GIF or BMP file; None if the file is damaged."""
        options = self._lib.mtmd_helper_init_opt_default()
        return self._lib.mtmd_helper_bitmap_init_from_buf(
            self._pointer, data, len(data), False, options
        ).bitmap

    def _from_webp(self, data: bytes) -> Any:
        """The bitmap of a WebP file, which libmtmd itself cannot read; None if it is damaged."""
        width, height = ctypes.c_int32(), ctypes.c_int32()
        pixels = self._lib.lml_webp_decode(data, len(data), width, height)
        if not pixels:
            return None
        bitmap = self._lib.mtmd_bitmap_init(width.value, height.value, pixels)
        self._lib.lml_free(pixels)
        return bitmap

    def is_read_at_once(self, chunk: InputChunk) -> bool:
        """Whether a chunk must fit one batch, because all of its tokens attend to each other."""
        return bool(self._lib.mtmd_decode_use_non_causal(self._pointer, chunk.pointer))

    def encode(self, context: Context, chunk: InputChunk, position: int, seq_id: int) -> bool:
        """Encodes a chunk and reads it into a sequence's memory. Raises LlamaError.

        False: memory is full, and may hold a part of the chunk.
        """
        end = ctypes.c_int32()
        code = self._lib.mtmd_helper_decode_image_chunk(
            self._pointer, context.pointer, chunk.pointer, self._embeddings(chunk),
            position, seq_id, context.n_batch, end, None, None,
        )  # fmt: skip
        if code not in (0, 1):
            raise LlamaError(f"a picture cannot be decoded (code {code})")
        return bool(code == 0)

    def _embeddings(self, chunk: InputChunk) -> Any:
        """A chunk's vectors, from the cache or encoded now: float[n_tokens * n_embd]."""
        if chunk.key in self._kept:
            self._kept.move_to_end(chunk.key)
            return self._kept[chunk.key]
        if self._lib.mtmd_encode_chunk(self._pointer, chunk.pointer) != 0:
            raise LlamaError("a picture cannot be encoded")
        n = chunk.n_tokens * self._n_embd
        vectors = (ctypes.c_float * n)()
        source = self._lib.mtmd_get_output_embd(self._pointer)
        ctypes.memmove(vectors, source, ctypes.sizeof(vectors))
        self._kept[chunk.key] = vectors
        while sum(map(ctypes.sizeof, self._kept.values())) > self._max_bytes:
            self._kept.popitem(last=False)
        return vectors
