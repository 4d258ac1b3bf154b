"""Small models with random weights, with memory that cannot simply be cut.

A transformer keeps cells for every token, so its memory can be cut after any token. A recurrent
model (Mamba) sums all tokens up in one state, a hybrid model (LFM2) has layers of both kinds, and
a sliding window (Gemma 3) forgets old tokens. Qwen2-VL is here for its positions: a picture takes
fewer positions than tokens.
"""

import random
from pathlib import Path

from tests.support.gguf_writer import CHATML, TENSOR_F32, Tensor, Value, tensor, tokenizer_metadata
from tests.support.gguf_writer import write_gguf as write

WORDS = (" the", " and", " of", " to", " in", "ing", "er", "ed", "Hello", " model")
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_CTX = 64, 128, 4, 2, 2048
HEAD = N_EMBD // N_HEAD
WINDOW = 32  # tokens in the sliding window of the Gemma

Shapes = dict[str, tuple[int, ...]]


def mamba(path: Path) -> None:
    """A recurrent model: two layers, each with a state of 16 numbers for each of 128 channels."""
    n_inner, n_state, n_step = 2 * N_EMBD, 16, 4
    keys: dict[str, Value] = {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": n_inner,
        "ssm.state_size": n_state,
        "ssm.time_step_rank": n_step,
    }
    layer: Shapes = {
        "attn_norm.weight": (N_EMBD,),
        "ssm_in.weight": (N_EMBD, 2 * n_inner),
        "ssm_conv1d.weight": (4, n_inner),
        "ssm_conv1d.bias": (n_inner,),
        "ssm_x.weight": (n_inner, n_step + 2 * n_state),
        "ssm_dt.weight": (n_step, n_inner),
        "ssm_dt.bias": (n_inner,),
        "ssm_a": (n_state, n_inner),
        "ssm_d": (n_inner,),
        "ssm_out.weight": (n_inner, N_EMBD),
    }
    _write(path, "mamba", keys, [layer, layer], "output_norm.weight")


def lfm2(path: Path) -> None:
    """A hybrid: a short convolution that remembers two tokens, and a layer of attention."""
    keys: dict[str, Value] = {
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": [0, N_HEAD_KV],
        "shortconv.l_cache": 3,
    }
    convolution: Shapes = {
        "shortconv.conv.weight": (3, N_EMBD),
        "shortconv.in_proj.weight": (N_EMBD, 3 * N_EMBD),
        "shortconv.out_proj.weight": (N_EMBD, N_EMBD),
    }
    layers = [convolution | _FEED_FORWARD, _ATTENTION | _FEED_FORWARD]
    layers = [{"attn_norm.weight": (N_EMBD,)} | layer for layer in layers]
    _write(path, "lfm2", keys, layers, "token_embd_norm.weight")


def gemma3(path: Path) -> None:
    """Two layers; the first sees only the last 32 tokens."""
    keys: dict[str, Value] = {
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": 2,
    }
    norms: Shapes = {
        f"{name}.weight": (N_EMBD,)
        for name in ("attn_norm", "post_attention_norm", "post_ffw_norm")
    }
    layer = norms | _ATTENTION | _FEED_FORWARD
    _write(path, "gemma3", keys, [layer, layer], "output_norm.weight")


def qwen2vl(path: Path) -> None:
    """Two layers whose positions have a time, a row and a column (M-RoPE)."""
    keys: dict[str, Value] = {
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "rope.dimension_sections": [2, 3, 3, 0],
    }
    biases: Shapes = {
        "attn_norm.weight": (N_EMBD,),
        "attn_q.bias": (N_EMBD,),
        "attn_k.bias": (HEAD * N_HEAD_KV,),
        "attn_v.bias": (HEAD * N_HEAD_KV,),
    }
    attention = {name: dims for name, dims in _ATTENTION.items() if "norm" not in name}
    layer = biases | attention | _FEED_FORWARD
    _write(path, "qwen2vl", keys, [layer, layer], "output_norm.weight")


_ATTENTION: Shapes = {
    "attn_q.weight": (N_EMBD, N_EMBD),
    "attn_k.weight": (N_EMBD, HEAD * N_HEAD_KV),
    "attn_v.weight": (N_EMBD, HEAD * N_HEAD_KV),
    "attn_output.weight": (N_EMBD, N_EMBD),
    "attn_q_norm.weight": (HEAD,),
    "attn_k_norm.weight": (HEAD,),
}
_FEED_FORWARD: Shapes = {
    "ffn_norm.weight": (N_EMBD,),
    "ffn_gate.weight": (N_EMBD, N_FF),
    "ffn_up.weight": (N_EMBD, N_FF),
    "ffn_down.weight": (N_FF, N_EMBD),
}


def _write(
    path: Path, architecture: str, keys: dict[str, Value], layers: list[Shapes], norm: str
) -> None:
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": architecture,
        "general.file_type": TENSOR_F32,
        f"{architecture}.context_length": N_CTX,
        f"{architecture}.embedding_length": N_EMBD,
        f"{architecture}.block_count": len(layers),
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata |= {f"{architecture}.{key}": value for key, value in keys.items()}
    metadata |= tokenizer_metadata(WORDS, CHATML)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    shapes: Shapes = {"token_embd.weight": (N_EMBD, len(tokens)), norm: (N_EMBD,)}
    for i, layer in enumerate(layers):
        shapes |= {f"blk.{i}.{name}": dims for name, dims in layer.items()}
    source = random.Random(1)
    write(path, metadata, [_random(source, name, dims) for name, dims in shapes.items()])


def _random(source: random.Random, name: str, dims: tuple[int, ...]) -> Tensor:
    n = dims[0] * (dims[1] if len(dims) > 1 else 1)
    if name.endswith("ssm_a"):  # the decay of a state; the state would grow for ever if positive
        weights = [-1.0 - i % dims[0] for i in range(n)]
    elif len(dims) == 1:
        weights = [0.0 if name.endswith("bias") else 1.0] * n
    else:
        weights = [source.gauss(0, 2 * dims[0] ** -0.5) for _ in range(n)]
    return tensor(name, dims, weights, TENSOR_F32)
