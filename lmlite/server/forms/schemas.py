"""Prepares a client's JSON schema for llama.cpp, which makes a grammar from it.

llama.cpp's converter silently ignores keywords that it does not know. So a schema is first
rewritten here so that the grammar enforces each keyword. If no grammar can enforce a keyword, a
strict schema is refused, with the keyword's name and path. Any other schema is widened at this
place, and the place is noted. Annotations are dropped.

Every value of a rewritten strict schema is valid for the client's schema, which may allow more: the
rewritten one has no additional properties, and all items of a tuple. Every value of the client's
schema is valid for a widened schema, which may allow more.
"""

import json
from dataclasses import dataclass
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.forms.bounds import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_TOOL_WAYS,
    MAX_VALUES,
    MAX_WAYS,
    ROOM_OF_TOOLS,
    Reading,
    Unheld,
    n_values,
)
from lmlite.server.forms.parts import ANYTHING, Json
from lmlite.server.forms.reader import SchemaReader

_TOO_DEEP = "refers too far from one part to another"


@dataclass(frozen=True)
class UnheldPart:
    """A part of a client's schema that is not enforced."""

    path: str  # from the schema's root, which is ""
    why: str
    tool: str | None = None  # the name of the tool, if the schema is that of its arguments


@dataclass(frozen=True)
class Widened:
    """A schema for llama.cpp, and the parts of the client's schema that it does not enforce."""

    schema: Json
    unheld: tuple[UnheldPart, ...] = ()


def honoured_schema(schema: Any, param: str) -> Json:
    """The schema for llama.cpp. All of its values are valid for the client's schema.

    Raises BadRequest if the schema is too large, or if no grammar can enforce a part of it; the
    message names the keyword and its path.
    """
    if type(schema) is not dict:
        raise BadRequest(f"{param} is not a JSON schema", param=param)
    try:
        n_values(schema, MAX_VALUES, MAX_DEPTH)
        if len(json.dumps(schema)) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES >> 10} KiB")
        return SchemaReader(Reading(schema, is_strict=True), MAX_WAYS).read()
    except Unheld as unheld:
        raise BadRequest(f"{param}{unheld}", param=param) from None
    except ValueError as err:
        raise BadRequest(f"{param} {err}", param=param) from None
    except RecursionError:
        raise BadRequest(f"{param} {_TOO_DEEP}", param=param) from None


def widened_schema(schema: Any) -> Widened:
    """The schema for llama.cpp. All values of the client's schema are valid for it."""
    return _widened(Reading(schema, is_strict=False))


class ToolSchemas:
    """The parameters of a request's tools. They share the limits on the size of their grammar."""

    def __init__(self) -> None:
        self._room = dict(ROOM_OF_TOOLS)
        self._n = 0

    def widened(self, parameters: Any, name: str) -> Widened:
        """The widened schema of the next tool's arguments. It always describes an object."""
        self._n += 1
        reading = Reading(parameters, is_strict=False, shared=self._room)
        return _widened(reading, name, f"tool{self._n}x")


def _widened(reading: Reading, tool: str | None = None, prefix: str = "") -> Widened:
    most_ways = MAX_WAYS if tool is None else MAX_TOOL_WAYS
    try:
        reader = SchemaReader(reading, most_ways, prefix)
        node = reader.read() if tool is None else reader.read_arguments()
    except RecursionError:
        node = ANYTHING if tool is None else {"type": "object"}
        reading.note("", _TOO_DEEP)
    unheld = (UnheldPart(path, why, tool) for path, why in reading.noted.items())
    return Widened(node, tuple(unheld))
