"""Whether a projector file (mmproj) may be loaded, what it will take, and which model it is for.

libmtmd trusts a file's numbers as llama.cpp does: what would make it divide by zero, or take
memory without end, is refused here. Reads the header alone. Any thread may call it.
"""

from dataclasses import dataclass
from pathlib import Path

from lmlite.gguf.header import Fault, Header, Metadata, identity, read_header, refusal
from lmlite.messages import ModelPart

MAX_LAYERS, MAX_WIDTH, MAX_HEADS = 512, 131_072, 4096
MAX_IMAGE_SIDE, MAX_PATCH_SIDE = 8192, 1024  # pixels
MAX_MERGE = 16  # patches of a side that become one token
MAX_PIXELS = 1 << 28

# Kinds that look at pictures of any size: tokens of the largest one, and patches of a token's side
# (clip.cpp). Pictures of other kinds have one size, or are cut into pieces of it.
_OF_ANY_SIZE = {
    "gemma4uv": (1120, 3), "gemma4v": (1120, 3), "glm4v": (4096, 2), "hunyuanvl": (16_384, 2),
    "kimik25": (4096, 2), "kimivl": (1024, 2), "lfm2": (256, 2), "ling3vl": (4096, 2),
    "minimax_m3": (576, 2), "muse-glimmer": (4096, 2), "pixtral": (1024, 1), "qwen2.5o": (4096, 2),
    "qwen2.5vl_merger": (4096, 2), "qwen2vl_merger": (4096, 2), "qwen3vl_merger": (4096, 2),
    "youtuvl": (62_500, 2),
}  # fmt: skip
_MERGE_KEYS = ("clip.vision.spatial_merge_size", "clip.vision.projector.scale_factor")


@dataclass(frozen=True)
class Projector:
    """A projector file that may be loaded."""

    path: str
    parts: tuple[ModelPart]  # itself
    n_tensor_bytes: int
    n_patches: int  # of the largest picture that it encodes at once
    n_token_patches: int  # that become one token, of which no picture has more than a context
    n_wide: int  # numbers of a patch where a layer is widest, found with libmtmd's reservations


def read_projector_file(path: str) -> Projector:
    """The file's description. Raises ModelFileError when it is none, or may not be loaded."""
    header = read_header(path)
    try:
        if header.metadata.text("general.architecture") != "clip":
            raise Fault("is not a projector, which is what --mmproj takes")
        if not any(header.metadata.wholes("clip.has_vision_encoder", 0, 1)):
            raise Fault("is a projector that does not see")
        if not header.tensors:
            raise Fault("has no weights")
        if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
            raise Fault("has two tensors of one name")
        _check_encoder(header.metadata)
        return _described(header)
    except Fault as fault:
        raise refusal(path, fault) from None


def projector_beside(model_path: str) -> str | None:
    """The one projector file in a model's folder; None where there is none, or more than one."""
    found = sorted(Path(model_path).resolve().parent.glob("mmproj*.gguf"))
    return str(found[0]) if len(found) == 1 else None


def _check_encoder(metadata: Metadata) -> None:
    n_embd = metadata.need("clip.vision.embedding_length", 1, MAX_WIDTH)
    n_head = metadata.need("clip.vision.attention.head_count", 1, MAX_HEADS)
    if n_embd % n_head:
        raise Fault(f"has {n_head} heads for a width of {n_embd:,}, which do not share it evenly")
    metadata.need("clip.vision.block_count", 0, MAX_LAYERS)
    metadata.need("clip.vision.feed_forward_length", 0, MAX_WIDTH)
    side = metadata.need("clip.vision.image_size", 1, MAX_IMAGE_SIDE)
    patch = metadata.need("clip.vision.patch_size", 1, MAX_PATCH_SIDE)
    if patch > side:
        raise Fault(f"has patches of {patch} pixels for images of {side}")
    for key in ("clip.vision.image_mean", "clip.vision.image_std"):
        value = metadata.get(key)
        if value is None or value.n != 3 or len(value.numbers()) != 3:
            raise Fault(f"has no {key} of three numbers")
    epsilon = metadata.get("clip.vision.attention.layer_norm_epsilon")
    if epsilon is None or not all(0 <= number <= 1 for number in epsilon.numbers()):
        raise Fault("has a clip.vision.attention.layer_norm_epsilon that is not from 0 to 1")


# ---- what it will take ---------------------------------------------------------------------


def _described(header: Header) -> Projector:
    metadata = header.metadata
    n_embd = metadata.need("clip.vision.embedding_length", 1, MAX_WIDTH)
    n_ff = metadata.need("clip.vision.feed_forward_length", 0, MAX_WIDTH)
    patch = metadata.need("clip.vision.patch_size", 1, MAX_PATCH_SIDE)
    has_gate = any(".ffn_gate" in tensor.name for tensor in header.tensors)
    n_patches, n_token_patches = _patches(metadata)
    return Projector(
        path=header.path,
        parts=(ModelPart(header.path, *identity(header.status)),),
        n_tensor_bytes=sum(tensor.n_bytes for tensor in header.tensors),
        n_patches=n_patches,
        n_token_patches=n_token_patches,
        # Its pixels twice: as the picture's, and as the encoder's input.
        n_wide=3 * n_embd + max((2 if has_gate else 1) * n_ff, 3 * n_embd) + 6 * patch**2,
    )


def _patches(metadata: Metadata) -> tuple[int, int]:
    """Those of the largest picture, and those of a token: all of them, where there is one size."""
    kind = metadata.text("clip.projector_type") or metadata.text("clip.vision.projector_type")
    patch = metadata.need("clip.vision.patch_size", 1, MAX_PATCH_SIDE)
    n_patches = (metadata.need("clip.vision.image_size", 1, MAX_IMAGE_SIDE) // patch) ** 2
    n_pixels = metadata.whole("clip.vision.image_max_pixels", 0, MAX_PIXELS) or 0
    if kind not in _OF_ANY_SIZE and not n_pixels:
        return n_patches, n_patches
    n_tokens, merge = _OF_ANY_SIZE.get(kind or "", (0, 2))
    for key in _MERGE_KEYS:
        merge = metadata.whole(key, 1, MAX_MERGE) or merge
    return max(n_patches, n_pixels // patch**2, n_tokens * merge**2), merge**2
