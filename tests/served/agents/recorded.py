"""Requests of Codex and Claude Code: the first of a session, and one after their tools answered.

The JSON files beside this one have the shapes of what they send: fields, kinds of items, tools and
their schemas. The texts are our own.
"""

import base64
import json
from pathlib import Path
from typing import Any

from tests.support.image_files import LOSSY_WEBP
from tests.support.server_process import Answer, RunningServer

AGENTS = ("codex", "claude_code")
TURNS = {"codex": "input", "claude_code": "messages"}


def asked(agent: str, *, later: bool = False) -> Any:
    """A recorded request: path, headers and body; `later` with what its tools have answered."""
    picture = base64.b64encode(LOSSY_WEBP).decode()
    text = Path(__file__).with_name(f"{agent}.json").read_text().replace("PICTURE", picture)
    request = json.loads(text)
    if later:
        request["body"][TURNS[agent]] += request["later"]
    return request


def post(server: RunningServer, request: Any, **headers: str) -> Answer:
    """Sends it for an answer in one piece."""
    body = request["body"] | {"model": server.model, "stream": False}
    return server.request("POST", request["path"], body, request["headers"] | headers)
