"""Two small reranking models with random weights, and their scores computed without llama.cpp.

A BERT scores the first token of a pair with two dense layers. A Qwen3 scores the last token with
one layer for the labels yes and no, and a softmax. The functions `bert_scores` and `qwen3_scores`
are the models' own formulas, in lists of floats.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from tests.support.gguf_writer import (
    TENSOR_F32,
    Tensor,
    Value,
    tensor,
    tokenizer_metadata,
    write_gguf,
)

N_EMBD, N_HEAD, N_KV, N_FF, N_LAYER, N_CTX, EPS = 32, 2, 1, 48, 2, 128, 1e-6
HEAD = N_EMBD // N_HEAD
WORDS = ["what", "is", "a", "panda", "bear", "the", "of", "china", "it", "eats", "bamboo", "hi",
         "paris", "capital", "france", "city", "in"]  # fmt: skip
TEMPLATE = "<|im_start|>Query: {query}\nDocument: {document}<|im_end|>\n"

Vector = list[float]
Matrix = list[Vector]
Weights = dict[str, Matrix]  # a vector is a matrix with one row


def _layers(shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"blk.{i}.{name}": dims for i in range(N_LAYER) for name, dims in shapes.items()}


def _made(shapes: dict[str, tuple[int, int]], seed: int) -> Weights:
    """Random rows; norms are near 1."""
    source = random.Random(seed)

    def row(name: str, n: int) -> Vector:
        centre, spread = (1, 0.2) if name.endswith("norm.weight") else (0, 1.5 * n**-0.5)
        return [source.gauss(centre, spread) for _ in range(n)]

    return {name: [row(name, n) for _ in range(rows)] for name, (n, rows) in shapes.items()}


def _write(path: Path, metadata: dict[str, Value], weights: Weights) -> None:
    tensors: list[Tensor] = []
    for name, rows in weights.items():
        dims = (len(rows[0]),) if len(rows) == 1 else (len(rows[0]), len(rows))
        tensors.append(tensor(name, dims, [x for row in rows for x in row], TENSOR_F32))
    write_gguf(path, metadata, tensors)


def _metadata(architecture: str, **keys: Value) -> dict[str, Value]:
    about: dict[str, Value] = {
        "context_length": N_CTX, "embedding_length": N_EMBD, "block_count": N_LAYER,
        "feed_forward_length": N_FF, "attention.head_count": N_HEAD, "pooling_type": 4,
    }  # fmt: skip
    about |= {key.replace("__", "."): value for key, value in keys.items()}
    return {"general.architecture": architecture, "general.name": architecture} | {
        f"{architecture}.{key}": value for key, value in about.items()
    }


# ---- the files -----------------------------------------------------------------------------


def bert(path: Path) -> Weights:
    """An encoder with the tokens [CLS] query [SEP] document."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{word}" for word in WORDS)]
    metadata = _metadata("bert", attention__layer_norm_epsilon=EPS, attention__causal=False) | {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 3] + [1] * len(WORDS),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }
    square, vector = (N_EMBD, N_EMBD), (N_EMBD, 1)
    shapes = {
        "token_embd.weight": (N_EMBD, len(tokens)), "token_types.weight": (N_EMBD, 2),
        "position_embd.weight": (N_EMBD, N_CTX), "token_embd_norm.weight": vector,
        "token_embd_norm.bias": vector, "cls.weight": square, "cls.bias": vector,
        "cls.output.weight": vector, "cls.output.bias": (1, 1),
    } | _layers({
        **{f"attn_{part}.weight": square for part in ("q", "k", "v", "output")},
        **{f"attn_{part}.bias": vector for part in ("q", "k", "v", "output")},
        "attn_output_norm.weight": vector, "attn_output_norm.bias": vector,
        "ffn_up.weight": (N_EMBD, N_FF), "ffn_up.bias": (N_FF, 1),
        "ffn_down.weight": (N_FF, N_EMBD), "ffn_down.bias": vector,
        "layer_output_norm.weight": vector, "layer_output_norm.bias": vector,
    })  # fmt: skip
    weights = _made(shapes, seed=3)
    _write(path, metadata, weights)
    return weights


def qwen3(path: Path) -> Weights:
    """A model with causal attention, and a template for pairs."""
    metadata = _metadata(
        "qwen3",
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count_kv=N_KV,
        attention__key_length=HEAD,
        attention__value_length=HEAD,
        rope__freq_base=10000.0,
        classifier__output_labels=["yes", "no"],
    ) | tokenizer_metadata([f" {word}" for word in WORDS], None)
    metadata["tokenizer.chat_template.rerank"] = TEMPLATE
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    vector = (N_EMBD, 1)
    shapes = {
        "token_embd.weight": (N_EMBD, len(tokens)), "output_norm.weight": vector,
        "cls.output.weight": (N_EMBD, 2),
    } | _layers({
        "attn_norm.weight": vector, "ffn_norm.weight": vector,
        "attn_q.weight": (N_EMBD, N_HEAD * HEAD), "attn_output.weight": (N_HEAD * HEAD, N_EMBD),
        "attn_k.weight": (N_EMBD, N_KV * HEAD), "attn_v.weight": (N_EMBD, N_KV * HEAD),
        "attn_q_norm.weight": (HEAD, 1), "attn_k_norm.weight": (HEAD, 1),
        "ffn_gate.weight": (N_EMBD, N_FF), "ffn_up.weight": (N_EMBD, N_FF),
        "ffn_down.weight": (N_FF, N_EMBD),
    })  # fmt: skip
    weights = _made(shapes, seed=6)
    _write(path, metadata, weights)
    return weights


# ---- the formulas --------------------------------------------------------------------------


def _times(matrix: Matrix, x: Vector) -> Vector:
    return [_dot(row, x) for row in matrix]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _plus(*vectors: Vector) -> Vector:
    return [sum(column) for column in zip(*vectors, strict=True)]


def _softmax(x: Vector) -> Vector:
    powers = [math.exp(each - max(x)) for each in x]
    return [power / sum(powers) for power in powers]


def _attention(
    queries: Matrix, keys: Matrix, values: Matrix, *, n_kv: int, is_causal: bool
) -> Matrix:
    """Each token's heads, joined; with fewer heads of keys, neighbouring heads share one."""
    found = []
    for i, query in enumerate(queries):
        heads: Vector = []
        for head in range(N_HEAD):
            mine, own = _part(query, head), head * n_kv // N_HEAD
            seen = range(i + 1) if is_causal else range(len(keys))
            weights = _softmax([_dot(mine, _part(keys[j], own)) * HEAD**-0.5 for j in seen])
            heads += _plus(
                *(
                    [w * x for x in _part(values[j], own)]
                    for j, w in zip(seen, weights, strict=True)
                )
            )
        found.append(heads)
    return found


def _part(vector: Vector, head: int) -> Vector:
    return vector[head * HEAD : (head + 1) * HEAD]


def bert_scores(weights: Weights, tokens: list[int]) -> Vector:
    """The scores of a pair; https://arxiv.org/abs/1810.04805, with a head for one label."""

    def dense(name: str, x: Vector) -> Vector:
        return _plus(_times(weights[f"{name}.weight"], x), weights[f"{name}.bias"][0])

    def norm(name: str, x: Vector) -> Vector:
        mean = sum(x) / len(x)
        scale = (sum((each - mean) ** 2 for each in x) / len(x) + EPS) ** -0.5
        gain, bias = weights[f"{name}.weight"][0], weights[f"{name}.bias"][0]
        return [(each - mean) * scale * g + b for each, g, b in zip(x, gain, bias, strict=True)]

    def gelu(x: float) -> float:
        return x / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))

    rows = [
        norm("token_embd_norm", _plus(weights["token_embd.weight"][token],
                                      weights["token_types.weight"][0],
                                      weights["position_embd.weight"][i]))
        for i, token in enumerate(tokens)
    ]  # fmt: skip
    for i in range(N_LAYER):
        name = f"blk.{i}"
        q, k, v = ([dense(f"{name}.attn_{part}", x) for x in rows] for part in "qkv")
        seen = _attention(q, k, v, n_kv=N_HEAD, is_causal=False)
        rows = [
            norm(f"{name}.attn_output_norm", _plus(x, dense(f"{name}.attn_output", heads)))
            for x, heads in zip(rows, seen, strict=True)
        ]
        rows = [
            norm(f"{name}.layer_output_norm", _plus(x, dense(
                f"{name}.ffn_down", list(map(gelu, dense(f"{name}.ffn_up", x))))))
            for x in rows
        ]  # fmt: skip
    return dense("cls.output", list(map(math.tanh, dense("cls", rows[0]))))


def qwen3_scores(weights: Weights, tokens: list[int]) -> Vector:
    """The probabilities of both labels; https://arxiv.org/abs/2505.09388."""

    def norm(name: str, x: Vector) -> Vector:
        scale = (_dot(x, x) / len(x) + EPS) ** -0.5
        return [each * scale * g for each, g in zip(x, weights[f"{name}.weight"][0], strict=True)]

    def turned(x: Vector, position: int) -> Vector:
        half = HEAD // 2
        found = [0.0] * HEAD
        for i in range(half):
            angle = position * 10000.0 ** (-i / half)
            cos, sin = math.cos(angle), math.sin(angle)
            found[i] = x[i] * cos - x[i + half] * sin
            found[i + half] = x[i] * sin + x[i + half] * cos
        return found

    def heads(name: str, x: Vector, n: int, position: int) -> Vector:
        whole = _times(weights[f"{name}.weight"], x)
        parts = (norm(f"{name}_norm", _part(whole, head)) for head in range(n))
        return [each for part in parts for each in turned(part, position)]

    rows = [weights["token_embd.weight"][token] for token in tokens]
    for i in range(N_LAYER):
        name = f"blk.{i}"
        read = [norm(f"{name}.attn_norm", x) for x in rows]
        q = [heads(f"{name}.attn_q", x, N_HEAD, at) for at, x in enumerate(read)]
        k = [heads(f"{name}.attn_k", x, N_KV, at) for at, x in enumerate(read)]
        v = [_times(weights[f"{name}.attn_v.weight"], x) for x in read]
        seen = _attention(q, k, v, n_kv=N_KV, is_causal=True)
        output = weights[f"{name}.attn_output.weight"]
        rows = [_plus(x, _times(output, found)) for x, found in zip(rows, seen, strict=True)]
        for at, x in enumerate(rows):
            inner = norm(f"{name}.ffn_norm", x)
            gate = _times(weights[f"{name}.ffn_gate.weight"], inner)
            up = _times(weights[f"{name}.ffn_up.weight"], inner)
            wide = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
            rows[at] = _plus(x, _times(weights[f"{name}.ffn_down.weight"], wide))
    return _softmax(_times(weights["cls.output.weight"], norm("output_norm", rows[-1])))
