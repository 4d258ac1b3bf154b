"""What holds for a model when a request says nothing, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmlite.messages import SamplingParams
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Defaults:
    """What holds when a request says nothing, and what holds whatever it says."""

    params: SamplingParams
    origins: Mapping[str, str]  # by name; not there: llama.cpp's
    separate_reasoning: bool  # thoughts go to reasoning_content
    allows_grammars: bool = False  # of clients, in GBNF
    takes_images: bool = False  # the model sees
    limits: Limits = DEFAULT_LIMITS


NO_DEFAULTS = Defaults(SamplingParams(), {}, separate_reasoning=True)
