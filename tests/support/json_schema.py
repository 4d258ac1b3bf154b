"""A small exact validator of JSON schemas, for the keywords in the tests' schemas.

It follows the standard and shares no code with the package, so that each can find the other's
mistakes. An unknown keyword is an error. Patterns are searched with Python's `re`, in ASCII.
"""

import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

SAYS_NOTHING = {
    "title", "description", "default", "examples", "$schema", "$comment", "$id", "deprecated",
    "readOnly", "writeOnly", "$defs", "definitions", "discriminator", "x-order", "nullable",
    "contentEncoding", "markdownDescription",
}  # fmt: skip


def faults(value: Any, schema: Any, root: Any, path: str = "$") -> list[str]:
    """The faults of a value; an empty list if it is valid."""
    if schema is True:
        return []
    if schema is False:
        return [f"{path}: nothing is allowed"]
    found: list[str] = []
    for key, wanted in schema.items():
        if key not in SAYS_NOTHING:
            found += CHECKS[key](value, wanted, schema, root, path)
    return found


def type_names(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    names = {type(None): {"null"}, int: {"number", "integer"}, str: {"string"}, list: {"array"}}
    return names.get(type(value), {"object"})


def equal(a: Any, b: Any) -> bool:
    """Equality in JSON: true is not 1, and 1 is 1.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


Check = Callable[[Any, Any, Any, Any, str], list[str]]


def simple(kind: type | tuple[type, ...], holds: Callable[[Any, Any], bool]) -> Check:
    """A check of values of one type; values of other types pass."""

    def check(value: Any, wanted: Any, _schema: Any, _root: Any, path: str) -> list[str]:
        applies = isinstance(value, kind) and not isinstance(value, bool)
        return [f"{path}: {value!r} not {wanted!r}"] if applies and not holds(value, wanted) else []

    return check


def of_type(value: Any, wanted: Any, *_: Any) -> list[str]:
    names = set(wanted) if isinstance(wanted, list) else {wanted}
    return [] if names & type_names(value) else [f"is {value!r}, not {wanted}"]


def listed(value: Any, wanted: Any, *_: Any) -> list[str]:
    return [] if any(equal(value, each) for each in wanted) else [f"{value!r} is not listed"]


def properties(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [fault for name in wanted if name in value
            for fault in faults(value[name], wanted[name], root, f"{path}.{name}")]  # fmt: skip


def additional(value: Any, wanted: Any, schema: Any, root: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    patterns = schema.get("patternProperties", ())
    others = [name for name in value if name not in schema.get("properties", {})
              and not any(re.search(each, name) for each in patterns)]  # fmt: skip
    return [fault for name in others
            for fault in faults(value[name], wanted, root, f"{path}.{name}")]  # fmt: skip


def prefix(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        return []
    return [fault for item, each in zip(value, wanted, strict=False)
            for fault in faults(item, each, root, path)]  # fmt: skip


def items(value: Any, wanted: Any, schema: Any, root: Any, path: str) -> list[str]:
    if isinstance(wanted, list):
        return prefix(value, wanted, schema, root, path)
    if not isinstance(value, list):
        return []
    rest = value[len(schema.get("prefixItems", [])) :]
    return [fault for item in rest for fault in faults(item, wanted, root, path)]


def more_items(value: Any, wanted: Any, schema: Any, root: Any, path: str) -> list[str]:
    if not isinstance(value, list) or not isinstance(schema.get("items"), list):
        return []
    rest = value[len(schema["items"]) :]
    return [fault for item in rest for fault in faults(item, wanted, root, path)]


def some(least: int, most: int | None) -> Check:
    def check(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
        n = sum(not faults(value, each, root, path) for each in wanted)
        fits = n >= least and (most is None or n <= most)
        return [] if fits else [f"{path}: {n} of the schemas take {value!r}"]

    return check


def every(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    return [fault for each in wanted for fault in faults(value, each, root, path)]


def target_of(ref: str, root: Any) -> Any:
    """The schema that a reference points at."""
    target = root
    for step in unquote(ref).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        target = target[int(key)] if isinstance(target, list) else target[key]
    return target


def reference(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    return faults(value, target_of(wanted, root), root, path)


def pattern_names(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [fault for name in value for each in wanted if re.search(each, name)
            for fault in faults(value[name], wanted[each], root, path)]  # fmt: skip


def dependent(value: Any, wanted: Any, _schema: Any, _root: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [f"{path}: no {other}" for name in wanted if name in value
            for other in wanted[name] if other not in value]  # fmt: skip


def negation(value: Any, wanted: Any, _schema: Any, root: Any, path: str) -> list[str]:
    return [] if faults(value, wanted, root, path) else [f"{path}: fits what it must not"]


def is_multiple(value: float, wanted: float) -> bool:
    """Whether value is a multiple of wanted. Computed in decimal, as both are written."""
    return Decimal(repr(value)) % Decimal(repr(wanted)) == 0


def reads(read: Callable[[str], Any]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return True

    return check


FORMATS: dict[str, Callable[[str], Any]] = {
    "date": reads(datetime.date.fromisoformat),
    "time": reads(datetime.time.fromisoformat),
    "date-time": reads(datetime.datetime.fromisoformat),
    "uuid": reads(uuid.UUID),
    "email": re.compile(r"[\w.+-]+@\w[\w-]*(\.\w[\w-]*)+").fullmatch,
    "ipv4": reads(ipaddress.IPv4Address),
    "ipv6": reads(ipaddress.IPv6Address),
    "hostname": re.compile(
        r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*"
    ).fullmatch,
    "uri": re.compile(
        r"[A-Za-z][\w+.-]*:(//[^/?#\s]*)?([^?#\s]*)(\?[^#\s]*)?(#\S*)?", re.A
    ).fullmatch,
    "duration": re.compile(
        r"P(?!\Z)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?!\Z)(\d+H)?(\d+M)?(\d+S)?)?)"
    ).fullmatch,
}


def has_format(value: str, wanted: str) -> bool:
    # A date of the year 0 is valid, although Python refuses it.
    return wanted not in FORMATS or value.startswith("0000-") or bool(FORMATS[wanted](value))


def is_ecma(pattern: str) -> str:
    """The pattern as Python reads it."""
    return re.sub(r"\\u\{([0-9a-fA-F]+)\}", lambda m: f"\\U{int(m[1], 16):08x}", pattern).replace(
        "(?<", "(?P<"
    )


CHECKS: dict[str, Check] = {
    "type": of_type,
    "enum": listed,
    "const": lambda value, wanted, *_: listed(value, [wanted]),
    "properties": properties,
    "additionalProperties": additional,
    "required": simple(dict, lambda value, wanted: all(name in value for name in wanted)),
    "minProperties": simple(dict, lambda value, wanted: len(value) >= wanted),
    "maxProperties": simple(dict, lambda value, wanted: len(value) <= wanted),
    "items": items,
    "prefixItems": prefix,
    "additionalItems": more_items,
    "minItems": simple(list, lambda value, wanted: len(value) >= wanted),
    "maxItems": simple(list, lambda value, wanted: len(value) <= wanted),
    "uniqueItems": simple(
        list,
        lambda value, wanted: not wanted or len({json.dumps(item) for item in value}) == len(value),
    ),
    "minLength": simple(str, lambda value, wanted: len(value) >= wanted),
    "maxLength": simple(str, lambda value, wanted: len(value) <= wanted),
    "pattern": simple(
        str, lambda value, wanted: re.search(is_ecma(wanted), value, re.ASCII) is not None
    ),
    "format": simple(str, has_format),
    "minimum": simple((int, float), lambda value, wanted: value >= wanted),
    "maximum": simple((int, float), lambda value, wanted: value <= wanted),
    "exclusiveMinimum": simple((int, float), lambda value, wanted: value > wanted),
    "exclusiveMaximum": simple((int, float), lambda value, wanted: value < wanted),
    "multipleOf": simple((int, float), is_multiple),
    "patternProperties": pattern_names,
    "dependentRequired": dependent,
    "not": negation,
    "anyOf": some(1, None),
    "oneOf": some(1, 1),
    "allOf": every,
    "$ref": reference,
}
