"""The memory estimate against llama.cpp's own reservations, and against a real worker."""

import base64
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlite import contexts
from lmlite.gguf import memory_estimate
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.memory_estimate import DoesNotFit, Estimate, estimate, plan
from lmlite.gguf.projector import Projector, read_projector_file
from lmlite.messages import Load
from lmlite.server.models.loading import EMBEDDED_PROJECTOR
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from lmlite.worker.media import MediaEncoder
from tests.conftest import DEFAULT_MODEL, shared_model
from tests.served.test_faults import serve
from tests.support import architectures, projectors
from tests.support.gguf_writer import (
    CONTROL,
    NORMAL,
    SPECIAL_TOKENS,
    TENSOR_F16,
    TENSOR_Q4_0,
    Value,
    byte_alphabet,
    write_hollow,
)
from tests.support.image_files import RED, png
from tests.support.projectors import Size
from tests.support.server_process import RunningServer

MIB = 1 << 20
Shapes = dict[str, tuple[int, ...]]
Keys = dict[str, Value]
Writer = Callable[[Path], None]


# ---- models of real sizes, without their weights ---------------------------------------------


def vocabulary(n_vocab: int) -> Keys:
    tokens = [*byte_alphabet(), *SPECIAL_TOKENS]
    tokens += [f"t{number}" for number in range(n_vocab - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 256 + [CONTROL] * 3 + [NORMAL] * (n_vocab - 259),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 258,
    }


def attention(n_embd: int, n_head: int, n_kv: int, head: int) -> Shapes:
    return {
        "attn_norm.weight": (n_embd,),
        "attn_q.weight": (n_embd, n_head * head),
        "attn_k.weight": (n_embd, n_kv * head),
        "attn_v.weight": (n_embd, n_kv * head),
        "attn_output.weight": (n_head * head, n_embd),
    }


def norms_of(head: int) -> Shapes:
    return {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}


def feed_forward(n_embd: int, n_ff: int) -> Shapes:
    return {
        "ffn_norm.weight": (n_embd,),
        "ffn_gate.weight": (n_embd, n_ff),
        "ffn_up.weight": (n_embd, n_ff),
        "ffn_down.weight": (n_ff, n_embd),
    }


def experts(n_embd: int, n_ff: int, n_experts: int) -> Shapes:
    return {
        "ffn_norm.weight": (n_embd,),
        "ffn_gate_inp.weight": (n_embd, n_experts),
        "ffn_gate_exps.weight": (n_embd, n_ff, n_experts),
        "ffn_up_exps.weight": (n_embd, n_ff, n_experts),
        "ffn_down_exps.weight": (n_ff, n_embd, n_experts),
    }


def heads(n_head: int, n_kv: int, head: int) -> Keys:
    return {
        "attention.head_count": n_head,
        "attention.head_count_kv": n_kv,
        "attention.key_length": head,
        "attention.value_length": head,
    }


def write_model(
    path: Path,
    arch: str,
    n_embd: int,
    n_vocab: int,
    keys: Keys,
    layers: list[Shapes],
    norm: str = "output_norm.weight",
    matrix_kind: int = TENSOR_F16,
) -> None:
    metadata: Keys = {
        "general.architecture": arch,
        f"{arch}.context_length": 32768,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": len(layers),
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata |= {f"{arch}.{key}": value for key, value in keys.items()} | vocabulary(n_vocab)
    shapes: Shapes = {"token_embd.weight": (n_embd, n_vocab), norm: (n_embd,)}
    for number, layer in enumerate(layers):
        shapes |= {f"blk.{number}.{name}": dims for name, dims in layer.items()}
    write_hollow(path, metadata, shapes, matrix_kind)


def qwen_of_half_a_billion(path: Path) -> None:
    """Small, with a large vocabulary: logits take most of the memory."""
    biases: Shapes = {"attn_q.bias": (896,), "attn_k.bias": (128,), "attn_v.bias": (128,)}
    layer = attention(896, 14, 2, 64) | biases | feed_forward(896, 4864)
    keys: Keys = {
        "feed_forward_length": 4864,
        "attention.head_count": 14,
        "attention.head_count_kv": 2,
    }
    write_model(path, "qwen2", 896, 151_936, keys, [layer] * 24)


def llama_of_eight_billion(path: Path) -> None:
    layer = attention(4096, 32, 8, 128) | feed_forward(4096, 14336)
    keys: Keys = {
        "feed_forward_length": 14336,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
    }
    write_model(path, "llama", 4096, 128_256, keys, [layer] * 32)


def gemma_of_one_billion(path: Path) -> None:
    """Heads wider than the model, and a sliding window in five layers of six."""
    norms: Shapes = {f"post_{name}_norm.weight": (1152,) for name in ("attention", "ffw")}
    layer = attention(1152, 4, 1, 256) | norms_of(256) | norms | feed_forward(1152, 6912)
    keys: Keys = heads(4, 1, 256) | {"feed_forward_length": 6912, "attention.sliding_window": 512}
    write_model(path, "gemma3", 1152, 262_144, keys, [layer] * 26)


def qwen_of_experts(path: Path) -> None:
    layer = attention(2048, 32, 4, 128) | norms_of(128) | experts(2048, 768, 128)
    keys: Keys = heads(32, 4, 128) | {
        "feed_forward_length": 6144,
        "expert_feed_forward_length": 768,
    }
    keys |= {"expert_count": 128, "expert_used_count": 8}
    write_model(path, "qwen3moe", 2048, 151_936, keys, [layer] * 4)


def mamba_of_medium_size(path: Path) -> None:
    layer: Shapes = {
        "attn_norm.weight": (1024,),
        "ssm_in.weight": (1024, 4096),
        "ssm_conv1d.weight": (4, 2048),
        "ssm_conv1d.bias": (2048,),
        "ssm_x.weight": (2048, 96),
        "ssm_dt.weight": (64, 2048),
        "ssm_dt.bias": (2048,),
        "ssm_a": (16, 2048),
        "ssm_d": (2048,),
        "ssm_out.weight": (2048, 1024),
    }
    keys: Keys = {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2048,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 64,
    }
    write_model(path, "mamba", 1024, 5000, keys, [layer] * 48)


def lfm_of_medium_size(path: Path) -> None:
    """A hybrid: ten layers of short convolution, six of attention."""
    convolution: Shapes = {
        "attn_norm.weight": (1024,),
        "shortconv.conv.weight": (3, 1024),
        "shortconv.in_proj.weight": (1024, 3072),
        "shortconv.out_proj.weight": (1024, 1024),
    }
    looks = [layer in (2, 5, 8, 10, 12, 14) for layer in range(16)]
    layers = [
        (attention(1024, 16, 8, 64) | norms_of(64) if looking else convolution)
        | feed_forward(1024, 4608)
        for looking in looks
    ]
    keys: Keys = {
        "feed_forward_length": 4608,
        "attention.head_count": 16,
        "attention.head_count_kv": [8 if looking else 0 for looking in looks],
        "shortconv.l_cache": 3,
    }
    write_model(path, "lfm2", 1024, 65_536, keys, layers, "token_embd_norm.weight")


HOLLOW = [qwen_of_half_a_billion, llama_of_eight_billion, gemma_of_one_billion, qwen_of_experts,
          mamba_of_medium_size, lfm_of_medium_size]  # fmt: skip
SMALL = [architectures.mamba, architectures.lfm2, architectures.gemma3]


# ---- what llama.cpp would reserve ------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Writer], ModelFile]:
    """Writes and reads each model once."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def read(write: Writer) -> ModelFile:
        path = folder / f"{write.__module__}.{write.__name__}.gguf"
        write(path)
        return read_model_file(path)

    return read


def reserved(
    lib: Any, file: ModelFile, load: Load, capfd: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """MiB, by kind, as llama.cpp reports them without allocating (no_alloc)."""
    params = lib.llama_model_default_params()
    params.no_alloc, params.load_mode = True, 0
    model = lib.llama_model_load_from_file(file.path.encode(), params)
    assert model
    wanted = lib.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch = load.n_ctx, load.n_batch
    n_seq = contexts.n_lanes(load.n_parallel, not file.shape.n_state)
    wanted.n_ubatch = contexts.n_ubatch(load, load.n_batch, n_seq)
    wanted.kv_unified = True
    # By default it reserves logits for each token of a batch, but few are ever used.
    wanted.n_outputs_max = load.n_parallel + contexts.MAX_OUTPUT_PIECE
    wanted.n_outputs_max_per_seq = wanted.n_outputs_max
    wanted.n_seq_max = n_seq
    wanted.type_k = capi.CACHE_TYPES[load.cache_type_k]
    wanted.type_v = capi.CACHE_TYPES[load.cache_type_v]
    wanted.flash_attn_type = capi.FLASH_ATTN_TYPES[load.flash_attn]
    capfd.readouterr()
    lib.lml_log_level(capi.LOG_LEVELS["info"])
    try:
        context = lib.llama_init_from_model(model, wanted)
    finally:
        lib.lml_log_level(capi.LOG_LEVELS["error"])
    assert context
    lib.llama_free(context)
    lib.llama_model_free(model)
    said = capfd.readouterr().err
    cells = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", said)
    states = re.findall(r"llama_memory_recurrent: size = +([\d.]+) MiB", said)
    (buffers,) = re.findall(r"compute buffer size = +([\d.]+) MiB", said)
    return {
        "cells": sum(map(float, cells)),
        "states": sum(map(float, states)),
        "buffers": float(buffers),
    }


LOADS = {
    "usual": Load("", n_ctx=4096),
    "long": Load("", n_ctx=16384, n_parallel=1, n_batch=128),
    "quantized": Load("", n_ctx=8192, cache_type_k="q8_0", cache_type_v="q4_0"),
    "without flash attention": Load("", n_ctx=4096, flash_attn="off"),
    "on a GPU": Load("", n_ctx=2048, flash_attn="off", uses_gpu=True),
}


CASES = [
    pytest.param(write, load, id=f"{write.__name__} {name}")
    for write in HOLLOW + SMALL
    for name, load in LOADS.items()
    if not (name == "quantized" and write in SMALL)  # their heads are smaller than a block
]


@pytest.mark.parametrize(("write", "load"), CASES)
def test_the_estimate_is_what_llama_cpp_reserves(
    lib: Any,
    written: Callable[[Writer], ModelFile],
    capfd: pytest.CaptureFixture[str],
    write: Writer,
    load: Load,
) -> None:
    """Keys, values and states agree to the byte; buffers, which llama.cpp plans, nearly."""
    file = written(write)
    theirs = reserved(lib, file, load, capfd)
    ours = estimate(file, load)
    notes = memory_estimate.CELL_BYTES * (load.n_ctx or 0)
    assert round((ours.cells - notes) / MIB, 2) == theirs["cells"]
    assert round(ours.states / MIB, 2) == theirs["states"]
    print(f"buffers {ours.buffers / MIB:.1f} MiB, llama.cpp {theirs['buffers']:.1f} MiB")
    assert 0.95 <= ours.buffers / MIB / theirs["buffers"] <= 1.4


# ---- what libmtmd would reserve --------------------------------------------------------------

# The encoders of LLaVA (CLIP), Gemma 3 (SigLIP) and Qwen2-VL. Two layers need the same buffers as
# all. For Qwen2-VL, libmtmd reserves a picture of 46 x 46 tokens, and grows for a larger one.
EYES: dict[str, tuple[Any, Size, int]] = {
    "CLIP": (projectors.mlp, Size(1024, 16, 4096, side=336), 24 * 24),
    "SigLIP": (projectors.gemma3, Size(1152, 16, 4304, side=896), 64 * 64),
    "Qwen2-VL": (projectors.qwen2vl, Size(1280, 16, 5120), 92 * 92),
}


@pytest.mark.parametrize("name", EYES)
def test_the_buffers_of_an_encoder_are_what_libmtmd_reserves(
    lib: Any,
    default_model: Model,
    tiny: ModelFile,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    path = tmp_path / "mmproj.gguf"
    write, size, n_patches = EYES[name]
    write(path, default_model.n_embd, size, write_hollow)
    projector = replace(read_projector_file(str(path)), n_patches=n_patches)
    lib.lml_log_level(capi.LOG_LEVELS["info"])
    try:
        MediaEncoder(default_model, str(path), n_threads=1, max_bytes=0).close()
    finally:
        lib.lml_log_level(capi.LOG_LEVELS["error"])
    (theirs,) = re.findall(r"compute buffer size = +([\d.]+) MiB", capfd.readouterr().err)
    n_bytes = estimate(tiny, TINY, projector).projector - projector.n_tensor_bytes
    print(f"buffers {n_bytes / MIB:.1f} MiB, libmtmd {theirs} MiB")
    assert 0.95 <= n_bytes / MIB / float(theirs) <= 1.4


# ---- exact numbers ---------------------------------------------------------------------------

TINY = Load(str(DEFAULT_MODEL))


@pytest.fixture(scope="module")
def tiny() -> ModelFile:
    return read_model_file(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def eye() -> Projector:
    return read_projector_file(str(EMBEDDED_PROJECTOR))


def test_the_estimate_of_the_embedded_model(tiny: ModelFile) -> None:
    n_layers, n_key, n_batch, n_ctx = 6, 96, 512, 4096
    n_wide = 3 * 512 + 4 * 192  # three times the feed-forward, four times the embedding
    assert estimate(tiny, TINY) == Estimate(
        weights=tiny.n_tensor_bytes,
        cells=n_ctx * (n_layers * 2 * n_key * 2 + 64),
        states=0,
        buffers=4 * n_batch * n_wide + 2 * n_ctx * n_batch,
        logits=4 * 1579 * 68,
        vocabulary=150 * 1579 + 160 * 1312,
        checkpoints=128 * MIB,
        process=34 * MIB,
    )


def test_without_flash_attention_each_head_has_a_weight_for_each_cell(tiny: ModelFile) -> None:
    n_heads, n_embd, n_ubatch, n_ctx = 6, 192, 128, 4096
    found = estimate(tiny, replace(TINY, flash_attn="off"))
    n_weights = n_heads * n_ctx + 6 * n_embd  # of a token
    assert found.buffers == 4 * n_ubatch * n_weights + 4 * n_ctx * n_ubatch


@pytest.mark.parametrize(
    ("load", "n_tokens"),
    [
        (Load(""), 512),
        (Load("", flash_attn="off"), 128),
        (Load("", flash_attn="off", uses_gpu=True), 512),
        (Load("", flash_attn="off", mmproj_path="mmproj.gguf"), 512),
        (Load("", flash_attn="off", generates=False), 512),
    ],
)
def test_a_cpu_without_flash_attention_computes_128_tokens_at_once(
    load: Load, n_tokens: int
) -> None:
    assert contexts.n_ubatch(load, load.n_batch, 16) == n_tokens


def test_at_least_one_token_of_each_sequence_is_computed_at_once() -> None:
    assert contexts.n_ubatch(Load("", flash_attn="off"), 512, 256) == 256
    assert contexts.n_ubatch(Load("", n_batch=64), 64, 16) == 64


def test_the_total_is_the_sum(tiny: ModelFile, eye: Projector) -> None:
    found = estimate(tiny, TINY, eye)
    assert found.total == (
        found.weights + found.cells + found.states + found.buffers + found.logits
        + found.vocabulary + found.checkpoints + found.projector + found.images + found.process
    )  # fmt: skip


def test_the_estimate_of_the_embedded_eye(tiny: ModelFile, eye: Projector) -> None:
    n_patches, n_wide = 16, 3 * 128 + 3 * 128 + 2 * 3 * 28 * 28
    blind, seeing = estimate(tiny, TINY), estimate(tiny, TINY, eye)
    assert seeing.projector == eye.n_tensor_bytes + 4 * n_patches * n_wide
    assert seeing == replace(blind, projector=seeing.projector, images=64 * MIB)


def test_a_picture_counts_with_at_most_the_tokens_of_the_context(
    tiny: ModelFile, eye: Projector
) -> None:
    boundless = replace(eye, n_patches=1 << 20, n_token_patches=4)
    found = estimate(tiny, replace(TINY, n_ctx=1024), boundless)
    assert found.projector == eye.n_tensor_bytes + 4 * (4 * 1024) * eye.n_wide


@pytest.mark.parametrize(
    ("load", "n_ctx"),
    [
        (Load("", n_ctx=100_000), 100_000),
        (Load(""), 4096),
        (Load("", n_parallel=1), 1024),
        (Load("", generates=False), 1024),
        (Load("", generates=False, n_ctx=512), 512),
    ],
)
def test_the_context_that_is_asked_for(load: Load, n_ctx: int) -> None:
    assert contexts.context_size(load, 1024) == n_ctx


# ---- what fits -------------------------------------------------------------------------------


def test_all_of_it_fits_where_there_is_room(tiny: ModelFile) -> None:
    found = plan(tiny, TINY, 1 << 30, "there is")
    assert found.load == replace(TINY, n_ctx=4096)
    assert found.estimate == estimate(tiny, TINY)
    assert (found.n_allowed, found.notes) == (1 << 30, ())


def test_without_a_bound_nothing_is_cut(tiny: ModelFile) -> None:
    found = plan(tiny, TINY, None)
    assert (found.load.n_ctx, found.n_allowed, found.notes) == (4096, None, ())


def test_checkpoints_shrink_first(tiny: ModelFile) -> None:
    found = plan(tiny, TINY, 100 * MIB, "--memory allows")
    assert found.load.n_ctx == 4096
    assert found.load.checkpoint_memory < 128 * MIB
    assert found.estimate.total + memory_estimate.embedding_bytes(tiny, found.load) == 100 * MIB
    assert found.notes == (
        "checkpoints have 30 MiB instead of 128 MiB: --memory allows 100 MiB",
    )  # fmt: skip


def test_a_causal_reranking_model_takes_what_embeddings_take(tiny: ModelFile) -> None:
    ranks = replace(tiny, embeds_only=True, ranker="causal")
    load = replace(TINY, generates=False, ranker="causal")
    found = estimate(ranks, load)
    assert found.cells + found.buffers + found.logits == memory_estimate.embedding_bytes(tiny, TINY)
    encoder = replace(load, ranker="encoder")
    assert estimate(replace(ranks, ranker="encoder"), encoder).cells == 0


def test_images_shrink_before_checkpoints(tiny: ModelFile, eye: Projector) -> None:
    n_checkpoints = 128 * MIB
    bare = replace(TINY, n_ctx=4096, image_memory=0)
    n_bare = estimate(tiny, bare, eye).total + memory_estimate.embedding_bytes(tiny, bare)
    found = plan(tiny, TINY, n_bare + 10 * MIB, "there is", eye)
    assert (found.load.checkpoint_memory, found.load.image_memory) == (n_checkpoints, 10 * MIB)
    assert found.estimate.total + memory_estimate.embedding_bytes(tiny, bare) == n_bare + 10 * MIB
    assert found.notes == ("images have 10 MiB instead of 64 MiB: there is 209 MiB",)


def test_then_embeddings_and_then_the_context(tiny: ModelFile) -> None:
    bare = replace(TINY, n_ctx=4096, checkpoint_memory=0)
    n_least = estimate(tiny, bare).total
    assert plan(tiny, TINY, n_least, "").load == replace(bare, embeds=False)
    smaller = plan(tiny, TINY, n_least - 1, "--memory allows")
    assert smaller.load.n_ctx == 4096 - 256
    assert smaller.estimate.total <= n_least - 1
    assert smaller.notes[0] == (
        "the context is 3,840 tokens instead of 4,096, which would need 55 MiB: "
        "--memory allows 55 MiB"
    )


@pytest.mark.parametrize("n_mib", range(47, 56))
def test_the_context_is_the_largest_that_fits(tiny: ModelFile, n_mib: int) -> None:
    found = plan(tiny, TINY, n_mib * MIB, "")
    assert found.estimate.total <= n_mib * MIB
    assert found.load.n_ctx is not None
    larger = replace(found.load, n_ctx=found.load.n_ctx + 256, checkpoint_memory=0)
    assert estimate(tiny, larger).total > n_mib * MIB


def test_a_model_that_cannot_fit_is_refused_with_the_figures(tiny: ModelFile) -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(tiny, TINY, 40 * MIB, "the machine has")
    assert str(caught.value) == (
        "tiny needs 44 MiB with the least context (weights 3 MiB, cells 1 MiB, buffers 5 MiB, "
        "logits 0 MiB, vocabulary 0 MiB, process 34 MiB), and the machine has 40 MiB"
    )


def test_a_context_smaller_than_the_least_stays_as_it_is(tiny: ModelFile) -> None:
    found = plan(tiny, replace(TINY, n_ctx=300), 45 * MIB, "")
    assert found.load.n_ctx == 300


# ---- a real process --------------------------------------------------------------------------


RED_URL = f"data:image/png;base64,{base64.b64encode(png(1120, 1120, RED)).decode()}"


SEERS: dict[str, tuple[Writer | None, Any, int | None]] = {
    "mlp": (None, projectors.mlp, 336),
    "gemma3": (architectures.gemma3, projectors.gemma3, 896),
    "qwen2vl": (architectures.qwen2vl, projectors.qwen2vl, None),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SEERS)
def test_a_worker_that_sees_takes_what_was_estimated(
    name: str, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    """Most of it is the encoder's; caches are turned off."""
    write_model, write_eye, side = SEERS[name]
    path = DEFAULT_MODEL if write_model is None else tmp_path / "model.gguf"
    if write_model is not None:
        write_model(path)
    size = Size(n_embd=512, n_head=8, n_ff=2048, n_layer=4, side=side)
    write_eye(tmp_path / "mmproj.gguf", read_model_file(path).shape.n_embd, size)
    flags = ["--mmproj", str(tmp_path / "mmproj.gguf"), "--ctx", "2048"]
    flags += ["--checkpoint-memory", "0", "--image-memory", "0"]
    with RunningServer(str(path), *flags) as server:
        content = [
            {"type": "image_url", "image_url": {"url": RED_URL}},
            {"type": "text", "text": "one two three " * 30},
        ]
        messages, body = [{"role": "user", "content": content}], {"logprobs": True, "max_tokens": 9}
        answer = server.post("/v1/chat/completions", messages=messages, **body)
        assert answer.status == 200, answer.body
        memory = server.get("/health").json["memory"]
        ratio = sum(memory["held"].values()) / memory["estimated"]["total"]
        figure("M7", f"a model that sees by {name} took {ratio:.2f} of its estimate")
        assert 0.7 <= ratio <= 1.1  # cells that no token has filled take nothing


@pytest.mark.parametrize(
    ("name", "n_times"),
    [
        ("tiny", 140),
        ("tiny with a draft", 140),
        ("chat-trial.gguf", 30),
        ("all-minilm-l6-v2-q8_0.gguf", 160),
    ],
)
def test_a_worker_takes_what_was_estimated(
    name: str, n_times: int, figure: Callable[[str, str], None]
) -> None:
    """Without checkpoints, as it has none yet; a prompt fills most of the context."""
    path = DEFAULT_MODEL if name.startswith("tiny") else shared_model(name)
    flags = ["--checkpoint-memory", "0", "--image-memory", "0", "--ctx", "512"]
    if name.endswith("draft"):
        flags += ["--draft", str(path)]
    with RunningServer(str(path), *flags) as server:
        if read_model_file(path).embeds_only:
            answer = server.post("/v1/embeddings", input="one two three " * n_times)
        else:
            messages = [{"role": "user", "content": "one two three " * n_times}]
            body = {"logprobs": True, "top_logprobs": 2, "max_tokens": 20}
            answer = server.post("/v1/chat/completions", messages=messages, **body)
        assert answer.status == 200
        memory = server.get("/health").json["memory"]
        ratio = sum(memory["held"].values()) / memory["estimated"]["total"]
        figure("M7", f"{name} took {ratio:.2f} of its estimate")
        assert 0.7 <= ratio <= 1.1  # cells that no token has filled take nothing


def test_repacked_weights_are_held_in_memory_once(tmp_path: Path) -> None:
    """The kernels of many processors want the rows of Q4_0 interleaved."""
    path, sizes = tmp_path / "q4_0.gguf", attention(1024, 16, 4, 64) | feed_forward(1024, 4096)
    keys: Keys = {
        "feed_forward_length": 4096,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
    }
    write_model(path, "llama", 1024, 512, keys, [sizes] * 8, matrix_kind=TENSOR_Q4_0)
    assert read_model_file(path).n_tensor_bytes > 65 * MIB
    with RunningServer(str(path), "--checkpoint-memory", "0", "--ctx", "512") as server:
        assert server.post("/v1/completions", prompt="one two", max_tokens=2).status == 200
        memory = server.get("/health").json["memory"]
        ratio = sum(memory["held"].values()) / memory["estimated"]["total"]
        assert 0.7 <= ratio <= 1.1  # cells that no token has filled take nothing


def test_a_context_that_does_not_fit_is_cut_and_logged() -> None:
    with RunningServer("--memory", "50M") as server:
        said = [line for line in server.log if "WARNING" in line]
        assert "the context is 1,792 tokens instead of 4,096" in said[0]
        assert "checkpoints have 0 MiB instead of 128 MiB: --memory allows 50 MiB" in said[1]
        assert "images have 0 MiB instead of 64 MiB: --memory allows 50 MiB" in said[2]
        assert "no embeddings, which need 13 MiB more: --memory allows 50 MiB" in said[3]
        answer = server.post("/v1/embeddings", input="Hi")
        assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"
        memory = server.get("/health").json["memory"]
        assert memory["allowed"] == 50 * MIB
        assert memory["estimated"]["total"] <= 50 * MIB
        assert sum(memory["held"].values()) <= 50 * MIB * 1.1


def test_a_model_that_does_not_fit_is_one_sentence_and_code_1() -> None:
    done = serve("--port", "0", "--memory", "20M")
    assert done.returncode == 1
    assert done.stderr.startswith("lmlite: tiny needs 45 MiB with the least context (weights ")
    assert done.stderr.endswith(", and --memory allows 20 MiB\n")
