"""Tools whose JSON schemas a chat template cannot read, said in the plain way that all can.

Templates look into schemas: they join the values of an enum, ask each property for its type, and
write that in capitals. One that meets a null there, or `true` in place of a schema, gives up. Pure.
"""

from typing import Any

Json = dict[str, Any]

_MAX_DEPTH = 32


def plain_tools(tools: list[Json]) -> list[Json]:
    """The tools with schemas of objects that have one type each, and lists of texts."""
    return [
        tool | {"function": tool["function"] | {
            "parameters": _schema(tool["function"]["parameters"], _MAX_DEPTH)}}
        for tool in tools
    ]  # fmt: skip


def _schema(schema: Any, depth_left: int) -> Json:
    if type(schema) is not dict or depth_left == 0:
        return {"type": "string", "description": "anything"}
    plain = {key: schema[key] for key in ("title", "description", "format", "pattern")
             if type(schema.get(key)) is str}  # fmt: skip
    plain["type"] = _type(schema)
    if type(schema.get("enum")) is list and plain["type"] == "string":
        plain["enum"] = [each for each in schema["enum"] if type(each) is str]
    if plain["type"] == "object" or depth_left == _MAX_DEPTH:
        properties = schema.get("properties")
        named = properties if type(properties) is dict else {}
        plain["properties"] = {name: _schema(each, depth_left - 1) for name, each in named.items()}
        required = schema.get("required")
        names = required if type(required) is list else []
        plain["required"] = [name for name in names if type(name) is str and name in named]
    if plain["type"] == "array":
        plain["items"] = _schema(schema.get("items", True), depth_left - 1)
    return plain


def _type(schema: Json) -> str:
    """The first type that is not null."""
    said = schema.get("type")
    names = [name for name in (said if type(said) is list else [said]) if type(name) is str]
    found = next((name for name in names if name != "null"), None)
    guess = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return found or guess
