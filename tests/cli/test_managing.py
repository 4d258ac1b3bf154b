"""`lmlite ls`, `ps`, `load`, `unload` and `status`, and a server whose answers are prepared."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import command
from lmlite.server.models import machine_memory
from tests.conftest import DEFAULT_MODEL
from tests.support.scripted_server import ScriptedServer

MODELS = "GET /api/v1/models"
MIB = 1 << 20

QWEN = {
    "type": "llm",
    "publisher": "qwen",
    "key": "qwen/qwen2.5-0.5b",
    "display_name": "Qwen2.5 0.5B",
    "architecture": "qwen2",
    "quantization": {"name": "Q4_K_M", "bits_per_weight": 4.91},
    "size_bytes": 400 * MIB,
    "params_string": "494M",
    "loaded_instances": [
        {
            "id": "helper",
            "config": {"context_length": 8192, "parallel": 4},
            "lmlite": {
                "n_users": 2,
                "ttl_seconds": 3600,
                "idle_seconds": 0.0,
                "memory": {
                    "estimated": {"weights": 400 * MIB, "total": 600 * MIB},
                    "allowed": None,
                    "held": {"own": 90 * MIB, "of_files": 400 * MIB},
                },
            },
        }
    ],
    "max_context_length": 32768,
    "format": "gguf",
    "capabilities": {"vision": False, "trained_for_tool_use": True},
    "lmlite": {"path": "qwen/q/qwen2.5-0.5b-q4_k_m.gguf", "state": "loaded"},
}
MINILM = {
    "type": "embedding",
    "publisher": "",
    "key": "minilm",
    "display_name": "MiniLM",
    "quantization": {"name": "F16", "bits_per_weight": 16.0},
    "size_bytes": 44 * MIB,
    "params_string": "22.6M",
    "loaded_instances": [],
    "max_context_length": 512,
    "format": "gguf",
    "lmlite": {"path": "minilm.gguf", "architecture": "bert", "state": "loading"},
}
BROKEN = {
    "key": "half",
    "format": "gguf",
    "size_bytes": 5 * MIB,
    "loaded_instances": [],
    "lmlite": {"path": "half.gguf", "fault": "half.gguf ends in the middle"},
}
LIST = {"models": [QWEN, MINILM], "lmlite": {"version": "1.2.3", "broken": [BROKEN]}}

# The fields of `lms ls --json` and `lms ps --json` (LM Studio 0.4); ours may have more.
LS_FIELDS = ["type", "modelKey", "format", "displayName", "publisher", "path", "sizeBytes",
             "indexedModelIdentifier", "deviceIdentifier", "paramsString", "architecture",
             "quantization", "vision", "trainedForToolUse", "maxContextLength"]  # fmt: skip
PS_FIELDS = ["identifier", "ttlMs", "lastUsedTime", "contextLength", "status", "queued", "parallel"]

Lmlite = Callable[..., str]


@contextmanager
def free_address() -> Iterator[str]:
    """The URL of a port where nobody listens."""
    with socket.socket() as taken:  # bound, so that no other process listens there
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.answers[MODELS] = (200, LIST)
        yield server


@pytest.fixture
def lmlite(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> Lmlite:
    """Runs a command on the server; returns its standard output, or error if it fails."""

    def run(*arguments: str, code: int = 0) -> str:
        assert command.main([*arguments, "--url", server.url]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


# ---- ls --------------------------------------------------------------------------------------


def test_ls_is_a_table_with_the_faults_of_broken_files(lmlite: Lmlite) -> None:
    assert lmlite("ls") == (
        "MODEL              TYPE       PARAMS  ARCH   QUANT   SIZE     CONTEXT  STATE\n"
        "qwen/qwen2.5-0.5b  llm        494M    qwen2  Q4_K_M  400 MiB  32,768   loaded\n"
        "minilm             embedding  22.6M   bert   F16     44 MiB   512      loading\n"
        "half                                                 5 MiB             "
        "half.gguf ends in the middle\n"
    )


def test_ls_json_has_the_fields_of_lms(lmlite: Lmlite) -> None:
    qwen, minilm, half = json.loads(lmlite("ls", "--json"))
    assert list(qwen) == LS_FIELDS
    assert qwen["path"] == qwen["indexedModelIdentifier"] == "qwen/q/qwen2.5-0.5b-q4_k_m.gguf"
    assert qwen["quantization"] == {"name": "Q4_K_M", "bits": 4}
    assert (qwen["vision"], qwen["trainedForToolUse"]) == (False, True)
    assert list(minilm) == [name for name in LS_FIELDS if name not in
                            ("vision", "trainedForToolUse")]  # fmt: skip
    assert (minilm["type"], minilm["architecture"]) == ("embedding", "bert")
    assert (half["modelKey"], half["fault"]) == ("half", "half.gguf ends in the middle")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["QWEN"], ["qwen/qwen2.5-0.5b"]),
        (["--llm"], ["qwen/qwen2.5-0.5b"]),
        (["--embedding"], ["minilm"]),
        (["--llm", "--embedding"], ["qwen/qwen2.5-0.5b", "minilm"]),
        (["qwen", "--embedding"], []),
    ],
)
def test_ls_shows_only_what_is_asked_for(
    arguments: list[str], names: list[str], lmlite: Lmlite
) -> None:
    found = json.loads(lmlite("ls", "--json", *arguments))
    assert [model["modelKey"] for model in found] == names


def test_ls_of_a_name_that_is_not_there_says_so(lmlite: Lmlite) -> None:
    assert lmlite("ls", "gpt", code=1) == "lmlite: no model is like that; lmlite ls lists all\n"


def test_a_name_of_the_server_cannot_write_to_the_terminal(
    server: ScriptedServer, lmlite: Lmlite
) -> None:
    server.answers[MODELS] = (200, {"models": [QWEN | {"key": "a\x1b[31m"}]})
    assert "\x1b" not in lmlite("ls")


def test_without_a_server_here_ls_lists_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMLITE_MODELS", str(tmp_path))
    shutil.copy(DEFAULT_MODEL, tmp_path / "mine.gguf")
    (tmp_path / "half.gguf").write_bytes(b"GGUF")
    with free_address() as url:
        assert command.main(["ls", "--json", "--url", url]) == 0
    mine, half = json.loads(capsys.readouterr().out)
    assert (mine["modelKey"], mine["path"], mine["type"]) == ("mine", "mine.gguf", "llm")
    assert half["fault"].startswith("half.gguf ")


def test_ls_of_a_folder_asks_no_server(
    server: ScriptedServer, lmlite: Lmlite, tmp_path: Path
) -> None:
    assert json.loads(lmlite("ls", "--json", "--models", str(tmp_path))) == []
    assert server.asked == []


def test_ls_of_another_machine_that_does_not_answer_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with free_address() as url:
        there = url.replace("127.0.0.1", "127.0.0.2")  # this machine, but not by its usual name
        assert command.main(["ls", "--url", there]) == 1
    assert capsys.readouterr().err.startswith(f"lmlite: no server listens at {there}")


# ---- ps --------------------------------------------------------------------------------------


def test_ps_shows_what_is_loaded_and_what_is_coming(lmlite: Lmlite) -> None:
    assert lmlite("ps") == (
        "ID      MODEL              STATUS      REQUESTS  SIZE     MEMORY   CONTEXT  PARALLEL  "
        "TTL\n"
        "helper  qwen/qwen2.5-0.5b  generating  2         400 MiB  490 MiB  8,192    4         "
        "1.0 h of 1.0 h\n"
        "        minilm             loading\n"
    )


def test_ps_json_has_the_fields_of_lms(lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    (found,) = json.loads(lmlite("ps", "--json"))
    assert set(found) == {*LS_FIELDS, *PS_FIELDS, "memory"}
    assert {name: found[name] for name in PS_FIELDS} == {
        "identifier": "helper",
        "ttlMs": 3_600_000,
        "lastUsedTime": 1_000_000,
        "contextLength": 8192,
        "status": "generating",
        "queued": 2,
        "parallel": 4,
    }


def test_ps_understands_lm_studios_own_list(server: ScriptedServer, lmlite: Lmlite) -> None:
    instance = {"id": "helper", "config": {"context_length": 4096}}
    model = {key: value for key, value in QWEN.items() if key != "lmlite"}
    server.answers[MODELS] = (200, {"models": [model | {"loaded_instances": [instance]}]})
    (found,) = json.loads(lmlite("ps", "--json"))
    assert (found["status"], found["ttlMs"], found["lastUsedTime"]) == ("idle", None, None)


def test_without_a_server_ps_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with free_address() as url:
        assert command.main(["ps", "--url", url]) == 1
    assert capsys.readouterr().err == (
        f"lmlite: no server listens at {url}; start one with lmlite serve\n"
    )


# ---- load and unload -------------------------------------------------------------------------


def test_load_sends_what_its_flags_say(server: ScriptedServer, lmlite: Lmlite) -> None:
    answer = {
        "type": "llm",
        "instance_id": "helper",
        "load_time_seconds": 1.5,
        "status": "loaded",
        "load_config": {"context_length": 2048},
    }
    server.answers["POST /api/v1/models/load"] = (200, answer)
    flags = ["--ctx", "2048", "--parallel", "2", "--gpu-layers", "-1", "--ttl", "60"]
    printed = lmlite("load", "qwen", "--identifier", "helper", *flags)
    assert printed == "helper is loaded: 1.50 s, 2,048 tokens\n"
    (asked,) = server.asked
    assert asked[1] == {
        "model": "qwen",
        "echo_load_config": True,
        "identifier": "helper",
        "context_length": 2048,
        "parallel": 2,
        "gpu_layers": -1,
        "ttl": 60,
    }


def test_load_shows_why_the_server_refuses(server: ScriptedServer, lmlite: Lmlite) -> None:
    refusal = {"error": {"type": "model_not_found", "message": "there is no model 'x'"}}
    server.answers["POST /api/v1/models/load"] = (404, refusal)
    assert lmlite("load", "x", code=1) == "lmlite: there is no model 'x'\n"


def loaded(*names: str) -> tuple[int, Any]:
    instances = [{"id": name, "config": {"context_length": 512}} for name in names]
    return 200, {"models": [MINILM | {"loaded_instances": instances}]}


UNLOAD = "POST /api/v1/models/unload"


@pytest.mark.parametrize(
    ("arguments", "present", "unloaded"),
    [
        (["a"], ["a", "b"], ["a"]),
        ([], ["b"], ["b"]),
        (["--all"], ["a", "b"], ["a", "b"]),
        (["--all"], [], []),
    ],
)
def test_unload_takes_a_name_or_the_only_model_or_all(
    arguments: list[str],
    present: list[str],
    unloaded: list[str],
    server: ScriptedServer,
    lmlite: Lmlite,
) -> None:
    server.answers |= {MODELS: loaded(*present), UNLOAD: (200, {"instance_id": "x"})}
    printed = lmlite("unload", *arguments)
    assert printed == "".join(f"{name} is unloaded\n" for name in unloaded)
    sent = [body["instance_id"] for asked, body in server.asked if asked == UNLOAD]
    assert sent == unloaded


def test_unload_does_not_choose_among_several(server: ScriptedServer, lmlite: Lmlite) -> None:
    server.answers[MODELS] = loaded("a", "b")
    assert lmlite("unload", code=2) == (
        "lmlite: several models are loaded: name one of a, b, or use --all\n"
    )
    server.answers[MODELS] = loaded()
    assert lmlite("unload", code=1) == "lmlite: no model is loaded\n"


# ---- status ----------------------------------------------------------------------------------


def test_status_tells_of_the_server_its_models_and_their_memory(
    server: ScriptedServer, lmlite: Lmlite
) -> None:
    lines = lmlite("status").splitlines()
    assert lines[:4] == [
        f"server  {server.url}, lmlite 1.2.3",
        "models  1 of 2 loaded",
        "memory  490 MiB, at most 600 MiB",
        "",
    ]
    assert lines[4:] == lmlite("ps").splitlines()
    assert json.loads(lmlite("status", "--json")) == {
        "running": True,
        "port": int(server.url.rpartition(":")[2]),
        "version": "1.2.3",
        "models": ["helper"],
        "memory": {"held": 490 * MIB, "estimated": 600 * MIB},
    }


def test_status_without_a_server_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with free_address() as url:
        assert command.main(["status", "--json", "--url", url]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"running": False}
    assert printed.err.startswith(f"lmlite: no server listens at {url}")


def test_the_key_is_sent(server: ScriptedServer, lmlite: Lmlite, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a-key-of-the-tests\n")
    lmlite("ps", "--api-key-file", str(path))
    assert server.headers[0]["authorization"] == "Bearer a-key-of-the-tests"
    server.answers[MODELS] = (401, {"error": {"message": "no"}})
    assert lmlite("ps", code=1).startswith(f"lmlite: {server.url} asks for a key: ")


# ---- what a model would take -----------------------------------------------------------------


def test_an_estimate_needs_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with free_address() as url:
        assert command.main(["load", str(DEFAULT_MODEL), "--estimate-only", "--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PART", "MEMORY"]
    parts = {line.split()[0] for line in lines[1:-1]}
    assert {"weights", "cells", "buffers", "vocabulary", "process", "total"} <= parts
    assert lines[-1].startswith("it fits: ")


def test_an_estimate_follows_the_flags_and_finds_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.gguf").symlink_to(DEFAULT_MODEL)

    def n_mib(*flags: str) -> int:
        given = ["load", "other", "--estimate-only", "--models", str(tmp_path), *flags]
        assert command.main(given) == 0
        (total,) = [line for line in capsys.readouterr().out.splitlines() if "total" in line]
        return int(total.split()[1])

    assert n_mib("--ctx", "512") < n_mib() < n_mib("--ctx", "65536", "--parallel", "32")


def test_an_estimate_that_is_too_large_fails_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine_memory, "machine_bytes", lambda: 1 << 20)
    assert command.main(["load", str(DEFAULT_MODEL), "--estimate-only"]) == 1
    assert re.fullmatch(
        r"lmlite: tiny needs \d+ MiB with the least context \(.*\), and the machine has 1 MiB\n",
        capsys.readouterr().err,
    )


def test_an_estimate_of_an_unknown_model_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["load", "x", "--estimate-only", "--models", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "lmlite: there is no model 'x'; this server has no models\n"
