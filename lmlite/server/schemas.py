"""Bounds of a JSON schema from a client, before llama.cpp makes a grammar of it.

A schema is a small program for the grammar's compiler: a few bytes can ask for more rules than
fit in memory, or nest deeper than its stack. What stays below these limits compiles in well
under a second; what a bounded schema means, and whether it can be honoured, llama.cpp decides.
"""

import json
import re
from typing import Any

from lmlite.errors import BadRequest

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 4000
MAX_REPETITIONS = 1000
MAX_PATTERN_LENGTH = 256

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_REPETITION = re.compile(r"\{(\d*)(?:,(\d*))?\}")


def checked_schema(schema: Any, path: str) -> str:
    """The schema as JSON. Raises BadRequest for one that is too large, or not an object."""
    if type(schema) is not dict:
        raise BadRequest(f"{path} is not a JSON schema", param=path)
    _check(schema, path, MAX_SCHEMA_DEPTH, [MAX_SCHEMA_VALUES])
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{path} is larger than {MAX_SCHEMA_BYTES >> 10} KiB", param=path)
    return text


def _check(value: Any, path: str, depth_left: int, values_left: list[int]) -> None:
    values_left[0] -= 1
    if depth_left == 0:
        raise BadRequest(f"{path} nests deeper than {MAX_SCHEMA_DEPTH} levels", param=path)
    if values_left[0] < 0:
        raise BadRequest(f"{path} has more than {MAX_SCHEMA_VALUES:,} values", param=path)
    if type(value) is list:
        for item in value:
            _check(item, path, depth_left - 1, values_left)
    elif type(value) is dict:
        _check_counts(value, path)
        for item in value.values():
            _check(item, path, depth_left - 1, values_left)


def _check_counts(schema: dict[str, Any], path: str) -> None:
    for name in _COUNTS:
        count = schema.get(name)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPETITIONS:
            raise BadRequest(f"{name} in {path} is not from 0 to {MAX_REPETITIONS:,}", param=path)
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength")):
        bounds = [schema[name] for name in (low, high) if type(schema.get(name)) is int]
        if bounds != sorted(bounds):
            raise BadRequest(f"{low} is greater than {high} in {path}", param=path)
    pattern = schema.get("pattern")
    if type(pattern) is str:
        _check_pattern(pattern, path)


def _check_pattern(pattern: str, path: str) -> None:
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise BadRequest(
            f"a pattern in {path} is longer than {MAX_PATTERN_LENGTH} characters", param=path
        )
    for low, high in _REPETITION.findall(pattern):
        counts = [int(digits) for digits in (low, high) if digits]
        if any(count > MAX_REPETITIONS for count in counts) or counts != sorted(counts):
            raise BadRequest(f"a pattern in {path} repeats too often", param=path)
