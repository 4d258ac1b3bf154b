"""Marks: where they go into a text, and which of them stay in a prompt."""

import pytest

from lmlite.worker.chat.control_tokens import ControlTokens

PLAIN = ControlTokens(["<|end|>"])


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("a <|end|> b", "a <~|end|> b"),
        ("<|end|><|end|>", "<~|end|><~|end|>"),
        ("a <|en", "a <|en~"),
        ("nd|> b", "~nd|> b"),
        ("a <|en \n", "a <|en~ \n"),
        (" nd|>", " ~nd|>"),
        ("a <|END|> b", "a <~|END|> b"),
        (r' ["\u003c|end|>"]', r' ["\u003c~|end|>"]'),
        ('{"<|en": "d|>"}', '{"<|en~": "~d|>"}'),
        ("nothing", "nothing"),
        ("|end|", "|end|"),
        ("", ""),
        ("  ", "  "),
    ],
)
def test_markers_go_into_tokens_and_open_ends(text: str, marked: str) -> None:
    assert PLAIN.marked(text, "~") == marked


def test_a_letter_that_is_longer_in_lower_case_moves_no_marker() -> None:
    assert PLAIN.marked("\u0130 <|end|>", "~") == "\u0130 <~|end|>"


def test_json_gets_markers_in_its_strings_only() -> None:
    control_tokens = ControlTokens(["]~b]", "[a"])
    assert control_tokens.marked_json('["]", [1]]', "*") == '["*]*", [1]]'


@pytest.mark.parametrize(
    ("source", "text", "marked"),
    [
        ("{{ '<' ~ name ~ '>' }}", "|end|", "~|end|"),
        ("<{{ name }}>", "|end|", "~|end|"),
        ("{{ name }}", "|end|", "|end|"),
        ("{{ m.split('/a')[0] }}", "<|en/ad|>", "<~|en~/a~d|>"),
        ("{{ m.replace(\"/a\", '') }}", "<|en//aad|>", "<~|en~//aa~d|>"),
        ("{% set end = '/a' %}{{ m.split(end)[0] }}", "<|en/ad|>", "<~|en~/a~d|>"),
    ],
)
def test_words_in_the_template_open_more_ends(source: str, text: str, marked: str) -> None:
    assert ControlTokens(["<|end|>"], source).marked(text, "~") == marked


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a~b", ["ab"]),
        ("a <~|end|> b", ["a <", "|end|> b"]),
        ("<|e~n~d|>", ["<|e", "n", "d|>"]),
        ("<|end|>~<~|end|>~", ["<|end|><", "|end|>"]),
        ("", [""]),
        ("~", []),
    ],
)
def test_markers_stay_only_where_they_keep_a_token_apart(prompt: str, parts: list[str]) -> None:
    assert PLAIN.parts(prompt, "~") == parts
