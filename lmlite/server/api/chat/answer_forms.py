"""The form that a client asks of a reply: JSON schema, regular expression, choices or grammar.

Read from `response_format`, `grammar`, or vLLM's `structured_outputs` and its older `guided_...`,
as vLLM's documentation defines them. Pure. Each error names the field that is wrong.
"""

import json
import re
from typing import NamedTuple

from lmlite.messages import Json
from lmlite.server.api.fields import Field
from lmlite.server.forms.bounds import MAX_WAYS, repetitions
from lmlite.server.forms.gbnf import checked_grammar
from lmlite.server.forms.patterns import raw_pattern
from lmlite.server.forms.schemas import UnheldPart, honoured_schema, widened_schema
from lmlite.server.forms.texts import prefix_tree

Form = tuple[Json | None, tuple[UnheldPart, ...]]  # a schema, the parts that it leaves unenforced

FREE: Form = None, ()

FIELDS = {"structured_outputs", "guided_json", "guided_json_object", "guided_regex",
          "guided_choice", "guided_grammar", "guided_decoding_backend",
          "guided_whitespace_pattern"}  # fmt: skip
MAX_LENGTH = 2048  # of an expression
MAX_CHOICES = 1000
MAX_REPEATED = 2000  # llama.cpp's own bound

_KINDS = ("json", "json_object", "regex", "choice", "grammar")
# Ignored: no effect here, or always on (a reply never has properties outside its schema).
_INERT = ("disable_fallback", "disable_additional_properties", "backend", "_backend")
_ANY_OBJECT: Json = {"type": "object"}


class Guided(NamedTuple):
    """The form that a body asks for in vLLM's fields."""

    kind: str  # one of _KINDS
    field: Field  # that asks for it


def guided(body: Field) -> Guided | None:
    """The form that a body asks for in vLLM's fields or `grammar`, if any.

    Raises BadRequest for more than one form, and for forms that are not supported.
    """
    if body["guided_whitespace_pattern"].value is not None:
        body["guided_whitespace_pattern"].unsupported("the space between values cannot be chosen")
    wanted = body["structured_outputs"].object()
    for name, value in wanted.value.items():
        if name not in _KINDS and name not in _INERT and value not in (None, False):
            wanted[name].unsupported(f"{name} is not supported")
    asked = [Guided(kind, wanted[kind]) for kind in _KINDS]
    asked += [Guided(kind, body[f"guided_{kind}"]) for kind in _KINDS]
    found = [each for each in asked if each.field.value not in (None, False)]
    if body["grammar"].value is not None:
        found.append(Guided("grammar", body["grammar"]))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        second.refuse(f"{second.path} cannot be beside {first.path}")
    return found[0] if found else None


# ---- schemas -------------------------------------------------------------------------------


def parse_form(wanted: Field, asked: Guided | None, schema_in: str | None = None) -> Form:
    """The schema in a `response_format`, or in the API's own field for it. Raises BadRequest.

    `asked` is the form in vLLM's fields. `schema_in` names the field that holds the schema and its
    strictness; None: they are beside the type.
    """
    wanted = wanted.object()
    kind = wanted.value.get("type", "text")
    if asked is not None and kind != "text":
        asked.field.refuse(f"{asked.field.path} cannot be beside {wanted.path}")
    if kind == "text":
        return guided_form(asked)
    if kind == "json_object" and (schema_in is None or wanted["schema"].value is None):
        return _ANY_OBJECT, ()
    if kind == "json_object":  # llama.cpp's own server accepts a schema here
        return held_form(wanted["schema"], is_strict=False)
    if kind != "json_schema":
        wanted["type"].refuse(f"{wanted.path}.type is text, json_object or json_schema")
    named = wanted[schema_in].required().object() if schema_in else wanted
    return held_form(named["schema"].required(), is_strict=named["strict"].boolean())


def guided_form(asked: Guided | None) -> Form:
    """The schema that a body asks for in vLLM's fields, if any. Raises BadRequest."""
    if asked is None or asked.kind not in ("json", "json_object"):
        return FREE
    if asked.kind == "json_object":
        return _ANY_OBJECT, ()
    return held_form(_parsed(asked.field), is_strict=True)


def held_form(schema: Field, *, is_strict: bool) -> Form:
    """The form of a schema. Raises BadRequest if it is not one, or strict but unenforceable."""
    if is_strict:
        return honoured_schema(schema.value, schema.path), ()
    if type(schema.value) is not dict:
        schema.refuse(f"{schema.path} is not a JSON schema")
    widened = widened_schema(schema.value)
    return widened.schema, widened.unheld


def _parsed(schema: Field) -> Field:
    """The schema, which may also come as JSON text."""
    if type(schema.value) is not str:
        return schema
    try:
        return schema.of(json.loads(schema.value))
    except (ValueError, RecursionError):
        schema.refuse(f"{schema.path} is not JSON")


# ---- grammars ------------------------------------------------------------------------------


def guided_grammar(asked: Guided | None, allows_grammars: bool) -> str | None:
    """The GBNF grammar that the whole reply must match, if any. Raises BadRequest."""
    if asked is None or asked.kind not in ("regex", "choice", "grammar"):
        return None
    kind, field = asked
    if kind != "grammar":
        return _grammar_of(_expression(field) if kind == "regex" else _choice(field), field)
    if not allows_grammars:
        field.unsupported(
            "grammars are refused; start the server with --allow-grammar to accept them"
        )
    if type(field.value) is not str:
        field.refuse(f"{field.path} is not a string")
    return checked_grammar(field.value, field.path)


def _grammar_of(expression: str, field: Field) -> str:
    try:
        text, ways = raw_pattern(f"^({expression})$")
    except (ValueError, RecursionError) as err:
        field.refuse(f"{field.path} cannot be honoured: {err}")
    if ways > MAX_WAYS or repetitions(text) > MAX_REPEATED:
        field.refuse(f"{field.path} leaves too many ways open, or repeats too much")
    return f"root ::= {text}"


def _expression(field: Field) -> str:
    value = field.value
    if type(value) is not str or not 0 < len(value) <= MAX_LENGTH:
        field.refuse(f"{field.path} is a text of 1 to {MAX_LENGTH:,} characters")
    inner = value.removeprefix("^")
    return inner[:-1] if re.search(r"(?<!\\)(\\\\)*\$\Z", inner) else inner


def _choice(field: Field) -> str:
    texts = field.value
    are_texts = type(texts) is list and all(type(each) is str and each for each in texts)
    if not are_texts or not 0 < len(texts) <= MAX_CHOICES:
        field.refuse(f"{field.path} is a list of 1 to {MAX_CHOICES:,} texts, none of them empty")
    try:
        return prefix_tree(texts)
    except RecursionError:
        field.refuse(f"{field.path}: too many texts begin alike")
