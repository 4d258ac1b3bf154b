"""Which layers keep what, by the keys of a header: one rule of llama.cpp each."""

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
    """Of a header with the keys above and these, whose dots are double underscores."""
    named = {name.replace("__", "."): value for name, value in keys.items()}
    return shape_of(arch, metadata_of(arch, BASE | named), list(tensors))


def weight(name: str, *dims: int) -> Tensor:
    return Tensor(name, dims, "F16", 1, 2, 0)


def test_heads_of_keys_and_values_are_fewer_than_those_that_ask() -> None:
    assert shape().cells == ((16, 16),) * 4
    assert shape(attention__head_count_kv=8).cells == ((64, 64),) * 4


def test_without_a_count_of_their_own_there_are_as_many() -> None:
    keys = {name: value for name, value in BASE.items() if name != "attention.head_count_kv"}
    assert shape_of("llama", metadata_of("llama", keys), []).cells == ((64, 64),) * 4


def test_heads_may_have_a_length_of_their_own() -> None:
    found = shape(attention__key_length=24, attention__value_length=20)
    assert found.cells == ((48, 40),) * 4


def test_the_weights_know_best() -> None:
    tensors = weight("blk.1.attn_k.weight", 64, 128), weight("blk.1.attn_v.weight", 64, 96)
    assert shape(tensors=tensors).cells == ((16, 16), (128, 96), (16, 16), (16, 16))


def test_a_layer_without_heads_for_keys_keeps_none() -> None:
    assert shape(attention__head_count_kv=[2, 0, 1, 0]).cells == ((16, 16), (8, 8))


def test_a_latent_key_stands_for_the_value() -> None:
    found = shape(
        "deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
    )
    assert found.cells == ((576, 0),) * 4


def test_layers_that_look_at_those_of_others_keep_none() -> None:
    assert len(shape("gemma4", attention__shared_kv_layers=3).cells) == 1
    assert len(shape("gemma3n", block_count=30).cells) == 20


def test_layers_that_predict_further_tokens_are_not_loaded() -> None:
    assert len(shape(nextn_predict_layers=1).cells) == 3


def test_a_sliding_window_has_a_mask_of_its_own() -> None:
    assert (shape().n_masks, shape(attention__sliding_window=512).n_masks) == (1, 2)


def test_a_model_of_attention_has_no_state() -> None:
    assert (shape().n_state, shape().n_state_layers) == (0, 0)


MAMBA: Keys = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}


def test_a_recurrent_model_has_a_state_in_each_layer_and_no_cells() -> None:
    found = shape("mamba", attention__head_count=0, attention__head_count_kv=0, **MAMBA)
    assert found.cells == ()
    assert (found.n_state, found.n_state_layers) == (3 * 128 + 16 * 128, 4)


def test_groups_of_a_state_are_part_of_its_window() -> None:
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


def test_a_hybrid_keeps_the_one_or_the_other() -> None:
    found = shape("jamba", attention__head_count_kv=[0, 2, 0, 0], **MAMBA)
    assert (len(found.cells), found.n_state_layers) == (1, 3)


def test_a_layer_of_nemotron_is_one_thing() -> None:
    found = shape(
        "nemotron_h",
        attention__head_count_kv=[0, 0, 2, 0],
        feed_forward_length=[0, 256, 0, 256],
        **MAMBA,
    )
    assert (len(found.cells), found.n_state_layers) == (1, 1)


def test_a_layer_of_falcon_h1_keeps_both() -> None:
    found = shape("falcon-h1", **MAMBA)
    assert (len(found.cells), found.n_state_layers) == (4, 4)


def test_every_fourth_layer_looks_where_nothing_else_is_said() -> None:
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


def test_of_experts_those_count_that_are_used() -> None:
    used: Keys = {"expert_used_count": 8, "expert_feed_forward_length": 100}
    assert shape(**used).n_wide == 4 * 64 + 3 * 8 * 100
    used["expert_feed_forward_length"] = 30
    assert shape(**used).n_wide == 4 * 64 + 8 * 30 + 2 * 8 * 64


def test_the_tokenizer_counts() -> None:
    keys: Keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.merges": [1, 2, 3]}
    found = shape_of("llama", metadata_of("llama", BASE | keys), [])
    assert (found.has_trie, found.n_merges) == (True, 3)
