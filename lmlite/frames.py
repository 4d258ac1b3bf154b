"""Messages <-> length-prefixed bytes: the format of the pipe between server and worker.

A frame is a length in four bytes, big endian, and that many bytes of JSON: an object with the
message's class name as "type" and the fields that differ from their defaults. Reading checks
types strictly against the annotations in `messages.py`, except inside a client's own JSON objects.
A malformed frame raises `FrameError`, after which the peer can no longer be trusted.
"""

import base64
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

Reader = Callable[[Any], Any]  # takes a JSON value

MAX_FRAME_BYTES = 32 << 20  # enough for the largest accepted body, even if JSON escapes grow it

_LENGTH_BYTES = 4
_to_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_from_text = json.JSONDecoder().raw_decode  # json.loads also guesses the encoding


class FrameError(Exception):
    """The peer sent a malformed frame: the pipe can no longer be used."""


def encode(message: Any) -> bytes:
    """One frame. Raises FrameError for a message that is too large."""
    body = {"type": type(message).__name__, **_to_json_object(message)}
    payload = _to_text(body).encode()
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a {body['type']} of {len(payload):,} bytes is too large for a frame")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


def read(stream: BinaryIO, family: Any) -> Any | None:
    """The next message, or None at the end of the stream. `family`: a class or a union of classes.

    Raises FrameError for a frame that `encode` could not have written.
    """
    head = stream.read(_LENGTH_BYTES)
    if not head:
        return None
    n_bytes = int.from_bytes(head, "big")
    if len(head) < _LENGTH_BYTES or n_bytes > MAX_FRAME_BYTES:
        raise FrameError("a frame's length is cut short or too large")
    payload = stream.read(n_bytes)
    if len(payload) < n_bytes:
        raise FrameError("a frame is cut short")
    return decode(payload, family)


def decode(payload: bytes, family: Any) -> Any:
    """The message in one frame's payload. Raises FrameError."""
    try:
        text = payload.decode()
        body, n_read = _from_text(text)
        if n_read != len(text):
            raise ValueError("there is more after its end")
        return _readers(family)[body.pop("type")](body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise FrameError(f"a frame is malformed: {err}") from None


def _to_json_object(message: Any) -> dict[str, Any]:
    body = {}
    for name, default in _defaults(message.__class__):
        value = getattr(message, name)
        if value is not default:  # `is` is fast; writing a value equal to the default is harmless
            body[name] = _to_json(value)
    return body


@functools.cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in dataclasses.fields(kind))


def _to_json(value: Any) -> Any:
    match value:
        case str() | int() | float() | dict() | None:
            return value
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case tuple():
            return [_to_json(item) for item in value]
    return _to_json_object(value)


@functools.cache
def _readers(family: Any) -> dict[str, Reader]:
    """The reader of each class in the family, by class name."""
    return {kind.__name__: _reader(kind) for kind in typing.get_args(family) or [family]}


@functools.cache
def _reader(annotation: Any) -> Reader:
    """A function from JSON to the annotated type; raises TypeError, ValueError or KeyError."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return partial(_read_union, [_reader(arg) for arg in args])
    if origin is tuple:
        readers = [_reader(arg) for arg in args if arg is not Ellipsis]
        return partial(_read_tuple, readers, args[-1] is Ellipsis)
    if origin is typing.Literal:
        return partial(_read_literal, args)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return partial(_read_object, annotation, {name: _reader(hints[name]) for name in hints})
    return partial(_read_plain, origin or annotation)


def _read_plain(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if kind is bytes and type(value) is str:
        return base64.b64decode(value, validate=True)
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")


def _read_literal(allowed: tuple[str, ...], value: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r:.40} is not one of {allowed}")
    return value


def _read_union(readers: list[Reader], value: Any) -> Any:
    for reader in readers:
        try:
            return reader(value)
        except (TypeError, ValueError, KeyError):
            continue
    raise TypeError(f"{value!r:.40} is of no expected type")


def _read_tuple(readers: list[Reader], is_any_length: bool, value: Any) -> Any:
    if type(value) is not list or not (is_any_length or len(value) == len(readers)):
        raise TypeError(f"{value!r:.40} is not a list of the right length")
    each = readers * len(value) if is_any_length else readers
    return tuple(reader(item) for reader, item in zip(each, value, strict=True))


def _read_object(kind: Any, readers: dict[str, Reader], value: Any) -> Any:
    if type(value) is not dict:
        raise TypeError(f"{value!r:.40} is not an object")
    # An unknown field raises KeyError here, a missing field raises TypeError in the class.
    return kind(**{name: readers[name](item) for name, item in value.items()})
