"""A request as the server sees it: the work, how the reply is sent, what is not honoured."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lmlite.errors import CHAT_NAMES, FieldNames
from lmlite.messages import Json, Work
from lmlite.server.forms.schemas import UnheldPart

MAX_NAMED = 20  # of the fields that are ignored


@dataclass(frozen=True)
class Call:
    """What a request asks of the worker, and how the reply is sent."""

    request: Work  # gets its id when it is sent
    model: str | None  # None: the model that is served
    stream: bool = False
    include_usage: bool = False
    encoding_format: str = "float"  # of embeddings: float or base64
    ignored: tuple[str, ...] = ()  # names of unknown fields and parts
    custom_tools: frozenset[str] = frozenset()  # names of tools whose calls are a text
    field_names: FieldNames = CHAT_NAMES  # in errors of the worker
    unheld: tuple[UnheldPart, ...] = ()  # parts of schemas that no grammar enforces


def ignored_fields(
    body: Json, known: Collection[str], others: Iterable[str] = ()
) -> tuple[str, ...]:
    """The names of unknown fields of a body, and other names, sorted and fit for a header.

    >>> ignored_fields({"n": 1, "top_a": 0.1, "Ü x": 1, "ttl": None}, {"n"})
    ('??x', 'top_a')
    """
    fields = (name for name in body if name not in known and body[name] is not None)
    unknown = sorted({*fields, *others})
    return tuple(sorted(map(_for_header, unknown[:MAX_NAMED])))


def headers_of(call: Call) -> list[tuple[str, str]]:
    """The headers that name ignored fields, and parts of the form that are not enforced."""
    paths = [each.path.removeprefix(".") or "schema" for each in call.unheld if each.tool is None]
    named = {"X-Ignored-Params": call.ignored,
             "X-Ignored-Schema": [*map(_for_header, paths[:MAX_NAMED])]}  # fmt: skip
    return [(name, ", ".join(parts)) for name, parts in named.items() if parts]


def lines_of(unheld: Iterable[UnheldPart]) -> list[str]:
    """A line of the log for each part of a tool's schema that is not enforced."""
    return [
        f"tool {each.tool}: parameters{each.path:.200} {each.why:.200}: calls are not held to it"
        for each in unheld
        if each.tool is not None
    ]


def _for_header(name: str) -> str:
    """A client chooses the name, so it may not end a header or a list."""
    return re.sub(r"[^\w.$-]", "?", name[:64], flags=re.ASCII)
