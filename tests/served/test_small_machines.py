"""Small machines: what they serve on one core, what is refused, and in which words."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.conftest import DEFAULT_MODEL
from tests.gguf.test_memory_estimate import attention, feed_forward, write_model
from tests.support.control_group import small_machine
from tests.support.gguf_writer import TENSOR_Q4_0
from tests.support.process_figures import MIB
from tests.support.server_process import RunningServer

LMLITE = (sys.executable, "-m", "lmlite")


@pytest.fixture(scope="module")
def model_of_135_million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of SmolLM2-135M, in Q4_0; its weights are zeros."""
    path = tmp_path_factory.mktemp("small") / "135m.gguf"
    layer = attention(576, 9, 3, 64) | feed_forward(576, 1536)
    keys = {"feed_forward_length": 1536, "attention.head_count": 9, "attention.head_count_kv": 3}
    write_model(path, "llama", 576, 49_152, dict(keys), [layer] * 30, matrix_kind=TENSOR_Q4_0)
    return path


def held_and_estimated(server: RunningServer) -> tuple[int, int, int]:
    """Bytes of the worker, by estimate, and that the machine has left for it."""
    memory = server.get("/health").json["memory"]
    return sum(memory["held"].values()), memory["estimated"]["total"], memory["allowed"]


def test_64_mib_serve_the_embedded_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    shutil.copy(DEFAULT_MODEL, path)
    with small_machine(64) as entered, RunningServer(str(path), program=entered + LMLITE) as server:
        assert server.chat("Say hello world")["choices"][0]["message"]["content"] == "hello world"
        held, estimated, allowed = held_and_estimated(server)
        assert held <= estimated * 1.1
        assert estimated <= allowed <= 64 * MIB
        assert len(server.worker_pids()) == 1


def test_256_mib_serve_135_million_weights_with_2048_tokens(model_of_135_million: Path) -> None:
    flags = (str(model_of_135_million), "--ctx", "2048")
    with small_machine(256) as entered, RunningServer(*flags, program=entered + LMLITE) as server:
        assert not any("the context is" in line for line in server.log)
        answer = server.post("/v1/completions", prompt="t1 " * 20, max_tokens=4)
        assert (answer.status, answer.json["usage"]["completion_tokens"]) == (200, 4)
        held, estimated, allowed = held_and_estimated(server)
        assert held <= estimated * 1.1
        assert estimated <= allowed <= 256 * MIB


def test_what_does_not_fit_is_refused_before_it_is_loaded(model_of_135_million: Path) -> None:
    with small_machine(128) as entered:
        done = subprocess.run(
            [*entered, *LMLITE, "serve", model_of_135_million, "--port", "0"],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("lmlite: 135m needs 1")
    assert ", and the control group has 1" in done.stderr
