"""SmolLM2-135M-Instruct, a real chat model, served: its words, its forms, its long context."""

import json
import math
import operator
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEFAULT_MODEL
from tests.served.test_disconnects import metrics
from tests.served.test_faults import CHAT, until
from tests.support.server_process import RunningServer
from tests.support.streams import folded_chunks, unnamed

SMOL, MINILM, TINY = "smollm2-135m-instruct", "all-minilm-l6-v2", "tiny"
# Of what it answers, these are the most certain: no rounding makes another token the likeliest.
CAPITAL = "Name the capital of France."
PARIS = "The capital of France is Paris."
MOUSE = "What is the plural of mouse?"
MICE = "The plural of mouse is mice."
LORE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@pytest.fixture(scope="module")
def server(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A folder with the real model and the embedded one."""
    folder = tmp_path_factory.mktemp("models")
    for path in (real_model, DEFAULT_MODEL):
        (folder / path.name).symlink_to(path)
    with RunningServer("--models", str(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def reference(minilm_path: Path) -> list[dict[str, Any]]:
    """Texts with their numbers of tokens and their vectors."""
    path = minilm_path.with_name("all-minilm-l6-v2.reference.json")
    found: list[dict[str, Any]] = json.loads(path.read_text())["texts"]
    return found


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def cosine(a: list[float], b: list[float]) -> float:
    return float(sum(map(operator.mul, a, b)) / (math.hypot(*a) * math.hypot(*b)))


def test_it_knows_what_it_has_learned(server: RunningServer) -> None:
    assert text_of(server.chat(CAPITAL, model=SMOL)) == PARIS
    assert text_of(server.chat(MOUSE, model=SMOL)) == MICE


@pytest.mark.parametrize(
    ("path", "body", "n_chunks"),
    [(CHAT, {"messages": [{"role": "user", "content": CAPITAL}]}, 7),
     ("/v1/completions", {"prompt": "1, 2, 3, 4, 5,", "max_tokens": 40}, 30)],
    ids=["chat", "completion"],
)  # fmt: skip
def test_its_stream_is_its_answer(
    server: RunningServer, path: str, body: dict[str, Any], n_chunks: int
) -> None:
    body = {"model": SMOL, "temperature": 0, **body}
    whole = server.post(path, **body).json
    *chunks, last = server.stream(path, **body, stream_options={"include_usage": True})
    assert last == "[DONE]"
    assert unnamed(folded_chunks(chunks)) == unnamed(whole)
    assert len(chunks) > n_chunks


def test_its_answer_takes_the_form_of_a_schema(server: RunningServer) -> None:
    city = {"type": "string", "enum": ["Berlin", "Paris", "Rome"]}
    schema = {"type": "object", "properties": {"capital": city, "sure": {"type": "boolean"}},
              "required": ["capital", "sure"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = server.chat(CAPITAL, model=SMOL, response_format=form, max_tokens=40)
    assert answer["choices"][0]["finish_reason"] == "stop"
    found = json.loads(text_of(answer))
    assert found.keys() == {"capital", "sure"}
    assert (found["capital"], type(found["sure"])) == ("Paris", bool)


def test_a_dry_run_shows_its_prompt(server: RunningServer) -> None:
    body = {"model": SMOL, "messages": [{"role": "user", "content": CAPITAL}]}
    answer = server.request("POST", CHAT, body, {"X-Dry-Run": "1"}).json
    (prompt,) = answer["prompts"]
    assert prompt["text"] == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt["n_tokens"] == server.chat(CAPITAL, model=SMOL)["usage"]["prompt_tokens"] == 36


def test_after_the_death_of_the_workers_each_model_answers_again(server: RunningServer) -> None:
    for name in (SMOL, TINY):
        server.chat("Hi", model=name, max_tokens=1)
    dead = server.worker_pids()
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not {*dead} & {*server.worker_pids()})
    assert text_of(server.chat(CAPITAL, model=SMOL)) == PARIS
    assert text_of(server.chat("Say: red", model=TINY)) == "red"


def test_a_vocabulary_of_49152_tokens_beside_a_small_one(server: RunningServer) -> None:
    assert text_of(server.chat("Say: red", model=TINY)) == "red"
    text = "Straßenbahn, 東京, naïve 🙂"
    sizes = {}
    for name in (SMOL, TINY):
        tokens = server.post("/tokenize", model=name, content=text).json["tokens"]
        assert server.post("/detokenize", model=name, tokens=tokens).json["content"] == text
        sizes[name] = max(tokens)
    assert sizes[TINY] < 8192 < sizes[SMOL] < 49152


def test_embeddings_beside_it_have_their_known_values(
    real_model: Path, minilm_path: Path, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    for path in (real_model, minilm_path, DEFAULT_MODEL):
        (tmp_path / path.name).symlink_to(path)
    with RunningServer("--models", str(tmp_path)) as server:
        assert text_of(server.chat("Say: red", model=TINY)) == "red"
        assert text_of(server.chat(CAPITAL, model=SMOL)) == PARIS
        texts = [known["text"] for known in reference]
        answer = server.post("/v1/embeddings", model=MINILM, input=texts).json
        vectors = [item["embedding"] for item in answer["data"]]
        assert text_of(server.chat(CAPITAL, model=SMOL)) == PARIS
        assert metrics(server)["models_loaded"] == 3
    for known, vector in zip(reference, vectors, strict=True):
        assert cosine(known["embedding"], vector) > 0.999
    assert answer["usage"]["prompt_tokens"] == sum(known["n_tokens"] for known in reference)


def test_its_prompts_outlive_a_restart(real_model: Path, tmp_path: Path) -> None:
    arguments = (str(real_model), "--cache-dir", str(tmp_path / "cache"))
    messages = [{"role": "system", "content": LORE * 10}, {"role": "user", "content": CAPITAL}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 20}
    found = []
    for _ in ("cold", "again"):
        with RunningServer(*arguments) as server:
            found.append(server.post(CHAT, **body).json)
    cold, again = found
    assert text_of(cold) == text_of(again) == PARIS
    n_prompt = again["usage"]["prompt_tokens"]
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1


@pytest.mark.long
def test_it_finds_a_word_among_more_tokens_than_4096(real_model: Path) -> None:
    text = f"{LORE * 100}The secret word of the castle is lantern. {LORE * 85}"
    question = "\n\nQuestion: What is the secret word of the castle?\nAnswer: The secret word of"
    body = {"prompt": f"{text}{question} the castle is", "temperature": 0, "max_tokens": 3,
            "stream_options": {"include_usage": True}}  # fmt: skip
    with RunningServer(str(real_model), "--ctx", "8192") as server:
        *chunks, last = server.stream("/v1/completions", **body)
    answer = folded_chunks(chunks)
    assert last == "[DONE]"
    assert answer["choices"][0]["text"].startswith(" lantern")
    assert answer["usage"]["prompt_tokens"] > 4400
