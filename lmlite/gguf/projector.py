"""Whether a projector file (mmproj) may be loaded, and how much memory it takes.

libmtmd trusts a file's values, as llama.cpp does. Values that would make it divide by zero or
allocate without limit are refused here. Only the header is read. Any thread may call this.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from lmlite.gguf.header import Fault, Header, Metadata, identity, read_header, refusal
from lmlite.messages import ModelPart

MAX_LAYERS, MAX_WIDTH, MAX_HEADS = 512, 131_072, 4096
MAX_IMAGE_SIDE, MAX_PATCH_SIDE = 8192, 1024  # pixels
MAX_MERGE = 16  # patches along each side of the square that becomes a token
MAX_PIXELS = 1 << 28

# Kinds that accept pictures of any size: tokens of the largest picture, and patches along each side
# of a token (clip.cpp). Other kinds scale pictures to one size, or cut them into tiles of one size.
_OF_ANY_SIZE = {
    "gemma4uv": (1120, 3), "gemma4v": (1120, 3), "glm4v": (4096, 2), "hunyuanvl": (16_384, 2),
    "kimik25": (4096, 2), "kimivl": (1024, 2), "lfm2": (256, 2), "ling3vl": (4096, 2),
    "minimax_m3": (576, 2), "muse-glimmer": (4096, 2), "pixtral": (1024, 1), "qwen2.5o": (4096, 2),
    "qwen2.5vl_merger": (4096, 2), "qwen2vl_merger": (4096, 2), "qwen3vl_merger": (4096, 2),
    "youtuvl": (62_500, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Projector:
    """A projector file that may be loaded."""

    path: str
    parts: tuple[ModelPart]  # the file itself
    n_tensor_bytes: int
    n_patches: int  # patches of the largest picture that is encoded at once
    n_token_patches: int  # patches that become one token
    n_wide: int  # floats per patch in the widest layer; fitted to libmtmd's own reservations


def read_projector_file(path: str) -> Projector:
    """The file's description. Raises ModelFileError if it is not a projector or not valid."""
    header = read_header(path)
    try:
        if header.metadata.text("general.architecture") != "clip":
            raise Fault("is not a projector, which is what --mmproj takes")
        if not any(header.metadata.wholes("clip.has_vision_encoder", 0, 1)):
            raise Fault("is a projector without a vision encoder")
        if not header.tensors:
            raise Fault("has no weights")
        if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
            raise Fault("has two tensors of one name")
        header.metadata.architecture = "clip.vision"
        return _describe(header)
    except Fault as fault:
        raise refusal(path, fault) from None


def projector_beside(model_path: str) -> str | None:
    """The projector file in a model's folder; None unless there is exactly one."""
    found = sorted(Path(os.path.realpath(model_path)).parent.glob("mmproj*.gguf"))
    return str(found[0]) if len(found) == 1 else None


def _describe(header: Header) -> Projector:
    metadata = header.metadata
    n_embd = metadata.need(".embedding_length", 1, MAX_WIDTH)
    n_head = metadata.need(".attention.head_count", 1, MAX_HEADS)
    if n_embd % n_head:
        raise Fault(f"has {n_head} heads for a width of {n_embd:,}, which does not divide evenly")
    metadata.need(".block_count", 0, MAX_LAYERS)
    n_ff = metadata.need(".feed_forward_length", 0, MAX_WIDTH)
    side = metadata.need(".image_size", 1, MAX_IMAGE_SIDE)
    patch = metadata.need(".patch_size", 1, MAX_PATCH_SIDE)
    if patch > side:
        raise Fault(f"has patches of {patch} pixels for images of {side}")
    for key in (".image_mean", ".image_std"):
        value = metadata.find(key)
        if value is None or value.n != 3 or len(value.numbers()) != 3:
            raise Fault(f"has no {metadata.full(key)} of three numbers")
    epsilon = metadata.find(".attention.layer_norm_epsilon")
    if epsilon is None or not all(0 <= number <= 1 for number in epsilon.numbers()):
        raise Fault("has a clip.vision.attention.layer_norm_epsilon that is not from 0 to 1")
    has_gate = any(".ffn_gate" in tensor.name for tensor in header.tensors)
    n_patches, n_token_patches = _patches(metadata, side, patch)
    return Projector(
        path=header.path,
        parts=(ModelPart(header.path, *identity(header.status)),),
        n_tensor_bytes=sum(tensor.n_bytes for tensor in header.tensors),
        n_patches=n_patches,
        n_token_patches=n_token_patches,
        # Pixels are stored twice: in the picture, and as the encoder's input.
        n_wide=3 * n_embd + max((2 if has_gate else 1) * n_ff, 3 * n_embd) + 6 * patch**2,
    )


def _patches(metadata: Metadata, side: int, patch: int) -> tuple[int, int]:
    """(patches of the largest picture, patches of a token); equal if pictures have one size."""
    kind = metadata.text("clip.projector_type") or metadata.text(".projector_type")
    n_patches = (side // patch) ** 2
    n_pixels = metadata.whole(".image_max_pixels", 0, MAX_PIXELS) or 0
    if kind not in _OF_ANY_SIZE and not n_pixels:
        return n_patches, n_patches
    n_tokens, merge = _OF_ANY_SIZE.get(kind or "", (0, 2))
    for key in (".spatial_merge_size", ".projector.scale_factor"):
        merge = metadata.whole(key, 1, MAX_MERGE) or merge
    return max(n_patches, n_pixels // patch**2, n_tokens * merge**2), merge**2
