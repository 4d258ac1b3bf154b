"""The sizes in a header that determine how much memory a model takes: layers, states, widths.

The rules are llama.cpp's (llama-hparams.cpp, llama-model.cpp). Most apply to all architectures. The
others apply to a model that has certain keys or, if keys do not tell, a certain architecture.
"""

from dataclasses import dataclass

from lmlite.gguf.header import Metadata, Tensor

WITHOUT_ATTENTION = ("mamba", "rwkv", "arwkv")  # prefixes; all layers are recurrent
_BOTH = ("falcon-h1",)  # architectures in which each layer has attention and a state
# Architectures in which every fourth layer has attention, unless the file gives another interval.
_INTERVALS = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01")
_OWN_CACHES = {"gemma3n": 20}  # number of layers with keys and values; later layers reuse them


@dataclass(frozen=True)
class Shape:
    """Sizes in floats. Those of a layer are per token unless noted."""

    n_embd: int
    n_head: int
    n_wide: int  # floats that are in use at once in the widest part of a layer
    cells: tuple[tuple[int, int], ...]  # sizes of key and value, for each layer that stores them
    n_state: int  # one layer's recurrent state, per lane; 0 without recurrent layers
    n_state_layers: int
    n_masks: int  # number of attention masks: a sliding window needs a second one
    n_merges: int  # number of merges of the tokenizer
    has_trie: bool  # the tokenizer keeps its vocabulary in a trie


def shape_of(metadata: Metadata, tensors: list[Tensor]) -> Shape:
    """The shape of a model. Its layers must be checked before. Raises Fault."""
    n_layer = metadata.largest(".block_count")
    n_embd = metadata.largest(".embedding_length")
    n_heads = metadata.per_layer(".attention.head_count", n_layer)
    recurrent = _recurrent_layers(metadata, n_layer)
    n_state = _n_state(metadata, n_embd, max(n_heads, default=0)) if any(recurrent) else 0
    merges = metadata.get("tokenizer.ggml.merges")
    return Shape(
        n_embd=n_embd,
        n_head=max(n_heads, default=0),
        n_wide=_n_wide(metadata, n_embd, n_layer, {tensor.name for tensor in tensors}),
        cells=_cells(metadata, n_embd, n_heads, recurrent, tensors),
        n_state=n_state,
        n_state_layers=sum(recurrent),
        n_masks=2 if metadata.largest(".attention.sliding_window") else 1,
        n_merges=(merges.n or 0) if merges else 0,
        has_trie=metadata.text("tokenizer.ggml.model") == "t5",
    )


def _recurrent_layers(metadata: Metadata, n_layer: int) -> list[bool]:
    """For each layer, whether it has a recurrent state."""
    arch = metadata.architecture
    if arch.startswith(WITHOUT_ATTENTION) or arch in _BOTH:
        return [True] * n_layer
    n_trunk = n_layer - metadata.largest(".nextn_predict_layers")
    if metadata.has(".attention.recurrent_layers"):
        return list(map(bool, metadata.per_layer(".attention.recurrent_layers", n_layer)))
    if arch in _INTERVALS:
        interval = metadata.largest(".full_attention_interval", 4) or 4
        return [layer < n_trunk and (layer + 1) % interval != 0 for layer in range(n_layer)]
    if not metadata.has(".ssm.inner_size", ".shortconv.l_cache", ".kda.head_dim"):
        return [False] * n_layer
    n_kv_heads = metadata.per_layer(".attention.head_count_kv", n_layer, default=1)
    n_ff = metadata.per_layer(".feed_forward_length", n_layer)
    # A layer of Nemotron has only one part: attention, a feed-forward network or a state.
    is_nemotron = arch.startswith("nemotron")
    return [
        n_kv == 0 and not (is_nemotron and width)
        for n_kv, width in zip(n_kv_heads, n_ff, strict=True)
    ]


def _n_state(metadata: Metadata, n_embd: int, n_head: int) -> int:
    """The size of a layer's recurrent state: llama_hparams::n_embd_r + n_embd_s."""
    if metadata.has(".wkv.head_size"):
        return n_embd * (
            metadata.largest(".token_shift_count", 2) + metadata.largest(".wkv.head_size")
        )
    if metadata.has(".shortconv.l_cache"):
        return n_embd * max(0, metadata.largest(".shortconv.l_cache") - 1)
    n_conv = max(0, metadata.largest(".ssm.conv_kernel") - 1)
    if metadata.has(".kda.head_dim"):
        head = metadata.largest(".kda.head_dim")
        return 3 * (n_conv or 3) * n_head * head + head * head * n_head
    n_inner, n_state = metadata.largest(".ssm.inner_size"), metadata.largest(".ssm.state_size")
    n_groups = metadata.largest(".ssm.group_count")
    return n_conv * (n_inner + 2 * n_groups * n_state) + n_state * n_inner


def _n_wide(metadata: Metadata, n_embd: int, n_layer: int, names: set[str]) -> int:
    """See Shape.n_wide. The formula is fitted to llama.cpp's own reservations."""
    n_ff = max(metadata.per_layer(".feed_forward_length", n_layer), default=0)
    n_gates = 3 if any(".ffn_gate" in name for name in names) else 2
    n_used = metadata.largest(".expert_used_count")
    n_expert = (metadata.largest(".expert_feed_forward_length") or n_ff) * n_used
    return 4 * n_embd + max(
        n_gates * n_ff,
        max(3 * n_expert, n_expert + 2 * n_embd * n_used) if n_used else 0,
        6 * metadata.largest(".ssm.inner_size"),
    )


def _cells(
    metadata: Metadata,
    n_embd: int,
    n_heads: list[int],
    recurrent: list[bool],
    tensors: list[Tensor],
) -> tuple[tuple[int, int], ...]:
    """Sizes of keys and values by layer: from the widths of weights if present, else from keys."""
    arch, n_layer = metadata.architecture, len(n_heads)
    widths = {tensor.name: tensor.dims[-1] for tensor in tensors}
    n_kv_heads = n_heads
    if metadata.has(".attention.head_count_kv"):
        n_kv_heads = metadata.per_layer(".attention.head_count_kv", n_layer)
    head = n_embd // max(n_heads, default=1) if any(n_heads) else 0
    n_key = metadata.largest(".attention.key_length", head)
    n_value = metadata.largest(".attention.value_length", head)
    n_own = _OWN_CACHES.get(arch, n_layer) - metadata.largest(".attention.shared_kv_layers")
    is_latent = metadata.has(".attention.key_length_mla")  # values are derived from the keys
    cells = []
    for layer in range(min(n_own, n_layer - metadata.largest(".nextn_predict_layers"))):
        if (recurrent[layer] and arch not in _BOTH) or not n_kv_heads[layer]:
            continue
        k = widths.get(f"blk.{layer}.attn_k.weight", n_kv_heads[layer] * n_key)
        v = widths.get(f"blk.{layer}.attn_v.weight", n_kv_heads[layer] * n_value)
        cells.append((k, 0 if is_latent else v))
    return tuple(cells)
