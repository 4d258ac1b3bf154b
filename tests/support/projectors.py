"""Projectors (mmproj) with random weights, of kinds that encode pictures differently.

`mlp` is LLaVA's: as many tokens as patches, with causal attention like text. `gemma3` pools
patches, adds a token before and after a picture, and its tokens attend to each other. `qwen2vl`
gives each token a row and a column, so that a picture takes fewer positions than tokens.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.gguf_writer import TENSOR_F16, TENSOR_F32, Tensor, Value, tensor, write_gguf

PATCH = 14  # pixels of a side
N_POOL = 65_537  # random numbers, used cyclically; a prime, so that no two rows are equal

Shapes = dict[str, tuple[int, ...]]
Write = Callable[[Path, Mapping[str, Value], Shapes], None]


@dataclass(frozen=True)
class Size:
    """The sizes of an encoder."""

    n_embd: int = 32
    n_head: int = 2
    n_ff: int = 64
    n_layer: int = 2
    side: int | None = None  # pixels; None: the default of the kind


SMALL = Size()


def keys_of(kind: str, size: Size, side: int) -> dict[str, Value]:
    """The metadata of a file."""
    return {
        "general.architecture": "clip",
        "general.name": f"random {kind}",
        "general.file_type": 1,
        "clip.projector_type": kind,
        "clip.has_vision_encoder": True,
        "clip.use_gelu": True,
        "clip.vision.image_size": side,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": size.n_embd,
        "clip.vision.feed_forward_length": size.n_ff,
        "clip.vision.projection_dim": size.n_embd,
        "clip.vision.block_count": size.n_layer,
        "clip.vision.attention.head_count": size.n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }


KEYS = keys_of("mlp", SMALL, 56)
ANY_TENSOR = tensor("mm.0.bias", (SMALL.n_embd,), [0.0] * SMALL.n_embd, TENSOR_F32)


def write_random(path: Path, keys: Mapping[str, Value], shapes: Shapes) -> None:
    """Writes the file, with random weights that keep activations near 1."""
    source = random.Random(1)
    pool = itertools.cycle([source.gauss(0, 1) for _ in range(N_POOL)])

    def weights(name: str, dims: tuple[int, ...]) -> Tensor:
        kind = TENSOR_F16 if "patch_embd" in name else TENSOR_F32
        n = math.prod(dims)
        if len(dims) == 1:
            return tensor(name, dims, [0.0 if name.endswith("bias") else 1.0] * n, kind)
        scale = (n / dims[-1]) ** -0.5
        return tensor(name, dims, [scale * number for number in itertools.islice(pool, n)], kind)

    write_gguf(path, keys, [weights(name, dims) for name, dims in shapes.items()])


# ---- kinds ---------------------------------------------------------------------------------


def mlp(path: Path, n_embd_text: int, size: Size = SMALL, write: Write = write_random) -> None:
    """56 x 56 pixels: 16 tokens."""
    shapes: Shapes = {
        "mm.0.weight": (size.n_embd, n_embd_text), "mm.0.bias": (n_embd_text,),
        "mm.2.weight": (n_embd_text, n_embd_text), "mm.2.bias": (n_embd_text,),
    }  # fmt: skip
    side = size.side or 56
    write(path, keys_of("mlp", size, side), _encoder(size, side) | shapes)


def gemma3(path: Path, n_embd_text: int, size: Size = SMALL, write: Write = write_random) -> None:
    """112 x 112 pixels: 4 tokens, each of 4 x 4 patches."""
    shapes: Shapes = {
        "mm.input_projection.weight": (n_embd_text, size.n_embd),
        "mm.soft_emb_norm.weight": (size.n_embd,),
        "v.post_ln.weight": (size.n_embd,), "v.post_ln.bias": (size.n_embd,),
    }  # fmt: skip
    side = size.side or 112
    write(path, keys_of("gemma3", size, side), _encoder(size, side) | shapes)


def qwen2vl(path: Path, n_embd_text: int, size: Size = SMALL, write: Write = write_random) -> None:
    """Any size; 2 x 2 patches are one token, with a row and a column as its position."""
    n_merged = 4 * size.n_embd
    shapes: Shapes = {
        "v.patch_embd.weight.1": (PATCH, PATCH, 3, size.n_embd),
        "v.post_ln.weight": (size.n_embd,), "v.post_ln.bias": (size.n_embd,),
        "mm.0.weight": (n_merged, n_merged), "mm.0.bias": (n_merged,),
        "mm.2.weight": (n_merged, n_embd_text), "mm.2.bias": (n_embd_text,),
    }  # fmt: skip
    side = size.side or 112
    write(path, keys_of("qwen2vl_merger", size, side), _encoder(size, None) | shapes)


def _encoder(size: Size, side: int | None) -> Shapes:
    """Patches and layers; also a vector for each position, if all pictures have one size."""
    n, n_ff = size.n_embd, size.n_ff
    shapes: Shapes = {"v.patch_embd.weight": (PATCH, PATCH, 3, n)}
    if side is not None:
        shapes["v.position_embd.weight"] = (n, (side // PATCH) ** 2)
    layer: Shapes = {
        **{f"{name}.weight": (n,) for name in ("ln1", "ln2")},
        **{f"{name}.bias": (n,) for name in ("ln1", "ln2")},
        **{f"attn_{name}.weight": (n, n) for name in ("q", "k", "v", "out")},
        **{f"attn_{name}.bias": (n,) for name in ("q", "k", "v", "out")},
        "ffn_up.weight": (n, n_ff),
        "ffn_up.bias": (n_ff,),
        "ffn_down.weight": (n_ff, n),
        "ffn_down.bias": (n,),
    }
    for i in range(size.n_layer):
        shapes |= {f"v.blk.{i}.{name}": dims for name, dims in layer.items()}
    return shapes
