"""Whether a LoRA adapter file may be loaded with a model.

llama.cpp trusts a file's values, and compares only some shapes with the model's: with others it
would abort the process. Only headers are read. Any thread may call this.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmlite.gguf.file import ModelFile
from lmlite.gguf.header import Fault, Header, Tensor, identity, read_header, refusal
from lmlite.messages import ModelPart

Shape = tuple[int, ...]
FLOAT32 = 6  # enum gguf_type
MAX_RANK = 4096
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file that may be loaded."""

    path: str
    parts: tuple[ModelPart]  # the file itself


def read_adapter_file(path: str, model: ModelFile) -> AdapterFile:
    """The file's description. Raises ModelFileError if it is not an adapter of this model."""
    header = read_header(path)
    parts = [read_header(part.path) for part in model.parts]
    shapes = {tensor.name: tensor.dims for part in parts for tensor in part.tensors}
    try:
        _check_kind(header, model)
        _check_pairs(header, shapes)
    except Fault as fault:
        raise refusal(path, fault) from None
    return AdapterFile(header.path, (ModelPart(header.path, *identity(header.status)),))


def _check_kind(header: Header, model: ModelFile) -> None:
    metadata = header.metadata
    if metadata.text("general.type") != "adapter" or metadata.text("adapter.type") != "lora":
        raise Fault("is not a LoRA adapter, which is what --lora takes")
    architecture = metadata.text("general.architecture")
    if architecture != model.architecture:
        raise Fault(f"is for models of the architecture {architecture}, not {model.architecture}")
    if metadata.has("adapter.alora.invocation_tokens"):
        raise Fault("is an adapter that some tokens turn on (aLoRA), which is not supported")
    alpha = metadata.find("adapter.lora.alpha")
    if alpha is not None:
        is_number = alpha.kind == FLOAT32 and alpha.n is None
        if not (is_number and math.isfinite(alpha.numbers()[0])):
            raise Fault("has an adapter.lora.alpha that is not a 32-bit number")


def _check_pairs(header: Header, shapes: Mapping[str, Shape]) -> None:
    """Checks that there are two factors for each tensor that is changed, of fitting shapes."""
    factors = {tensor.name: tensor for tensor in header.tensors if _is_factor(tensor)}
    if not factors:
        raise Fault("has no weights")
    if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
        raise Fault("has two tensors of one name")
    for name in {name[: -len(".lora_a")] for name in factors}:
        first, second = factors.get(f"{name}.lora_a"), factors.get(f"{name}.lora_b")
        if first is None or second is None:
            raise Fault(f"has only one of the two factors of {name!r}")
        if name not in shapes:
            raise Fault(f"changes {name!r}, which the model does not have: it is for another model")
        if name == EMBEDDING and "output.weight" not in shapes:
            raise Fault("changes the embeddings of a model that uses them as its output, too")
        rank = first.dims[0] if name == EMBEDDING else second.dims[0]
        expected = _factor_shapes(name, shapes[name], rank)
        if rank > MAX_RANK or (first.dims, second.dims) != expected:
            raise Fault(f"has factors of other shapes than the model's {name!r}")


def _is_factor(tensor: Tensor) -> bool:
    """False: it is a norm, which llama.cpp ignores. Raises Fault for any other tensor."""
    is_factor = tensor.name.endswith((".lora_a", ".lora_b"))
    # llama.cpp removes these endings everywhere in a name.
    if tensor.name.count(".lora_") != is_factor or not (
        is_factor or tensor.name.endswith("_norm.weight")
    ):
        raise Fault(f"has the tensor {tensor.name!r}, which is no part of an adapter")
    return is_factor


def _factor_shapes(name: str, dims: Shape, rank: int) -> tuple[Shape, Shape]:
    """The shapes of both factors (llama-adapter.cpp); those of the embeddings are looked up."""
    n_in, n_out = dims[0], dims[1] if dims[1:] else 0
    if name == EMBEDDING:
        return (rank, n_out), (rank, n_in)
    return (n_in, rank, *dims[2:]), (rank, n_out, *dims[2:])
