"""Whether a projector file (mmproj) may be loaded, and which one belongs to a model.

libmtmd trusts a file's numbers as llama.cpp does: what would make it divide by zero, or take
memory without end, is refused here. Reads the header alone. Any thread may call it.
"""

from pathlib import Path

from lmlite.gguf_header import Fault, Metadata, read_header, refusal

MAX_LAYERS, MAX_WIDTH, MAX_HEADS = 512, 131_072, 4096
MAX_IMAGE_SIDE, MAX_PATCH_SIDE = 8192, 1024  # pixels


def check_projector_file(path: str) -> None:
    """Raises ModelFileError for a file that is none, or that may not be loaded."""
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
