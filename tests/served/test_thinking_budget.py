"""Thoughts that reach their budget are ended: by each API, in streams, with grammars and tools."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEFAULT_MODEL
from tests.served.test_streams import THINK
from tests.support.server_process import RunningServer

SENTENCE = "Time is up."
CHAT = "/v1/chat/completions"
N_TAG = 1  # tokens of the tag that ends a thought
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"],
          "additionalProperties": False}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PERSON}}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--reasoning-budget-message", SENTENCE) as running:
        yield running


def ask(server: RunningServer, **body: Any) -> dict[str, Any]:
    answer = server.post(CHAT, messages=[{"role": "user", "content": THINK}],
                         **{"temperature": 0, "max_tokens": 60, **body})  # fmt: skip
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def thought_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"].get("reasoning_content", "")).strip()


def streamed(body: bytes) -> str:
    """The thoughts of a stream of any API."""
    fields = rb'"(?:reasoning_content|thinking|delta|content)":'
    texts = re.findall(fields + rb'("(?:[^"\\]|\\.)*")', body)
    return "".join(map(json.loads, texts))


def n_thoughts(reply: dict[str, Any]) -> int:
    return int(reply["usage"]["completion_tokens_details"]["reasoning_tokens"])


def test_a_thought_of_n_tokens_ends_with_the_sentence(server: RunningServer) -> None:
    free = ask(server)
    for n in (0, 1, 5):
        reply = ask(server, reasoning={"max_tokens": n})
        thought = thought_of(reply)
        if n == 0:  # the template is told that none are wanted
            assert (thought, n_thoughts(reply)) == ("", 0)
            continue
        own = thought.removesuffix(SENTENCE).rstrip()
        assert thought.endswith(SENTENCE)
        assert thought_of(free).startswith(own)
        assert reply["choices"][0]["message"]["content"]


def test_a_thought_below_its_budget_is_left_alone(server: RunningServer) -> None:
    free = ask(server)
    n = n_thoughts(free)
    assert ask(server, reasoning_budget_tokens=n)["choices"] == free["choices"]
    assert ask(server, reasoning_budget_tokens=-1)["choices"] == free["choices"]
    assert thought_of(ask(server, reasoning_budget_tokens=n - 4)).endswith(SENTENCE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"reasoning": {"max_tokens": 4}}),
        ("/v1/responses", {"input": THINK, "reasoning": {"max_tokens": 4}}),
        ("/v1/messages", {"max_tokens": 60,
                          "thinking": {"type": "enabled", "budget_tokens": 4}}),
        ("/api/v1/chat", {"input": THINK, "reasoning_budget_tokens": 4}),
    ],
)  # fmt: skip
def test_each_api_has_a_field_for_the_budget(
    server: RunningServer, path: str, body: dict[str, Any]
) -> None:
    asked = {"temperature": 0, **body}
    if "input" not in body:
        asked["messages"] = [{"role": "user", "content": THINK}]
    whole = server.post(path, **asked)
    assert whole.status == 200, whole.body
    assert SENTENCE in whole.body.decode()
    assert SENTENCE in streamed(server.post(path, **asked, stream=True).body)
    free = {key: asked[key] for key in asked if "reasoning" not in key and key != "thinking"}
    assert SENTENCE not in streamed(server.post(path, **free, stream=True).body)


def test_an_answer_after_an_ended_thought_keeps_its_form(server: RunningServer) -> None:
    reply = ask(server, reasoning={"max_tokens": 4}, response_format=FORM)
    assert thought_of(reply) == "" or thought_of(reply).endswith(SENTENCE)
    assert reply["choices"][0]["message"]["content"].startswith("{")
    called = ask(server, reasoning={"max_tokens": 4}, tools=TOOLS, tool_choice="required")
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    allowed = ask(server, reasoning={"max_tokens": 4}, tools=TOOLS)
    assert thought_of(allowed).endswith(SENTENCE)


def test_choices_and_users_beside_each_other_have_a_budget_each(server: RunningServer) -> None:
    hot = {"temperature": 1.0, "seed": 7, "n": 3, "reasoning": {"max_tokens": 3}}
    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(lambda _: ask(server, **hot), range(3)))
    for reply in several:
        assert reply["choices"] == several[0]["choices"]
        for choice in reply["choices"]:
            assert choice["message"].get("reasoning_content", SENTENCE).strip().endswith(SENTENCE)


def test_log_probabilities_have_each_token_of_the_forced_end(server: RunningServer) -> None:
    reply = ask(server, reasoning={"max_tokens": 4}, logprobs=True)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert SENTENCE in "".join(entry["token"] for entry in entries)
    assert len(entries) >= reply["usage"]["completion_tokens"] - N_TAG


@pytest.mark.parametrize("place", ["flag", "settings"])
def test_the_server_or_the_model_sets_a_budget_that_requests_override(
    tmp_path: Path, place: str
) -> None:
    flags = ("--reasoning-budget", "4", "--reasoning-budget-message", SENTENCE)
    if place == "settings":
        (tmp_path / "tiny.gguf").symlink_to(DEFAULT_MODEL)
        (tmp_path / "tiny.json").write_text(
            f'{{"reasoning_budget_tokens": 4, "reasoning_budget_message": "{SENTENCE}"}}'
        )
        flags = (str(tmp_path / "tiny.gguf"),)  # type: ignore[assignment]
    with RunningServer(*flags) as server:
        assert thought_of(ask(server)).endswith(SENTENCE)
        assert SENTENCE not in thought_of(ask(server, reasoning_budget_tokens=-1))
