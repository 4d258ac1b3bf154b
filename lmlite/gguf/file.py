"""Reads a GGUF file's description, and checks whether it may be loaded, without the library.

llama.cpp checks a file's format but trusts its values: two equal tokens, a model without layers or
a negative epsilon crash the process that loads it. `read_model_file` looks for all such faults
first. It reads only the header, never the weights. Any thread may call it.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lmlite.gguf.header import (
    BOOL,
    STRING,
    UINT16,
    Fault,
    Header,
    Metadata,
    Tensor,
    identity,
    read_header,
    refusal,
)
from lmlite.gguf.shape import WITHOUT_ATTENTION, Shape, shape_of
from lmlite.messages import ModelPart, Ranker

MAX_PARTS = 1000
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_EMBEDDING = 131_072
MAX_PLAMO_TOKEN = 256  # bytes

# enum llama_ftype: the names without "mostly".
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

# llama.cpp's names of sampling values (llama-arch.cpp) -> OpenAI's names.
_SAMPLING_KEYS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
                  "penalty_repeat": "repeat_penalty"}  # fmt: skip

_POOLINGS = ("none", "mean", "cls", "last", "rank")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_ENCODERS = {"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed",
             "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe"}  # fmt: skip
_DRAFT = "is a draft model, which only helps another model and cannot run alone"
_NOT_SERVED = {
    "clip": "is a projector for images (mmproj), which belongs to a model but is not one",
    "t5": "is an encoder-decoder model (T5), which is not served",
    "t5encoder": "is a T5 encoder; only encoders of the BERT family are served",
    "eagle3": _DRAFT,
    "dflash": _DRAFT,
}

_BYTE_TOKEN = 6  # LLAMA_TOKEN_TYPE_BYTE
# Tokenizers that need a token for each byte, and the spelling of this token. If a token is missing,
# an unknown character crashes the process ("llama") or causes an endless loop ("rwkv").
_BYTE_SPELLINGS: dict[str, Callable[[int], str]] = {
    "llama": "<0x{:02X}>".format,
    "rwkv": lambda byte: repr(bytes([byte]))[2:-1],
}
_TOKEN_IDS = ("bos", "eos", "eot", "eom", "unknown")


class _Tokenizer(NamedTuple):
    """llama.cpp's defaults for a kind of tokenizer: which tokens begin and end a text."""

    first: int | None
    adds_first: bool
    last: int | None
    adds_last: bool
    last_key: str = "eos"
    asks_the_file: bool = True  # the file's keys add_..._token override adds_first and adds_last


_BPE = _Tokenizer(11, True, 11, False)
_TOKENIZERS = {
    "llama": _Tokenizer(1, True, 2, False),
    "bert": _Tokenizer(101, True, 102, True, "seperator", asks_the_file=False),
    "gpt2": _BPE,
    "hybriddna": _BPE,
    "whitespace": _BPE,
    "gemma4": _Tokenizer(None, True, None, False),
    "t5": _Tokenizer(None, False, 1, True),
    "plamo2": _Tokenizer(1, False, 2, False),
    "rwkv": _Tokenizer(None, False, None, False),
}


@dataclass(frozen=True)
class ModelFile:
    """A model file that may be loaded."""

    path: str
    architecture: str
    name: str
    quantisation: str
    n_ctx_train: int
    n_vocab: int
    chat_template: str | None
    sampling: dict[str, float]  # recommended by the model's authors; OpenAI's names; unchecked
    pooling: str  # one of _POOLINGS, or "unspecified"
    embeds_only: bool  # an encoder or a reranking model, which cannot generate text
    n_tensor_bytes: int
    n_params: int  # weights of all tensors
    mtime: int  # whole seconds
    parts: tuple[ModelPart, ...]  # the model's files in order; several if the model is split
    shape: Shape
    ranker: Ranker | None = None  # the kind of a reranking model


def read_model_file(path: str | os.PathLike[str], *, vocab_only: bool = False) -> ModelFile:
    """The file's description. Raises ModelFileError if it must not be loaded.

    `vocab_only` permits a file without weights, such as the vocabularies in llama.cpp's sources.
    """
    first = read_header(os.fspath(path))
    try:
        paths = _part_paths(first)
        parts = [first, *(_read_later_part(paths, number) for number in range(1, len(paths)))]
        return _describe(parts, vocab_only)
    except Fault as fault:
        raise refusal(first.path, fault) from None


# ---- the parts of a split model ------------------------------------------------------------

PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def _part_paths(first: Header) -> list[str]:
    """The paths of all files of the model, in order; one path unless the model is split."""
    n_parts = first.metadata.whole("split.count", 0, MAX_PARTS) or 1
    if n_parts == 1:
        return [first.path]
    number = first.metadata.need("split.no", 0, n_parts - 1)
    folder, name = os.path.split(first.path)
    match = PART_NAME.fullmatch(name)
    if match is None or (int(match[2]), int(match[3])) != (number + 1, n_parts):
        raise Fault(f"is part {number + 1} of {n_parts}, but its name does not end in "
                    f"-{number + 1:05}-of-{n_parts:05}.gguf")  # fmt: skip
    names = [f"{match[1]}-{i:05}-of-{n_parts:05}.gguf" for i in range(1, n_parts + 1)]
    if number != 0:
        raise Fault(f"is part {number + 1} of {n_parts}; the one to load is {names[0]}")
    return [os.path.join(folder, name) for name in names]


def _read_later_part(paths: list[str], number: int) -> Header:
    part = read_header(paths[number])
    for key, expected in (("split.no", number), ("split.count", len(paths))):
        value = part.metadata.get(key)
        # For other keys, llama.cpp reports a wrong type; for these, a wrong type crashes it.
        if value is None or (value.kind, value.n) != (UINT16, None):
            raise refusal(part.path, f"is not a part of a model: it has no {key} of 16 bits")
        if value.numbers() != (expected,):
            raise refusal(part.path, f"says {key} {value.numbers()[0]} instead of {expected}")
    return part


# ---- values that would crash the process ---------------------------------------------------


def _describe(parts: list[Header], vocab_only: bool) -> ModelFile:
    """Checks the values. llama.cpp uses only the metadata of the first part."""
    first, metadata = parts[0], parts[0].metadata
    architecture = metadata.text("general.architecture") or ""
    if not re.fullmatch(r"[a-z0-9_.-]{1,64}", architecture):
        raise Fault("names no architecture")
    if architecture in _NOT_SERVED:
        raise Fault(_NOT_SERVED[architecture])
    metadata.architecture = architecture
    tensors = [tensor for part in parts for tensor in part.tensors]
    if tensors or not vocab_only:
        _check_tensors(tensors, metadata, len(parts))
        widths = {tensor.name: tensor.dims[-1] for tensor in tensors}
        _check_layers(metadata, widths)
    _check_vocabulary(metadata, first.tokens)
    is_causal = metadata.find(".attention.causal")
    is_encoder = architecture in _ENCODERS or bool(is_causal and is_causal.numbers() == (False,))
    pooling = metadata.whole(".pooling_type", 0, len(_POOLINGS) - 1)
    ranks = pooling == _POOLINGS.index("rank")
    if ranks:
        _check_scores(metadata, tensors)
    stem = os.path.basename(first.path).removesuffix(".gguf")
    return ModelFile(
        path=first.path,
        architecture=architecture,
        name=metadata.text("general.name") or stem,
        quantisation=_quantisation(metadata, tensors),
        n_ctx_train=metadata.whole(".context_length", 1, 1 << 26) or 0,
        n_vocab=len(first.tokens),
        chat_template=metadata.text("tokenizer.chat_template"),
        sampling=_sampling(metadata),
        pooling="unspecified" if pooling is None else _POOLINGS[pooling],
        embeds_only=is_encoder or ranks,
        n_tensor_bytes=sum(tensor.n_bytes for tensor in tensors),
        n_params=sum(tensor.n_weights for tensor in tensors),
        mtime=int(first.status.st_mtime),
        parts=tuple(ModelPart(part.path, *identity(part.status)) for part in parts),
        shape=shape_of(metadata, tensors),
        ranker=("encoder" if is_encoder else "causal") if ranks else None,
    )


def _sampling(metadata: Metadata) -> dict[str, float]:
    values = {name: metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING_KEYS.items()}
    return {
        name: round(value.numbers()[0], 6)  # 0.7 is stored as 0.699999988
        for name, value in values.items()
        if value is not None and value.n is None and value.kind not in (BOOL, STRING)
    }


def _quantisation(metadata: Metadata, tensors: list[Tensor]) -> str:
    """The type that the file names, else the type of most of its weights."""
    file_type = metadata.whole("general.file_type", 0, (1 << 32) - 1)
    if file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    n_weights: Counter[str] = Counter()
    for tensor in tensors:
        n_weights[tensor.type_name] += tensor.n_weights
    return n_weights.most_common(1)[0][0] if n_weights else "unknown"


def _check_tensors(tensors: list[Tensor], metadata: Metadata, n_parts: int) -> None:
    if not tensors:
        raise Fault("has no weights")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise Fault("has two tensors of one name")
    for tensor in tensors:
        # ggml supports element-wise addition and multiplication only for 32-bit floats.
        is_vector = len(tensor.dims) == 1 or tensor.name.endswith(("_norm.weight", ".bias"))
        if is_vector and tensor.type_name != "F32":
            raise Fault(f"has the vector {tensor.name!r} in {tensor.type_name} instead of F32")
    if n_parts > 1 and metadata.need("split.tensors.count", 0, 1 << 31) != len(tensors):
        raise Fault(f"has parts of other models: {len(tensors):,} tensors were found")


def _check_layers(metadata: Metadata, widths: dict[str, int]) -> None:
    n_layer = metadata.need(".block_count", 1, MAX_LAYERS)
    n_embd = metadata.need(".embedding_length", 1, MAX_EMBEDDING)
    # Only a dense layer after the pooling can make vectors longer than the model's own.
    has_dense = any(name.startswith("dense_") for name in widths)
    metadata.whole(".embedding_length_out", 1, MAX_EMBEDDING if has_dense else n_embd)
    metadata.need(".context_length", 1, 1 << 26)
    metadata.whole(".nextn_predict_layers", 0, n_layer)
    metadata.per_layer(".feed_forward_length", n_layer, 0, 1 << 24)
    n_heads = metadata.per_layer(".attention.head_count", n_layer, 0, 4096)
    n_kv_heads = metadata.per_layer(".attention.head_count_kv", n_layer, 0, 4096)
    head_count = metadata.full(".attention.head_count")
    if not any(n_heads) and not metadata.architecture.startswith(WITHOUT_ATTENTION):
        raise Fault(f"has no {head_count}")
    if any(n_kv and n % n_kv for n, n_kv in zip(n_heads, n_kv_heads, strict=True)):
        raise Fault(f"has an {head_count} that head_count_kv does not divide")
    if metadata.is_list(".attention.head_count_kv"):
        _check_key_sizes(metadata, n_embd // max(1, *n_heads), n_kv_heads, widths)
    if n_heads[0]:
        _check_rotation(metadata, n_embd // n_heads[0])
    _check_experts(metadata, n_layer)
    scaling = metadata.text(".rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise Fault(f"has the unknown {metadata.full('.rope.scaling.type')} {scaling[:64]!r}")
    for key, value in metadata.items():
        if key.endswith("_epsilon") and not all(0 <= eps <= 1 for eps in value.numbers()):
            raise Fault(f"has a {key} that is not from 0 to 1")


def _check_scores(metadata: Metadata, tensors: list[Tensor]) -> None:
    """Checks that a reranking model computes as many scores as llama.cpp reads of each text."""
    n_rows = {tensor.name: tensor.dims[1] if tensor.dims[1:] else 1 for tensor in tensors}
    n_scores = n_rows.get("cls.output.weight", n_rows.get("cls.weight"))
    labels = metadata.find(".classifier.output_labels")
    n_labels = (labels.n if labels else None) or 1
    if n_scores != n_labels:
        raise Fault(f"ranks texts, but has {n_scores or 'no'} scores for {n_labels} labels")


def _check_key_sizes(
    metadata: Metadata, head_size: int, n_kv_heads: list[int], widths: dict[str, int]
) -> None:
    """Checks key sizes if heads differ by layer: the library checks only the first layer."""
    sizes = {head_size}
    for key in (".attention.key_length", ".attention.key_length_swa"):
        sizes |= {*metadata.wholes(key, 0, MAX_EMBEDDING)}
    for layer, n_kv in enumerate(n_kv_heads):
        width = widths.get(f"blk.{layer}.attn_k.weight")
        if width is not None and width not in {n_kv * size for size in sizes}:
            raise Fault(f"has keys of {width} numbers in layer {layer} for {n_kv} heads")


def _check_rotation(metadata: Metadata, head_size: int) -> None:
    """Checks that heads have an even size: RoPE rotates pairs of numbers."""
    n_rot = head_size
    for key in (".attention.key_length", ".rope.dimension_count"):
        given = metadata.whole(key, 0, MAX_EMBEDDING)
        n_rot = n_rot if given is None else given
    if n_rot % 2:
        raise Fault(f"has heads of {n_rot} numbers to rotate, which is odd")


def _check_experts(metadata: Metadata, n_layer: int) -> None:
    """Checks what llama.cpp asserts about a mixture of experts."""
    n_experts = metadata.whole(".expert_count", 0, MAX_EXPERTS) or 0
    if metadata.architecture.startswith("hunyuan") and n_experts <= 1:
        return  # llama.cpp ignores the experts of such a model
    n_used = max(metadata.per_layer(".expert_used_count", n_layer, 0, n_experts))
    if n_experts and not n_used:
        raise Fault(f"has {n_experts} experts but uses none")
    n_groups = metadata.whole(".expert_group_count", 0, max(0, n_experts - 1)) or 0
    if n_groups > 1:
        metadata.need(".expert_group_used_count", 1, n_groups - 1)
        if n_experts % n_groups:
            raise Fault(f"has {n_experts} experts in {n_groups} groups")


def _check_vocabulary(metadata: Metadata, tokens: list[bytes]) -> None:
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in _TOKENIZERS:
        raise Fault(f"has the tokenizer {kind[:64]!r}, which cannot be used" if kind else
                    "has no tokenizer.ggml.model")  # fmt: skip
    if not tokens:
        raise Fault("has no vocabulary")
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        if key in metadata and metadata[key].n != len(tokens):
            raise Fault(f"has {metadata[key].n or 0:,} {key} for {len(tokens):,} tokens")
    unique = _unique(tokens)
    _check_special_tokens(metadata, _TOKENIZERS[kind], len(tokens))
    token_types = metadata.get("tokenizer.ggml.token_type")
    n_byte_tokens = token_types.numbers().count(_BYTE_TOKEN) if token_types else 0
    if kind == "bert" and n_byte_tokens:
        raise Fault("has byte tokens, which a bert tokenizer cannot have")
    # The time to build this tokenizer's table grows with the cube of a token's length.
    if kind == "plamo2" and max(map(len, tokens)) > MAX_PLAMO_TOKEN:
        raise Fault(f"has a plamo2 token of more than {MAX_PLAMO_TOKEN} bytes")
    for byte in range(256) if kind in _BYTE_SPELLINGS else ():
        if bytes([byte]) not in unique and _BYTE_SPELLINGS[kind](byte).encode() not in unique:
            raise Fault(f"has a vocabulary of {kind!r} without a token for the byte {byte}")


def _unique(tokens: list[bytes]) -> set[bytes]:
    """The tokens as llama.cpp reads them: cut at a zero byte, empty ones numbered. Raises Fault."""
    texts = [text.split(b"\0", 1)[0] if b"\0" in text else text for text in tokens]
    unique = {text or b"[EMPTY_%d]" % i for i, text in enumerate(texts)}
    if len(unique) < len(tokens):
        twice = next((text for text, n in Counter(texts).items() if n > 1 and text), b"[EMPTY_")
        raise Fault(f"has the token {twice[:64].decode(errors='replace')!r} twice")
    return unique


def _check_special_tokens(metadata: Metadata, tokenizer: _Tokenizer, n_vocab: int) -> None:
    for name in _TOKEN_IDS:
        metadata.whole(f"tokenizer.ggml.{name}_token_id", 0, n_vocab - 1)
    ends = (
        ("bos", "add_bos_token", tokenizer.first, tokenizer.adds_first),
        (tokenizer.last_key, "add_eos_token", tokenizer.last, tokenizer.adds_last),
    )
    for name, adds_key, default, is_added in ends:
        adds = metadata.get(f"tokenizer.ggml.{adds_key}") if tokenizer.asks_the_file else None
        token = metadata.whole(f"tokenizer.ggml.{name}_token_id", 0, n_vocab - 1)
        token = default if token is None else token
        if (any(adds.numbers()) if adds else is_added) and (token is None or token >= n_vocab):
            raise Fault(f"adds a {name} token to every text, but has none")
