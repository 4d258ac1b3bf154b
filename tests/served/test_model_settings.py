"""A real server of a folder of models: settings beside a model, presets, and leaving when idle."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.server.models.loading import EMBEDDED_MODEL
from tests.served.test_faults import until
from tests.support.server_process import RunningServer

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, its settings, a preset, and a file that is no model."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "small.gguf").symlink_to(EMBEDDED_MODEL)
    (models / "broken.gguf").write_bytes(b"GGUF but nothing else")
    (models / "small.json").write_text(json.dumps({"system_prompt": "Be brief.", "top_k": 7}))
    (tmp_path / "poet.json").write_text(
        json.dumps({"temperature": 0.25, "system_prompt": "Rhyme."})
    )
    return models


@pytest.fixture
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer("--models", str(folder), "--presets", str(folder.parent)) as running:
        yield running


def plan(server: RunningServer, **body: Any) -> tuple[str, dict[str, tuple[float, str]]]:
    """The prompt of a chat, and each sampling value with its origin."""
    answer = server.request(
        "POST", CHAT, {"messages": HELLO, "model": "small"} | body, {"X-Dry-Run": "1"}
    )
    assert answer.status == 200, answer.body
    sampling = answer.json["sampling"]
    return str(answer.json["prompts"]), {
        name: (sampling[name]["value"], sampling[name]["origin"])
        for name in ("temperature", "top_k")
    }


def test_a_model_has_the_settings_of_the_file_beside_it(server: RunningServer) -> None:
    prompt, sampling = plan(server)
    assert "Be brief." in prompt
    assert sampling == {"temperature": (0.8, "default"), "top_k": (7, "model settings")}
    own = [{"role": "system", "content": "Shout."}, *HELLO]
    prompt, sampling = plan(server, messages=own, top_k=3)
    assert "Shout." in prompt and "Be brief." not in prompt
    assert sampling["top_k"] == (3, "request")


def test_a_preset_overrides_the_settings_of_the_model(server: RunningServer) -> None:
    prompt, sampling = plan(server, preset="poet")
    assert "Rhyme." in prompt and "Be brief." not in prompt
    assert sampling == {"temperature": (0.25, "preset"), "top_k": (7, "model settings")}
    refused = server.request("POST", CHAT, {"messages": HELLO, "model": "small", "preset": "pot"})
    assert (refused.status, refused.error["param"]) == (400, "preset")
    assert refused.error["message"] == "there is no preset pot; similar ones: poet"


def test_settings_that_change_hold_from_the_next_request_after_the_model_left(
    folder: Path, server: RunningServer
) -> None:
    assert plan(server)[1]["top_k"] == (7, "model settings")
    (folder / "small.json").write_text(json.dumps({"top_k": 9}))
    unloaded = server.request("POST", "/api/v1/models/unload", {"instance_id": "small"})
    assert (unloaded.status, unloaded.json) == (200, {"instance_id": "small"})
    assert plan(server)[1]["top_k"] == (9, "model settings")


def test_wrong_settings_are_a_sentence(folder: Path, server: RunningServer) -> None:
    (folder / "small.json").write_text(json.dumps({"top_k": "many"}))
    refused = server.request("POST", CHAT, {"messages": HELLO, "model": "small"})
    assert refused.status == 404
    assert refused.error["message"].startswith("'small' cannot be served: ")
    assert "top_k" in refused.error["message"]


def test_a_broken_file_is_not_served_and_costs_nothing(server: RunningServer) -> None:
    assert [row["id"] for row in server.get("/v1/models").json["data"]] == ["small"]
    refused = server.request("POST", CHAT, {"messages": HELLO, "model": "broken"})
    assert refused.status == 404
    assert refused.error["message"].startswith("'broken' cannot be served: broken.gguf cannot be")
    assert server.chat("Hello!", model="small", max_tokens=1)["model"] == "small"


def test_a_model_that_comes_into_the_folder_is_served_without_a_restart(
    folder: Path, server: RunningServer
) -> None:
    (folder / "new.gguf").symlink_to(EMBEDDED_MODEL)
    assert server.chat("Hello!", model="new", max_tokens=1)["model"] == "new"


def test_while_no_model_is_asked_for_there_is_no_worker(folder: Path) -> None:
    with RunningServer("--models", str(folder)) as server:
        until(lambda: not server.worker_pids())
        server.chat("Hello!", model="small", max_tokens=1)
        assert len(server.worker_pids()) == 1


def test_a_server_of_the_embedded_model_serves_what_comes_into_the_folder(tmp_path: Path) -> None:
    with RunningServer(LMLITE_MODELS=str(tmp_path / "models")) as server:
        assert server.model == "tiny"
        (tmp_path / "models").mkdir()
        shutil.copy(EMBEDDED_MODEL, tmp_path / "models" / "new.gguf")  # a link is the same model
        assert server.chat("Hello!", model="new", max_tokens=1)["model"] == "new"


def test_without_presets_a_request_for_one_is_told_how() -> None:
    with RunningServer() as server:
        refused = server.request("POST", CHAT, {"messages": HELLO, "preset": "poet"})
        assert (
            refused.error["message"] == "this server has no presets: --presets names their folder"
        )


def test_a_single_model_leaves_when_it_is_idle_and_comes_back_for_the_next_request() -> None:
    with RunningServer("--idle-unload", "0.2") as server:
        until(lambda: server.get("/health").json == {"status": "idle"})
        assert server.chat("Hello!", max_tokens=1)["model"] == "tiny"
        until(lambda: server.get("/health").json == {"status": "idle"})


def test_several_named_models_are_loaded_at_the_start_as_far_as_they_fit(folder: Path) -> None:
    os.rename(folder / "small.gguf", folder / "other.gguf")
    files = str(EMBEDDED_MODEL), str(folder / "other.gguf")
    with RunningServer(*files) as server:
        states = {row["id"]: row["state"] for row in server.get("/v1/models").json["data"]}
        assert states == {"tiny": "loaded", "other": "loaded"}
    with RunningServer(*files, "--memory", "300M") as server:
        states = {row["id"]: row["state"] for row in server.get("/v1/models").json["data"]}
        assert states == {"tiny": "loaded", "other": "not-loaded"}
        assert server.chat("Hello!", model="other", max_tokens=1)["model"] == "other"
        states = {row["id"]: row["state"] for row in server.get("/v1/models").json["data"]}
        assert states == {"tiny": "not-loaded", "other": "loaded"}


def test_a_model_that_comes_back_finds_its_prompts_in_the_cache_folder(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(EMBEDDED_MODEL, folder / "other.gguf")
    long = "Count. " * 120
    flags = "--models", str(folder), "--cache-dir", str(tmp_path / "cache")
    with RunningServer(*flags) as server:
        first = server.chat(long, model="small", max_tokens=1)["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        unload = {"instance_id": "small"}
        assert server.request("POST", "/api/v1/models/unload", unload).status == 200
        server.chat("Hello!", model="other", max_tokens=1)
        again = server.chat(long, model="small", max_tokens=1)["usage"]
        assert again["prompt_tokens_details"]["cached_tokens"] >= 256
        assert len([*(tmp_path / "cache").iterdir()]) == 2, "each model has a folder of its own"
