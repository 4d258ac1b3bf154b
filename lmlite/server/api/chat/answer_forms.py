"""The form that an answer is to have: a JSON schema, from response_format or in vLLM's words.

Pure. Each error names the field that is wrong.
"""

from typing import Any

from lmlite.errors import BadRequest, MissingParameter
from lmlite.server.api.chat.guided_decoding import guided, guided_schema
from lmlite.server.api.fields import Body, boolean, required, typed
from lmlite.server.forms.schemas import UnheldPart, honoured_schema, widened_schema

Form = tuple[Body | None, tuple[UnheldPart, ...]]  # the schema, what it does not hold

_ANY_OBJECT = {"type": "object"}
_FREE: Form = None, ()


def parse_form(body: Body) -> Form:
    """What the answer is held to. Raises BadRequest."""
    wanted = typed(body, "response_format", dict, "an object") or {}
    kind = wanted.get("type", "text")
    asked = guided(body)
    if asked is not None and kind != "text":
        raise BadRequest(f"{asked[2]} cannot be beside response_format", param=asked[2])
    if asked is not None:
        return _guided(*asked)
    if kind == "text":
        return _FREE
    if kind == "json_object" and wanted.get("schema") is None:
        return _ANY_OBJECT, ()
    if kind == "json_object":  # as llama.cpp's own server takes a schema
        return _held(wanted["schema"], "response_format.schema", is_strict=False)
    if kind != "json_schema":
        raise BadRequest(
            "response_format.type is text, json_object or json_schema", param="response_format.type"
        )
    path = "response_format.json_schema"
    named = typed(wanted, "json_schema", dict, "an object", path)
    if named is None:
        raise MissingParameter(f"{path} is missing", param=path)
    is_strict = boolean(named, "strict", f"{path}.strict")
    return _held(required(named, "schema", f"{path}.schema"), f"{path}.schema", is_strict)


def _guided(kind: str, value: Any, path: str) -> Form:
    if kind == "json_object":
        return _ANY_OBJECT, ()
    if kind == "json":
        return _held(guided_schema(value, path), path, is_strict=True)
    return _FREE


def _held(schema: Any, path: str, is_strict: bool) -> Form:
    if is_strict:
        return honoured_schema(schema, path), ()
    if type(schema) is not dict:
        raise BadRequest(f"{path} is not a JSON schema", param=path)
    widened = widened_schema(schema)
    return widened.schema, widened.unheld
