"""A parsed request: the work for the worker, how to send the reply, and headers about both."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from lmlite.errors import CHAT_NAMES, FieldNames
from lmlite.messages import Chat, ChatMessage, Complete, Json, Tokenize, Work
from lmlite.server.forms.schemas import UnheldPart
from lmlite.server.models.defaults import Defaults

MAX_NAMED = 20  # ignored fields that a header lists at most
PREFIX_KEY = "X-Prefix-Key"
N_BLOCK = 256  # characters or token ids of a prompt, or bytes of an image, that the key depends on
N_TEXT = 16 << 10  # characters of a message or of the tools that the key depends on


@dataclass(frozen=True)
class Call:
    """The worker's part of a request, and how to send the reply."""

    request: Work  # gets its id when it is sent
    stream: bool = False
    is_background: bool = False  # the client asks for the reply later
    include_usage: bool = False
    include_timings: bool = False
    return_progress: bool = False  # a stream tells how much of its prompt is read
    encoding_format: str = "float"  # format of embeddings: float or base64
    ignored: tuple[str, ...] = ()  # names of unknown fields and parts
    custom_tools: frozenset[str] = frozenset()  # names of tools that take free text
    field_names: FieldNames = CHAT_NAMES  # names of the client's API, for errors of the worker
    unheld: tuple[UnheldPart, ...] = ()  # parts of schemas that the grammar does not enforce


AnyCall = TypeVar("AnyCall", bound=Call)


def with_defaults(call: AnyCall, defaults: Defaults) -> AnyCall:
    """The same call with the scales of adapters; a chat without a system message gets one."""
    if any(defaults.scales) and not isinstance(call.request, Tokenize):
        call = replace(call, request=replace(call.request, scales=defaults.scales))
    chat, prompt = call.request, defaults.system_prompt
    if not (prompt and isinstance(chat, Chat)):
        return call
    if any(message.role == "system" for message in chat.messages):
        return call
    messages = (ChatMessage("system", prompt), *chat.messages)
    return replace(call, request=replace(chat, messages=messages))


def prefix_key(work: Work, model: str, offered: str | None) -> str | None:
    """The value of X-Prefix-Key: requests with the same one can share a prefix in memory.

    A load balancer sends these to the same server. A key that the client offers is kept; None for
    work without a prompt to share.

    The first message of the user and all before it (the model's name, tools, system prompt) are
    what the turns of one conversation have in common, and what others have not. So conversations
    spread over the servers, each stays on one, and each server soon knows the system prompts. Of a
    plain completion, the first block is what stays the same while its text grows.

    It is known before the worker has read the prompt, because headers are sent first. It takes
    microseconds: what is hashed of each part is bounded.
    """
    if not isinstance(work, Chat | Complete):
        return None
    if offered is not None and re.fullmatch(r"[!-~]{1,64}", offered):
        return offered
    parts: list[object] = [model, *work.scales]
    if isinstance(work, Complete):
        parts += [prompt[:N_BLOCK] for prompt in work.prompts[:1]]
    else:
        parts.append(json.dumps(work.options.tools)[:N_TEXT])
        for message in work.messages:
            images = [image.data[:N_BLOCK] for image in message.images]
            parts.append((message.role, message.content[:N_TEXT], images))
            if message.role == "user":
                break
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


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
