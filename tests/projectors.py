"""Small projectors (mmproj) with random weights, of kinds that differ in how a model sees.

`mlp` is LLaVA's: as many tokens as patches, read as text is. `gemma3` pools patches, stands between
two tokens of its own, and its tokens see each other. `qwen2vl` gives each token a row and a column,
so that a picture takes fewer positions than tokens.
"""

import math
import random
from pathlib import Path

from tests.gguf_writer import TENSOR_F16, TENSOR_F32, Tensor, Value, tensor, write_gguf

N_EMBD, N_HEAD, N_FF, N_LAYER = 32, 2, 64, 2

Shapes = dict[str, tuple[int, ...]]


def mlp(path: Path, n_embd_text: int) -> None:
    """56 x 56 pixels in patches of 14: 16 tokens."""
    shapes: Shapes = {
        "mm.0.weight": (N_EMBD, n_embd_text), "mm.0.bias": (n_embd_text,),
        "mm.2.weight": (n_embd_text, n_embd_text), "mm.2.bias": (n_embd_text,),
    }  # fmt: skip
    _write(path, "mlp", 56, shapes, n_positions=16)


def gemma3(path: Path, n_embd_text: int) -> None:
    """112 x 112 pixels in patches of 14, four by four of which become one of 4 tokens."""
    shapes: Shapes = {
        "mm.input_projection.weight": (n_embd_text, N_EMBD),
        "mm.soft_emb_norm.weight": (N_EMBD,),
        "v.post_ln.weight": (N_EMBD,), "v.post_ln.bias": (N_EMBD,),
    }  # fmt: skip
    _write(path, "gemma3", 112, shapes, n_positions=64)


def qwen2vl(path: Path, n_embd_text: int) -> None:
    """Any size, in patches of 14 of which two by two are one token, with a row and a column."""
    n_merged = 4 * N_EMBD
    shapes: Shapes = {
        "v.patch_embd.weight.1": (14, 14, 3, N_EMBD),
        "v.post_ln.weight": (N_EMBD,), "v.post_ln.bias": (N_EMBD,),
        "mm.0.weight": (n_merged, n_merged), "mm.0.bias": (n_merged,),
        "mm.2.weight": (n_merged, n_embd_text), "mm.2.bias": (n_embd_text,),
    }  # fmt: skip
    _write(path, "qwen2vl_merger", 112, shapes, n_positions=0)


KEYS: dict[str, Value] = {
    "general.architecture": "clip",
    "general.file_type": 1,
    "clip.has_vision_encoder": True,
    "clip.use_gelu": True,
    "clip.vision.image_size": 56,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": N_EMBD,
    "clip.vision.feed_forward_length": N_FF,
    "clip.vision.projection_dim": N_EMBD,
    "clip.vision.block_count": N_LAYER,
    "clip.vision.attention.head_count": N_HEAD,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
}
ANY_TENSOR = tensor("mm.0.bias", (N_EMBD,), [0.0] * N_EMBD, TENSOR_F32)


def _write(path: Path, kind: str, side: int, shapes: Shapes, n_positions: int) -> None:
    keys: dict[str, Value] = {
        "general.name": f"random {kind}",
        "clip.projector_type": kind,
        "clip.vision.image_size": side,
    }
    shapes = {"v.patch_embd.weight": (14, 14, 3, N_EMBD), **shapes}
    if n_positions:
        shapes["v.position_embd.weight"] = (N_EMBD, n_positions)
    for i in range(N_LAYER):
        shapes |= {f"v.blk.{i}.{name}": dims for name, dims in _LAYER.items()}
    source = random.Random(1)
    write_gguf(path, KEYS | keys, [_random(source, name, dims) for name, dims in shapes.items()])


_LAYER: Shapes = {
    **{f"{name}.weight": (N_EMBD,) for name in ("ln1", "ln2")},
    **{f"{name}.bias": (N_EMBD,) for name in ("ln1", "ln2")},
    **{f"attn_{name}.weight": (N_EMBD, N_EMBD) for name in ("q", "k", "v", "out")},
    **{f"attn_{name}.bias": (N_EMBD,) for name in ("q", "k", "v", "out")},
    "ffn_up.weight": (N_EMBD, N_FF),
    "ffn_up.bias": (N_FF,),
    "ffn_down.weight": (N_FF, N_EMBD),
    "ffn_down.bias": (N_EMBD,),
}


def _random(source: random.Random, name: str, dims: tuple[int, ...]) -> Tensor:
    n = math.prod(dims)
    kind = TENSOR_F16 if "patch_embd" in name else TENSOR_F32
    if len(dims) == 1:
        return tensor(name, dims, [0.0 if name.endswith("bias") else 1.0] * n, kind)
    scale = (n / dims[-1]) ** -0.5
    return tensor(name, dims, [source.gauss(0, scale) for _ in range(n)], kind)
