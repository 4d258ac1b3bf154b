"""Content that this server has nothing for, as text: what can be read of it, else one line.

Agents send with every turn all that they and other servers have said before, so a part or an item
of an unknown type must not end their conversation. Pure.
"""

import base64
import binascii
import json
from collections.abc import Collection, Iterator
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.fields import Body, required

MAX_LINE = 2000  # characters
_MAX_WORD = 200  # of a value without a space: what is longer is no text, but data
# The types of parts that are text, in chats and in responses, and the field that has it.
_TEXTS = dict.fromkeys(("text", "input_text", "output_text", "summary_text", "reasoning_text"),
                       "text") | {"refusal": "refusal"}  # fmt: skip
_IMAGES = ("image_url", "input_image", "computer_screenshot")
_SECRET = {"encrypted_content", "signature", "cache_control", "citations"}
_NOT_TOLD = {*_SECRET, "id", "type", "status", "call_id", "tool_use_id"}
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def part_text(part: Body, path: str) -> str:
    """The text of a chat's content part, of an image that is not shown too. Raises BadRequest."""
    kind = required(part, "type", f"{path}.type")
    if kind == "file" and type(part.get("file")) is dict:
        return file_text(part["file"])
    if kind == "input_file":
        return file_text(part)
    if is_image(part):
        return unreadable("image")
    if type(kind) is not str or kind not in _TEXTS:
        return told(kind, part)
    field = _TEXTS[kind]
    text = required(part, field, f"{path}.{field}")
    if type(text) is not str:
        raise BadRequest(f"{field} is a string", param=f"{path}.{field}")
    return text


def is_image(part: Body) -> bool:
    """Whether a part has an image, and does not only name a file that is kept elsewhere."""
    return part["type"] in _IMAGES and part.get("file_id") is None


def unread_parts(messages: list[Body], shown: Collection[str]) -> Iterator[str]:
    """The types of the parts of read messages that are told, as names of what is ignored.

    `shown` are the paths of the images that the model sees.
    """
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if type(content) is list else ()):
            kind = part["type"]
            is_text = type(kind) is str and kind in _TEXTS
            if not is_text and f"messages.[{i}].content.[{j}]" not in shown:
                yield f"content.{kind}"


def file_text(file: Body) -> str:
    """What a file of a text type holds; for others, a line that says that it cannot be read."""
    data = file.get("file_data")
    text = _text_of_url(data) if type(data) is str else None
    return text if text is not None else unreadable("file", file.get("filename"))


def unreadable(kind: str, *facts: Any) -> str:
    """The line for a file that this server cannot show to the model.

    >>> unreadable("document", "a.pdf", None, "application/pdf").strip()
    '[document a.pdf application/pdf: it cannot be read here]'
    """
    words = [kind, *(fact for fact in facts if type(fact) is str)]
    return f"[{' '.join(' '.join(words).split())[:MAX_LINE]}: it cannot be read here]\n"


def told(kind: Any, facts: Body) -> str:
    """A line that says what is known of something; "" if it has nothing to say.

    >>> told("web_search_call", {"id": "ws_1", "action": {"type": "search"}}).strip()
    '[web_search_call: {"action": {"type": "search"}}]'
    """
    known = facts_of(facts)
    if not known:
        return ""
    return f"[{str(kind)[:64]}: {known[:MAX_LINE]}{'...' if len(known) > MAX_LINE else ''}]\n"


def facts_of(item: Body) -> str:
    """What a reader understands of an item, as JSON: no ids, no data. "" for nothing."""
    try:
        known = _readable({key: item[key] for key in item if key not in _NOT_TOLD})
        return json.dumps(known, ensure_ascii=False) if known else ""
    except RecursionError:  # a depth that reading just survived
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


def _text_of_url(url: str) -> str | None:
    """The text in a data URL of a text type; None: it is none. Nothing is unquoted."""
    head, comma, data = url.partition(",")
    is_text = head.startswith(("data:text/", "data:application/json"))
    if not comma or not is_text or not head.endswith(";base64"):
        return None
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
