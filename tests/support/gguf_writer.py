"""A GGUF writer in one page, and a small model made with it.

A GGUF file has four parts, one after the other, with all numbers little-endian:

    "GGUF", version, how many tensors, how many keys
    the keys:     name, type, value                  (what the model is)
    the tensors:  name, shape, type, place           (where its weights are)
    the weights:  each padded to a multiple of the alignment

A string is its length in 64 bits and its bytes; an array is the type of its elements, their
number in 64 bits, and the elements. That is all: `write_gguf` is the proof. Tests can replace every
count and offset with a false one.
"""

import functools
import math
import os
import random
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Path = str | os.PathLike[str]

# enum gguf_type
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LETTERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?",
            U64: "Q", I64: "q", F64: "d"}  # fmt: skip

# enum ggml_type: the plain floats, and the simplest quantized type
TENSOR_F32, TENSOR_F16, TENSOR_Q4_0 = 0, 1, 2
_TENSOR_LETTERS = {TENSOR_F32: "f", TENSOR_F16: "e"}
_BYTES_PER_BLOCK = {TENSOR_F32: (1, 4), TENSOR_F16: (1, 2), TENSOR_Q4_0: (32, 18)}

# enum llama_token_type
NORMAL, CONTROL = 1, 3

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Typed(NamedTuple):
    """A value with a type other than the usual one for its Python type."""

    kind: int
    value: object


Plain = bool | int | float | str | bytes
Value = Plain | Sequence[Plain] | Typed


class Tensor(NamedTuple):
    """Weights; as in ggml, `dims` starts with the length of a row."""

    name: str
    dims: Sequence[int]
    data: bytes
    kind: int = TENSOR_F32
    offset: int | None = None  # None: directly after the previous tensor


def tensor(name: str, dims: Sequence[int], weights: Sequence[float], kind: int) -> Tensor:
    """A tensor of 32-bit or 16-bit floats."""
    data = struct.pack(f"<{len(weights)}{_TENSOR_LETTERS[kind]}", *weights)
    return Tensor(name, dims, data, kind)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> None:
    """Writes the file; the version and the counts can be false."""
    data = encode_gguf(metadata, tensors, version=version, n_keys=n_keys, n_tensors=n_tensors)
    with open(path, "wb") as file:
        file.write(data)


def encode_gguf(
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """The bytes of a GGUF file. An alignment other than 32 adds the key `general.alignment`."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(metadata) if n_keys is None else n_keys,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts)
    header += b"".join(string(key) + encode_value(value) for key, value in metadata.items())
    places, weights = b"", []
    end = 0
    for item in tensors:
        places += _tensor_info(item, end if item.offset is None else item.offset)
        weights.append(padded(item.data, alignment))
        end += len(weights[-1])
    return padded(header + places, alignment) + b"".join(weights)


def write_hollow(
    path: Path,
    metadata: Mapping[str, Value],
    shapes: Mapping[str, Sequence[int]],
    matrix_kind: int = TENSOR_F16,
) -> None:
    """A model of any size that takes no disk space: its weights are a hole in the file."""
    tensors, end = [], 0
    for name, dims in shapes.items():
        is_vector = len(dims) == 1 or "conv" in name or name.endswith("ssm_a")
        kind = TENSOR_F32 if is_vector else matrix_kind
        tensors.append(Tensor(name, dims, b"", kind, end))
        n_numbers, n_bytes = _BYTES_PER_BLOCK[kind]
        end += math.prod(dims) // n_numbers * n_bytes
        end += -end % 32
    header = encode_gguf(metadata, tensors)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + end)


def _tensor_info(item: Tensor, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(item.dims)}Q", len(item.dims), *item.dims)
    return string(item.name) + shape + struct.pack("<IQ", item.kind, offset)


def padded(data: bytes, alignment: int) -> bytes:
    """The data, padded with zeros to a multiple of the alignment."""
    return data + bytes(-len(data) % alignment)


def string(text: str | bytes) -> bytes:
    """A length and that many bytes."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Value) -> bytes:
    """A type and a value: str, bool, int (32 bits), float (32 bits), a list of those, or Typed."""
    kind, content = value if isinstance(value, Typed) else (None, value)
    if isinstance(content, str | bytes):
        return struct.pack("<I", STRING) + string(content)
    if isinstance(content, Sequence):
        kind = _usual_kind(content[0] if content else 0, I32) if kind is None else kind
        head = struct.pack("<IIQ", ARRAY, kind, len(content))
        if kind == STRING:
            return head + b"".join(map(string, content))
        return head + struct.pack(f"<{len(content)}{_LETTERS[kind]}", *content)
    kind = _usual_kind(content, U32) if kind is None else kind
    return struct.pack(f"<I{_LETTERS[kind]}", kind, content)


def _usual_kind(value: object, whole: int) -> int:
    kinds = {bool: BOOL, int: whole, float: F32, str: STRING, bytes: STRING}
    return kinds[type(value)]


# ---- a vocabulary for all bytes ------------------------------------------------------------


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """GPT-2's letter for each byte: printable bytes stand for themselves, others start at 256."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    invisible = [byte for byte in range(256) if byte not in visible]
    return tuple(chr(byte) if byte in visible else chr(256 + invisible.index(byte))
                 for byte in range(256))  # fmt: skip


def spelled(text: str) -> str:
    """Text in that alphabet: a space becomes a G with a dot."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def bpe_vocabulary(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(tokens, merges): the 256 bytes, and the beginnings of the words up to each whole word.

    Every merge adds one letter to a beginning, so " model" grows from a space, " m", " mo".
    """
    tokens = [*byte_alphabet()]
    merges = []
    known = set(tokens)
    for word in map(spelled, words):
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.add(word[:end])
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return tokens, merges


SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer_metadata(words: Sequence[str], chat_template: str | None) -> dict[str, Value]:
    """The keys of a tokenizer of GPT-2's kind with three control tokens for chats."""
    tokens, merges = bpe_vocabulary(words)
    n_plain = len(tokens)
    tokens += SPECIAL_TOKENS
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * n_plain + [CONTROL] * len(SPECIAL_TOKENS),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": n_plain,
        "tokenizer.ggml.eos_token_id": n_plain + 2,
        "tokenizer.ggml.padding_token_id": n_plain,
        "tokenizer.ggml.add_bos_token": False,
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    return metadata


# ---- a llama of any size -------------------------------------------------------------------


class Shape(NamedTuple):
    """The sizes of a llama."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 128
    n_ctx: int = 512


def llama_metadata(shape: Shape, name: str, kind: int) -> dict[str, Value]:
    """The keys that describe the layers."""
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": kind,  # both enums have the same numbers for these two types
        "llama.context_length": shape.n_ctx,
        "llama.embedding_length": shape.n_embd,
        "llama.block_count": shape.n_layer,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_head,
        "llama.attention.head_count_kv": shape.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.n_embd // shape.n_head,
        "llama.rope.freq_base": 10000.0,
    }


def layer_shapes(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer; the norms have one dimension."""
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (shape.n_embd,),
        "attn_q": (shape.n_embd, shape.n_embd),
        "attn_k": (shape.n_embd, n_kv),
        "attn_v": (shape.n_embd, n_kv),
        "attn_output": (shape.n_embd, shape.n_embd),
        "ffn_norm": (shape.n_embd,),
        "ffn_gate": (shape.n_embd, shape.n_ff),
        "ffn_up": (shape.n_embd, shape.n_ff),
        "ffn_down": (shape.n_ff, shape.n_embd),
    }
    return {f"blk.{layer}.{name}.weight": dims for name, dims in shapes.items()}


def tiny_llama_parts(
    *,
    seed: int = 0,
    shape: Shape | None = None,
    kind: int = TENSOR_F32,
    chat_template: str | None = CHATML,
    name: str = "tiny-llama",
) -> tuple[dict[str, Value], list[Tensor]]:
    """A llama with random weights: it loads, and always generates the same noise."""
    shape = shape or Shape()
    words = (" the", " and", " of", " to", " in", "ing", "er", "ed", "Hello", " model")
    metadata = llama_metadata(shape, name, kind) | tokenizer_metadata(words, chat_template)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.n_embd, len(tokens)),
        "output_norm.weight": (shape.n_embd,),
        "output.weight": (shape.n_embd, len(tokens)),
    }
    for layer in range(shape.n_layer):
        shapes |= layer_shapes(shape, layer)
    source = random.Random(seed)
    return metadata, [_random_tensor(source, *item, kind) for item in shapes.items()]


def _random_tensor(source: random.Random, name: str, dims: tuple[int, ...], kind: int) -> Tensor:
    # Norms are 1, to have no effect, and F32, the only type that ggml can multiply by here.
    if len(dims) == 1:
        return tensor(name, dims, [1.0] * dims[0], TENSOR_F32)
    n_rows = dims[1]
    spread = dims[0] ** -0.5
    weights = [source.gauss(0.0, spread) for _ in range(dims[0] * n_rows)]
    return tensor(name, dims, weights, kind)


def tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    shape: Shape | None = None,
    kind: int = TENSOR_F32,
    chat_template: str | None = CHATML,
    name: str = "tiny-llama",
) -> None:
    """Writes the llama of `tiny_llama_parts` to a file of about half a megabyte."""
    metadata, tensors = tiny_llama_parts(
        seed=seed, shape=shape, kind=kind, chat_template=chat_template, name=name
    )
    write_gguf(path, metadata, tensors)
