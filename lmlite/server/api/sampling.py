"""Sampling values of requests, and the defaults that replace missing ones.

Defaults of a preset override those of the command line, then come the model's settings, the model
file and llama.cpp. All are checked like the values of a request. Pure.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import SAMPLERS, SamplingParams
from lmlite.server.api.fields import Field
from lmlite.server.models.defaults import COMMAND_LINE, COUNTS, RANGES, Defaults
from lmlite.server.models.defaults import MAX_INT as MAX_INT

MAX_BREAKERS = 8  # each takes 16 ms in a vocabulary of 152,000 tokens
NAMES = (*COUNTS, *RANGES)
# Fields that mean the same in each API that generates.
SAMPLING_FIELDS = {*NAMES, "seed", "logit_bias", "min_tokens", "ignore_eos", "samplers",
                   "dry_sequence_breakers"}  # fmt: skip


def sampling_params(
    body: Field,
    defaults: Defaults,
    *,
    max_tokens: Field,
    stop: Field,
    n_logprobs: int | None,
    budget: Field | None = None,
) -> SamplingParams:
    """The sampling parameters of a request. The arguments are fields that APIs name differently.

    `budget`: the API's own field for the tokens of thoughts. Raises BadRequest.
    """
    values = sampling_values(body, defaults.params, is_strict=False)
    breakers = body["dry_sequence_breakers"]
    if type(breakers.value) is list and len(breakers.value) > MAX_BREAKERS:
        breakers.refuse(f"dry_sequence_breakers has more than {MAX_BREAKERS} strings")
    if budget is not None and (n_thoughts := budget.integer(0, MAX_INT)) is not None:
        values["reasoning_budget_tokens"] = n_thoughts
    n = max_tokens.integer(-1, MAX_INT)
    most = defaults.params.max_tokens if n is None else n if n >= 0 else None
    least = body["min_tokens"].integer(0, MAX_INT) or 0
    if most is not None and least > most:
        body["min_tokens"].refuse(f"min_tokens is more than {max_tokens.path}, {most:,}")
    return SamplingParams(
        **values,
        logit_bias=_logit_bias(body["logit_bias"], defaults.limits.max_biases),
        seed=_seed(body["seed"]),
        max_tokens=most,
        min_tokens=least,
        ignore_eos=body["ignore_eos"].boolean(),
        stop=_stop_strings(stop, defaults, defaults.params.stop),
        dry_sequence_breakers=_stop_strings(
            breakers, defaults, defaults.params.dry_sequence_breakers
        ),
        samplers=_samplers(body["samplers"], defaults.params.samplers),
        n_logprobs=n_logprobs,
    )


def sampling_values(
    body: Field, params: SamplingParams, *, is_strict: bool = True
) -> dict[str, Any]:
    """Each of NAMES: the body's value, or that of params. Raises BadRequest.

    If strict, a value out of its range is refused. Otherwise it is clamped to the range, unless
    that would make no sense.
    """
    read = Field.number if is_strict else Field.clamped
    values: dict[str, Any] = {
        name: read(body[name], low, high, getattr(params, name))
        for name, (low, high) in RANGES.items()
    }
    if values["repeat_penalty"] == 0:
        body["repeat_penalty"].refuse("repeat_penalty must be greater than 0")
    for name, (least, most) in COUNTS.items():
        n = body[name].integer(*((least, most) if is_strict else (-math.inf, math.inf)))
        values[name] = getattr(params, name) if n is None else min(max(least, n), most)
    values["top_k"] = max(0, values["top_k"])  # -1 means all tokens, as 0 does
    if values["mirostat"] == 1:
        body["mirostat"].refuse("mirostat is 0 or 2: its first version is not supported")
    return values


def _seed(field: Field) -> int | None:
    """The seed in 32 bits, as the sampler takes it. None: random; llama.cpp writes that as -1."""
    seed = field.integer(-(2**63), 2**64 - 1)
    return None if seed is None or seed == -1 else seed % 2**32


def _samplers(field: Field, default: tuple[str, ...]) -> tuple[str, ...]:
    if field.typed(list, "a list") is None:
        return default
    names = tuple("typ_p" if name == "typical_p" else name for name in field.value)
    # A list of all may have other values, which cannot be in a set.
    if len(names) > len(SAMPLERS) or any(name not in SAMPLERS for name in names):
        field.refuse(f"{field.path} is a list of {', '.join(SAMPLERS)}")
    if len(set(names)) < len(names):
        field.refuse(f"{field.path} names one twice")
    return names


def _stop_strings(field: Field, defaults: Defaults, default: tuple[str, ...]) -> tuple[str, ...]:
    limits = defaults.limits
    stops = [field.value] if type(field.value) is str else field.value
    if stops is None:
        return default
    if type(stops) is not list or not all(type(stop) is str for stop in stops):
        field.refuse(f"{field.path} is a string or a list of strings")
    if len(stops) > limits.max_stops:
        field.refuse(f"{field.path} has more than {limits.max_stops} strings")
    if not all(len(stop) <= limits.max_stop_length for stop in stops):
        field.refuse(f"a stop string has at most {limits.max_stop_length} characters")
    return tuple(filter(None, stops))  # an empty stop string never matches


def _logit_bias(field: Field, most: int) -> tuple[tuple[int, float], ...]:
    biases = field.object()
    if len(biases.value) > most:
        field.refuse(f"logit_bias has more than {most:,} entries")
    for token in biases.value:
        # One spelling per id; otherwise a token could have two biases.
        if not re.fullmatch("0|[1-9][0-9]{0,9}", token):
            field.refuse("logit_bias maps token ids to numbers")
    return tuple((int(token), biases[token].clamped(-100, 100, 0.0)) for token in biases.value)


# ---- defaults ------------------------------------------------------------------------------


def default_params(
    of_file: Mapping[str, float],
    of_command_line: Mapping[str, float],
    warn: Callable[[str], None],
) -> tuple[SamplingParams, dict[str, str]]:
    """A model's default parameters, and by name the origin of those that are not llama.cpp's.

    A wrong value in the file is ignored, and `warn` gets a line about it. A wrong value of the
    command line raises BadRequest.
    """
    params, origins = SamplingParams(), dict[str, str]()
    for name, value in of_file.items():
        try:
            params = replace(params, **sampling_values(Field({name: value}), params))
            origins[name] = "model file"
        except BadRequest as err:
            warn(f"a sampling default of the model file is ignored: {err}")
    params = replace(params, **sampling_values(Field(dict(of_command_line)), params))
    return params, origins | dict.fromkeys(of_command_line, COMMAND_LINE)


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
            sampling_values(Field(values), SamplingParams())
        except (ValueError, BadRequest) as err:
            raise ValueError(f"has a bad value: {item.strip()} ({err})") from None
    return values
