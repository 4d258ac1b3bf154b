"""Models as the three lists show them: /api/v1/models, /api/v0/models and /v1/models."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import lmlite
from lmlite.server.api.lmstudio.models import in_short, model_list, model_object
from lmlite.server.api.lmstudio.v0 import v0_model
from lmlite.server.api.openai import models as openai
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.listed_models import EFFORTS, SWITCH, listed_model

V1: dict[str, Any] = {
    "type": "llm",
    "publisher": "acme",
    "key": "m",
    "display_name": "Fake",
    "architecture": "llama",
    "quantization": {"name": "F16", "bits_per_weight": 4.52},
    "size_bytes": 98_000_000,
    "params_string": "135M",
    "loaded_instances": [
        {
            "id": "m",
            "config": {
                "context_length": 512,
                "eval_batch_size": 512,
                "parallel": 4,
                "flash_attention": True,
                "offload_kv_cache_to_gpu": False,
            },
            "lmlite": {"n_users": 2, "ttl_seconds": 60.0, "idle_seconds": 0.0, "memory": None},
        }
    ],
    "max_context_length": 8192,
    "format": "gguf",
    "capabilities": {"vision": False, "trained_for_tool_use": False},
    "description": None,
    "lmlite": {"path": "m.gguf", "architecture": "llama", "state": "loaded"},
}
V0 = {
    "id": "m",
    "object": "model",
    "type": "llm",
    "publisher": "acme",
    "arch": "llama",
    "compatibility_type": "gguf",
    "quantization": "F16",
    "state": "loaded",
    "max_context_length": 8192,
    "loaded_context_length": 512,
    "capabilities": ["embeddings"],
}

HALF = CatalogEntry("acme/half", "", "acme", "/models/half.gguf", 5000, None, ())


def registry_of(model: Any) -> Any:
    """A registry with this model, which two requests use if it is loaded."""
    users = SimpleNamespace(n_users=2, ttl_s=60.0, last_used_s=0.0)
    return SimpleNamespace(
        models=lambda: [model],
        broken=lambda: [(HALF, "half.gguf ends in the middle")],
        resident=lambda _: users if model.ready else None,
    )


def shown(model: Any) -> Any:
    return model_object(registry_of(model), model)


def test_v1_shows_the_file_and_how_it_is_loaded() -> None:
    assert model_list(registry_of(listed_model("m"))) == {
        "models": [V1],
        "lmlite": {
            "version": lmlite.__version__,
            "broken": [
                {
                    "key": "acme/half",
                    "publisher": "acme",
                    "format": "gguf",
                    "size_bytes": 5000,
                    "loaded_instances": [],
                    "lmlite": {"path": "half.gguf", "fault": "half.gguf ends in the middle"},
                }
            ],
        },
    }


def test_a_model_that_is_not_loaded_has_no_instances() -> None:
    about = {"path": "m.gguf", "architecture": "llama", "state": "not-loaded"}
    nothing = {"loaded_instances": [], "lmlite": about}
    assert shown(listed_model("m", n_ctx=None)) == V1 | nothing


def test_an_idle_model_shows_since_when() -> None:
    registry = registry_of(model := listed_model("m"))
    registry.resident(model).n_users = 0
    registry.resident(model).last_used_s = time.monotonic() - 1000
    (instance,) = model_object(registry, model)["loaded_instances"]
    assert 1000 <= instance["lmlite"]["idle_seconds"] < 1060


def test_v1_leaves_out_what_a_model_that_only_embeds_has_not() -> None:
    chats = ("architecture", "capabilities", "description")
    rest = {name: value for name, value in V1.items() if name not in chats}
    (instance,) = V1["loaded_instances"]
    instances = [instance | {"config": {"context_length": 512}}]
    assert shown(listed_model("m", embeds_only=True)) == rest | {
        "type": "embedding", "loaded_instances": instances,
    }  # fmt: skip


def test_an_instance_has_the_name_that_its_load_gave_it() -> None:
    model = listed_model("m")
    model.identifiers.append("mine")
    assert shown(model)["loaded_instances"][0]["id"] == "mine"
    assert shown(model)["key"] == "m"


@pytest.mark.parametrize(
    ("template", "reasoning"),
    [
        (SWITCH, {"allowed_options": ["off", "on"], "default": "on"}),
        (EFFORTS, {"allowed_options": ["low", "medium", "high"], "default": "medium"}),
        (SWITCH + EFFORTS,
         {"allowed_options": ["off", "on", "low", "medium", "high"], "default": "on"}),
        ("{{ message.reasoning_content }}", {"allowed_options": ["on"], "default": "on"}),
    ],
)  # fmt: skip
def test_reasoning_is_what_the_template_knows_of_it(template: str, reasoning: Any) -> None:
    model = listed_model("m", template=template + "{{ tools }}")
    assert shown(model)["capabilities"] == {
        "vision": False, "trained_for_tool_use": True, "reasoning": reasoning,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thinks", "effort", "default"),
    [(False, None, "off"), (True, None, "on"), (None, "low", "low"), (None, "max", "on")],
)
def test_the_default_of_reasoning_is_that_of_the_models_settings(
    thinks: bool | None, effort: str | None, default: str
) -> None:
    model = listed_model("m", template=SWITCH + EFFORTS)
    model.defaults = replace(NO_DEFAULTS, thinks=thinks, effort=effort)
    assert shown(model)["capabilities"]["reasoning"]["default"] == default


def test_a_template_that_replaces_the_files_is_the_one_that_counts() -> None:
    model = listed_model("m", n_ctx=None, template=SWITCH)
    model.wanted = SimpleNamespace(chat_template="{{ messages }}")
    assert "reasoning" not in shown(model)["capabilities"]


@pytest.mark.parametrize(
    ("n_params", "told"),
    [
        (134_515_008, "135M"), (494_032_768, "494M"), (999_499_999, "999M"), (999_500_000, "1B"),
        (7_241_732_096, "7.24B"), (70_553_706_496, "70.6B"), (2_917, "2.92K"), (999, "999"),
    ],
)  # fmt: skip
def test_a_number_of_parameters_is_shown_in_three_digits(n_params: int, told: str) -> None:
    assert in_short(n_params) == told


def test_a_file_without_weights_has_no_number_of_parameters() -> None:
    found = shown(listed_model("m", n_params=0))
    assert (found["params_string"], found["quantization"]["bits_per_weight"]) == (None, None)


# ---- v0, and OpenAI's list -------------------------------------------------------------------


def test_v0_shows_less() -> None:
    assert v0_model(listed_model("m")) == V0


def test_a_context_is_shown_only_while_it_is_there() -> None:
    found = v0_model(listed_model("m", n_ctx=None))
    rest = {name: V0[name] for name in V0 if name != "loaded_context_length"}
    assert found == rest | {"state": "not-loaded"}


@pytest.mark.parametrize(
    ("state", "told"),
    [("loading", "loading"), ("loaded", "loaded"), ("unloading", "not-loaded")],
)
def test_a_model_that_leaves_counts_as_not_loaded(state: str, told: str) -> None:
    model = listed_model("m")
    model.state = state
    assert v0_model(model)["state"] == openai.model_object(model, "m")["state"] == told


def test_a_type_and_abilities_go_together() -> None:
    seeing, embedding = (
        listed_model("m", template="{{ tools }}"),
        listed_model("m", template="{{ tools }}", embeds_only=True),
    )
    seeing.sees = True

    def facts(model: Any) -> Any:
        found = openai.model_object(model, "m")
        return found["type"], found["capabilities"], found["input_modalities"]

    assert facts(seeing) == ("vlm", ["vision", "tool_use", "embeddings"], ["text", "image"])
    assert facts(embedding) == ("embeddings", ["embeddings"], ["text"])
    assert facts(listed_model("m")) == ("llm", ["embeddings"], ["text"])


def test_openais_list_has_the_facts_of_v0_and_its_own() -> None:
    own = {"created": 1234567890, "owned_by": "lmlite", "context_length": 512,
           "input_modalities": ["text"]}  # fmt: skip
    facts = {name: V0[name] for name in V0 if name != "compatibility_type"}
    assert openai.model_object(listed_model("m"), "m") == facts | own


def test_a_publisher_that_is_not_known_is_empty() -> None:
    model = listed_model("m")
    for model.entry in (None, SimpleNamespace(publisher=None)):
        assert shown(model)["publisher"] == v0_model(model)["publisher"] == ""
