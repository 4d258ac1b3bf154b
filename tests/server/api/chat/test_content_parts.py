"""Content of types that this server does not know: what can be read of it, else one line."""

import base64
from typing import Any

import pytest

from lmlite.server.api.chat.content_parts import part_text, told
from lmlite.server.api.fields import Field

NOTE = base64.b64encode("Grüße\n".encode()).decode()
LONG = {"type": "x", "text": "a " * 2000}


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "text", "text": "Hi"}, "Hi"),
        ({"type": "refusal", "refusal": "No."}, "No."),
        ({"type": "input_text", "text": "Hi"}, "Hi"),
        ({"type": "input_file", "file_data": f"data:text/plain;base64,{NOTE}"}, "Grüße\n"),
        ({"type": "input_image", "file_id": "file_1"}, '[input_image: {"file_id": "file_1"}]\n'),
        ({"type": ["x"], "text": "Hi"}, "[['x']: {\"text\": \"Hi\"}]\n"),
        ({"type": "file", "file": {"file_data": f"data:text/plain;base64,{NOTE}"}}, "Grüße\n"),
        ({"type": "file", "file": {"file_data": f"data:text/plain;charset=utf-8;base64,{NOTE}"}},
         "Grüße\n"),
        ({"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}},
         "[file: it cannot be read here]\n"),
        ({"type": "file", "file": {"file_data": "data:text/plain,Hi", "filename": "a.txt"}},
         "[file a.txt: it cannot be read here]\n"),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE",
                                   "filename": "two\nlines.pdf"}},
         "[file two lines.pdf: it cannot be read here]\n"),
        ({"type": "file", "file": {"file_id": "file_1"}}, "[file: it cannot be read here]\n"),
        ({"type": "file", "file": "x"}, '[file: {"file": "x"}]\n'),
        ({"type": "input_audio", "input_audio": {"data": "UklG" * 100, "format": "wav"}},
         '[input_audio: {"input_audio": {"format": "wav"}}]\n'),
        ({"type": "tool_reference", "tool_name": "get_weather", "cache_control": {"a": 1}},
         '[tool_reference: {"tool_name": "get_weather"}]\n'),
        ({"type": "smell"}, ""),
    ],
)  # fmt: skip
def test_a_part_becomes_text(part: dict[str, Any], text: str) -> None:
    assert part_text(Field(part, "messages.[0].content.[0]")) == text


def test_a_line_is_one_line_of_bounded_length_without_ids_and_data() -> None:
    item = {"type": "mcp_call", "id": "mcp_1", "status": "completed", "name": "search",
            "output": "two\nlines", "error": None, "n": 0, "list": [{}, {"encrypted_content": "x"}],
            "image": "A" * 201}  # fmt: skip
    line = '[mcp_call: {"name": "search", "output": "two\\\\nlines", "n": 0}]\n'
    assert told("mcp_call", item) == line.replace("\\\\", "\\")
    assert len(told("x", LONG)) == 2000 + len("[x: ...]\n")
    assert told("item_reference", {"type": "item_reference", "id": "msg_1"}) == ""


def test_what_nests_too_deeply_is_not_told() -> None:
    assert told("x", {"value": nested(100_000)}) == ""
