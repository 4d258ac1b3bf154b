"""Codex's and Claude Code's first requests, and those after tool results, with each template."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest

from lmlite.messages import Chat, Finished
from lmlite.server.api.anthropic.requests import parse_message
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.models.defaults import NO_DEFAULTS
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence
from tests.served.agents.recorded import AGENTS, asked, post
from tests.support import projectors
from tests.support.server_process import RunningServer
from tests.support.template_tree import NAMES, source_of
from tests.worker.test_media import Seer


def chat_of(agent: str, body: Any) -> Chat:
    seeing = replace(NO_DEFAULTS, takes_images=True)
    parsed = (
        parse_response(StoredResponses(), body, seeing)
        if agent == "codex"
        else parse_message(body, seeing)
    )
    assert isinstance(parsed.request, Chat)
    return replace(parsed.request, params=replace(parsed.request.params, max_tokens=3))


@pytest.fixture(scope="module")
def seer(default_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seer]:
    path = tmp_path_factory.mktemp("seer") / "mmproj.gguf"
    projectors.mlp(path, default_model.n_embd)
    made = Seer(default_model, path)
    yield made
    made.close()


@pytest.mark.long
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", NAMES)
def test_each_template_takes_what_they_send(
    default_model: Model, seer: Seer, name: str, agent: str
) -> None:
    template = ChatTemplate(default_model, source_of(name))
    preparer = Preparer(default_model, template, 1 << 20, seer.said.extend, seer.encoder, 64)
    for later in (False, True):
        (sequence,) = preparer.prepare(chat_of(agent, asked(agent, later=later)["body"]))
        assert isinstance(sequence, Sequence)
        assert len(sequence.chunks) == later
        # Only the last tokens are read: the answer still follows the same words, in its form.
        tail = takewhile(lambda token: token >= 0, reversed(sequence.prompt[-8:]))
        sequence.prompt, sequence.chunks = [*tail][::-1], {}
        sequence.tokens = list(sequence.prompt)
        seer.run.engine.submit([sequence])
        (events,) = seer.run.until_finished(1).values()
        assert isinstance(events[-1], Finished)
    template.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("agent", AGENTS)
def test_the_embedded_model_answers_them(server: RunningServer, agent: str, later: bool) -> None:
    request = asked(agent, later=later)
    planned = post(server, request, **{"X-Dry-Run": "1"})
    assert (planned.status, planned.json["object"]) == (200, "dry_run")
    assert "<words>\nBe brief.\n</words>" in planned.json["prompts"][0]["text"]
    answer = post(server, request)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["output_tokens"] > 0
