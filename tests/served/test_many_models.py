"""Three models on one port, and memory for two: every request is answered right, by its model."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEFAULT_MODEL
from tests.served.test_disconnects import metrics
from tests.served.test_faults import CHAT, until
from tests.served.test_real_model import CAPITAL, MICE, MOUSE, PARIS, cosine
from tests.support.gguf_writer import tiny_llama
from tests.support.process_figures import own_bytes
from tests.support.server_process import Answer, RunningServer
from tests.support.streams import folded_chunks, unnamed

N_CLIENTS = 16
MOST_TRIES = 5
AGAIN = "the model's worker ended; the request may be sent again"
EMBEDDINGS, TEXT = "/v1/embeddings", "/v1/completions"


@dataclass(frozen=True)
class Case:
    """A request, and what its answer says."""

    path: str
    body: dict[str, Any]
    answer: Any = None

    @property
    def model(self) -> str:
        return str(self.body["model"])


class Again(Exception):
    """The request failed because its worker was killed, and may be sent again."""


def chat(model: str, content: str, answer: str) -> Case:
    messages = [{"role": "user", "content": content}]
    return Case(CHAT, {"model": model, "messages": messages, "temperature": 0}, answer)


def asked(server: RunningServer, case: Case, *, stream: bool) -> Any:
    """What the answer says, in one piece or streamed. Raises Again."""
    body = case.body | ({"stream": True} if stream else {})
    answer = server.request("POST", case.path, body)
    if answer.status == 503:
        assert answer.error["message"] == AGAIN
        raise Again
    assert answer.status == 200, answer
    if not stream:
        return said(answer.json)
    events = [json.loads(line) for line in data_of(answer) if line != b"[DONE]"]
    if "error" in events[-1]:
        assert events[-1]["error"]["message"] == AGAIN
        raise Again
    assert answer.body.endswith(b"data: [DONE]\n\n")
    return said(unnamed(folded_chunks(events)))


def data_of(answer: Answer) -> list[bytes]:
    lines = answer.body.splitlines()
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


def said(answer: Any) -> Any:
    """A text, or vectors."""
    if "data" in answer:
        return [item["embedding"] for item in answer["data"]]
    (choice,) = answer["choices"]
    assert choice["finish_reason"] is not None
    return choice["message"]["content"] if "message" in choice else choice["text"]


def agree(a: Any, b: Any) -> bool:
    """Equality of texts; of vectors, as far as batches of different sizes allow."""
    if isinstance(a, str):
        return bool(a == b)
    return all(cosine(*pair) > 0.999 for pair in zip(a, b, strict=True))


# ---- what one looks at meanwhile ---------------------------------------------------------------


@contextmanager
def watched(server: RunningServer, estimates: Mapping[str, int]) -> Iterator[list[int]]:
    """The bytes of the loaded models, by their estimates, as often as they are told; and held."""
    found: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            loaded = server.get("/health").json.get("models", {})
            found.append(sum(estimates[name] for name in loaded))
            with contextlib.suppress(OSError, AssertionError):  # one has just ended
                found.append(sum(own_bytes(pid) for pid in server.worker_pids()))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield found
        finally:
            done.set()
            looking.result()


def kill_worker(server: RunningServer, path: Path) -> None:
    """Kills the worker that has loaded this file, as soon as there is one."""

    def is_killed() -> bool:
        for pid in server.worker_pids():
            with contextlib.suppress(OSError):
                if str(path.resolve()) in Path(f"/proc/{pid}/maps").read_text():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    until(is_killed)


def n_answers(counts: Mapping[str, float], label: str = "") -> float:
    """How many requests to models were answered, all or those with this label."""
    return sum(
        n
        for name, n in counts.items()
        if name.startswith('requests_total{path="/v1/') and label in name
    )


# ---- the crowd -------------------------------------------------------------------------------


def check(folder: Path, files: Mapping[str, Path], cases: Sequence[Case], n_requests: int) -> None:
    """Asks each case alone; then all, mixed, with memory for any two of the three models."""
    with RunningServer("--models", str(folder)) as server:
        alone = [said(server.post(case.path, **case.body).json) for case in cases]
        health = server.get("/health").json["models"]
    for case, found in zip(cases, alone, strict=True):
        assert case.answer is None or agree(found, case.answer), found
    estimates = {name: health[name]["memory"]["estimated"]["total"] for name in files}
    n_bytes = sum(estimates.values()) - 1
    kill_at = {n_requests * k // 4: path for k, path in enumerate(files.values(), 1)}
    n_again: list[str] = []

    def ask(number: int) -> None:
        if number in kill_at:
            kill_worker(server, kill_at[number])
        case = cases[number * 7 % len(cases)]
        for _ in range(MOST_TRIES):
            try:
                found = asked(server, case, stream=number % 2 == 1 and case.path != EMBEDDINGS)
            except Again:
                n_again.append(case.model)
            else:
                assert agree(found, alone[cases.index(case)]), found
                return
        raise AssertionError(f"{case} was never answered")

    with RunningServer("--models", str(folder), "--memory", str(n_bytes)) as server:
        with watched(server, estimates) as held, ThreadPoolExecutor(N_CLIENTS) as pool:
            for _ in pool.map(ask, range(n_requests)):
                pass
        # A request is counted after its answer has been sent.
        until(lambda: n_answers(metrics(server)) == n_requests + len(n_again))
        counts = metrics(server)
    server.wait_for_log(" stopped$")
    assert max(held) <= n_bytes
    assert n_answers(counts, 'status="200"') == n_requests
    n_cut = sum(n for name, n in counts.items() if name.startswith("answers_cut_total"))
    assert n_cut <= len(n_again) <= len(files) * N_CLIENTS
    n_loads = counts["model_loads_total"]
    assert n_loads == sum(" loading " in line for line in server.log)
    assert n_loads - counts["model_unloads_total"] == counts["models_loaded"] <= 2
    assert len(files) + 1 <= n_loads <= counts["worker_starts_total"] <= n_loads + len(files)
    print(f"{n_requests} requests, {n_loads:.0f} loads, {len(n_again)} asked again")


def linked(folder: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        (folder / path.name).symlink_to(path)


def test_three_small_models_take_turns_in_memory_for_two(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("tiny", "noise", "murmur")}
    linked(tmp_path, [DEFAULT_MODEL])
    tiny_llama(files["noise"], seed=1)
    tiny_llama(files["murmur"], seed=2)
    noise = {"model": "noise", "temperature": 0, "max_tokens": 8}
    cases = [
        chat("tiny", "Say: red", "red"),
        chat("tiny", "What is 7 + 8?", "15"),
        Case(TEXT, noise | {"prompt": "Hello"}),
        Case(TEXT, noise | {"prompt": "The model and the"}),
        Case(EMBEDDINGS, {"model": "murmur", "input": ["Hello", "of the model"]}),
    ]
    check(tmp_path, files | {"tiny": DEFAULT_MODEL}, cases, 150)


@pytest.mark.long
def test_the_embedded_a_chat_and_an_embedding_model_take_turns_in_memory_for_two(
    real_model: Path, minilm_path: Path, tmp_path: Path
) -> None:
    files = {"tiny": DEFAULT_MODEL, "smollm2-135m-instruct": real_model,
             "all-minilm-l6-v2": minilm_path}  # fmt: skip
    linked(tmp_path, list(files.values()))
    texts = json.loads(minilm_path.with_name("all-minilm-l6-v2.reference.json").read_text())
    known = texts["texts"][:8]
    cases = [
        chat("tiny", "Say: red", "red"),
        chat("tiny", "What is 7 + 8?", "15"),
        chat("smollm2-135m-instruct", CAPITAL, PARIS),
        chat("smollm2-135m-instruct", MOUSE, MICE),
        *(
            Case(EMBEDDINGS, {"model": "all-minilm-l6-v2", "input": text["text"]},
                 [text["embedding"]])
            for text in known
        ),
    ]  # fmt: skip
    check(tmp_path, files, cases, 500)
