"""Content blocks of Anthropic's messages -> content parts of a chat.

What a chat has no part for, as documents and what Anthropic's own tools say, becomes its text, or a
line that tells of it. Pure. The formats are those of the types in Anthropic's Python package.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.chat.content_parts import told, unreadable
from lmlite.server.api.fields import Body, required, string, typed, unsupported

# Claude Code begins its system prompt with this line, whose value is another one in each turn:
# nothing behind it would be found in memory.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")

Block = tuple[Body, str]  # a content block and its path

BLOCKS_OF = {"user": ("text", "image", "tool_result"), "system": ("text",),
             "assistant": ("text", "thinking", "redacted_thinking", "tool_use")}  # fmt: skip
RESULT_BLOCKS = ("text", "image")
_KNOWN = {kind for kinds in BLOCKS_OF.values() for kind in kinds}
_NO_PARTS = ("thinking", "redacted_thinking", "tool_use", "tool_result")


def read_blocks(content: Any, path: str, kinds: tuple[str, ...]) -> list[Block]:
    """The blocks: those of a known kind are of `kinds`; a text is a block of that text."""
    if type(content) is str:
        return [({"type": "text", "text": content}, path)]
    if type(content) is not list:
        raise BadRequest("content is a string or a list of blocks", param=path)
    blocks = [(block, f"{path}.{i}") for i, block in enumerate(content)]
    for block, where in blocks:
        if type(block) is not dict:
            raise BadRequest("a content block is an object", param=where)
        kind = required_string(block, "type", where)
        if kind in _KNOWN and kind not in kinds:
            unsupported(f"{where}.type", f"a block here is of type {' or '.join(kinds)}")
    return blocks


def of_kind(blocks: Iterable[Block], kind: str) -> list[Block]:
    """Those of one kind."""
    return [(block, path) for block, path in blocks if block["type"] == kind]


def parts(blocks: Iterable[Block]) -> list[Body]:
    """What is said and shown in them; thoughts, calls and results have other places in a chat."""
    return [
        part
        for block, path in blocks
        if block["type"] not in _NO_PARTS
        for part in block_parts(block, path)
    ]


def block_parts(block: Body, path: str) -> list[Body]:
    """The parts that a block becomes; an image's tells what it is called here."""
    match block["type"]:
        case "text":
            return [_text(required_string(block, "text", path))]
        case "image":
            return [_image(block, path)]
        case "document":
            return _document(block, path)
        case "search_result":
            head = told("search_result", {key: block.get(key) for key in ("title", "source")})
            return [_text(head), *_content(block.get("content"), f"{path}.content")]
    return [_text(told(block["type"], block))]


def system_text(content: Any, path: str) -> str:
    """The text of a system prompt; nothing is added between its blocks."""
    texts = (part.get("text", "") for part in parts(read_blocks(content, path, ("text",))))
    return "".join(_BILLING.sub("", text) for text in texts)


def unread_blocks(body: Body) -> Iterator[str]:
    """The kinds of blocks of a body, which has been read, that were told: names for them."""
    contents = [body.get("system"), *(message["content"] for message in body["messages"])]
    for content in contents:
        for block in content if type(content) is list else ():
            if block["type"] not in _KNOWN:
                yield f"content.{block['type']}"
            elif block["type"] == "tool_result" and type(block.get("content")) is list:
                kinds = (inner["type"] for inner in block["content"])
                yield from (f"content.{kind}" for kind in kinds if kind not in _KNOWN)


def required_string(body: Body, field: str, path: str) -> str:
    """`path` is that of the object."""
    required(body, field, f"{path}.{field}")
    return string(body, field, f"{path}.{field}") or ""


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _image(block: Body, path: str) -> Body:
    source = typed(block, "source", dict, "an object", f"{path}.source") or {}
    if source.get("type") == "file":
        return _text(unreadable("image", source.get("file_id")))
    field = "url" if source.get("type") == "url" else "data"
    data = required_string(source, field, f"{path}.source")
    return {"type": "image_url", "image_url": {"url": data}, "path": path}


def _document(block: Body, path: str) -> list[Body]:
    """Its text, where it has one, or a line that says that it cannot be read."""
    source = typed(block, "source", dict, "an object", f"{path}.source") or {}
    match source:
        case {"type": "text", "data": str(text)}:
            return [_text(_line(text))]
        case {"type": "content", "content": content}:
            return _content(content, f"{path}.source.content")
    facts = (source.get(name) for name in ("media_type", "url", "file_id"))
    return [_text(unreadable("document", block.get("title"), *facts))]


def _content(content: Any, path: str) -> list[Body]:
    found = parts(read_blocks(content or "", path, RESULT_BLOCKS))
    if found and found[-1]["type"] == "text":
        found[-1] = found[-1] | {"text": _line(found[-1]["text"])}
    return found


def _line(text: str) -> str:
    """Ended, so that what follows is none of it."""
    return text if text.endswith("\n") else f"{text}\n"
