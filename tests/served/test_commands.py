"""The commands that manage models, and a real server of a folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.cli.test_managing import LS_FIELDS, PS_FIELDS
from tests.conftest import DEFAULT_MODEL
from tests.support.gguf_writer import tiny_llama
from tests.support.server_process import RunningServer

TIMEOUT_S = 60
Lmlite = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and half of a third one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "acme" / "noise").mkdir(parents=True)
    tiny_llama(folder / "acme" / "noise" / "noise-F32.gguf")
    shutil.copy(DEFAULT_MODEL, folder / "small.gguf")
    (folder / "half.gguf").write_bytes(DEFAULT_MODEL.read_bytes()[:100_000])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer("--models", str(folder)) as running:
        yield running


@pytest.fixture
def lmlite(server: RunningServer, folder: Path) -> Lmlite:
    """Runs a command on the server and the folder; returns what it prints."""

    def run(*arguments: str, code: int = 0) -> str:
        url = [] if arguments[0] == "import" else ["--url", server.url]
        done = subprocess.run(
            [sys.executable, "-m", "lmlite", *arguments, *url],
            cwd=REPOSITORY, env={**os.environ, "LMLITE_MODELS": str(folder)},
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    return run


def test_a_model_is_listed_loaded_used_and_unloaded(server: RunningServer, lmlite: Lmlite) -> None:
    small, noise, half = json.loads(lmlite("ls", "--json"))
    assert (noise["modelKey"], noise["path"]) == ("acme/noise", "acme/noise/noise-F32.gguf")
    assert set(LS_FIELDS) == noise.keys() == small.keys()
    assert half["modelKey"] == "half" and half["fault"].startswith("half.gguf ")

    answer = lmlite("load", "noise", "--ctx", "256", "--parallel", "2", "--identifier", "helper")
    assert answer.startswith("helper is loaded: ") and answer.endswith(" s, 256 tokens\n")
    (loaded,) = json.loads(lmlite("ps", "--json"))
    assert {*LS_FIELDS, *PS_FIELDS, "memory"} == loaded.keys()
    expected = {"identifier": "helper", "modelKey": "acme/noise", "contextLength": 256,
                "parallel": 2, "ttlMs": None, "status": "idle", "queued": 0}  # fmt: skip
    assert {name: loaded[name] for name in expected} == expected
    assert loaded["memory"]["held"]["own"] > 0

    body = {"model": "helper", "prompt": "Hi", "max_tokens": 1}
    assert server.request("POST", "/v1/completions", body).json["model"] == "acme/noise"
    status = json.loads(lmlite("status", "--json"))
    assert (status["running"], status["port"], status["models"]) == (True, server.port, ["helper"])

    assert lmlite("unload") == "helper is unloaded\n"
    assert json.loads(lmlite("ps", "--json")) == []


def test_a_file_that_is_imported_can_be_used_at_once_and_removed_when_it_is_unloaded(
    server: RunningServer, lmlite: Lmlite
) -> None:
    lmlite("import", str(DEFAULT_MODEL), "--user-repo", "lmlite/tiny", "--link")
    assert "lmlite/tiny" in lmlite("ls")
    lmlite("load", "lmlite/tiny", "--ttl", "3600")
    assert " of 1.0 h" in lmlite("ps")
    assert "is loaded: lmlite unload" in lmlite("rm", "lmlite/tiny", "-y", code=1)
    lmlite("unload", "--all")
    lmlite("rm", "lmlite/tiny", "-y")
    assert "lmlite/tiny" not in lmlite("ls")
    assert server.process.poll() is None


def test_what_cannot_be_loaded_says_why(lmlite: Lmlite) -> None:
    assert "half.gguf" in lmlite("load", "half", code=1)
    assert lmlite("load", "other", code=1).startswith("lmlite: there is no model 'other'; ")
    assert lmlite("unload", "small", code=1) == "lmlite: 'small' is not loaded\n"


def test_without_a_server_the_same_list_comes_from_the_folder(lmlite: Lmlite, folder: Path) -> None:
    assert lmlite("ls", "--json", "--models", str(folder)) == lmlite("ls", "--json")
