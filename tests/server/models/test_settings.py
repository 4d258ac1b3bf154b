"""Settings of a model and presets: what each key sets, what is refused, and what is named."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli.flags import SERVE_FLAGS
from lmlite.errors import BadRequest, SettingsError
from lmlite.messages import CACHE_TYPES, Load
from lmlite.server.api.sampling import NAMES
from lmlite.server.models.defaults import COUNTS, EFFORTS, RANGES
from lmlite.server.models.setting_keys import CHECKS, LM_STUDIO_KEYS, LOAD_KEYS, SAMPLING_KEYS
from lmlite.server.models.settings import Settings, load_with, read_preset, read_settings
from tests import REPOSITORY
from tests.support.documents import blocks

MODEL_YAML = """\
# model.yaml is a format of LM Studio
model: qwen/qwen3-8b
base:
  - key: lmstudio-community/qwen3-8b-gguf
    sources: [{type: huggingface, user: lmstudio-community, repo: Qwen3-8B-GGUF}]
metadataOverrides:
  domain: llm
  vision: false
config:
  load:
    fields:
      - key: llm.load.contextLength
        value: 42690
  operation:
    fields:
      - key: llm.prediction.topKSampling
        value: 20
      - key: llm.prediction.minPSampling
        value:
          checked: true
          value: 0
      - key: llm.prediction.systemPrompt
        value: |-
          You are kind.
          You are brief.
customFields:
  - key: enableThinking
    displayName: Enable Thinking
    type: boolean
    defaultValue: false
    effects:
      - type: setJinjaVariable
        variable: enable_thinking
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def own(folder: Path, **values: Any) -> Settings:
    """The settings of a NAME.json with these values."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(values))
    return read_settings([str(path)])


def lm_studio(folder: Path, key: str, value: Any) -> Settings:
    """The settings of a file with one of LM Studio's fields."""
    part = "load" if ".load." in key else "operation"
    return own(folder, **{part: {"fields": [{"key": key, "value": value}]}})


def refusal(folder: Path, **values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        own(folder, **values)
    return str(caught.value)


# ---- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "settings"),
    [
        ("ctx", 8192, Settings(load={"n_ctx": 8192})),
        ("parallel", 2, Settings(load={"n_parallel": 2})),
        ("gpu_layers", -1, Settings(load={"n_gpu_layers": -1})),
        ("gpu-layers", 0, Settings(load={"n_gpu_layers": 0})),
        ("threads", 3, Settings(load={"n_threads": 3})),
        ("batch", 64, Settings(load={"n_batch": 64})),
        ("flash_attn", "auto", Settings(load={"flash_attn": "auto"})),
        ("flash_attn", True, Settings(load={"flash_attn": "on"})),
        ("cache_type_k", "q8_0", Settings(load={"cache_type_k": "q8_0"})),
        ("cache-type-v", "iq4_nl", Settings(load={"cache_type_v": "iq4_nl"})),
        ("temperature", 0, Settings(sampling={"temperature": 0.0})),
        ("top_k", -1, Settings(sampling={"top_k": 0})),
        ("top_p", 0.9, Settings(sampling={"top_p": 0.9})),
        ("min_p", 0.1, Settings(sampling={"min_p": 0.1})),
        ("repeat_penalty", 1.1, Settings(sampling={"repeat_penalty": 1.1})),
        ("presence_penalty", -2, Settings(sampling={"presence_penalty": -2.0})),
        ("frequency_penalty", 0.5, Settings(sampling={"frequency_penalty": 0.5})),
        ("chat_template", "{{ messages }}", Settings(chat_template="{{ messages }}")),
        ("system_prompt", "Be brief.", Settings(system_prompt="Be brief.")),
        ("system_prompt", "", Settings(system_prompt="")),
        ("reasoning", True, Settings(thinks=True)),
        ("reasoning", "on", Settings(thinks=True)),
        ("reasoning", "off", Settings(thinks=False)),
        ("reasoning", "none", Settings(thinks=False)),
        ("reasoning", "low", Settings(thinks=True, effort="low")),
        ("max_tokens", 100, Settings(max_tokens=100)),
        ("stop", "END", Settings(stop=("END",))),
        ("stop", ["a", "", "b"], Settings(stop=("a", "b"))),
        ("ctx", None, Settings()),
        ("model", "a/b", Settings()),
    ],
)
def test_a_key_of_lmlite_sets_what_its_flag_sets(
    folder: Path, key: str, value: Any, settings: Settings
) -> None:
    assert own(folder, **{key: value}) == settings


@pytest.mark.parametrize(
    ("key", "value", "settings"),
    [
        ("llm.load.contextLength", 4096, Settings(load={"n_ctx": 4096})),
        ("embedding.load.contextLength", 512, Settings(load={"n_ctx": 512})),
        ("llm.load.numParallelSessions", 1, Settings(load={"n_parallel": 1})),
        ("llm.load.llama.acceleration.offloadRatio", "max", Settings(load={"n_gpu_layers": -1})),
        ("llm.load.llama.acceleration.offloadRatio", 1.0, Settings(load={"n_gpu_layers": -1})),
        ("llm.load.llama.acceleration.offloadRatio", "off", Settings(load={"n_gpu_layers": 0})),
        ("llm.load.llama.acceleration.offloadRatio", 0, Settings(load={"n_gpu_layers": 0})),
        ("llm.load.llama.acceleration.offloadRatio", "auto", Settings()),
        ("llm.load.llama.cpuThreadPoolSize", 6, Settings(load={"n_threads": 6})),
        ("llm.load.llama.evalBatchSize", 256, Settings(load={"n_batch": 256})),
        ("llm.load.llama.flashAttention", False, Settings(load={"flash_attn": "off"})),
        ("llm.load.llama.kCacheQuantizationType", {"checked": True, "value": "q8_0"},
         Settings(load={"cache_type_k": "q8_0"})),
        ("llm.load.llama.vCacheQuantizationType", {"checked": False, "value": "q8_0"}, Settings()),
        ("llm.prediction.temperature", 0.7, Settings(sampling={"temperature": 0.7})),
        ("llm.prediction.topKSampling", 20, Settings(sampling={"top_k": 20})),
        ("llm.prediction.topPSampling", {"checked": True, "value": 0.8},
         Settings(sampling={"top_p": 0.8})),
        ("llm.prediction.topPSampling", {"checked": False, "value": 0.8},
         Settings(sampling={"top_p": 1.0})),
        ("llm.prediction.minPSampling", {"checked": False, "value": 0.8},
         Settings(sampling={"min_p": 0.0})),
        ("llm.prediction.repeatPenalty", {"checked": False, "value": 1.1},
         Settings(sampling={"repeat_penalty": 1.0})),
        ("llm.prediction.llama.presencePenalty", {"checked": True, "value": 1},
         Settings(sampling={"presence_penalty": 1.0})),
        ("llm.prediction.llama.frequencyPenalty", {"checked": False, "value": 1},
         Settings(sampling={"frequency_penalty": 0.0})),
        ("llm.prediction.maxPredictedTokens", {"checked": True, "value": 512},
         Settings(max_tokens=512)),
        ("llm.prediction.maxPredictedTokens", {"checked": False, "value": 512}, Settings()),
        ("llm.prediction.stopStrings", ["</a>"], Settings(stop=("</a>",))),
        ("llm.prediction.systemPrompt", "Be kind.", Settings(system_prompt="Be kind.")),
        ("llm.prediction.promptTemplate",
         {"type": "jinja", "jinjaPromptTemplate": {"template": "{{ x }}", "bosToken": ""},
          "stopStrings": ["<|end|>"]}, Settings(chat_template="{{ x }}", stop=("<|end|>",))),
        ("llm.prediction.reasoning.enableThinking", False, Settings(thinks=False)),
        ("ext.virtualModel.customField.qwen.qwen38b.enableThinking", True, Settings(thinks=True)),
        ("ext.virtualModel.customField.openai.gptOss20b.reasoningEffort", "high",
         Settings(thinks=True, effort="high")),
        ("llm.prediction.speculativeDecoding.draftModel", "", Settings(load={"draft_path": None})),
        ("llm.prediction.speculativeDecoding.draftModel", "a/b",
         Settings(load={"draft_path": "a/b"})),
        ("llm.prediction.speculativeDecoding.maxTokensToDraft", 16,
         Settings(load={"n_draft": 16})),
        ("llm.prediction.speculativeDecoding.minDraftLengthToConsider", 2, Settings()),
        ("llm.prediction.logProbs", {"checked": False, "value": 0}, Settings()),
    ],
)  # fmt: skip
def test_a_field_of_lm_studio_sets_the_same(
    folder: Path, key: str, value: Any, settings: Settings
) -> None:
    assert lm_studio(folder, key, value) == settings


# Keys that LM Studio has no names for.
LLAMA_CPP_KEYS = {*COUNTS, *RANGES, "reasoning_budget_message"} - {
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "xtc_probability", "xtc_threshold", "typical_p",
}  # fmt: skip


def test_the_keys_are_those_of_the_load_the_flags_and_the_requests() -> None:
    assert {name for name, _ in LOAD_KEYS.values()} <= {field.name for field in fields(Load)}
    assert {f"--{key.replace('_', '-')}" for key in (*LOAD_KEYS, "chat_template")} <= {
        flag.name for flag in SERVE_FLAGS
    }
    assert set(SAMPLING_KEYS) == set(NAMES)
    assert set(LM_STUDIO_KEYS.values()) >= {*LOAD_KEYS, *SAMPLING_KEYS} - LLAMA_CPP_KEYS


def test_a_model_yaml_is_read(folder: Path) -> None:
    path = folder / "model.yaml"
    path.write_text(MODEL_YAML)
    assert read_settings([str(path)]) == Settings(
        load={"n_ctx": 42690},
        sampling={"top_k": 20, "min_p": 0.0},
        system_prompt="You are kind.\nYou are brief.",
        thinks=False,
    )


def test_a_field_overrides_the_default_of_a_custom_field_wherever_it_stands(folder: Path) -> None:
    field = "- {key: llm.prediction.reasoning.enableThinking, value: true}"
    path = folder / "model.yaml"
    path.write_text(MODEL_YAML.replace("fields:\n      - key: llm.pred", f"fields:\n      {field}\n"
                                       "      - key: llm.pred"))  # fmt: skip
    assert read_settings([str(path)]).thinks is True


def test_a_model_yaml_may_be_json_and_a_file_may_have_both_forms(folder: Path) -> None:
    fields = {"load": {"fields": [{"key": "llm.load.contextLength", "value": 512}]}}
    found = own(folder, model="a/b", base="c", config=fields, temperature=1)
    assert found == Settings(load={"n_ctx": 512}, sampling={"temperature": 1.0})


def test_later_files_override_earlier_ones_key_by_key(folder: Path) -> None:
    (folder / "model.yaml").write_text(
        "ctx: 512\nparallel: 2\ntop_k: 1\ntop_p: 0.5\nstop: a\nsystem_prompt: b\nreasoning: off\n"
        "max_tokens: 9\nstrange: 1\n"
    )
    (folder / "tiny.json").write_text(
        '{"ctx": 1024, "top_p": 0.6, "system_prompt": "", "reasoning": "low", "odd": 2}'
    )
    paths = [str(folder / "model.yaml"), str(folder / "tiny.json")]
    assert read_settings(paths) == Settings(
        load={"n_ctx": 1024, "n_parallel": 2},
        sampling={"top_k": 1, "top_p": 0.6},
        system_prompt="",
        thinks=True,
        effort="low",
        max_tokens=9,
        stop=("a",),
        unknown=("model.yaml: strange is not understood", "tiny.json: odd is not understood"),
    )


def test_no_files_and_empty_files_set_nothing(folder: Path) -> None:
    (folder / "model.yaml").write_text("# nothing\n")
    assert read_settings([]) == read_settings([str(folder / "model.yaml")]) == Settings()


def test_a_json_file_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "tiny.json").write_bytes(b'\xef\xbb\xbf{"ctx": 512}')
    assert read_settings([str(folder / "tiny.json")]).load == {"n_ctx": 512}


# ---- what is not understood ----------------------------------------------------------------


def test_what_is_not_understood_is_named(folder: Path) -> None:
    found = own(
        folder,
        colour="red",
        customFields=[{"key": "tone", "defaultValue": "warm", "effects": []}],
        load={"fields": [{"key": "llm.load.llama.tryMmap", "value": True},
                         {"key": "llm.load.llama.acceleration.offloadRatio", "value": 0.5}]},
        operation={"fields": [
            {"key": "llm.prediction.promptTemplate", "value": {"type": "manual"}},
        ]},
    )  # fmt: skip
    assert found == Settings(
        unknown=(
            "tiny.json: the custom field tone is not understood",
            "tiny.json: colour is not understood",
            "tiny.json: llm.load.llama.tryMmap is not understood",
            "tiny.json: llm.load.llama.acceleration.offloadRatio sets a part of the layers: "
            "give their number as gpu_layers, or max or off",
            "tiny.json: llm.prediction.promptTemplate is not understood: its type is not jinja",
        )
    )


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ctx", 0, "must be a whole number from 1 to 2147483647"),
        ("ctx", True, "must be a whole number from 1 to 2147483647"),
        ("parallel", 1.5, "must be a whole number from 1 to 2147483647"),
        ("gpu_layers", -2, "must be a whole number from -1 to 2147483647"),
        ("threads", "4", "must be a whole number from 1 to 2147483647"),
        ("flash_attn", "yes", "must be one of auto, on, off"),
        ("cache_type_k", "q9", f"must be one of {', '.join(CACHE_TYPES)}"),
        ("temperature", 3, "must be a number from 0 to 2"),
        ("temperature", "hot", "must be a number from 0 to 2"),
        ("top_k", 1.5, "must be a whole number from -1 to 2147483647"),
        ("top_p", 1.1, "must be a number from 0 to 1"),
        ("repeat_penalty", 0, "must be greater than 0"),
        ("max_tokens", 0, "must be a whole number from 1 to 2147483647"),
        ("stop", [1], "must be a text or a list of texts"),
        ("stop", ["a"] * 17, "must be at most 16 texts of at most 256 characters"),
        ("system_prompt", 5, "must be a text of at most 1,048,576 characters"),
        ("reasoning", "much", f"must be one of on, off, {', '.join(EFFORTS)}"),
        ("chat_template", "../secret", "must be a template, or the name of a file beside this one"),
        ("chat_template", "x.jinja", "is x.jinja, which cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_the_file_and_the_key(
    folder: Path, key: str, value: Any, words: str
) -> None:
    assert refusal(folder, **{key: value}) == f"tiny.json: {key} {words}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load": []}, "load must be an object"),
        ({"load": {"fields": {}}}, "load.fields must be a list"),
        ({"operation": {"fields": [1]}}, "an item of operation.fields must be an object"),
        ({"operation": {"fields": [{}]}}, "the key of an item of operation.fields must be a text"),
        ({"config": 1}, "config must be an object"),
        ({"customFields": {}}, "customFields must be a list"),
        ({"customFields": [1]}, "an item of customFields must be an object"),
        ({"operation": {"fields": [{"key": "llm.prediction.promptTemplate", "value": 1}]}},
         "llm.prediction.promptTemplate must be an object"),
        ({"operation": {"fields": [{"key": "llm.prediction.minPSampling",
                                    "value": {"checked": True, "value": 2}}]}},
         "llm.prediction.minPSampling must be a number from 0 to 1"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    assert refusal(folder, **values) == f"tiny.json: {message}"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.yaml", b"a: 1\nb: &c", "line 2: anchors (&) are not read: texts like this need "
         "quotes"),
        ("model.yaml", b"- a", "the file must be keys with values"),
        ("model.yaml", b"\xff", "is not valid UTF-8"),
        ("model.yaml", b"#" * 1_048_577, "more than 1,048,576 bytes"),
        ("tiny.json", b"{", "the file is not valid JSON, at line 1, column 2"),
        ("tiny.json", b"[]", "the file is not a JSON object"),
        ("tiny.json", b'{"ctx": 1, "ctx": 2}', "the file has an object with the same key twice"),
        ("tiny.json", b'{"config":' * 5000, "the file is nested too deeply"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        read_settings([str(folder / name)])
    assert str(caught.value) == f"{name}: {message}"


def test_a_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"^gone.yaml: cannot be read: No such file"):
        read_settings([str(folder / "gone.yaml")])


def test_configurations_within_configurations_are_not_followed(folder: Path) -> None:
    assert own(folder, config={"config": {"ctx": 1}, "ctx": 2}).load == {"n_ctx": 2}


# ---- templates, and what is loaded ---------------------------------------------------------


def test_a_template_may_be_a_file_beside(folder: Path) -> None:
    (folder / "short.jinja").write_text("{{ messages[0].content }} é")
    assert own(folder, chat_template="short.jinja").chat_template == "{{ messages[0].content }} é"


def test_a_load_gets_what_the_settings_set() -> None:
    load = Load("a.gguf", n_ctx=512, n_threads=2, chat_template="{{ a }}")
    settings = Settings(load={"n_ctx": 1024, "flash_attn": "on"}, chat_template="{{ b }}")
    assert load_with(load, settings) == Load(
        "a.gguf", n_ctx=1024, n_threads=2, flash_attn="on", chat_template="{{ b }}"
    )
    assert load_with(load, Settings()) == load


def test_a_batch_has_room_for_all_sequences_and_no_layers_use_no_gpu() -> None:
    load = Load("a.gguf", uses_gpu=True)
    found = load_with(load, Settings(load={"n_parallel": 600, "n_gpu_layers": 0}))
    assert (found.n_batch, found.uses_gpu) == (600, False)
    assert load_with(load, Settings(load={"n_gpu_layers": 5})).uses_gpu


# ---- presets -------------------------------------------------------------------------------


def preset_refusal(folder: Path, name: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read_preset(folder, name)
    assert caught.value.param == "preset"
    return caught.value.message


def test_a_preset_of_lm_studio_is_read_without_what_only_a_model_can_set(folder: Path) -> None:
    (folder / "Pirate talk.preset.json").write_text(
        json.dumps(
            {
                "identifier": "@local:pirate-talk",
                "name": "Pirate talk",
                "changed": True,
                "operation": {
                    "fields": [
                        {"key": "llm.prediction.systemPrompt", "value": "Arr!"},
                        {"key": "llm.prediction.temperature", "value": 1.2},
                    ]
                },
                "load": {"fields": [{"key": "llm.load.contextLength", "value": 512}]},
                "chat_template": "{{ x }}",
            }
        )
    )
    assert read_preset(folder, "Pirate talk") == Settings(
        sampling={"temperature": 1.2},
        system_prompt="Arr!",
        unknown=(
            "Pirate talk.preset.json: ctx is not for a preset, but for a model",
            "Pirate talk.preset.json: chat_template is not for a preset, but for a model",
        ),
    )


def test_a_preset_is_read_again_once_it_has_changed(folder: Path) -> None:
    path = folder / "calm.json"
    path.write_text('{"temperature": 0.1}')
    assert read_preset(folder, "calm").sampling == {"temperature": 0.1}
    path.write_text('{"temperature": 0.25}')
    os.utime(path, ns=(1, 1))
    assert read_preset(folder, "calm").sampling == {"temperature": 0.25}


def test_an_unknown_preset_is_refused_with_similar_names(folder: Path) -> None:
    for name in ("calm.json", "wild.preset.json", ".hidden.json", "other.txt"):
        (folder / name).write_text("{}")
    assert preset_refusal(folder, "clam") == "there is no preset clam; similar ones: calm"
    assert preset_refusal(folder, "wilt") == "there is no preset wilt; similar ones: wild"
    assert preset_refusal(folder, "zzz") == "there is no preset zzz"
    assert preset_refusal(folder / "gone", "calm") == "there is no preset calm"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../calm", "a/b", "a\\b", "a\0",
                                  "a" * 201, 5, None, ["calm"]])  # fmt: skip
def test_a_preset_is_named_without_a_folder(folder: Path, name: Any) -> None:
    (folder / ".hidden.json").write_text("{}")
    assert preset_refusal(folder, name) == "preset is the name of a preset, without a folder"


def test_a_broken_preset_is_refused_with_its_fault(folder: Path) -> None:
    (folder / "hot.json").write_text('{"temperature": 3}')
    assert preset_refusal(folder, "hot") == (
        "the preset hot cannot be used: hot.json: temperature must be a number from 0 to 2"
    )


# ---- the manual ----------------------------------------------------------------------------


def test_the_examples_of_the_manual_set_what_they_seem_to_set(folder: Path) -> None:
    found = {}
    for block in blocks():
        if block.mark.startswith("settings: "):  # <!-- settings: NAME -->
            path = folder / block.mark.removeprefix("settings: ")
            path.write_text(block.text)
            found[path.name] = read_settings([str(path)])
    assert found == {
        "NAME.json": Settings(
            load={"n_ctx": 8192, "n_parallel": 2},
            sampling={"temperature": 0.2},
            system_prompt="You are a helpful assistant. You answer in one sentence.",
            thinks=False,
            max_tokens=500,
        ),
        "model.yaml": Settings(
            load={"n_ctx": 8192}, sampling={"top_k": 20, "min_p": 0.0}, thinks=False
        ),
        "pirate.preset.json": Settings(
            sampling={"temperature": 1.1}, system_prompt="You talk like a pirate."
        ),
    }
    assert read_preset(folder, "pirate") == found["pirate.preset.json"]


def test_the_manual_names_every_key() -> None:
    page = (REPOSITORY / "lmlite/manual/model-settings.md").read_text()
    assert [key for key in CHECKS if f"`{key}`" not in page] == []
