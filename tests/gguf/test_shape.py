"""The sizes of a model, by the keys of its header: each test is one rule of llama.cpp."""

import struct
from typing import Any

import pytest

from lmlite.gguf.header import BOOL, STRING, Metadata, Tensor, Value
from lmlite.gguf.shape import Shape, shape_of

U32 = 4
Keys = dict[str, Any]
BASE: Keys = {
    "block_count": 4,
    "embedding_length": 64,
    "feed_forward_length": 256,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}


def metadata_of(arch: str, keys: Keys) -> Metadata:
    found = Metadata()
    found.architecture = arch
    for name, value in keys.items():
        key = name if name.startswith("tokenizer.") else f"{arch}.{name}"
        if isinstance(value, str):
            found[key] = Value(STRING, None, value.encode())
        elif isinstance(value, int):
            found[key] = Value(U32, None, struct.pack("<I", value))
        elif isinstance(value[0], bool):
            found[key] = Value(BOOL, len(value), struct.pack(f"<{len(value)}?", *value))
        else:
            found[key] = Value(U32, len(value), struct.pack(f"<{len(value)}I", *value))
    return found


def shape(arch: str = "llama", tensors: tuple[Tensor, ...] = (), **keys: Any) -> Shape:
    """The shape for the keys above and these; a double underscore stands for a dot."""
    named = {name.replace("__", "."): value for name, value in keys.items()}
    return shape_of(metadata_of(arch, BASE | named), list(tensors))


def weight(name: str, *dims: int) -> Tensor:
    return Tensor(name, dims, "F16", 1, 2, 0)


def test_keys_and_values_may_have_fewer_heads_than_queries() -> None:
    assert shape().cells == ((16, 16),) * 4
    assert shape(attention__head_count_kv=8).cells == ((64, 64),) * 4


def test_without_a_count_keys_have_as_many_heads_as_queries() -> None:
    keys = {name: value for name, value in BASE.items() if name != "attention.head_count_kv"}
    assert shape_of(metadata_of("llama", keys), []).cells == ((64, 64),) * 4


def test_key_and_value_lengths_override_the_head_size() -> None:
    found = shape(attention__key_length=24, attention__value_length=20)
    assert found.cells == ((48, 40),) * 4


def test_the_shapes_of_weights_override_the_keys() -> None:
    tensors = weight("blk.1.attn_k.weight", 64, 128), weight("blk.1.attn_v.weight", 64, 96)
    assert shape(tensors=tensors).cells == ((16, 16), (128, 96), (16, 16), (16, 16))


def test_a_layer_without_key_heads_has_no_cells() -> None:
    assert shape(attention__head_count_kv=[2, 0, 1, 0]).cells == ((16, 16), (8, 8))


def test_a_latent_key_is_also_the_value() -> None:
    found = shape(
        "deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
    )
    assert found.cells == ((576, 0),) * 4


def test_layers_that_share_the_cache_of_others_have_no_cells() -> None:
    assert len(shape("gemma4", attention__shared_kv_layers=3).cells) == 1
    assert len(shape("gemma3n", block_count=30).cells) == 20


def test_layers_for_multi_token_prediction_are_not_loaded() -> None:
    assert len(shape(nextn_predict_layers=1).cells) == 3


def test_a_sliding_window_has_a_mask_of_its_own() -> None:
    assert (shape().n_masks, shape(attention__sliding_window=512).n_masks) == (1, 2)


def test_a_transformer_has_no_state() -> None:
    assert (shape().n_state, shape().n_state_layers) == (0, 0)


MAMBA: Keys = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}


def test_a_recurrent_model_has_a_state_in_each_layer_and_no_cells() -> None:
    found = shape("mamba", attention__head_count=0, attention__head_count_kv=0, **MAMBA)
    assert found.cells == ()
    assert (found.n_state, found.n_state_layers) == (3 * 128 + 16 * 128, 4)


def test_the_groups_of_a_state_widen_its_convolution() -> None:
    found = shape("mamba2", ssm__group_count=2, **MAMBA)
    assert found.n_state == 3 * (128 + 2 * 2 * 16) + 16 * 128


@pytest.mark.parametrize(
    ("arch", "keys", "n_state"),
    [
        ("rwkv7", {"wkv__head_size": 16}, 2 * 64 + 64 * 16),
        ("rwkv6qwen2", {"wkv__head_size": 16, "token_shift_count": 1}, 64 + 64 * 16),
        ("lfm2", {"shortconv__l_cache": 3, "attention__head_count_kv": [0, 2, 0, 2]}, 128),
        (
            "kimi-linear",
            {"kda__head_dim": 4, "ssm__conv_kernel": 4, "attention__head_count_kv": [0, 0, 0, 1]},
            3 * 3 * 8 * 4 + 4 * 4 * 8,
        ),
    ],
)
def test_each_kind_of_state_has_its_size(arch: str, keys: Keys, n_state: int) -> None:
    assert shape(arch, **keys).n_state == n_state


def test_a_layer_of_a_hybrid_has_cells_or_a_state() -> None:
    found = shape("jamba", attention__head_count_kv=[0, 2, 0, 0], **MAMBA)
    assert (len(found.cells), found.n_state_layers) == (1, 3)


def test_a_layer_of_nemotron_has_one_part_only() -> None:
    found = shape(
        "nemotron_h",
        attention__head_count_kv=[0, 0, 2, 0],
        feed_forward_length=[0, 256, 0, 256],
        **MAMBA,
    )
    assert (len(found.cells), found.n_state_layers) == (1, 1)


def test_a_layer_of_falcon_h1_has_cells_and_a_state() -> None:
    found = shape("falcon-h1", **MAMBA)
    assert (len(found.cells), found.n_state_layers) == (4, 4)


def test_every_fourth_layer_has_attention_unless_the_file_gives_an_interval() -> None:
    assert len(shape("qwen3next", **MAMBA).cells) == 1
    assert len(shape("qwen35", full_attention_interval=2, **MAMBA).cells) == 2


def test_a_list_of_recurrent_layers_is_obeyed() -> None:
    found = shape("qwen35", attention__recurrent_layers=[True, False, True, True], **MAMBA)
    assert (len(found.cells), found.n_state_layers) == (1, 3)


def test_the_widest_part_counts() -> None:
    gate = (weight("blk.0.ffn_gate.weight", 64, 256),)
    assert shape().n_wide == 4 * 64 + 2 * 256
    assert shape(tensors=gate).n_wide == 4 * 64 + 3 * 256
    assert shape("mamba", **MAMBA).n_wide == 4 * 64 + 6 * 128


def test_only_the_experts_in_use_count() -> None:
    used: Keys = {"expert_used_count": 8, "expert_feed_forward_length": 100}
    assert shape(**used).n_wide == 4 * 64 + 3 * 8 * 100
    used["expert_feed_forward_length"] = 30
    assert shape(**used).n_wide == 4 * 64 + 8 * 30 + 2 * 8 * 64


def test_the_tokenizer_counts() -> None:
    keys: Keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.merges": [1, 2, 3]}
    found = shape_of(metadata_of("llama", BASE | keys), [])
    assert (found.has_trie, found.n_merges) == (True, 3)
