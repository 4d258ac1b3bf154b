"""Messages <-> length-prefixed bytes: the format of the pipe between server and worker.

A frame is four bytes of length (big endian) and that many bytes of JSON: the message's
fields, save those at their default, and its class under "type". Reading follows the
annotations of `messages.py` to the letter; only a client's own JSON objects are taken as they come.
Whatever is too long, cut short or of another shape raises `FrameError`, because a peer that sends
such a thing can no longer be trusted. Knows no processes and no threads.
"""

import base64
import binascii
import functools
import json
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, BinaryIO

MAX_FRAME_BYTES = 32 << 20  # a prompt of the largest accepted body, escaped, stays below this

_LENGTH_BYTES = 4
_to_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_from_text = json.JSONDecoder().raw_decode  # json.loads also guesses the encoding


class FrameError(Exception):
    """The peer broke the format; the pipe is of no further use."""


def encode(message: Any) -> bytes:
    """One frame. Raises FrameError when the message is larger than a frame may be."""
    body = {"type": type(message).__name__, **_to_json_object(message)}
    payload = _to_text(body).encode()
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a {body['type']} of {len(payload):,} bytes is too large for a frame")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


def read(stream: BinaryIO, family: Any) -> Any | None:
    """The next message, of a class or of a union of them; None at a clean end of the stream.

    Raises FrameError for anything that `encode` would not have written.
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
            raise ValueError("something follows its end")
        return _readers(family)[body.pop("type")](body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise FrameError(f"a frame is malformed: {err}") from None


def _to_json_object(message: Any) -> dict[str, Any]:
    body = {}
    for name, default in _defaults(message.__class__):
        value = getattr(message, name)
        if value is not default:  # a default is one object; an equal one is merely written too
            body[name] = _to_json(value)
    return body


@functools.cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in fields(kind))


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
def _readers(family: Any) -> dict[str, Callable[[Any], Any]]:
    """Of each class that is expected, by its name."""
    return {kind.__name__: _reader(kind) for kind in typing.get_args(family) or [family]}


@functools.cache
def _reader(annotation: Any) -> Callable[[Any], Any]:
    """The function that turns a JSON value into `annotation`, or raises TypeError or ValueError."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return _union_reader([_reader(arg) for arg in args])
    if origin is tuple:
        return _tuple_reader(args)
    if origin is dict:
        return functools.partial(_plain, dict)
    if origin is typing.Literal:
        return functools.partial(_literal, args)
    if hasattr(annotation, "__dataclass_fields__"):
        return _object_reader(annotation)
    return functools.partial(_plain, annotation)


def _plain(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if kind is bytes and type(value) is str:
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as err:
            raise ValueError(str(err)) from None
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")


def _literal(allowed: tuple[str, ...], value: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r:.40} is none of {allowed}")
    return value


def _union_reader(readers: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def read_union(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except (TypeError, ValueError, KeyError):
                continue
        raise TypeError(f"{value!r:.40} is of no expected type")

    return read_union


def _tuple_reader(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    many = args[-1] is Ellipsis
    readers = [_reader(arg) for arg in args if arg is not Ellipsis]

    def read_tuple(value: Any) -> Any:
        if type(value) is not list or not (many or len(value) == len(readers)):
            raise TypeError(f"{value!r:.40} is not a list of the right length")
        each = readers * len(value) if many else readers
        return tuple(reader(item) for reader, item in zip(each, value, strict=True))

    return read_tuple


def _object_reader(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}

    def read_object(value: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")
        # A name that is not its own is a KeyError here, one that is missing a TypeError there.
        return kind(**{name: readers[name](item) for name, item in value.items()})

    return read_object
