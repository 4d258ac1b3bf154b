"""A parsed request: the work for the worker, how to send the reply, and ignored fields."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from lmlite.errors import CHAT_NAMES, FieldNames
from lmlite.messages import Chat, ChatMessage, Json, Work
from lmlite.server.forms.schemas import UnheldPart
from lmlite.server.models.defaults import Defaults

MAX_NAMED = 20  # ignored fields that a header lists at most


@dataclass(frozen=True)
class Call:
    """The worker's part of a request, and how to send the reply."""

    request: Work  # gets its id when it is sent
    model: str | None  # None: the server's default model
    stream: bool = False
    include_usage: bool = False
    encoding_format: str = "float"  # format of embeddings: float or base64
    ignored: tuple[str, ...] = ()  # names of unknown fields and parts
    custom_tools: frozenset[str] = frozenset()  # names of tools that take free text
    field_names: FieldNames = CHAT_NAMES  # names of the client's API, for errors of the worker
    unheld: tuple[UnheldPart, ...] = ()  # parts of schemas that the grammar does not enforce


AnyCall = TypeVar("AnyCall", bound=Call)


def with_defaults(call: AnyCall, defaults: Defaults) -> AnyCall:
    """The same call; a chat without a system message gets the default one."""
    chat, prompt = call.request, defaults.system_prompt
    if not (prompt and isinstance(chat, Chat)):
        return call
    if any(message.role == "system" for message in chat.messages):
        return call
    messages = (ChatMessage("system", prompt), *chat.messages)
    return replace(call, request=replace(chat, messages=messages))


def ignored_fields(
    body: Json, known: Collection[str], others: Iterable[str] = ()
) -> tuple[str, ...]:
    """The names of a body's unknown fields, and other names, sorted and safe for a header.

    >>> ignored_fields({"n": 1, "top_a": 0.1, "Ü x": 1, "ttl": None}, {"n"})
    ('??x', 'top_a')
    """
    fields = (name for name in body if name not in known and body[name] is not None)
    unknown = sorted({*fields, *others})
    return tuple(sorted(map(_for_header, unknown[:MAX_NAMED])))


def headers_of(ignored: Iterable[str], unheld: Iterable[UnheldPart] = ()) -> list[tuple[str, str]]:
    """The headers that list ignored fields and parts of the schema that are not enforced."""
    paths = [each.path.removeprefix(".") or "schema" for each in unheld if each.tool is None]
    named = {"X-Ignored-Params": [*ignored],
             "X-Ignored-Schema": [*map(_for_header, paths[:MAX_NAMED])]}  # fmt: skip
    return [(name, ", ".join(parts)) for name, parts in named.items() if parts]


def lines_of(unheld: Iterable[UnheldPart]) -> list[str]:
    """One log line for each part of a tool's schema that is not enforced."""
    return [
        f"tool {each.tool}: parameters{each.path:.200} {each.why:.200}: calls are not held to it"
        for each in unheld
        if each.tool is not None
    ]


def _for_header(name: str) -> str:
    """Replaces characters that could end a header or a list: clients choose these names."""
    return re.sub(r"[^\w.$-]", "?", name[:64], flags=re.ASCII)
