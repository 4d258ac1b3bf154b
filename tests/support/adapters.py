"""LoRA adapters with random weights, and models that the same changes were merged into."""

import random
import struct
from collections.abc import Sequence

from tests.support.gguf_writer import (
    TENSOR_F32,
    Path,
    Tensor,
    Value,
    encode_gguf,
    tensor,
    tiny_llama_parts,
    write_gguf,
)

ALPHA, RANK = 8.0, 4
CHANGED = ("blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight", "output.weight")
METADATA: dict[str, Value] = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
    "adapter.lora.alpha": ALPHA,
}


def adapter_tensors(seed: int, names: Sequence[str] = CHANGED) -> list[Tensor]:
    """Two factors for each of these tensors of `tiny_llama`."""
    source, tensors = random.Random(seed), []
    for base in tiny_llama_parts()[1]:
        if base.name in names:
            n_in, n_out = base.dims
            for ending, dims in (("a", (n_in, RANK)), ("b", (RANK, n_out))):
                weights = [source.gauss(0.0, 0.15) for _ in range(dims[0] * dims[1])]
                tensors.append(tensor(f"{base.name}.lora_{ending}", dims, weights, TENSOR_F32))
    return tensors


def write_adapter(path: Path, seed: int) -> None:
    """Writes an adapter of `tiny_llama`."""
    write_gguf(path, METADATA, adapter_tensors(seed))


def merged_llama(path: Path, changes: Sequence[tuple[int, float]]) -> None:
    """Writes `tiny_llama` with adapters, each a seed and a scale, added to its weights."""
    metadata, tensors = tiny_llama_parts()
    factors = [
        ({each.name: each for each in adapter_tensors(seed)}, scale) for seed, scale in changes
    ]
    merged = []
    for base in tensors:
        if base.name in CHANGED:
            n_in, n_out = base.dims
            weights = _numbers(base)
            for of_seed, scale in factors:
                first = _numbers(of_seed[f"{base.name}.lora_a"])
                second = _numbers(of_seed[f"{base.name}.lora_b"])
                for row in range(n_out):
                    for rank in range(RANK):
                        factor = scale * ALPHA / RANK * second[row * RANK + rank]
                        for column in range(n_in):
                            weights[row * n_in + column] += factor * first[rank * n_in + column]
            base = tensor(base.name, base.dims, weights, TENSOR_F32)
        merged.append(base)
    write_gguf(path, metadata, merged)


def adapter_bytes(metadata: dict[str, Value], tensors: Sequence[Tensor]) -> bytes:
    """An adapter's bytes, with some of its keys or tensors replaced."""
    return encode_gguf(METADATA | metadata, tensors)


def _numbers(item: Tensor) -> list[float]:
    return [*struct.unpack(f"<{len(item.data) // 4}f", item.data)]
