"""A model whose file names are not UTF-8 is served, named and reported missing like others."""

import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import command as cli
from tests.conftest import DEFAULT_MODEL
from tests.served.test_faults import CHAT, until
from tests.support.server_process import RunningServer

ODD, SHOWN = os.fsdecode(b"caf\xe9"), "caf\\xe9"  # Latin-1, as file systems may still have it
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / ODD
    path.mkdir()
    shutil.copy(DEFAULT_MODEL, path / f"{ODD}.gguf")
    template = "{% for message in messages %}{{ message.content }} é{% endfor %}"
    (path / f"{ODD}.jinja").write_text(template, "utf-8")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    flags = ["--cache-dir", folder / f"{ODD} cache", "--chat-template", folder / f"{ODD}.jinja"]
    with RunningServer(str(folder / f"{ODD}.gguf"), *map(str, flags)) as running:
        yield running


def test_a_model_is_listed_and_found_by_the_name_that_is_shown(server: RunningServer) -> None:
    assert server.model == SHOWN
    (model,) = server.get("/v1/models").json["data"]
    assert model["id"] == SHOWN
    assert server.get("/v1/models/caf%5Cxe9").json == model
    assert server.post(CHAT, **HI, model=f"{SHOWN}.gguf", max_tokens=1).json["model"] == SHOWN
    answer = server.post(CHAT, **HI, model="other")
    assert (answer.status, SHOWN in answer.error["message"]) == (404, True)


def test_a_cache_folder_keeps_what_was_read(server: RunningServer, folder: Path) -> None:
    server.chat("one two three. " * 200, max_tokens=1)
    until(lambda: len(list((folder / f"{ODD} cache").iterdir())) > 0)


def test_a_chat_template_is_read_as_utf_8(server: RunningServer) -> None:
    plan = server.request("POST", CHAT, HI, {"X-Dry-Run": "1"}).json
    assert plan["prompts"][0]["text"] == "Hi é"


def test_a_viewer_is_shown_the_path(server: RunningServer) -> None:
    viewer = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    viewer.request("GET", "/log/stream")
    lines = viewer.getresponse()
    server.chat("Hi", max_tokens=1)
    record: Any = json.loads(lines.readline().removeprefix(b"data: "))
    viewer.close()
    assert record["data"]["modelIdentifier"] == SHOWN
    assert record["data"]["modelPath"].endswith(f"/{SHOWN}/{SHOWN}.gguf")


def test_a_missing_file_is_named(server: RunningServer, folder: Path) -> None:
    away = (folder / f"{ODD}.gguf").rename(folder / "away")
    os.kill(server.worker_pid(), signal.SIGKILL)
    reason = f"{SHOWN}.gguf cannot be loaded: it does not exist"
    until(lambda: server.get("/health").json.get("reason") == reason)
    answer = server.post(CHAT, **HI)
    assert (answer.status, reason in answer.error["message"]) == (503, True)
    away.rename(folder / f"{ODD}.gguf")
    until(lambda: server.get("/health").status == 200)


def test_an_alias_has_to_be_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parser().parse_args(["serve", "--alias", ODD])
    assert caught.value.code == 2
    assert "argument --alias: must be a name" in capsys.readouterr().err
