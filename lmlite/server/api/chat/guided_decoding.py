"""What vLLM's clients ask of an answer's form: `structured_outputs`, or its older `guided_...`.

One of: a JSON schema, any JSON object, a regular expression, one of several texts, or a grammar.
Pure. The names and meanings are those of vLLM's documentation of structured outputs.
"""

import json
import re
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.fields import Body, typed, unsupported
from lmlite.server.forms.bounds import MAX_WAYS, repetitions
from lmlite.server.forms.patterns import raw_pattern
from lmlite.server.forms.texts import prefix_tree

FIELDS = {"structured_outputs", "guided_json", "guided_json_object", "guided_regex",
          "guided_choice", "guided_grammar", "guided_decoding_backend",
          "guided_whitespace_pattern"}  # fmt: skip
MAX_LENGTH = 2048  # of an expression
MAX_CHOICES = 1000
MAX_REPEATED = 2000  # by llama.cpp's own bound

_KINDS = ("json", "json_object", "regex", "choice", "grammar")
# Of no meaning here, or what is done anyway: other properties than a schema's are never written.
_INERT = ("disable_fallback", "disable_additional_properties", "backend", "_backend")


def guided(body: Body) -> tuple[str, Any, str] | None:
    """(the kind of form that is asked for, its value, the path of that); None for none.

    Raises BadRequest for more than one, and for what cannot be held.
    """
    if body.get("guided_whitespace_pattern") is not None:
        unsupported("guided_whitespace_pattern", "the space between values cannot be chosen")
    wanted = typed(body, "structured_outputs", dict, "an object") or {}
    for name, value in wanted.items():
        if name not in _KINDS and name not in _INERT and value not in (None, False):
            unsupported(f"structured_outputs.{name}", f"{name} is not supported")
    found = [(kind, wanted[kind], f"structured_outputs.{kind}") for kind in _KINDS
             if wanted.get(kind) not in (None, False)]  # fmt: skip
    found += [(kind, body[f"guided_{kind}"], f"guided_{kind}") for kind in _KINDS
              if body.get(f"guided_{kind}") not in (None, False)]  # fmt: skip
    if body.get("grammar") is not None:
        found.append(("grammar", body["grammar"], "grammar"))
    if len(found) > 1:
        path = found[1][2]
        raise BadRequest(f"{path} cannot be beside {found[0][2]}", param=path)
    return found[0] if found else None


def guided_schema(value: Any, path: str) -> Any:
    """A JSON schema, which may come as a text. Raises BadRequest."""
    if type(value) is not str:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRequest(f"{path} is not JSON", param=path) from None


def guided_text(kind: str, value: Any, path: str) -> str:
    """The grammar of a regular expression, which the whole answer matches, or of choices.

    Raises BadRequest.
    """
    expression = _expression(value, path) if kind == "regex" else _choice(value, path)
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
