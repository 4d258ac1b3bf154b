"""The sizes of a model's contexts. The worker and its memory estimate share these rules."""

from lmlite.messages import Load

DEFAULT_N_CTX = 4096  # tokens without --ctx, or fewer if the model was trained for fewer
EMBEDDING_BATCH = 512  # tokens in one step, for a model that can read a long input in pieces
EMBEDDING_LANES = 64  # most inputs in one step
MAX_OUTPUT_PIECE = 64  # prompt tokens in one step if logits are wanted for each of them
LANES_PER_SEQUENCE = 4  # finished sequences stay in memory; a new one may reuse their prefix
CPU_UBATCH = 128  # tokens computed at once without flash attention: more only take more memory


def n_ctx_max(load: Load, n_ctx_train: int) -> int:
    """Most tokens of a sequence: the model's trained context size, or that which RoPE allows."""
    rope = load.rope
    if rope.freq_base is not None and rope.freq_scale is None:
        return max(n_ctx_train, load.n_ctx or 0)  # no formula gives the reach: trust --ctx
    n_orig = rope.yarn_orig_ctx or n_ctx_train if rope.kind == "yarn" else n_ctx_train
    return max(n_ctx_train, round(n_orig / (rope.freq_scale or 1)))


def context_size(load: Load, n_ctx_train: int) -> int:
    """Size in tokens of the context that `load` asks for."""
    n_most = n_ctx_max(load, n_ctx_train)
    if not load.generates:
        return min(load.n_ctx or DEFAULT_N_CTX, n_most)
    return load.n_ctx or min(DEFAULT_N_CTX, n_most * load.n_parallel)


def embedding_batch(load: Load, n_ctx_seq: int) -> int:
    """Tokens of one step of embeddings. An encoder reads each input whole."""
    reads_pieces = load.generates or load.ranker == "causal"
    return min(EMBEDDING_BATCH, n_ctx_seq) if reads_pieces else n_ctx_seq


def n_ubatch(load: Load, n_batch: int, n_seq: int) -> int:
    """Tokens of a batch that are computed at once. With images, an image must fit into one."""
    if load.uses_gpu or load.mmproj_path or not load.generates or load.flash_attn != "off":
        return n_batch
    return min(n_batch, max(CPU_UBATCH, n_seq))


def n_lanes(n_parallel: int, can_cut_memory: bool) -> int:
    """How many lanes of memory: more than n_parallel only if memory can be cut at any token."""
    return LANES_PER_SEQUENCE * n_parallel if can_cut_memory else n_parallel
