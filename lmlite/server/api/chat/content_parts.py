"""Content of messages: texts, images, and text in place of parts that a model cannot see.

Agents resend the whole conversation with every turn, including parts that other servers made. A
part of an unknown type must not end the conversation, so its readable fields become text. Pure.
"""

import base64
import binascii
import json
from typing import Any

from lmlite.errors import BadRequest
from lmlite.messages import Image, Json
from lmlite.server.api.chat.images import ImageReader
from lmlite.server.api.fields import Field
from lmlite.server.models.defaults import Defaults

MAX_LINE = 2000  # characters
_MAX_WORD = 200  # characters; a longer value without a space is data, not text
# Types of text parts in chats and in responses -> the field that has the text.
_TEXTS = dict.fromkeys(("text", "input_text", "output_text", "summary_text", "reasoning_text"),
                       "text") | {"refusal": "refusal"}  # fmt: skip
_IMAGES = ("image_url", "input_image", "computer_screenshot")
_SECRET = {"encrypted_content", "signature", "cache_control", "citations"}
_NOT_TOLD = {*_SECRET, "id", "type", "status", "call_id", "tool_use_id"}
_EMPTY: tuple[Any, ...] = (None, "", [], {})

Piece = str | Image  # one part of a content; an image's `at` is set later


class ContentReader:
    """Reads the contents of one request's messages."""

    def __init__(self, defaults: Defaults) -> None:
        self._images = ImageReader(defaults.takes_images, defaults.limits)
        self.ignored: set[str] = set()  # "content.TYPE" of each part that is replaced by text

    def pieces(self, content: Field, *, is_result: bool = False) -> list[Piece]:
        """A text, or OpenAI's list of content parts. Raises BadRequest.

        `is_result`: the content is a tool's result.
        """
        if content.value is None or type(content.value) is str:
            return [content.value or ""]
        if type(content.value) is not list:
            content.refuse("content is a string or a list of parts")
        return [self._piece(part.entry("a content part"), is_result) for part in content.items()]

    def _piece(self, part: Field, is_result: bool) -> Piece:
        kind = part["type"].required().value
        if kind in _IMAGES and part["file_id"].value is None:
            return self.image(part, None, is_result=is_result)
        if type(kind) is not str or kind not in _TEXTS:
            self.ignored.add(f"content.{kind}")
        return part_text(part)

    def image(self, part: Field, url: str | None, *, is_result: bool) -> Piece:
        """The image of a part; `url` None: the URL in the part's `image_url`.

        An unreadable image in a tool's result is replaced by text: the client resends it with each
        later turn, so an error would end the conversation.
        """
        try:
            return Image(self._images.read(part, url), 0, part.path)
        except BadRequest:
            if not is_result:
                raise
        self.ignored.add(f"content.{part.value['type']}")
        return unreadable("image")


def part_text(part: Field) -> str:
    """The text of an OpenAI content part other than an image. Raises BadRequest."""
    kind = part["type"].value
    if kind == "file" and type(part["file"].value) is dict:
        return _file_text(part["file"].value)
    if kind == "input_file":
        return _file_text(part.value)
    if type(kind) is not str or kind not in _TEXTS:
        return told(kind, part.value)
    text = part[_TEXTS[kind]].required()
    if type(text.value) is not str:
        text.refuse(f"{_TEXTS[kind]} is a string")
    return str(text.value)


def _file_text(file: Json) -> str:
    """The content of a text file; for other files, a line that says that it is unreadable."""
    data = file.get("file_data")
    text = _text_of_url(data) if type(data) is str else None
    return text if text is not None else unreadable("file", file.get("filename"))


def _text_of_url(url: str) -> str | None:
    """The text in a base64 data URL of a text type; None for any other URL."""
    head, comma, data = url.partition(",")
    is_text = head.startswith(("data:text/", "data:application/json"))
    if not comma or not is_text or not head.endswith(";base64"):
        return None
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def unreadable(kind: str, *facts: Any) -> str:
    """The line for a file that this server cannot show to the model.

    >>> unreadable("document", "a.pdf", None, "application/pdf").strip()
    '[document a.pdf application/pdf: it cannot be read here]'
    """
    words = [kind, *(fact for fact in facts if type(fact) is str)]
    return f"[{' '.join(' '.join(words).split())[:MAX_LINE]}: it cannot be read here]\n"


def told(kind: Any, facts: Json) -> str:
    """A line with the readable fields of a part or item; "" if there is nothing to show.

    >>> told("web_search_call", {"id": "ws_1", "action": {"type": "search"}}).strip()
    '[web_search_call: {"action": {"type": "search"}}]'
    """
    known = facts_of(facts)
    if not known:
        return ""
    return f"[{str(kind)[:64]}: {known[:MAX_LINE]}{'...' if len(known) > MAX_LINE else ''}]\n"


def facts_of(item: Json) -> str:
    """The fields of an item that make sense to a reader, as JSON; "" if only ids and data."""
    try:
        known = _readable({key: item[key] for key in item if key not in _NOT_TOLD})
        return json.dumps(known, ensure_ascii=False) if known else ""
    except RecursionError:  # the parser of bodies accepts deeper nesting
        return ""


def _readable(value: Any) -> Any:
    """The value without its empty and its unreadable parts."""
    if isinstance(value, dict):
        parts = ((key, _readable(part)) for key, part in value.items())
        return {key: part for key, part in parts if part not in _EMPTY and key not in _SECRET}
    if isinstance(value, list):
        return [part for part in map(_readable, value) if part not in _EMPTY]
    if isinstance(value, str) and len(value) > _MAX_WORD and not any(map(str.isspace, value)):
        return None
    return value
