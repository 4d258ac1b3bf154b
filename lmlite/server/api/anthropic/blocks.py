"""Content blocks of Anthropic's messages -> pieces of a message's content.

Blocks that chats lack, such as documents or results of Anthropic's own tools, become their text,
or a line that describes them. Pure. The formats are those of the types in Anthropic's Python
package. Errors are BadRequest.
"""

import re
from collections.abc import Iterable

from lmlite.server.api.chat.content_parts import ContentReader, Piece, told, unreadable
from lmlite.server.api.fields import Field

# Claude Code begins its system prompt with this line, and its value changes with each turn. The
# line is removed, because nothing after a changed token could be reused from memory.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")

BLOCKS_OF = {"user": ("text", "image", "tool_result"), "system": ("text",),
             "assistant": ("text", "thinking", "redacted_thinking", "tool_use")}  # fmt: skip
RESULT_BLOCKS = ("text", "image")
_KNOWN = {kind for kinds in BLOCKS_OF.values() for kind in kinds}
# Blocks that are not content in a chat, but fields or messages of their own.
_NO_CONTENT = ("thinking", "redacted_thinking", "tool_use", "tool_result")


class MessageField(Field):
    """A field whose path is written as Anthropic does: `messages.0.content`."""

    ITEM = "%d"
    __slots__ = ()


class BlockReader:
    """Reads the blocks of one request."""

    def __init__(self, contents: ContentReader) -> None:
        self._contents = contents

    def blocks(self, content: Field, kinds: tuple[str, ...]) -> list[Field]:
        """The blocks of a content; a string is one text block. Known types must be in `kinds`."""
        if type(content.value) is str:
            return [content.of({"type": "text", "text": content.value})]
        if type(content.value) is not list:
            content.refuse("content is a string or a list of blocks")
        blocks = [block.entry("a content block") for block in content.items()]
        for block in blocks:
            kind = block["type"].text()
            if kind not in _KNOWN:
                self._contents.ignored.add(f"content.{kind}")
            elif kind not in kinds:
                block["type"].unsupported(f"a block here is of type {' or '.join(kinds)}")
        return blocks

    def pieces(self, blocks: Iterable[Field], *, is_result: bool = False) -> list[Piece]:
        """The texts and images in the blocks; `is_result`: they are a tool's result."""
        return [piece for block in blocks for piece in self._pieces(block, is_result)]

    def _pieces(self, block: Field, is_result: bool) -> list[Piece]:
        match block["type"].value:
            case kind if kind in _NO_CONTENT:
                return []
            case "text":
                return [block["text"].text()]
            case "image":
                return [self._image(block, is_result)]
            case "document":
                return self._document(block, is_result)
            case "search_result":
                facts = {key: block[key].value for key in ("title", "source")}
                return [told("search_result", facts), *self._inner(block["content"], is_result)]
            case kind:
                return [told(kind, block.value)]

    def _image(self, block: Field, is_result: bool) -> Piece:
        source = block["source"].object()
        kind = source["type"].value
        if kind == "file":
            return unreadable("image", source["file_id"].value)
        url = source["url" if kind == "url" else "data"].text()
        return self._contents.image(block, url, is_result=is_result)

    def _document(self, block: Field, is_result: bool) -> list[Piece]:
        """The document's text, or a line that says that it cannot be read."""
        source = block["source"].object()
        match source.value:
            case {"type": "text", "data": str(text)}:
                return [_line(text)]
            case {"type": "content", "content": _}:
                return self._inner(source["content"], is_result)
        facts = (source[name].value for name in ("media_type", "url", "file_id"))
        return [unreadable("document", block["title"].value, *facts)]

    def _inner(self, content: Field, is_result: bool) -> list[Piece]:
        blocks = self.blocks(content.of(content.value or ""), RESULT_BLOCKS)
        found = self.pieces(blocks, is_result=is_result)
        if found and isinstance(found[-1], str):
            found[-1] = _line(found[-1])
        return found

    def system_text(self, system: Field) -> str:
        """The text of a system prompt; its blocks are joined without a separator."""
        blocks = self.blocks(system.of(system.value or ""), BLOCKS_OF["system"])
        texts = (piece for piece in self.pieces(blocks) if isinstance(piece, str))
        return "".join(_BILLING.sub("", text) for text in texts)


def of_kind(blocks: Iterable[Field], kind: str) -> list[Field]:
    """The blocks of one kind."""
    return [block for block in blocks if block["type"].value == kind]


def _line(text: str) -> str:
    """The text with a line break at its end, so that more text starts on a new line."""
    return text if text.endswith("\n") else f"{text}\n"
