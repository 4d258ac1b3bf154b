"""Bodies of Ollama's API in the field names that all APIs share. Pure; errors are BadRequest."""

import re
from math import ceil

from lmlite.messages import Json
from lmlite.server.api.fields import Field
from lmlite.server.api.sampling import MAX_INT, SAMPLING_FIELDS

OPTIONS = {*SAMPLING_FIELDS, "stop", "num_predict"}
# "m" comes after "ms", which begins with it.
_SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "h": 3600, "m": 60, "s": 1}
_PART = rf"(\d{{1,9}}(?:\.\d{{0,9}})?)({'|'.join(_SECONDS)})"
_DURATION = re.compile(rf"([-+]?)((?:{_PART})+)", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d{1,9}", re.ASCII)


def shared_form(body: Json) -> Json:
    """The same body: its options beside the other fields, and `keep_alive` as `ttl`.

    Options that are not known stay in `options`.
    """
    found = {name: value for name, value in body.items() if name not in OPTIONS}
    options = Field(body)["options"].object().value
    found |= {name: value for name, value in options.items() if name in OPTIONS}
    found["options"] = {
        name: value for name, value in options.items() if name not in OPTIONS and value is not None
    }
    if (limit := found.get("num_predict")) is not None and type(limit) is int and limit < 0:
        found["num_predict"] = -1  # -2 means until the context is full, which is always a limit
    name = named(body)
    if name.value is not None:
        found["model"] = name.value
    seconds = keep_alive_s(body)
    if seconds is not None:  # 0: the model leaves at once; a second is the shortest time here
        found["ttl"] = MAX_INT if seconds < 0 else min(max(1, ceil(seconds)), MAX_INT)
    return found


def named(body: Json) -> Field:
    """The model's name, without the tag `latest` that clients add."""
    field = Field(body)["name" if body.get("model") is None and body.get("name") else "model"]
    name = field.string()
    return field if name is None else field.of(name.removesuffix(":latest"))


def keep_alive_s(body: Json) -> float | None:
    """How long the model stays, in seconds; negative: for ever. None: the body does not say."""
    field = Field(body)["keep_alive"]
    value = field.value
    if value is None or type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    if type(value) is str and _NUMBER.fullmatch(value):
        return int(value)
    match = _DURATION.fullmatch(value) if type(value) is str and len(value) < 100 else None
    if match is None:
        field.refuse("keep_alive is a number of seconds, or a duration such as 5m or 1h30m")
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, match[2]))
    return -total if match[1] == "-" else total
