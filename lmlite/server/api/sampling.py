"""Sampling values, and where each comes from when a request leaves it out.

The command line's come before the model file's, and those before llama.cpp's own. All of them
are checked as a request's are. Pure.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import SamplingParams
from lmlite.server.api.fields import Body, clamped, integer, number
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.models.defaults import Defaults

MAX_INT = 2**31 - 1
NAMES = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
         "frequency_penalty")  # fmt: skip


def sampling_values(
    body: Body, params: SamplingParams, *, is_strict: bool = True
) -> dict[str, Any]:
    """Each of NAMES: the body's value, or that of params. Raises BadRequest.

    Strict, a value out of its range is refused; else it becomes the nearest that is in it, as
    far as that has a meaning.
    """
    read = number if is_strict else clamped
    least, most = (-1, MAX_INT) if is_strict else (-math.inf, math.inf)
    top_k = integer(body, "top_k", least, most, params.top_k) or 0
    penalty = read(body, "repeat_penalty", 0, 10, params.repeat_penalty)
    if penalty == 0:
        raise BadRequest("repeat_penalty must be greater than 0", param="repeat_penalty")
    return {
        "temperature": read(body, "temperature", 0, 2, params.temperature),
        "top_k": min(max(0, top_k), MAX_INT),  # less than 0 means all, as 0 does
        "top_p": read(body, "top_p", 0, 1, params.top_p),
        "min_p": read(body, "min_p", 0, 1, params.min_p),
        "repeat_penalty": penalty,
        "presence_penalty": read(body, "presence_penalty", -2, 2, params.presence_penalty),
        "frequency_penalty": read(body, "frequency_penalty", -2, 2, params.frequency_penalty),
    }


def defaults(
    of_file: Mapping[str, float],
    of_command_line: Mapping[str, float],
    warn: Callable[[str], None],
    *,
    separate_reasoning: bool = True,
    allows_grammars: bool = False,
    takes_images: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Defaults:
    """Both kinds of defaults in one. What a file has wrong is left out, with a line for it."""
    params, origins = SamplingParams(), {}
    for name, value in of_file.items():
        try:
            params = replace(params, **sampling_values({name: value}, params))
            origins[name] = "model file"
        except BadRequest as err:
            warn(f"a sampling default of the model file is ignored: {err}")
    params = replace(params, **sampling_values(dict(of_command_line), params))
    origins |= dict.fromkeys(of_command_line, "command line")
    return Defaults(params, origins, separate_reasoning, allows_grammars, takes_images, limits)


def parse_defaults(text: str) -> dict[str, float]:
    """The values of `--sampling`. Raises ValueError.

    >>> parse_defaults("temperature=0.2,top_k=20")
    {'temperature': 0.2, 'top_k': 20}
    """
    values: dict[str, float] = {}
    for item in text.split(","):
        name, equals, value = item.strip().partition("=")
        if not equals or name not in NAMES:
            raise ValueError(f"must be NAME=VALUE,... with names of {', '.join(NAMES)}")
        try:
            values[name] = json.loads(value)
            sampling_values(values, SamplingParams())
        except (ValueError, BadRequest) as err:
            raise ValueError(f"has a bad value: {item.strip()} ({err})") from None
    return values
