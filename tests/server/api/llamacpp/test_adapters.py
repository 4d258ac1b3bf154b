"""LoRA adapters: at the start, in a request, and changed by /lora-adapters."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.server.api.fields import Field
from lmlite.server.api.llamacpp.adapters import requested_scales
from tests.support.adapters import merged_llama, write_adapter
from tests.support.gguf_writer import tiny_llama
from tests.support.server_process import RunningServer

ADAPTERS, COMPLETE, EMBED = "/lora-adapters", "/v1/completions", "/v1/embeddings"
PROMPT = "Hello model of the world, and of all that is in it, and to be continued in the end"
ONE, TWO = 11, 12  # seeds of adapters
OFF: list[Any] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("lora")
    tiny_llama(found / "base.gguf")
    write_adapter(found / "one.gguf", ONE)
    write_adapter(found / "two.gguf", TWO)
    return found


def adapted(folder: Path, *more: str) -> RunningServer:
    adapters = ("--lora", str(folder / "one.gguf"), "--lora", f"{folder / 'two.gguf'}:0.5")
    return RunningServer(str(folder / "base.gguf"), *adapters, *more)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with adapted(folder) as running:
        yield running


def only(number: int, scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"id": number, "scale": scale}]


def text(server: RunningServer, prompt: str = PROMPT, **body: Any) -> str:
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **body}
    answer = server.post(COMPLETE, **body)
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["text"])


def logprobs(server: RunningServer, **body: Any) -> list[float]:
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1, **body}
    return list(server.post(COMPLETE, **body).json["choices"][0]["logprobs"]["token_logprobs"][1:])


def n_cached(server: RunningServer, prompt: str, **body: Any) -> int:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, **body}
    usage = server.post(COMPLETE, **body).json["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


# ---- what is asked -------------------------------------------------------------------------


def test_adapters_that_a_request_does_not_name_are_off() -> None:
    assert requested_scales(Field(None, "lora"), (1.0, 0.5)) == (1.0, 0.5)
    assert requested_scales(Field([], "lora"), (1.0, 0.5)) == (0.0, 0.0)
    assert requested_scales(Field(only(1, -2), "lora"), (1.0, 0.5)) == (0.0, -2.0)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (5, "lora"),
        ([5], "lora.[0]"),
        ([{"scale": 1}], "lora.[0].id"),
        ([{"id": 0}], "lora.[0].scale"),
        ([{"id": 2, "scale": 1}], "lora.[0].id"),
        ([{"id": -1, "scale": 1}], "lora.[0].id"),
        ([{"id": 0, "scale": "x"}], "lora.[0].scale"),
        ([{"id": 0, "scale": 1001}], "lora.[0].scale"),
    ],
)
def test_an_error_names_the_field(value: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        requested_scales(Field(value, "lora"), (1.0, 0.5))
    assert caught.value.param == param


def test_a_model_without_adapters_says_how_to_serve_it_with_one() -> None:
    with pytest.raises(BadRequest, match="--lora FILE"):
        requested_scales(Field(only(0), "lora"), ())


# ---- what is answered ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "changes"),
    [
        (only(0), [(ONE, 1.0)]),
        (only(1, -0.75), [(TWO, -0.75)]),
        (None, [(ONE, 1.0), (TWO, 0.5)]),  # as given at the start
    ],
)
def test_answers_are_those_of_a_model_with_the_adapters_merged_in(
    server: RunningServer, folder: Path, lora: Any, changes: list[tuple[int, float]]
) -> None:
    merged_llama(folder / "merged.gguf", changes)
    with RunningServer(str(folder / "merged.gguf")) as merged:
        assert text(server, lora=lora) == text(merged)
        assert logprobs(server, lora=lora) == pytest.approx(logprobs(merged), abs=1e-3)
        vectors = [
            each.post(EMBED, input=PROMPT, **body).json["data"][0]["embedding"]
            for each, body in ((server, {"lora": lora}), (merged, {}))
        ]
        assert vectors[0] == pytest.approx(vectors[1], abs=1e-3)


def test_without_adapters_or_with_scale_0_answers_are_the_models_own(
    server: RunningServer, folder: Path
) -> None:
    with RunningServer(str(folder / "base.gguf")) as base:
        own, numbers = text(base), logprobs(base)
    assert text(server, lora=OFF) == text(server, lora=only(1, 0)) == own
    assert logprobs(server, lora=OFF) == logprobs(server, lora=only(0, 0)) == numbers
    assert text(server, lora=only(0)) != own


def test_users_with_different_adapters_at_once_get_the_same_as_alone(
    server: RunningServer,
) -> None:
    asked = [OFF, only(0), only(1), [*only(0), *only(1)]]
    alone = [text(server, lora=lora, max_tokens=100) for lora in asked]
    assert len(set(alone)) == len(asked)
    together: dict[int, str] = {}

    def ask(number: int) -> None:
        together[number] = text(server, lora=asked[number], max_tokens=100)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(asked))] == alone


def test_what_was_read_with_an_adapter_is_reused_only_with_the_same_scales(
    server: RunningServer,
) -> None:
    prompt = f"in a prompt that no other test has, {PROMPT}"
    whole = n_cached(server, prompt, lora=only(0))
    assert whole == 0
    assert n_cached(server, prompt, lora=only(0)) > 50
    for lora in (OFF, only(0, 0.5), only(1)):
        assert n_cached(server, prompt, lora=lora) == 0
        assert n_cached(server, prompt, lora=lora) > 50
    assert n_cached(server, prompt, lora=only(0)) > 50


def test_a_dry_run_shows_what_the_prompt_would_reuse(server: RunningServer) -> None:
    prompt = f"of a dry run, {PROMPT}"
    n_cached(server, prompt, lora=only(0))
    body = {"prompt": prompt, "max_tokens": 1}
    found = []
    for lora in (only(0), only(1)):
        answer = server.request("POST", COMPLETE, {**body, "lora": lora}, {"X-Dry-Run": "1"})
        found.append(answer.json["prompts"][0]["n_cached"])
    assert found[0] > 20 and found[1] == 0


def test_checkpoints_on_disk_are_for_the_same_scales_after_a_restart(
    folder: Path, tmp_path: Path
) -> None:
    prompt = " ".join(["Hello model of the world, and again:"] * 20)
    options = "--cache-dir", str(tmp_path), "--checkpoint-memory", "0"
    with adapted(folder, *options) as first:
        first_text = text(first, prompt, lora=only(0))
        assert n_cached(first, prompt[:-1], lora=only(0)) > 0
    assert [*tmp_path.glob("*.checkpoint")]
    with adapted(folder, *options) as second:
        assert n_cached(second, prompt, lora=OFF) == 0
        assert n_cached(second, prompt, lora=only(0)) > 200
        assert text(second, prompt, lora=only(0)) == first_text


# ---- /lora-adapters ------------------------------------------------------------------------


def test_the_scales_are_listed_and_can_be_changed(folder: Path) -> None:
    with adapted(folder) as server:
        assert server.request("GET", ADAPTERS).json == [
            {"id": 0, "path": "one.gguf", "scale": 1.0},
            {"id": 1, "path": "two.gguf", "scale": 0.5},
        ]
        wanted = text(server, lora=only(1, 2))
        answer = server.request("POST", ADAPTERS, only(1, 2))
        assert (answer.status, answer.json) == (200, {"success": True})
        assert [each["scale"] for each in server.request("GET", ADAPTERS).json] == [0.0, 2.0]
        assert text(server) == wanted
        answer = server.request("POST", ADAPTERS, only(2))
        assert (answer.status, answer.json["error"]["param"]) == (400, "lora.[0].id")


def test_clients_that_may_not_manage_change_nothing_for_others(folder: Path) -> None:
    with adapted(folder, "--no-manage") as server:
        assert server.request("POST", ADAPTERS, only(0, 0)).status == 403
        assert server.request("GET", ADAPTERS).json[0]["scale"] == 1.0
