"""A model's default settings for requests, and where each sampling value comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlite.messages import SamplingParams
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Defaults:
    """Values for fields that a request leaves out, and settings that no request can change."""

    params: SamplingParams
    origins: Mapping[str, str]  # source of each of `params`, by name; not listed: llama.cpp
    separate_reasoning: bool  # reasoning goes to reasoning_content
    allows_grammars: bool = False  # accepts GBNF grammars from clients
    takes_images: bool = False
    limits: Limits = DEFAULT_LIMITS


NO_DEFAULTS = Defaults(SamplingParams(), {}, separate_reasoning=True)
