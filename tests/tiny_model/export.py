"""A trained model -> a GGUF file that llama.cpp runs."""

from pathlib import Path

import torch
from torch import Tensor as Weights

from tests.support.gguf_writer import TENSOR_F32, Shape, Tensor, Value, llama_metadata, write_gguf
from tests.tiny_model.tokenizer import Tokenizer, tokenizer_metadata

TENSOR_Q8_0, FILE_TYPE_Q8_0 = 8, 7  # enum ggml_type, enum llama_ftype
BLOCK = 32  # weights that share a scale

NAMES = {"attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
         "attn.output": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
         "down": "ffn_down"}  # fmt: skip


def export(
    path: Path,
    weights: dict[str, Weights],
    shape: Shape,
    vocabulary: Tokenizer,
    card: dict[str, str],
) -> None:
    """Writes the file. `weights` are PyTorch's, by their names in `train.Llama`."""
    metadata: dict[str, Value] = llama_metadata(shape, card["general.name"], FILE_TYPE_Q8_0)
    metadata |= card | tokenizer_metadata(vocabulary)
    tensors = [
        quantized("token_embd.weight", weights["embedding.weight"]),
        norm("output_norm.weight", weights["norm.weight"]),
    ]  # without an output table, llama.cpp compares with the embeddings, as training did
    for layer in range(shape.n_layer):
        tensors += [
            norm(f"blk.{layer}.{name}.weight", weights[f"layers.{layer}.{name}.weight"])
            for name in ("attn_norm", "ffn_norm")
        ]
        for ours, theirs in NAMES.items():
            matrix = weights[f"layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                matrix = pairs_side_by_side(matrix, shape.n_embd // shape.n_head)
            tensors.append(quantized(f"blk.{layer}.{theirs}.weight", matrix))
    write_gguf(path, metadata, tensors)


def pairs_side_by_side(matrix: Weights, n_rot: int) -> Weights:
    """Rows of queries or keys in the order that llama.cpp turns them.

    Here the two numbers of a pair lie half a head apart, there next to each other.
    """
    n_rows, n_columns = matrix.shape
    halves = matrix.view(n_rows // n_rot, 2, n_rot // 2, n_columns)
    return halves.transpose(1, 2).reshape(n_rows, n_columns)


def norm(name: str, weights: Weights) -> Tensor:
    """A norm stays in 32 bits, as in every file."""
    return Tensor(name, list(weights.shape), weights.float().numpy().tobytes(), TENSOR_F32)


def quantized(name: str, matrix: Weights) -> Tensor:
    """Q8_0: for each 32 weights of a row a 16-bit scale, then each as a whole number of 8 bits.

    The source is ggml's own reference, quantize_row_q8_0 in ggml-quants.c.
    """
    n_rows, n_columns = matrix.shape
    blocks = matrix.float().reshape(-1, BLOCK)
    scales = (blocks.abs().amax(1, keepdim=True) / 127).half()
    whole = (blocks / scales.float().clamp(min=1e-12)).round().clamp(-127, 127).to(torch.int8)
    data = torch.cat((scales.view(torch.int8), whole), 1)
    return Tensor(name, [n_columns, n_rows], data.numpy().tobytes(), TENSOR_Q8_0)
