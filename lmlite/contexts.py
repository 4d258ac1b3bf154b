"""How large a model's contexts are: what a worker makes, and what its memory estimate counts."""

from lmlite.messages import Load

DEFAULT_N_CTX = 4096  # tokens, where neither the model nor --ctx asks for less
EMBEDDING_BATCH = 512  # tokens, for a model that can read a long input in pieces
EMBEDDING_LANES = 64  # inputs of one step
MAX_OUTPUT_PIECE = 64  # tokens of a prompt in one step, if it wants the logits of each
LANES_PER_SEQUENCE = 4  # finished sequences stay in memory, so that others can start from them
CPU_UBATCH = 128  # tokens at once without flash attention: more are no faster, and take memory


def n_ctx_max(load: Load, n_ctx_train: int) -> int:
    """Tokens that a sequence may have: as many as the model was trained for, or stretched to."""
    rope = load.rope
    if rope.freq_base is not None and rope.freq_scale is None:
        return max(n_ctx_train, load.n_ctx or 0)  # only its user knows how far that reaches
    n_orig = rope.yarn_orig_ctx or n_ctx_train if rope.kind == "yarn" else n_ctx_train
    return max(n_ctx_train, round(n_orig / (rope.freq_scale or 1)))


def context_size(load: Load, n_ctx_train: int) -> int:
    """Tokens of the context that a Load asks for."""
    n_most = n_ctx_max(load, n_ctx_train)
    if not load.generates:
        return min(load.n_ctx or DEFAULT_N_CTX, n_most)
    return load.n_ctx or min(DEFAULT_N_CTX, n_most * load.n_parallel)


def n_ubatch(load: Load, n_batch: int, n_seq: int) -> int:
    """Tokens of a batch that are computed at once. A picture may have to be read as a whole."""
    if load.uses_gpu or load.mmproj_path or not load.generates or load.flash_attn != "off":
        return n_batch
    return min(n_batch, max(CPU_UBATCH, n_seq))


def n_lanes(n_parallel: int, can_cut_memory: bool) -> int:
    """Lanes of memory: more than sequences run at once, unless each lane has a state of its own."""
    return LANES_PER_SEQUENCE * n_parallel if can_cut_memory else n_parallel
