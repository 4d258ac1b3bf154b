"""The examples of the README and the manual, with the real clients."""

from typing import Any

from openai import OpenAI

from tests.clients.asked import RED_IMAGE
from tests.support.documents import blocks
from tests.support.server_process import RunningServer

PICTURE = "data:image/png;base64,..."  # as the pages have it


def examples(server: RunningServer) -> str:
    """Runs each block in its page's own variables; how many there were."""
    n_run = 0
    names: dict[str, dict[str, Any]] = {}
    for mark in ("run: openai", "run: anthropic"):
        for block in blocks(mark):
            client = OpenAI(base_url=f"{server.url}/v1", api_key="lm-studio")
            variables = names.setdefault(f"{mark} {block.page}", {"client": client})
            text = block.at(server.url).replace(PICTURE, RED_IMAGE)
            exec(compile(text, str(block), "exec"), variables)
            n_run += 1
    assert n_run
    return f"{n_run} examples"
