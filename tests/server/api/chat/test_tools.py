"""Which tools may be called, or must be: every form of `tool_choice`, and what it cannot mean."""

from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.server.api.chat.tools import parse_tool_choice
from lmlite.server.api.fields import Field

NAMES = ("f", "g", "h")


def function(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: Any, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


CUSTOM = {"type": "custom", "custom": {"name": "h"}}
HOSTED = {"type": "image_generation"}


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, ("auto", ())),
        ("auto", ("auto", ())),
        ("none", ("none", ())),
        ("required", ("required", ())),
        (function("g"), ("required", ("g",))),
        (CUSTOM, ("required", ("h",))),
        (allowed("auto", CUSTOM, function("f")), ("auto", ("f", "h"))),
        (allowed("required", function("f"), HOSTED, function("x")), ("required", ("f",))),
        (allowed("auto", HOSTED), ("none", ())),
    ],
)
def test_a_choice_is_a_mode_and_the_only_tools(choice: Any, meant: Any) -> None:
    assert parse_tool_choice(Field(choice), NAMES) == meant


@pytest.mark.parametrize("choice", [None, "auto", "none", allowed("auto", function("f"))])
def test_without_tools_none_can_be_called(choice: Any) -> None:
    assert parse_tool_choice(Field(choice), ())[1] == ()


@pytest.mark.parametrize(
    ("choice", "names", "message"),
    [
        ("required", (), "tool_choice needs tools"),
        (function("f"), (), "tool_choice needs tools"),
        ("any", NAMES,
         "tool_choice is auto, none, required, a tool by its name, or allowed_tools"),
        (function("x"), NAMES, "tool_choice names none of the tools"),
        (function(["f"]), NAMES, "tool_choice names none of the tools"),
        (HOSTED, NAMES, "tool_choice names none of the tools"),
        (allowed("required", HOSTED), NAMES, "tool_choice allows none of the tools"),
        (allowed("none", function("f")), NAMES,
         "allowed_tools has a mode, auto or required, and a list of tools"),
        ({"type": "allowed_tools"}, NAMES,
         "allowed_tools has a mode, auto or required, and a list of tools"),
    ],
)  # fmt: skip
def test_what_is_missing_is_refused(choice: Any, names: Any, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_tool_choice(Field(choice, "tool_choice"), names)
    assert (caught.value.message, caught.value.param) == (message, "tool_choice")
