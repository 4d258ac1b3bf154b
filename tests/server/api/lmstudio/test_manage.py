"""Requests that load, unload and download models, as the registry gets them."""

import json
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

import lmlite.server.http as http_module
from lmlite.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    InternalError,
    ModelNotFound,
    NotFound,
    Unavailable,
    Unsupported,
)
from lmlite.server.api.lmstudio import manage
from lmlite.server.api.lmstudio.errors import native_error
from lmlite.server.api.route import Poll
from tests.support.house import House, until
from tests.support.listed_models import listed_model


class FakeRegistry:
    """Records what it is asked for."""

    def __init__(self, **more: Any) -> None:
        self.asked: list[Any] = []
        self.model = listed_model("m", **more)
        self.may_manage = True
        self.downloads: Any = None

    def load(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.model

    def unload(self, *arguments: Any) -> str:
        self.asked.append(arguments)
        return "m"


def poll() -> None:
    """Stands for the handler's check of its client."""


def load(registry: Any, **body: Any) -> Any:
    shown = manage.load(registry, {"model": "m", **body}, poll)
    assert type(shown.pop("load_time_seconds")) is float
    return shown


def test_a_load_passes_on_what_the_request_sets() -> None:
    registry = FakeRegistry()
    loaded = {"type": "llm", "instance_id": "m", "status": "loaded"}
    assert load(registry) == loaded
    assert load(
        registry, context_length=2048, eval_batch_size=64, parallel=2, flash_attention=False,
        gpu_layers=-1, ttl=60, identifier="mine",
    ) == loaded  # fmt: skip
    changes = {"n_ctx": 2048, "n_batch": 64, "n_parallel": 2, "n_gpu_layers": -1,
               "flash_attn": "off"}  # fmt: skip
    assert registry.asked == [("m", None, None, {}, poll), ("m", "mine", 60, changes, poll)]
    load(registry, flash_attention=True)
    assert registry.asked[-1] == ("m", None, None, {"flash_attn": "on"}, poll)
    load(registry, ttl=2**31 - 1)  # the most that `lmlite load --ttl` takes
    assert registry.asked[-1] == ("m", None, 2**31 - 1, {}, poll)


def test_the_configuration_is_shown_if_asked_for() -> None:
    config = {"context_length": 512, "eval_batch_size": 512, "parallel": 4,
              "flash_attention": True, "offload_kv_cache_to_gpu": False}  # fmt: skip
    assert load(FakeRegistry(), echo_load_config=True)["load_config"] == config
    embedding = load(FakeRegistry(embeds_only=True), echo_load_config=True)
    assert (embedding["type"], embedding["load_config"]) == ("embedding", {"context_length": 512})
    assert "load_config" not in load(FakeRegistry(), echo_load_config=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None), ("model", 7), ("context_length", 0), ("context_length", "4k"),
        ("eval_batch_size", 1.5), ("parallel", 0), ("parallel", 257),
        ("gpu_layers", -2), ("flash_attention", "on"),
        ("echo_load_config", 1), ("ttl", 0), ("identifier", 7),
        ("identifier", "a\0b"), ("identifier", "\ud800"), ("identifier", 201 * "a"),
    ],
)  # fmt: skip
def test_a_load_with_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    registry = FakeRegistry()
    with pytest.raises(BadRequest) as caught:
        load(registry, **{field: value})
    assert (caught.value.param, registry.asked) == (field, [])


def test_an_unload_names_an_instance() -> None:
    registry: Any = FakeRegistry()
    assert manage.unload(registry, {"instance_id": "mine"}, poll) == {"instance_id": "mine"}
    assert registry.asked == [("mine", poll)]
    with pytest.raises(BadRequest) as caught:
        manage.unload(registry, {}, poll)
    assert caught.value.param == "instance_id"


def posted(house: House, path: str, body: Any) -> tuple[int, bytes]:
    with closing(house.connect()) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"/api/v1/models/{path}", json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()


def test_a_client_that_waits_long_for_a_load_gets_spaces(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        keep_waiting: Poll = arguments[-1]
        keep_waiting()
        keep_waiting()
        return listed_model("m")

    monkeypatch.setattr(http_module, "SPACE_S", 0.0)
    monkeypatch.setattr(house.server.registry, "load", load)
    status, body = posted(house, "load", {"model": "m"})
    assert (status, body[:3]) == (200, b"  {")
    assert json.loads(body)["instance_id"] == "m"


def test_an_error_after_the_first_space_is_an_error_object(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        keep_waiting: Poll = arguments[-1]
        keep_waiting()
        raise Unavailable("no room")

    monkeypatch.setattr(http_module, "SPACE_S", 0.0)
    monkeypatch.setattr(house.server.registry, "load", load)
    assert posted(house, "load", {"model": "m"}) == (
        200, b' {"error":{"type":"internal_error","message":"no room"}}',
    )  # fmt: skip


def test_a_model_may_be_unloaded_while_no_further_request_is_taken(
    open_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house(n_parallel=1, n_queue=1)
    monkeypatch.setattr(house.server.registry, "unload", lambda *_: "fake")
    with closing(house.connect()) as first, closing(house.connect()) as second:
        house.send(first, "hang")
        house.send(second, "hang")
        until(lambda: house.supervisor.n_open() == 2)
        assert house.ask("echo x")[0] == 503
        assert posted(house, "unload", {"instance_id": "fake"})[0] == 200


# ---- downloads -------------------------------------------------------------------------------


def test_nothing_is_downloaded_unless_the_server_allows_it() -> None:
    registry: Any = FakeRegistry()
    said = "this server downloads nothing: start it with --allow-download"
    asks: list[Callable[[], object]] = [
        lambda: manage.download(registry, {"model": "acme/m"}, poll),
        lambda: manage.download_status(registry, "job_1"),
    ]
    for ask in asks:
        with pytest.raises(Unsupported) as caught:
            ask()
        assert native_error(caught.value)["error"]["type"] == "not_implemented"
        assert caught.value.message == said


def test_a_server_may_refuse_to_be_managed() -> None:
    registry: Any = FakeRegistry()
    registry.may_manage = False
    registry.downloads = SimpleNamespace()
    asks: list[Callable[[], object]] = [
        lambda: manage.load(registry, {"model": "m"}, poll),
        lambda: manage.unload(registry, {"instance_id": "m"}, poll),
        lambda: manage.download(registry, {"model": "acme/m"}, poll),
        lambda: manage.download_status(registry, "job_1"),
    ]
    for ask in asks:
        with pytest.raises(Forbidden, match="--no-manage"):
            ask()
    assert registry.asked == []


def test_a_download_is_started_and_followed() -> None:
    registry: Any = FakeRegistry()
    jobs = {"job_1": {"job_id": "job_1", "status": "downloading", "total_size_bytes": 9}}
    asked = []

    def start(*arguments: Any) -> Any:
        asked.append(arguments)
        return jobs["job_1"]

    registry.downloads = SimpleNamespace(start=start, status=jobs.__getitem__)
    assert manage.download(registry, {"model": "acme/m"}, poll) == jobs["job_1"]
    manage.download(registry, {"model": "acme/m", "quantization": "Q4_K_M"}, poll)
    assert asked == [("acme/m", None), ("acme/m", "Q4_K_M")]
    assert manage.download_status(registry, "job_1") == jobs["job_1"]
    with pytest.raises(BadRequest) as caught:
        manage.download(registry, {"quantization": "Q4_K_M"}, poll)
    assert caught.value.param == "model"


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (BadRequest("no", param="top_k"),
         {"type": "invalid_request", "message": "no", "param": "top_k"}),
        (ModelNotFound("no", param="model"),
         {"type": "model_not_found", "message": "no", "code": "model_not_found",
          "param": "model"}),
        (NotFound("no", code="job_not_found"),
         {"type": "job_not_found", "message": "no", "code": "job_not_found"}),
        (Unsupported("no"),
         {"type": "not_implemented", "message": "no", "code": "unsupported_feature"}),
        (Forbidden("no"), {"type": "invalid_request", "message": "no"}),
        (InternalError("no"), {"type": "internal_error", "message": "no"}),
        (Unavailable("no"), {"type": "internal_error", "message": "no"}),
    ],
)  # fmt: skip
def test_an_error_has_lm_studios_form(error: ApiError, shown: Any) -> None:
    assert native_error(error) == {"error": shown}
