"""Runs every client against a server of its own, and checks its answers. `make clients`"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial

from tests import REPOSITORY
from tests.clients import (
    anthropic_client,
    documents,
    javascript,
    langchain_client,
    mcp_client,
    ollama_client,
    openai_agents_client,
    openai_client,
    pydantic_ai_client,
    two_models,
)
from tests.served.agents.recorded import AGENTS, asked, post
from tests.support.server_process import RunningServer


def curl(server: RunningServer) -> str:
    """The curl lines of LM Studio's page."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Say this is a test!"}],
        "temperature": 0.7,
    }
    command = ["curl", "--silent", "--fail", f"{server.url}/v1/chat/completions",
               "-H", "Content-Type: application/json", "-d", json.dumps(body)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True)
    models = subprocess.run(
        ["curl", "--silent", "--fail", f"{server.url}/v1/models"], capture_output=True, check=True
    )
    assert json.loads(models.stdout)["data"][0]["id"] == server.model
    return str(json.loads(done.stdout)["choices"][0]["message"]["content"])


def apart(environment: str, module: str, server: RunningServer) -> str:
    """What a client prints that is run in another environment of `.venv`."""
    python = REPOSITORY / ".venv" / environment / "bin" / "python"
    command = [str(python), "-m", f"tests.clients.{module}", server.url, server.model]
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else LiteLLM asks the network for prices
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **local},
                          stdout=subprocess.PIPE, check=True, text=True)  # fmt: skip
    return done.stdout.strip()


def recorded_agents(server: RunningServer) -> str:
    """What Codex and Claude Code sent when they were recorded, at the start and later."""
    for agent in AGENTS:
        for later in (False, True):
            answer = post(server, asked(agent, later=later))
            assert answer.status == 200, answer.body
    return "200, at the start and after their tools have answered"


Examples = Callable[[RunningServer], str]
CLIENTS: dict[str, tuple[Examples, bool]] = {  # and whether this machine has what it needs
    "OpenAI's Python": (openai_client.examples, True),
    "OpenAI's JavaScript": (javascript.openai, javascript.is_there()),
    "Anthropic's Python": (anthropic_client.examples, True),
    "OpenAI's agents": (openai_agents_client.examples, True),
    "pydantic-ai": (pydantic_ai_client.examples, True),
    "LangChain": (langchain_client.examples, True),
    "MCP's Python": (mcp_client.examples, True),
    "Ollama's Python": (ollama_client.examples, True),
    "Ollama's JavaScript": (javascript.ollama, javascript.is_there()),
    "Vercel's AI SDK": (javascript.vercel, javascript.is_there()),
    "instructor": (partial(apart, "instructor", "instructor_client"), True),
    "lm-eval": (partial(apart, "harness", "lm_eval_client"), True),
    "LiteLLM": (partial(apart, "frameworks", "litellm_client"), True),
    "LlamaIndex": (partial(apart, "frameworks", "llama_index_client"), True),
    "smolagents": (partial(apart, "frameworks", "smolagents_client"), True),
    "llm": (partial(apart, "programs", "llm_program"), True),
    "Prometheus's Python": (partial(apart, "programs", "metrics_parser"), True),
    "Codex and Claude Code, as recorded": (recorded_agents, True),
    "README and manual": (documents.examples, True),
    "curl": (curl, shutil.which("curl") is not None),
}


def main() -> None:
    """Runs all of them, with the embedded model."""
    with RunningServer() as server:
        for name, (examples, has_all) in CLIENTS.items():
            print(f"{name}: {examples(server) if has_all else 'not installed, left out'}")
    print(f"OpenAI's Python, two models: {two_models.in_python()}")
    if javascript.is_there():
        print(f"OpenAI's JavaScript, two models: {two_models.in_javascript()}")
    print("all clients got their answers")


if __name__ == "__main__":
    main()
