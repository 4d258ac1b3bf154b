"""What of a model takes memory while it runs, as its header tells: layers, states, widths.

The rules are llama.cpp's (llama-hparams.cpp, llama-model.cpp). Most are shared by all of its
architectures; the few that an architecture has for itself are here by the keys that it has.
"""

from dataclasses import dataclass

from lmlite.gguf.header import Metadata, Tensor

MAX_SIZE = 1 << 26  # of anything below: an estimate with less than that stays a number
_ALL_RECURRENT = ("mamba", "rwkv", "arwkv")  # beginnings of architectures without attention
_BOTH = ("falcon-h1",)  # each layer has attention and a state
_INTERVALS = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01")
_OWN_CACHES = {"gemma3n": 20}  # layers that keep keys and values; those above look at theirs


@dataclass(frozen=True)
class Shape:
    """Sizes in numbers, as many as there are for each token unless it says otherwise."""

    n_embd: int
    n_head: int
    n_wide: int  # of the widest part of a layer, with what lives beside it
    cells: tuple[tuple[int, int], ...]  # key and value of each layer that keeps them
    n_state: int  # of one layer's recurrent state, for each lane; 0 for a model without
    n_state_layers: int
    n_masks: int  # of attention: a sliding window has one of its own
    n_merges: int  # of the tokenizer
    has_trie: bool  # the tokenizer searches by one


def shape_of(arch: str, metadata: Metadata, tensors: list[Tensor]) -> Shape:
    """Of a model whose layers were checked. Raises Fault."""
    keys = _Keys(arch, metadata)
    n_layer = keys.whole("block_count")
    n_embd = keys.whole("embedding_length")
    n_heads = keys.per_layer("attention.head_count", n_layer)
    recurrent = _recurrent_layers(arch, keys, n_layer)
    n_state = _n_state(keys, n_embd, max(n_heads, default=0)) if any(recurrent) else 0
    merges = metadata.get("tokenizer.ggml.merges")
    return Shape(
        n_embd=n_embd,
        n_head=max(n_heads, default=0),
        n_wide=_n_wide(keys, n_embd, n_layer, {tensor.name for tensor in tensors}),
        cells=_cells(arch, keys, n_embd, n_heads, recurrent, tensors),
        n_state=n_state,
        n_state_layers=sum(recurrent),
        n_masks=2 if keys.whole("attention.sliding_window") else 1,
        n_merges=(merges.n or 0) if merges else 0,
        has_trie=metadata.text("tokenizer.ggml.model") == "t5",
    )


class _Keys:
    """The keys of one architecture."""

    def __init__(self, arch: str, metadata: Metadata) -> None:
        self._arch, self._metadata = arch, metadata

    def whole(self, key: str, default: int = 0) -> int:
        """The number, or the largest of a list."""
        return max(self._metadata.wholes(f"{self._arch}.{key}", 0, MAX_SIZE), default=default)

    def per_layer(self, key: str, n_layer: int, default: int = 0) -> list[int]:
        """One for each layer."""
        if f"{self._arch}.{key}" not in self._metadata:
            return [default] * n_layer
        return self._metadata.per_layer(f"{self._arch}.{key}", n_layer, 0, MAX_SIZE)

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return f"{self._arch}.{key}" in self._metadata


def _recurrent_layers(arch: str, keys: _Keys, n_layer: int) -> list[bool]:
    """Which layers keep a state."""
    if arch.startswith(_ALL_RECURRENT) or arch in _BOTH:
        return [True] * n_layer
    n_trunk = n_layer - keys.whole("nextn_predict_layers")
    if keys.has("attention.recurrent_layers"):
        return [bool(is_one) for is_one in keys.per_layer("attention.recurrent_layers", n_layer)]
    if arch in _INTERVALS:
        interval = keys.whole("full_attention_interval", 4) or 4
        return [layer < n_trunk and (layer + 1) % interval != 0 for layer in range(n_layer)]
    if not any(map(keys.has, ("ssm.inner_size", "shortconv.l_cache", "kda.head_dim"))):
        return [False] * n_layer
    n_kv_heads = keys.per_layer("attention.head_count_kv", n_layer, default=1)
    n_ff = keys.per_layer("feed_forward_length", n_layer)
    is_nemotron = arch.startswith("nemotron")  # its layers are one thing each
    return [
        n_kv == 0 and not (is_nemotron and width)
        for n_kv, width in zip(n_kv_heads, n_ff, strict=True)
    ]


def _n_state(keys: _Keys, n_embd: int, n_head: int) -> int:
    """llama_hparams::n_embd_r and n_embd_s: what a layer remembers of all tokens."""
    if keys.has("wkv.head_size"):
        return keys.whole("token_shift_count", 2) * n_embd + n_embd * keys.whole("wkv.head_size")
    if keys.has("shortconv.l_cache"):
        return n_embd * max(0, keys.whole("shortconv.l_cache") - 1)
    n_conv = max(0, keys.whole("ssm.conv_kernel") - 1)
    if keys.has("kda.head_dim"):
        head = keys.whole("kda.head_dim")
        return 3 * (n_conv or 3) * n_head * head + head * head * n_head
    n_inner, n_state = keys.whole("ssm.inner_size"), keys.whole("ssm.state_size")
    n_groups = keys.whole("ssm.group_count")
    return n_conv * (n_inner + 2 * n_groups * n_state) + n_state * n_inner


def _n_wide(keys: _Keys, n_embd: int, n_layer: int, names: set[str]) -> int:
    """What lives at once where a layer is widest, found with llama.cpp's own reservations."""
    n_ff = max(keys.per_layer("feed_forward_length", n_layer), default=0)
    n_gates = 3 if any(".ffn_gate" in name for name in names) else 2
    n_used = keys.whole("expert_used_count")
    n_expert = (keys.whole("expert_feed_forward_length") or n_ff) * n_used
    return 4 * n_embd + max(
        n_gates * n_ff,
        max(3 * n_expert, n_expert + 2 * n_embd * n_used) if n_used else 0,
        6 * keys.whole("ssm.inner_size"),
    )


def _cells(
    arch: str,
    keys: _Keys,
    n_embd: int,
    n_heads: list[int],
    recurrent: list[bool],
    tensors: list[Tensor],
) -> tuple[tuple[int, int], ...]:
    """Keys and values of one token, by layer. The widths of the weights are the surest witness."""
    n_layer, widths = len(n_heads), {tensor.name: tensor.dims[-1] for tensor in tensors}
    n_kv_heads = keys.per_layer("attention.head_count_kv", n_layer)
    if not keys.has("attention.head_count_kv"):
        n_kv_heads = n_heads
    head = n_embd // max(n_heads, default=1) if any(n_heads) else 0
    n_key = keys.whole("attention.key_length", head)
    n_value = keys.whole("attention.value_length", head)
    n_own = _OWN_CACHES.get(arch, n_layer) - keys.whole("attention.shared_kv_layers")
    is_latent = keys.has("attention.key_length_mla")  # one key stands for the value, too
    cells = []
    for layer in range(min(n_own, n_layer - keys.whole("nextn_predict_layers"))):
        if (recurrent[layer] and arch not in _BOTH) or not n_kv_heads[layer]:
            continue
        k = widths.get(f"blk.{layer}.attn_k.weight", n_kv_heads[layer] * n_key)
        v = widths.get(f"blk.{layer}.attn_v.weight", n_kv_heads[layer] * n_value)
        cells.append((k, 0 if is_latent else v))
    return tuple(cells)
