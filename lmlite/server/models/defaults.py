"""What holds for a model when a request says nothing, and where each value comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlite.messages import SamplingParams
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Defaults:
    """What holds when a request says nothing, and what holds whatever it says."""

    params: SamplingParams
    origins: Mapping[str, str]  # of values, by name; others are llama.cpp's
    separate_reasoning: bool  # reasoning goes to reasoning_content
    allows_grammars: bool = False  # GBNF of clients
    takes_images: bool = False
    limits: Limits = DEFAULT_LIMITS


NO_DEFAULTS = Defaults(SamplingParams(), {}, separate_reasoning=True)
