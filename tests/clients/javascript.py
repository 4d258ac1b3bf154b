"""The JavaScript clients of OpenAI, Ollama and Vercel, fetched by npm: runs and checks them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests import REPOSITORY
from tests.clients.asked import RED_IMAGE, RED_WORD, RESULT, TOLD
from tests.support.server_process import RunningServer

FOLDER = REPOSITORY / ".venv" / "clients" / "node"
# The last of Vercel's that run on Node.js 20.
PACKAGES = [
    "openai@7.57.0",
    "ollama@0.6.4",
    "ai@6.0.326",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
]


def is_there() -> bool:
    """Whether this machine has Node.js."""
    return shutil.which("npm") is not None and shutil.which("node") is not None


def run(script: str, server: RunningServer) -> Any:
    """What a script beside this file prints."""
    stamp, wanted = FOLDER / "packages", "\n".join(PACKAGES)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES]
        subprocess.run(install, cwd=FOLDER, check=True)
        stamp.write_text(wanted)
    # Node looks for packages beside the script.
    path = shutil.copy(Path(__file__).with_name(script), FOLDER)
    command = ["node", path, server.url, server.model, RED_IMAGE]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def openai(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    found = run("openai_client.mjs", server)
    assert found["content"] == found["streamed"] != ""
    assert found["usage"] == found["whole_usage"]
    for function in [*found["call"], *found["calls"]]:
        assert function["name"] == "get_weather"
    assert [json.loads(function["arguments"]) for function in found["call"]] == [{"city": "Oslo"}]
    assert found["finish_reason"] == "tool_calls"
    cities = [json.loads(function["arguments"])["city"] for function in found["calls"]]
    assert cities == ["Oslo", "Rome"]
    assert (found["asked"], found["told"]) == (["Oslo", "Oslo"], [TOLD, TOLD])
    assert RESULT in TOLD
    assert found["form"] == {"name": "Anna", "age": 12}
    assert found["seen"] == RED_WORD
    assert found["response"] == found["said"] != ""
    ((name, arguments),) = found["response_call"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Oslo"})
    assert (found["legacy"], found["models"], found["status"]) == ("length", [server.model], 404)
    assert found["n_embd"] > 0
    return str(found["content"])


def ollama(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    found = run("ollama_client.mjs", server)
    assert found["content"] == found["streamed"] == found["response"] != ""
    assert found["eval_count"] == found["streamed_eval_count"]
    ((name, arguments),) = [(call["name"], call["arguments"]) for call in found["call"]]
    assert (name, arguments, found["told"]) == ("get_weather", {"city": "Oslo"}, TOLD)
    assert (found["seen"], found["form"]) == (RED_WORD, {"name": "Anna", "age": 12})
    assert found["n_embd"][0] == found["n_embd"][1] > 0
    assert found["models"] == found["running"] == [server.model]
    assert {"completion", "tools", "vision"} <= {*found["capabilities"]}
    assert found["pulled"] == found["pulling"] == "success"
    assert found["errors"] == [404, 501]
    return str(found["content"])


def vercel(server: RunningServer) -> str:
    """The same of each of its three ways to ask."""
    found = run("vercel_client.mjs", server)
    for way in found["ways"]:
        assert way["told"] == way["streamed"] == TOLD
        assert way["tokens"] > 0
        assert way["asked"][:2] == ["Oslo", "Oslo"]
        assert sorted(way["asked"][2:]) == ["Oslo", "Rome"]
        assert way["form"] == {"name": "Anna", "age": 12}
        assert way["seen"] == RED_WORD
    assert len(found["ways"]) == 3
    assert found["n_embd"] > 0
    return TOLD
