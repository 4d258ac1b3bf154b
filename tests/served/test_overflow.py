"""A prompt that does not fit: the error that clients read, and the effect of --ctx and others."""

from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.cli.command import parser
from lmlite.cli.serve import load_of
from lmlite.contexts import n_ctx_max
from lmlite.gguf.file import read_model_file
from lmlite.gguf.memory_estimate import plan
from lmlite.messages import Load, RopeScaling
from lmlite.server.front.limits import DEFAULT_LIMITS
from lmlite.server.models.loading import scaled
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.conftest import DEFAULT_MODEL
from tests.support.server_process import RunningServer

N_CTX = 256
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
TURNS = [{"role": "user", "content": "word " * 300}]
LARGER = "Shorten the prompt, or serve with a larger --ctx: 2048 at most."


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--ctx", str(N_CTX), "--parallel", "1") as running:
        yield running


@pytest.fixture(scope="module")
def n_tokens() -> int:
    """The number of tokens of TURNS."""
    with RunningServer() as roomy:
        n: int = roomy.post(CHAT, messages=TURNS, max_tokens=0).json["usage"]["prompt_tokens"]
    return n


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": TURNS}, "messages"),
        (CHAT, {"messages": TURNS, "stream": True}, "messages"),
        (RESPONSES, {"input": TURNS}, "input"),
        (RESPONSES, {"input": TURNS, "stream": True}, "input"),
    ],
)
def test_the_overflow_message_is_openais(
    server: RunningServer, n_tokens: int, path: str, body: Any, param: str
) -> None:
    answer = server.post(path, **body)
    assert answer.status == 400
    assert answer.error == {
        "message": f"This model's maximum context length is 256 tokens. However, your {param} "
        f"resulted in {n_tokens} tokens. {LARGER}",
        "type": "invalid_request_error",
        "param": param,
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize(
    ("path", "field", "remark"),
    [("/v1/completions", "prompt", ""), ("/v1/embeddings", "input", "Input 0 is too long. ")],
)
def test_prompts_and_inputs_are_named_in_the_error(
    server: RunningServer, path: str, field: str, remark: str
) -> None:
    answer = server.post(path, **{field: [5] * 300})
    assert answer.error == {
        "message": f"This model's maximum context length is 256 tokens. However, your {field} "
        f"resulted in 300 tokens. {remark}{LARGER}",
        "type": "invalid_request_error",
        "param": field,
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_the_overflow_message_is_anthropics_on_its_paths(
    server: RunningServer, n_tokens: int, path: str, more: Any
) -> None:
    answer = server.post(path, messages=TURNS, max_tokens=9, **more)
    assert answer.status == 400
    assert answer.json["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {n_tokens} tokens > 256 maximum. {LARGER}",
    }


def test_max_tokens_that_do_not_fit_beside_the_prompt_are_not_an_error(
    server: RunningServer,
) -> None:
    turns = [{"role": "user", "content": "Say hello"}]
    answer = server.post(CHAT, messages=turns, max_tokens=100_000, temperature=0)
    assert answer.json["choices"][0]["message"]["content"] == "hello"


# ---- options ---------------------------------------------------------------------------------


def length_of(server: RunningServer) -> int:
    n: int = server.get("/v1/models").json["data"][0]["context_length"]
    return n


def test_a_context_beyond_the_training_is_cut_with_a_line_in_the_log() -> None:
    with RunningServer("--ctx", "100000", "--parallel", "2") as server:
        assert length_of(server) == 2048
        answer = server.post("/v1/completions", prompt=[5] * 2049, max_tokens=1)
        assert answer.error["message"].endswith(
            "Shorten the prompt: this model was trained for 2048 tokens (see --rope-scaling)."
        )
        assert server.post("/v1/completions", prompt=[5] * 2000, max_tokens=1).status == 200
    assert any("the context is 4096 tokens instead of 100000" in line for line in server.log)


def test_the_error_explains_a_context_that_sequences_share() -> None:
    file = read_model_file(str(DEFAULT_MODEL))
    found = plan(file, Load("", n_ctx=4096), None)
    assert found.load.n_ctx == 4096
    assert found.notes == (
        "a sequence has at most 2048 of the 4096 tokens of --ctx: the model was trained for 2048; "
        "--rope-scaling stretches that",
    )


def test_a_model_with_a_stretched_context_reads_more() -> None:
    flags = ["--ctx", "4096", "--parallel", "1", "--rope-scaling", "yarn"]
    with RunningServer(*flags) as server:
        assert length_of(server) == 4096
        assert server.post("/v1/completions", prompt=[5] * 4000, max_tokens=1).status == 200
        answer = server.post("/v1/completions", prompt=[5] * 4097, max_tokens=1)
        assert "maximum context length is 4096 tokens" in answer.error["message"]


@pytest.mark.parametrize(
    ("rope", "n_most"),
    [
        (RopeScaling(), 1024),
        (RopeScaling(freq_scale=0.25), 4096),
        (RopeScaling("linear", freq_scale=0.5), 2048),
        (RopeScaling("yarn", freq_scale=0.5, yarn_orig_ctx=4096), 8192),
        (RopeScaling("none"), 1024),
        (RopeScaling(freq_scale=2.0), 1024),
        (RopeScaling(freq_base=5e5), 10_000),
    ],
)
def test_rope_flags_give_the_longest_possible_context(rope: RopeScaling, n_most: int) -> None:
    assert n_ctx_max(Load("", n_ctx=10_000, rope=rope), 1024) == n_most


@pytest.mark.parametrize(
    ("flags", "rope"),
    [
        ("", RopeScaling()),
        ("--ctx 8192", RopeScaling()),
        ("--rope-scaling none", RopeScaling("none")),
        ("--rope-scaling yarn --ctx 8192", RopeScaling("yarn", freq_scale=0.25)),
        ("--rope-scaling yarn --ctx 1024", RopeScaling("yarn", freq_scale=1.0)),
        ("--rope-scaling linear", RopeScaling("linear", freq_scale=1.0)),
        ("--rope-scaling linear --rope-scale 2 --ctx 8192", RopeScaling("linear", freq_scale=0.5)),
        ("--rope-freq-scale 0.125 --rope-freq-base 5e5",
         RopeScaling(freq_base=5e5, freq_scale=0.125)),
        ("--rope-scaling yarn --yarn-orig-ctx 4096 --ctx 8192",
         RopeScaling("yarn", freq_scale=0.5, yarn_orig_ctx=4096)),
        ("--yarn-ext-factor 0 --yarn-attn-factor 1 --yarn-beta-slow 2 --yarn-beta-fast 16",
         RopeScaling(yarn_ext_factor=0, yarn_attn_factor=1, yarn_beta_slow=2, yarn_beta_fast=16)),
    ],
)  # fmt: skip
def test_rope_flags_have_the_meaning_of_llama_cpps(flags: str, rope: RopeScaling) -> None:
    load = load_of(parser().parse_args(["serve", *flags.split()]), DEFAULT_LIMITS)
    assert scaled(load.rope, load.n_ctx, 2048) == rope


def logits(model: Model, rope: RopeScaling | None) -> list[float]:
    context = Context(model, n_ctx=256, n_batch=64, n_seq_max=1, n_threads=1, rope=rope)
    batch = Batch(64)
    last = batch.extend([5, 6, 7, 8, 9], 0, 0, output_last=True)
    assert context.decode(batch)
    _, top = context.logprobs(last, 5, 20)
    context.close()
    return [value for _, value in top]


def test_the_library_gets_the_rope_settings(default_model: Model) -> None:
    plain = logits(default_model, None)
    assert logits(default_model, RopeScaling()) == plain
    assert logits(default_model, RopeScaling("none", freq_scale=0.5)) == plain
    for rope in (
        RopeScaling("linear", freq_scale=0.5),
        RopeScaling(freq_base=5e5),
        RopeScaling("yarn", freq_scale=0.5),
        RopeScaling("yarn", freq_scale=0.5, yarn_attn_factor=2.0),
    ):
        assert logits(default_model, rope) != plain
