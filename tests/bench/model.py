"""Makes the model that is measured with: the shape of a 0.5B, random weights, real tokens.

    python -m tests.bench.model           (make bench does it, once)

How fast a model runs depends on its shape and not on what it learned, so one with random
weights does, and nothing has to be fetched. The vocabulary is Qwen2's, from the pinned tree of
llama.cpp. Tokens that are not a space and a word have an embedding of zero, and as it serves as
the output matrix too, greedy sampling never takes them: an answer is words, it never ends by
itself, and it is tokenized again, as a part of a conversation, to the same tokens.
"""

import ctypes
import os
import random
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmlite.worker.llama import capi
from tests import REPOSITORY
from tests.support.gguf_writer import (
    ARRAY,
    STRING,
    TENSOR_F16,
    TENSOR_F32,
    Tensor,
    Typed,
    Value,
    encode_gguf,
)

FOLDER = REPOSITORY / "native" / "build" / "bench"
VOCABULARY = "models/ggml-vocab-qwen2.gguf"
MODEL_PATH = FOLDER / "random-0.5b-q4_0.gguf"

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF = 24, 896, 14, 2, 4864
N_CTX = 32768  # what the model claims to have been trained for
SPREAD = 0.03  # of the weights: near 1/sqrt(N_EMBD), so that a row times a vector stays near one
# A prime: no row of a matrix begins where another one did, so that all rows differ.
N_POOL = 1_048_573
ALIGNMENT = 32
FTYPE_Q4_0, FTYPE_Q8_0, FTYPE_Q4_K_S = 2, 7, 14  # enum llama_ftype; the second is the default
WORD = re.compile("\u0120[a-z]{2,12}".encode())  # a space, in GPT-2's alphabet, and a word

# ---- the vocabulary ------------------------------------------------------------------------

_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip


def read_keys(path: Path) -> dict[str, Value]:
    """Every key of a GGUF file that is trusted, as `encode_gguf` takes it."""
    with path.open("rb") as file:
        n_keys: int = struct.unpack("<4sIQQ", file.read(24))[3]
        return {_string(file).decode(): _value(file) for _ in range(n_keys)}


def _number(file: BinaryIO, letter: str) -> Any:
    return struct.unpack("<" + letter, file.read(struct.calcsize("<" + letter)))[0]


def _string(file: BinaryIO) -> bytes:
    return file.read(_number(file, "Q"))


def _value(file: BinaryIO) -> Value:
    kind: int = _number(file, "I")
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return Typed(kind, _number(file, _LETTERS[kind]))
    kind, n = _number(file, "I"), _number(file, "Q")
    if kind == STRING:
        return [_string(file) for _ in range(n)]
    layout = f"<{n}{_LETTERS[kind]}"
    return Typed(kind, struct.unpack(layout, file.read(struct.calcsize(layout))))


# ---- the weights ---------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A tensor to come: `dims` begins with the length of a row."""

    name: str
    dims: tuple[int, ...]

    @property
    def kind(self) -> int:
        """A norm or a bias is F32 in every file, because ggml computes so."""
        return TENSOR_F16 if len(self.dims) == 2 else TENSOR_F32

    @property
    def n_bytes(self) -> int:
        n_weights = self.dims[0] * (self.dims[1] if len(self.dims) == 2 else 1)
        return n_weights * (2 if self.kind == TENSOR_F16 else 4)


def matrices(n_vocab: int) -> Iterator[Matrix]:
    """All tensors of the model. There is no output matrix: the embedding serves as that too."""
    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    yield Matrix("token_embd.weight", (N_EMBD, n_vocab))
    yield Matrix("output_norm.weight", (N_EMBD,))
    layer = {
        "attn_norm.weight": (N_EMBD,),
        "attn_q.weight": (N_EMBD, N_EMBD),
        "attn_q.bias": (N_EMBD,),
        "attn_k.weight": (N_EMBD, n_kv),
        "attn_k.bias": (n_kv,),
        "attn_v.weight": (N_EMBD, n_kv),
        "attn_v.bias": (n_kv,),
        "attn_output.weight": (N_EMBD, N_EMBD),
        "ffn_norm.weight": (N_EMBD,),
        "ffn_gate.weight": (N_EMBD, N_FF),
        "ffn_up.weight": (N_EMBD, N_FF),
        "ffn_down.weight": (N_FF, N_EMBD),
    }
    for i in range(N_LAYER):
        for name, dims in layer.items():
            yield Matrix(f"blk.{i}.{name}", dims)


class Pool:
    """Random weights, drawn once and handed out in a circle: a billion draws would take hours."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        weights = [source.gauss(0.0, SPREAD) for _ in range(N_POOL)]
        self._data = struct.pack(f"<{N_POOL}e", *weights)
        self._place = 0

    def take(self, n_bytes: int) -> Iterator[bytes]:
        """The next weights, in pieces."""
        while n_bytes > 0:
            piece = self._data[self._place : self._place + n_bytes]
            self._place = (self._place + len(piece)) % len(self._data)
            n_bytes -= len(piece)
            yield piece


def weights(matrix: Matrix, pool: Pool, tokens: list[bytes]) -> Iterator[bytes]:
    """The bytes of one tensor, in pieces."""
    if matrix.name.endswith("norm.weight"):
        yield struct.pack("<f", 1.0) * matrix.dims[0]
    elif matrix.name.endswith("bias"):
        yield bytes(matrix.n_bytes)
    elif matrix.name == "token_embd.weight":
        n_row_bytes = 2 * matrix.dims[0]
        for token in tokens:
            yield from pool.take(n_row_bytes) if WORD.fullmatch(token) else (bytes(n_row_bytes),)
    else:
        yield from pool.take(matrix.n_bytes)


def write_f16(path: Path, vocabulary: Path) -> None:
    """The model in 16-bit floats, a gigabyte, written as it is drawn."""
    keys = read_keys(vocabulary)
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    metadata: dict[str, Value] = {
        "general.architecture": "qwen2",
        "general.name": "random 0.5B",
        "general.file_type": 1,
        "qwen2.block_count": N_LAYER,
        "qwen2.context_length": N_CTX,
        "qwen2.embedding_length": N_EMBD,
        "qwen2.feed_forward_length": N_FF,
        "qwen2.attention.head_count": N_HEAD,
        "qwen2.attention.head_count_kv": N_HEAD_KV,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen2.rope.freq_base": 1_000_000.0,
    }
    metadata |= {key: value for key, value in keys.items() if key.startswith("tokenizer.")}
    wanted = list(matrices(len(tokens)))
    places, end = [], 0
    for matrix in wanted:
        places.append(Tensor(matrix.name, matrix.dims, b"", matrix.kind, end))
        end += matrix.n_bytes + -matrix.n_bytes % ALIGNMENT
    pool = Pool(2026)
    with path.open("wb") as file:
        file.write(encode_gguf(metadata, places, alignment=ALIGNMENT))
        for matrix in wanted:
            file.writelines(weights(matrix, pool, tokens))
            file.write(bytes(-matrix.n_bytes % ALIGNMENT))


# ---- quantising ----------------------------------------------------------------------------


class llama_model_quantize_params(ctypes.Structure):  # noqa: N801 - C's name
    """As in llama.h; nothing but this module needs it."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def quantise(source: Path, target: Path, ftype: int) -> None:
    """The type of file, one of FTYPE_*, where llama.cpp's own `llama-quantize` would choose it."""
    lib = capi.load()
    lib.llama_model_quantize_default_params.restype = llama_model_quantize_params
    lib.llama_model_quantize_default_params.argtypes = []
    lib.llama_model_quantize.restype = ctypes.c_uint32
    lib.llama_model_quantize.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(llama_model_quantize_params)
    ]  # fmt: skip
    params = lib.llama_model_quantize_default_params()
    # The first, a middle and the last field: with another struct they would not all agree.
    found = (params.nthread, params.ftype, params.quantize_output_tensor, params.max_buf_size)
    assert found == (0, FTYPE_Q8_0, True, 8 << 30), "llama.h has another struct than this file"
    params.ftype = ftype
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize answered {code}")


def made(vocabulary: Path) -> Path:
    """The model file; it takes half a minute when it is not there yet."""
    if not MODEL_PATH.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        print("making a model of random weights, once", file=sys.stderr)
        whole, part = FOLDER / "f16.part", FOLDER / "q4_0.part"
        try:
            write_f16(whole, vocabulary)
            quantise(whole, part, FTYPE_Q4_0)
            part.rename(MODEL_PATH)
        finally:
            whole.unlink(missing_ok=True)
    return MODEL_PATH


def llama_cpp() -> Path:
    """The pinned source tree, as the tests find it."""
    return Path(os.environ.get("LMLITE_LLAMA_CPP", REPOSITORY / "native/build/llama.cpp"))


if __name__ == "__main__":
    print(made(llama_cpp() / VOCABULARY))
