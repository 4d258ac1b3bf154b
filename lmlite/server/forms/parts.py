"""Helpers for JSON schemas: types, references, alternatives and inner schemas. Pure."""

from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

Json = dict[str, Any]

ANNOTATIONS = frozenset((
    "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "nullable", "discriminator", "contentEncoding", "contentMediaType",
    "markdownDescription", "propertyOrdering", "$schema", "$id", "$comment", "$anchor", "$defs",
    "definitions",
))  # fmt: skip
GUESSED = "x-guessed"  # marks a schema without a type: it also allows values of other types
ANYTHING = {"title": "anything"}  # not {}, because llama.cpp makes no grammar from {}
NULL = {"type": "null"}
TYPES = ("object", "array", "string", "number", "boolean", "null")  # without "integer"
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer",
          type(None): "null"}  # fmt: skip


def is_annotation(key: str) -> bool:
    """Whether a keyword is only a comment and does not restrict values."""
    return key in ANNOTATIONS or key.startswith("x-")


def type_of(value: Any) -> str:
    """The narrowest type of a value."""
    if type(value) is float:
        return "integer" if value.is_integer() else "number"
    return _NAMES[type(value)]


def with_integers(names: Collection[str]) -> set[str]:
    """The types, and also "integer" if they include "number"."""
    return {*names, "integer"} if "number" in names else set(names)


def list_of(value: Any) -> list[Any]:
    """The value if it is a list, else an empty list."""
    return value if type(value) is list else []


def properties_of(schema: Json) -> Json:
    """The schemas of a schema's properties, by name."""
    found = schema.get("properties")
    return found if type(found) is dict else {}


def pointed_at(root: Any, ref: str) -> Any:
    """The target of a client's $ref (RFC 6901); None if there is no target."""
    target = root
    for step in ref.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if type(target) is list and step.isdecimal() and int(step[:9]) < len(target):
            target = target[int(step[:9])]
        elif type(target) is dict and step in target:
            target = target[step]
        else:
            return None
    return target


def loosely(schema: Any) -> Json:
    """The schema reduced to its types."""
    named = schema.get("type") if type(schema) is dict else None
    names = named if type(named) is list else [named]
    if not names or not all(name in (*TYPES, "integer") for name in names):
        return ANYTHING
    nodes = [{"type": name} for name in dict.fromkeys(names)]
    return any_of([*nodes, NULL] if schema.get("nullable") is True else nodes)


def constant(value: Any) -> Json:
    """A schema that allows only this value. Its grammar allows spaces in objects and arrays."""
    if type(value) is dict and value and "*" not in value:
        properties = {name: constant(each) for name, each in value.items()}
        closed = {"required": list(value), "additionalProperties": False}
        return {"type": "object", "properties": properties, **closed}
    if type(value) is list and value:
        return {"type": "array", "prefixItems": list(map(constant, value))}
    return {"enum": [value]}


# ---- rewritten schemas ---------------------------------------------------------------------


def any_of(nodes: list[Json]) -> Json:
    """A schema for values that match at least one of several schemas."""
    if ANYTHING in nodes:
        return ANYTHING
    return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}


def alternatives(node: Json) -> list[Json]:
    """The schemas in anyOf, else the schema itself: a value must match one of them."""
    if "anyOf" not in node:
        return [node]
    return [each for alternative in node["anyOf"] for each in alternatives(alternative)]


def parts(node: Json) -> list[Json]:
    """The schemas inside a schema, one level down."""
    found = [*node.get("anyOf", ()), *node.get("prefixItems", ())]
    found += [node[key] for key in ("items", "additionalProperties") if type(node.get(key)) is dict]
    return [*found, *node.get("properties", {}).values()]


def below(node: Json) -> list[Json]:
    """A schema and all the schemas inside it, at any depth."""
    return [node, *(each for part in parts(node) for each in below(part))]
