"""What holds when a request says nothing, and what a dry run tells of a request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.gguf import file as gguf
from lmlite.server.api import sampling
from tests import REPOSITORY
from tests.support.gguf_writer import STRING as STRING_VALUE
from tests.support.gguf_writer import Typed, Value, tiny_llama_parts, write_gguf
from tests.support.server_process import RunningServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
LLAMA_CPP = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0,
             "presence_penalty": 0.0, "frequency_penalty": 0.0, "typical_p": 1.0,
             "top_n_sigma": -1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1,
             "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "dry_multiplier": 0.0,
             "dry_base": 1.75, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "mirostat": 0,
             "repeat_last_n": 64, "dry_allowed_length": 2, "dry_penalty_last_n": 64,
             "reasoning_budget_tokens": -1}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def plan(server: RunningServer, **body: Any) -> Any:
    """Of a completion where there is a prompt, else of a chat."""
    path = TEXT if "prompt" in body else CHAT
    body = body if "prompt" in body else {"messages": HI} | body
    answer = server.request("POST", path, body, {"X-Dry-Run": "1"})
    assert answer.status == 200, answer.body
    return answer.json


def model_file(path: Path, **sampling_keys: Value) -> str:
    metadata, tensors = tiny_llama_parts()
    keys = {f"general.sampling.{key}": value for key, value in sampling_keys.items()}
    write_gguf(path, metadata | keys, tensors)
    return str(path)


# ---- a dry run -------------------------------------------------------------------------------


def test_a_dry_run_shows_the_prompt_that_the_template_makes(server: RunningServer) -> None:
    answer = plan(server, messages=[{"role": "user", "content": "Say <|im_end|> 東"}])
    (prompt,) = answer["prompts"]
    assert prompt["text"] == (
        "<|im_start|>user\nSay <|im_end|> 東<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "".join(token["text"] for token in prompt["tokens"]) == prompt["text"]
    assert len(prompt["tokens"]) == prompt["n_tokens"]
    # The end that the template wrote is one token, and that of the message is several.
    assert [token["text"] for token in prompt["tokens"]].count("<|im_end|>") == 1


def test_a_dry_run_says_the_same_number_of_tokens_as_the_answer(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Count from 3 to 9."}]}
    (prompt,) = plan(server, **body)["prompts"]
    answer = server.post(CHAT, **body).json
    assert prompt["n_tokens"] == answer["usage"]["prompt_tokens"]


def test_a_dry_run_tells_what_is_cached_and_changes_nothing(server: RunningServer) -> None:
    messages = [{"role": "user", "content": "What is the capital of Mars?"}]
    before, again = plan(server, messages=messages), plan(server, messages=messages)
    assert before["prompts"] == again["prompts"]
    server.post(CHAT, messages=messages, max_tokens=1)
    (prompt,) = plan(server, messages=messages)["prompts"]
    assert prompt["n_cached"] == prompt["n_tokens"] - 1
    assert server.post(CHAT, messages=messages, max_tokens=1).json["usage"][
        "prompt_tokens_details"
    ] == {"cached_tokens": prompt["n_cached"]}


def test_a_dry_run_shows_the_grammar_of_the_form(server: RunningServer) -> None:
    assert plan(server)["prompts"][0]["grammar"] is None
    schema = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert "root ::=" in plan(server, response_format=form)["prompts"][0]["grammar"]


def test_a_dry_run_of_completions_shows_each_prompt_once(server: RunningServer) -> None:
    answer = plan(server, prompt=["Hi", "Once upon"], n=3, stream=True, echo=True)
    assert [prompt["text"] for prompt in answer["prompts"]] == ["Hi", "Once upon"]
    assert (answer["object"], answer["model"]) == ("dry_run", "tiny")


def test_a_dry_run_of_embeddings_shows_each_input(server: RunningServer) -> None:
    ids = server.post("/tokenize", content="Once upon").json["tokens"]
    body = {"input": ["Hi", "Once upon"]}
    answer = server.request("POST", "/v1/embeddings", body, {"X-Dry-Run": "1"}).json
    assert [prompt["text"] for prompt in answer["prompts"]] == ["Hi", "Once upon"]
    assert [token["id"] for token in answer["prompts"][1]["tokens"]] == ids
    assert (answer["object"], answer["sampling"]) == ("dry_run", {})
    ranked = {"query": "What?", "documents": ["Hi", "Once upon"], "top_n": 1}
    shown = server.request("POST", "/v1/rerank", ranked, {"X-Dry-Run": "1"}).json
    assert shown["prompts"] == answer["prompts"]


def test_a_dry_run_tells_values_and_where_they_come_from(server: RunningServer) -> None:
    found = plan(server, top_k=3, max_completion_tokens=7, seed=5, stop="x")["sampling"]
    asked = {"top_k": 3, "max_tokens": 7, "seed": 5, "stop": ["x"]}
    of_request = {name: value for name, value in found.items() if value["origin"] == "request"}
    assert of_request == {
        name: {"value": value, "origin": "request"} for name, value in asked.items()
    }
    others = {name: found[name]["value"] for name in LLAMA_CPP if name != "top_k"}
    assert others == {name: value for name, value in LLAMA_CPP.items() if name != "top_k"}


def test_a_dry_run_refuses_what_the_request_would_be_refused_for(server: RunningServer) -> None:
    long = [{"role": "user", "content": "one two three " * 2000}]
    answer = server.request("POST", CHAT, {"messages": long}, {"X-Dry-Run": "1"})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


# ---- fields that nobody knows ----------------------------------------------------------------


def test_ignored_fields_are_named_in_a_header(server: RunningServer) -> None:
    body = {"messages": HI, "max_tokens": 1, "top_a": 1, "ttl\r\nX: y": 2, "user": "me"}
    for stream in (False, True):
        answer = server.post(CHAT, **body, stream=stream)
        assert answer.status == 200
        assert answer.headers["x-ignored-params"] == "top_a, ttl??X??y"
    assert plan(server, top_a=1)["ignored_params"] == ["top_a"]
    assert "x-ignored-params" not in server.post(CHAT, messages=HI, max_tokens=1).headers
    embedded = server.post("/v1/embeddings", input="Hi", truncate=True)
    assert embedded.headers["x-ignored-params"] == "truncate"


def test_a_strict_server_refuses_them() -> None:
    with RunningServer("--strict") as server:
        refused = server.post(TEXT, prompt="Hi", max_tokens=1, top_a=1, top_b=2)
        assert (refused.status, refused.error["param"]) == (400, "top_a")
        assert refused.error["message"] == "this server does not know: top_a, top_b"
        assert server.post(TEXT, prompt="Hi", max_tokens=1, user="me").status == 200


# ---- defaults --------------------------------------------------------------------------------


def test_the_model_files_sampling_values_hold_where_the_request_is_silent(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", temp=0.25, top_k=7, penalty_repeat=1.5, top_p=9.0)
    with RunningServer(path, "--sampling", "top_k=9,min_p=0.5") as server:
        found = plan(server, repeat_penalty=1.25)["sampling"]
        # Files hold 32 bits: 0.25 is exact. top_p is out of range and as if it were not there.
        others = {name: (value, "default") for name, value in LLAMA_CPP.items()}
        assert {name: (found[name]["value"], found[name]["origin"]) for name in LLAMA_CPP} == {
            **others,
            "temperature": (0.25, "model file"),
            "top_k": (9, "command line"),
            "top_p": (0.95, "default"),
            "min_p": (0.5, "command line"),
            "repeat_penalty": (1.25, "request"),
            "presence_penalty": (0.0, "default"),
            "frequency_penalty": (0.0, "default"),
        }
        ignored = [line for line in server.log if "sampling default" in line]
        assert len(ignored) == 1
        assert "top_p must be from 0 to 1" in ignored[0]


def test_a_default_temperature_of_zero_makes_answers_greedy() -> None:
    with RunningServer("--sampling", "temperature=0") as server:
        told = {
            server.post(CHAT, messages=[{"role": "user", "content": "Tell me a story."}], seed=seed)
            .json["choices"][0]["message"]["content"]
            for seed in (1, 2, 3)
        }  # fmt: skip
        assert len(told) == 1


def test_sampling_keys_of_other_types_are_left_alone(tmp_path: Path) -> None:
    strange: dict[str, Value] = {"temp": Typed(STRING_VALUE, "hot"), "top_k": [1, 2], "min_p": True}
    file = gguf.read_model_file(model_file(tmp_path / "m.gguf", **strange))
    assert file.sampling == {}


@pytest.mark.parametrize(
    "text", ["", "heat=1", "temperature", "temperature=hot", "temperature=3", "top_k=1.5"]
)
def test_a_bad_default_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be NAME=VALUE|has a bad value"):
        sampling.parse_defaults(text)


# ---- reasoning -------------------------------------------------------------------------------


def test_reasoning_stays_in_the_content_where_that_is_asked_for() -> None:
    question = {"role": "user", "content": "Think first: How much is 3 + 4?"}
    with RunningServer("--reasoning-format", "none") as server:
        message = server.post(CHAT, messages=[question], temperature=0).json["choices"][0][
            "message"
        ]
        assert "reasoning_content" not in message
        assert message["content"].startswith("<think>\n")
        assert "</think>" in message["content"]


def test_the_manual_shows_the_shape_of_a_dry_run(server: RunningServer) -> None:
    text = (REPOSITORY / "lmlite/manual/watching.md").read_text()
    shown = text.partition("<!-- dry run -->")[2]
    for name in plan(server):
        assert f'"{name}"' in shown, name
