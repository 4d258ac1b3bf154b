"""OpenAI's JavaScript client, fetched by npm: runs openai_client.mjs, and checks what it found."""

import json
import shutil
import subprocess
from pathlib import Path

from tests.clients.asked import RED_IMAGE, RED_WORD, RESULT, TOLD
from tests.server_process import REPOSITORY, RunningServer

FOLDER = REPOSITORY / ".venv" / "clients" / "node"
PACKAGE = "openai@7.57.0"
SCRIPT = Path(__file__).with_name("openai_client.mjs")


def is_there() -> bool:
    """Whether this machine has Node.js."""
    return shutil.which("npm") is not None and shutil.which("node") is not None


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    if not (FOLDER / "node_modules" / "openai").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGE]
        subprocess.run(install, cwd=FOLDER, check=True)
    # Node looks for packages beside the script.
    script = shutil.copy(SCRIPT, FOLDER)
    command = ["node", script, server.url, server.model, RED_IMAGE]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
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
