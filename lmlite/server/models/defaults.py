"""A model's default settings for requests, and where each sampling value comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlite.messages import SamplingParams, Scales
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits

# Sampling values by their names in requests, with the least and the greatest.
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1), "repeat_penalty": (0, 10),
          "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "typical_p": (0, 1),
          "top_n_sigma": (-1, 100), "xtc_probability": (0, 1), "xtc_threshold": (0, 1),
          "dynatemp_range": (0, 2), "dynatemp_exponent": (0, 10), "dry_multiplier": (0, 100),
          "dry_base": (1, 10), "mirostat_tau": (0, 100), "mirostat_eta": (0, 1)}  # fmt: skip
MAX_INT = 2**31 - 1
COUNTS = {"top_k": (-1, MAX_INT), "reasoning_budget_tokens": (-1, MAX_INT),
          "repeat_last_n": (-1, MAX_INT), "dry_allowed_length": (0, MAX_INT),
          "dry_penalty_last_n": (-1, MAX_INT), "mirostat": (0, 2)}  # fmt: skip
MAX_SCALE = 1000.0  # of a LoRA adapter, with either sign
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # of reasoning
COMMAND_LINE = "command line"  # the origin of a value


@dataclass(frozen=True)
class Defaults:
    """Values for fields that a request leaves out, and settings that no request can change."""

    params: SamplingParams  # max_tokens and stop, too
    origins: Mapping[str, str]  # source of each of `params`, by name; not listed: llama.cpp
    separate_reasoning: bool  # reasoning goes to reasoning_content
    allows_grammars: bool = False  # accepts GBNF grammars from clients
    takes_images: bool = False
    limits: Limits = DEFAULT_LIMITS
    system_prompt: str | None = None  # for chats without a system message
    thinks: bool | None = None  # whether to reason; None: as the model does
    scales: Scales = ()  # of all LoRA adapters of the model
    effort: str | None = None  # one of EFFORTS; None: the model's own


NO_DEFAULTS = Defaults(SamplingParams(), {}, separate_reasoning=True)
