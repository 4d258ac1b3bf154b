"""LoRA adapter files: every fault for which one is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmlite.errors import ModelFileError
from lmlite.gguf import memory_estimate
from lmlite.gguf.adapter import read_adapter_file
from lmlite.gguf.file import read_model_file
from lmlite.messages import Load
from tests.support.adapters import adapter_bytes, adapter_tensors, write_adapter
from tests.support.gguf_writer import (
    TENSOR_F32,
    Tensor,
    Typed,
    Value,
    tensor,
    tiny_llama,
    tiny_llama_parts,
    write_gguf,
)

Q = "blk.0.attn_q.weight"
EMBEDDING = "token_embd.weight"


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    tiny_llama(path)
    return path


def zeros(name: str, *dims: int) -> Tensor:
    n = 1
    for size in dims:
        n *= size
    return tensor(name, dims, [0.0] * n, TENSOR_F32)


def pair(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> list[Tensor]:
    return [zeros(f"{name}.lora_a", *first), zeros(f"{name}.lora_b", *second)]


def check(path: Path, model_path: Path, keys: dict[str, Value], tensors: list[Tensor]) -> None:
    path.write_bytes(adapter_bytes(keys, tensors))
    read_adapter_file(str(path), read_model_file(str(model_path)))


def test_an_adapter_in_order_may_be_loaded_and_counts_in_the_estimate(
    tmp_path: Path, model_path: Path
) -> None:
    path = tmp_path / "adapter.gguf"
    write_adapter(path, 1)
    model = read_model_file(str(model_path))
    parts = read_adapter_file(str(path), model).parts
    assert [(part.path, part.n_bytes) for part in parts] == [(str(path), path.stat().st_size)]
    load = Load(str(model_path), adapters=parts)
    assert memory_estimate.estimate(model, load).adapters == path.stat().st_size
    norm = zeros("blk.0.attn_norm.weight", 64)  # llama.cpp ignores these
    check(path, model_path, {}, [*adapter_tensors(1), norm])
    n_vocab = model.n_vocab
    check(path, model_path, {}, pair(EMBEDDING, (4, n_vocab), (4, 64)))


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"general.type": "model"}, "is not a LoRA adapter"),
        ({"adapter.type": "other"}, "is not a LoRA adapter"),
        ({"general.type": 5}, "that is not a string"),
        ({"adapter.type": 5}, "that is not a string"),
        ({"general.architecture": "qwen2"}, "is for models of the architecture qwen2, not llama"),
        ({"adapter.lora.alpha": 5}, "not a 32-bit number"),
        ({"adapter.lora.alpha": [1.0]}, "not a 32-bit number"),
        ({"adapter.lora.alpha": float("nan")}, "not a 32-bit number"),
        ({"adapter.alora.invocation_tokens": Typed(4, [1])}, "which is not supported"),
    ],
)
def test_other_kinds_of_files_are_refused(
    tmp_path: Path, model_path: Path, keys: dict[str, Value], fault: str
) -> None:
    with pytest.raises(ModelFileError, match=fault):
        check(tmp_path / "adapter.gguf", model_path, keys, adapter_tensors(1))


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        (list, "has no weights"),
        (lambda: [zeros("blk.0.attn_norm.weight", 64)], "has no weights"),
        (lambda: [zeros(f"{Q}.lora_a", 64, 4)], "only one of the two factors"),
        (lambda: pair(Q, (64, 4), (4, 64)) * 2, "two tensors of one name"),
        (lambda: pair("blk.9.attn_q.weight", (64, 4), (4, 64)), "for another model"),
        (lambda: pair(Q, (32, 4), (4, 64)), "other shapes"),
        (lambda: pair(Q, (64, 4), (4, 32)), "other shapes"),
        (lambda: pair(Q, (64, 4), (8, 64)), "other shapes"),
        (lambda: pair(Q, (64, 4, 2), (4, 64, 2)), "other shapes"),
        (lambda: pair("blk.0.attn_norm.weight", (64, 4), (4, 64)), "other shapes"),
        (lambda: pair(EMBEDDING, (4, 9), (4, 64)), "other shapes"),
        (lambda: pair(f"{Q}.lora_a", (64, 4), (4, 64)), "no part of an adapter"),
        (lambda: [*adapter_tensors(1), zeros("blk.0.attn_q.bias", 64)], "no part of an adapter"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, model_path: Path, tensors: Callable[[], list[Tensor]], fault: str
) -> None:
    with pytest.raises(ModelFileError, match=fault):
        check(tmp_path / "adapter.gguf", model_path, {}, tensors())


def test_embeddings_that_are_also_the_output_are_not_changed(tmp_path: Path) -> None:
    metadata, tensors = tiny_llama_parts()
    path = tmp_path / "tied.gguf"
    write_gguf(path, metadata, [each for each in tensors if each.name != "output.weight"])
    n_vocab = read_model_file(str(path)).n_vocab
    with pytest.raises(ModelFileError, match="as its output, too"):
        check(tmp_path / "adapter.gguf", path, {}, pair(EMBEDDING, (4, n_vocab), (4, 64)))
