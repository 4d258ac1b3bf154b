"""The form that an answer is to have: a JSON schema, a regular expression, choices or a grammar.

From `response_format`, `grammar`, or vLLM's `structured_outputs` and its older `guided_...`, whose
names and meanings are those of vLLM's documentation. Pure. Each error names the field that is
wrong.
"""

import json
import re
from typing import Any

from lmlite.errors import BadRequest, MissingParameter
from lmlite.server.api.fields import Body, boolean, required, typed, unsupported
from lmlite.server.forms.bounds import MAX_WAYS, repetitions
from lmlite.server.forms.gbnf import checked_grammar
from lmlite.server.forms.patterns import raw_pattern
from lmlite.server.forms.schemas import UnheldPart, honoured_schema, widened_schema
from lmlite.server.forms.texts import prefix_tree

Form = tuple[Body | None, tuple[UnheldPart, ...]]  # a schema, the parts that it does not enforce

FIELDS = {"structured_outputs", "guided_json", "guided_json_object", "guided_regex",
          "guided_choice", "guided_grammar", "guided_decoding_backend",
          "guided_whitespace_pattern"}  # fmt: skip
MAX_LENGTH = 2048  # of an expression
MAX_CHOICES = 1000
MAX_REPEATED = 2000  # by llama.cpp's own bound

_KINDS = ("json", "json_object", "regex", "choice", "grammar")
# Without effect here, or always so: an answer never has other properties than its schema.
_INERT = ("disable_fallback", "disable_additional_properties", "backend", "_backend")
_ANY_OBJECT = {"type": "object"}
_PATH = "response_format"


def guided(body: Body) -> tuple[str, Any, str] | None:
    """(the kind of form that is asked for in vLLM's words, its value, the path of that).

    Raises BadRequest for more than one, and for forms that are not supported.
    """
    if body.get("guided_whitespace_pattern") is not None:
        unsupported("guided_whitespace_pattern", "the space between values cannot be chosen")
    wanted = typed(body, "structured_outputs", dict, "an object") or {}
    for name, value in wanted.items():
        if name not in _KINDS and name not in _INERT and value not in (None, False):
            unsupported(f"structured_outputs.{name}", f"{name} is not supported")
    fields = [(kind, wanted.get(kind), f"structured_outputs.{kind}") for kind in _KINDS]
    fields += [(kind, body.get(f"guided_{kind}"), f"guided_{kind}") for kind in _KINDS]
    fields.append(("grammar", body.get("grammar"), "grammar"))
    found = [field for field in fields if field[1] not in (None, False)]
    if len(found) > 1:
        path = found[1][2]
        raise BadRequest(f"{path} cannot be beside {found[0][2]}", param=path)
    return found[0] if found else None


# ---- schemas -------------------------------------------------------------------------------


def parse_form(body: Body) -> Form:
    """The schema that the answer has to fit, if any. Raises BadRequest."""
    wanted = typed(body, "response_format", dict, "an object") or {}
    kind = wanted.get("type", "text")
    asked = guided(body)
    if asked is not None and kind != "text":
        raise BadRequest(f"{asked[2]} cannot be beside response_format", param=asked[2])
    if asked is not None:
        kind, value, path = asked
        if kind == "json":
            return _held(_parsed(value, path) if type(value) is str else value, path, True)
        return _ANY_OBJECT if kind == "json_object" else None, ()
    if kind == "text":
        return None, ()
    if kind == "json_object":
        schema = wanted.get("schema")  # as llama.cpp's own server takes one
        return (_ANY_OBJECT, ()) if schema is None else _held(schema, f"{_PATH}.schema", False)
    if kind != "json_schema":
        raise BadRequest(f"{_PATH}.type is text, json_object or json_schema", param=f"{_PATH}.type")
    path = f"{_PATH}.json_schema"
    named = typed(wanted, "json_schema", dict, "an object", path)
    if named is None:
        raise MissingParameter(f"{path} is missing", param=path)
    is_strict = boolean(named, "strict", f"{path}.strict")
    return _held(required(named, "schema", f"{path}.schema"), f"{path}.schema", is_strict)


def _held(schema: Any, path: str, is_strict: bool) -> Form:
    if is_strict:
        return honoured_schema(schema, path), ()
    if type(schema) is not dict:
        raise BadRequest(f"{path} is not a JSON schema", param=path)
    widened = widened_schema(schema)
    return widened.schema, widened.unheld


def _parsed(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"{path} is not JSON", param=path) from None


# ---- grammars ------------------------------------------------------------------------------


def parse_grammar(body: Body, allows_grammars: bool) -> str | None:
    """The grammar in GBNF that the whole answer has to match, if any. Raises BadRequest."""
    kind, value, path = guided(body) or ("", None, "")
    if kind in ("regex", "choice"):
        return _grammar_of(
            _expression(value, path) if kind == "regex" else _choice(value, path), path
        )
    if kind != "grammar":
        return None
    if not allows_grammars:
        unsupported(path, "this server takes no grammars unless it is started with --allow-grammar")
    if type(value) is not str:
        raise BadRequest(f"{path} is not a string", param=path)
    return checked_grammar(value, path)


def _grammar_of(expression: str, path: str) -> str:
    try:
        text, ways = raw_pattern(f"^({expression})$")
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"{path} cannot be honoured: {err}", param=path) from None
    if ways > MAX_WAYS or repetitions(text) > MAX_REPEATED:
        raise BadRequest(f"{path} leaves too many ways open, or repeats too much", param=path)
    return f"root ::= {text}"


def _expression(value: Any, path: str) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_LENGTH:
        raise BadRequest(f"{path} is a text of 1 to {MAX_LENGTH:,} characters", param=path)
    inner = value.removeprefix("^")
    return inner[:-1] if re.search(r"(?<!\\)(\\\\)*\$\Z", inner) else inner


def _choice(value: Any, path: str) -> str:
    are_texts = type(value) is list and all(type(each) is str and each for each in value)
    if not are_texts or not 0 < len(value) <= MAX_CHOICES:
        words = f"{path} is a list of 1 to {MAX_CHOICES:,} texts, none of them empty"
        raise BadRequest(words, param=path)
    try:
        return prefix_tree(value)
    except RecursionError:
        raise BadRequest(f"{path}: too many texts begin alike", param=path) from None
