"""A JSON schema from a client, before llama.cpp makes a grammar of it.

llama.cpp's converter leaves out what it does not know. So a schema is read here first: each keyword
in it is one that a grammar holds where it stands, or is rewritten so that it is. What no grammar
holds is refused by its name and path where the schema is strict; elsewhere it is noted, and the
value that it belongs to is widened. Annotations are dropped.

What a strict schema takes when it is rewritten, the client's takes too; it may be less: an object
with properties has no others, a tuple has all of its items. A widened schema takes all that the
client's takes, and it may be more.
"""

from dataclasses import dataclass, replace
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.forms.bounds import (
    MAX_REWRITTEN_BYTES,
    MAX_TOOL_WAYS,
    MAX_WAYS,
    Room,
    check_size,
)
from lmlite.server.forms.faults import Faults, Unheld
from lmlite.server.forms.parts import ANYTHING, Json
from lmlite.server.forms.reader import SchemaReader


@dataclass(frozen=True)
class UnheldPart:
    """A part of a client's schema that answers are not held to."""

    path: str  # from the schema's root, which is ""
    why: str
    tool: str | None = None  # the name of the tool whose arguments it is about


@dataclass(frozen=True)
class Widened:
    """A schema for llama.cpp, and what of the client's it does not hold."""

    schema: Json
    unheld: tuple[UnheldPart, ...] = ()


def honoured_schema(schema: Any, param: str) -> Json:
    """What llama.cpp is to make a grammar of: what that takes, the schema takes.

    Raises BadRequest for a schema that is too large, and for one with a part that no grammar
    holds; the message names the keyword and its path.
    """
    if type(schema) is not dict:
        raise BadRequest(f"{param} is not a JSON schema", param=param)
    try:
        check_size(schema, param)
        return SchemaReader(schema, Faults(is_strict=True), MAX_WAYS, _room()).read()
    except Unheld as unheld:
        raise BadRequest(f"{param}{unheld}", param=param) from None
    except RecursionError:
        raise BadRequest(f"{param} refers too far from one part to another", param=param) from None


def widened_schema(schema: Any) -> Widened:
    """What llama.cpp is to make a grammar of: all that the schema takes, that takes, too."""
    faults = Faults(is_strict=False)
    try:
        node = SchemaReader(schema, faults, MAX_WAYS, _room()).read()
    except RecursionError:
        node = ANYTHING
        faults.note_path("", "nests too deep")
    return Widened(node, _unheld(faults, None))


class ToolSchemas:
    """The parameters of a request's tools, which share the room for their grammar."""

    def __init__(self) -> None:
        self._left = _room(4)
        self._n = 0

    def widened(self, parameters: Any, name: str) -> Widened:
        """The widened schema of the next tool's arguments: always of an object."""
        faults = Faults(is_strict=False)
        self._n += 1
        prefix = f"tool{self._n}x"
        room = self._left.part(_room())
        before = replace(room)
        try:
            reader = SchemaReader(parameters, faults, MAX_TOOL_WAYS, room, prefix)
            node = reader.read_arguments()
        except RecursionError:
            node = {"type": "object"}
            faults.note_path("", "nests too deep")
        self._left.spend(before, room)
        return Widened(node, _unheld(faults, name))


def _unheld(faults: Faults, tool: str | None) -> tuple[UnheldPart, ...]:
    return tuple(UnheldPart(each.path, each.why, tool) for each in faults.noted)


def _room(times: int = 1) -> Room:
    room = Room(n_bytes=MAX_REWRITTEN_BYTES)
    return Room(room.values * times, room.names * times, room.n_bytes, room.repeated)
