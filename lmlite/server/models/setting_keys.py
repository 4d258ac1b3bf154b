"""The keys of settings files: what each sets, and which values it takes. Pure.

lmlite's own keys are spelled as its flags are, with "_" or "-". LM Studio's are those of its
schema (lmstudio-js, packages/lms-kv-config/src/schema.ts), as model.yaml files and presets of
September 2026 have them.
"""

from collections.abc import Callable
from typing import Any

from lmlite.messages import CACHE_TYPES
from lmlite.server.front.limits import DEFAULT_LIMITS
from lmlite.server.models.defaults import COUNTS, EFFORTS, MAX_INT, RANGES

MAX_TEXT = 1 << 20  # characters of a template or a system prompt

Check = Callable[[Any], Any]  # returns the value to use; raises ValueError: "must be ..."


def _whole(low: int, high: int = MAX_INT) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return float(value)

    return check


def _one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        # YAML and JSON have words of their own for on and off.
        word = {True: "on", False: "off"}[value] if type(value) is bool else value
        if type(word) is not str or word not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return word

    return check


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ValueError(f"must be a text of at most {MAX_TEXT:,} characters")
    return value


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if type(value) is str else value
    if type(texts) is not list or not all(type(text) is str for text in texts):
        raise ValueError("must be a text or a list of texts")
    n, n_characters = DEFAULT_LIMITS.max_stops, DEFAULT_LIMITS.max_stop_length
    if len(texts) > n or any(len(text) > n_characters for text in texts):
        raise ValueError(f"must be at most {n} texts of at most {n_characters} characters")
    return tuple(filter(None, texts))  # an empty stop string never matches


def _repeat_penalty(value: Any) -> float:
    penalty: float = _number(*RANGES["repeat_penalty"])(value)
    if penalty == 0:
        raise ValueError("must be greater than 0")
    return penalty


def _mirostat(value: Any) -> int:
    if type(value) is not int or value not in (0, 2):
        raise ValueError("must be 0 or 2")
    return value


# Keys of how the model is loaded: the field of `messages.Load`, and the check.
LOAD_KEYS: dict[str, tuple[str, Check]] = {
    "ctx": ("n_ctx", _whole(1)),
    "parallel": ("n_parallel", _whole(1)),
    "gpu_layers": ("n_gpu_layers", _whole(-1)),
    "threads": ("n_threads", _whole(1)),
    "batch": ("n_batch", _whole(1)),
    "flash_attn": ("flash_attn", _one_of("auto", "on", "off")),
    "cache_type_k": ("cache_type_k", _one_of(*CACHE_TYPES)),
    "cache_type_v": ("cache_type_v", _one_of(*CACHE_TYPES)),
    "reasoning_budget_message": ("reasoning_budget_message", _text),
    "draft": ("draft_path", lambda value: _text(value) or None),
    "draft_tokens": ("n_draft", _whole(1)),
}
SAMPLING_KEYS: dict[str, Check] = {
    **{name: _number(low, high) for name, (low, high) in RANGES.items()},
    "repeat_penalty": _repeat_penalty,
    **{name: _whole(low, high) for name, (low, high) in COUNTS.items()},
    "mirostat": _mirostat,
    "top_k": lambda value: max(0, _whole(-1)(value)),  # -1 means all tokens, as 0 does
}
CHECKS: dict[str, Check] = {
    **{key: check for key, (_, check) in LOAD_KEYS.items()},
    **SAMPLING_KEYS,
    "chat_template": _text,
    "system_prompt": _text,
    "reasoning": _one_of("on", "off", *EFFORTS),
    "max_tokens": _whole(1),
    "stop": _stop,
}

# LM Studio's keys without "llm." or "embedding.", and lmlite's keys for the same.
LM_STUDIO_KEYS = {
    "load.contextLength": "ctx",
    "load.numParallelSessions": "parallel",
    "load.llama.acceleration.offloadRatio": "gpu_layers",
    "load.llama.cpuThreadPoolSize": "threads",
    "load.llama.evalBatchSize": "batch",
    "load.llama.flashAttention": "flash_attn",
    "load.llama.kCacheQuantizationType": "cache_type_k",
    "load.llama.vCacheQuantizationType": "cache_type_v",
    "prediction.temperature": "temperature",
    "prediction.topKSampling": "top_k",
    "prediction.topPSampling": "top_p",
    "prediction.minPSampling": "min_p",
    "prediction.repeatPenalty": "repeat_penalty",
    "prediction.llama.presencePenalty": "presence_penalty",
    "prediction.llama.frequencyPenalty": "frequency_penalty",
    "prediction.llama.xtcProbability": "xtc_probability",
    "prediction.llama.xtcThreshold": "xtc_threshold",
    "prediction.llama.locallyTypicalSampling": "typical_p",
    "prediction.maxPredictedTokens": "max_tokens",
    "prediction.stopStrings": "stop",
    "prediction.systemPrompt": "system_prompt",
    "prediction.promptTemplate": "chat_template",
    "prediction.reasoning.enableThinking": "reasoning",
    "prediction.speculativeDecoding.draftModel": "draft",
    "prediction.speculativeDecoding.maxTokensToDraft": "draft_tokens",
}
# Values of those that LM Studio writes with "checked": false. Others are as if they were absent.
UNCHECKED = {"top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0,
             "frequency_penalty": 0.0, "xtc_probability": 0.0, "typical_p": 1.0}  # fmt: skip
# Variables of templates that custom fields of a model.yaml set, and the ends of the fields' keys.
REASONING_VARIABLES = ("enable_thinking", "reasoning_effort")
REASONING_FIELDS = ("enableThinking", "reasoningEffort")

# Known keys that set nothing here.
INERT_KEYS = {"model", "base", "metadataOverrides", "suggestions", "tags", "identifier", "name",
              "changed", "description", "preset", "config"}  # fmt: skip


def gpu_layers_of(ratio: Any) -> int | None:
    """The number of layers for LM Studio's offloadRatio; None: the server's choice.

    Raises ValueError.
    """
    if ratio == "auto":
        return None
    if ratio not in (0, 1, "off", "max") or type(ratio) is bool:
        raise ValueError(
            "sets a part of the layers: give their number as gpu_layers, or max or off"
        )
    return -1 if ratio in (1, "max") else 0
