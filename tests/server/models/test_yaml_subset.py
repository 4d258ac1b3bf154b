"""What of YAML is read, and as which values; what is refused, and at which line."""

import contextlib
import random
import time
from textwrap import dedent
from typing import Any

import pytest

from lmlite.server.models.yaml_subset import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_VALUES,
    YamlError,
    read_yaml,
)

# From LM Studio's documentation of model.yaml, shortened.
MODEL = """\
# the model
model: qwen/qwen3-8b
base:
  - key: lmstudio-community/qwen3-8b-gguf
    sources:
      - type: huggingface
        user: lmstudio-community
        repo: Qwen3-8B-GGUF
metadataOverrides:
  contextLengths:
  - 40960
  vision: false
config:
  operation:
    fields:
      - key: llm.prediction.topKSampling
        value: 20
      - key: llm.prediction.minPSampling
        value:
          checked: true
          value: 0
      - key: llm.prediction.systemPrompt
        value: |-
          You are kind.

            {{ never }}: a template
customFields:
  - {key: enableThinking, type: boolean, defaultValue: true}
"""

VALUES: list[tuple[str, Any]] = [
    # scalars
    ("", None),
    ("# nothing\n\n", None),
    ("---\na: 1\n", {"a": 1}),
    ("--- # the start\na: 1\n", {"a": 1}),
    ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ("[~, null, Null, true, False, TRUE]", [None, None, None, True, False, True]),
    ("[1, -2, +3, 007, 0x1F, 0o17]", [1, -2, 3, 7, 31, 15]),
    ("[1.5, .5, 2., 1e3, -1.5E-2]", [1.5, 0.5, 2.0, 1000.0, -0.015]),
    ("[yes, off, 1_000, 1.2.3, 12:30]", ["yes", "off", "1_000", "1.2.3", "12:30"]),
    ("a: it's [not] a {list}, is it", {"a": "it's [not] a {list}, is it"}),
    ("a: http://b/c#d # e", {"a": "http://b/c#d"}),
    ("a: -1b", {"a": "-1b"}),
    ("a: ?b", {"a": "?b"}),
    ("a: b\n  c\n\n  d\ne: f", {"a": "b c\nd", "e": "f"}),
    ("a:\n  b\n  c", {"a": "b c"}),
    # quoted
    ("a: 'it''s: # not'  # b", {"a": "it's: # not"}),
    ("a: 'b\n  c\n\n  d'", {"a": "b c\nd"}),
    (r'a: "\"\\\/\n\t\x41\u00e9\U0001F600\ud83d\ude00"', {"a": '"\\/\n\tAé😀😀'}),
    ('a: "b \\\n  c\n  d"', {"a": "b c d"}),
    ('a: "b\\\n\n  c"', {"a": "b\nc"}),
    ('a: ""\nb: \'\'', {"a": "", "b": ""}),
    ("'a b': 1\n\"c\\td\" : 2", {"a b": 1, "c\td": 2}),
    # mappings and sequences
    ("a:\nb: # c\n  d: 1\n", {"a": None, "b": {"d": 1}}),
    ("true: 1\n2: 3", {"true": 1, "2": 3}),
    ("a b: 1\nc:d: 2", {"a b": 1, "c:d": 2}),
    ("- a\n- - b\n  - c: d\n    e: f\n-\n  g: h\n-\n- ~", ["a", ["b", {"c": "d", "e": "f"}],
                                                       {"g": "h"}, None, None]),
    ("a:\n- b\n-  c: 1\n   d: 2\ne: 3", {"a": ["b", {"c": 1, "d": 2}], "e": 3}),
    ("a:\n\n  # b\n      c: 1\n# d\n      e: 2", {"a": {"c": 1, "e": 2}}),
    # flow
    ("[]", []),
    ("{}", {}),
    ("[b c, 'd, e', [f], {g: 1, \"h\":2}, ]  # i", ["b c", "d, e", ["f"], {"g": 1, "h": 2}]),
    ("{a: , b: http://c, d: [ ] }", {"a": None, "b": "http://c", "d": []}),
    # texts in lines
    ("a: |\n  b\n\n   c # d\n\ne: 1", {"a": "b\n\n c # d\n", "e": 1}),
    ("a: |-\n  b\n\ne: 1", {"a": "b", "e": 1}),
    ("a: |+\n  b\n\ne: 1", {"a": "b\n\n", "e": 1}),
    ("a: |\n\n\n  b", {"a": "\n\nb\n"}),
    ("a: |2\n    b\n  c", {"a": "  b\nc\n"}),
    ("a: |1-\n  b", {"a": " b"}),
    ("a: |\nb: >-\nc: 1", {"a": "", "b": "", "c": 1}),
    ("- |\n  a\n- >\n  b\n  c\n", ["a\n", "b c\n"]),
    ("a: >\n  b\n  c\n\n  d\n   e\n  f\n", {"a": "b c\nd\n e\nf\n"}),
    ("a: >-  # b\n\n  c\n\n\n  d", {"a": "\nc\n\nd"}),
    ("a: |\n  \tb\n  ---\n", {"a": "\tb\n---\n"}),
]  # fmt: skip

FAULTS = [
    ("a: 1\nb: &c 1", 2, "anchors (&) are not read"),
    ("a: *b", 1, "aliases (*) are not read"),
    ("a: !!str 1", 1, "tags (!) are not read"),
    ("%YAML 1.2\n---\na: 1", 1, "directives (%) are not read"),
    ("<<: {a: 1}", 1, "merge keys (<<) are not read"),
    ("{<<: {a: 1}}", 1, "a mapping in braces ends in its line and has plain keys"),
    ("? a\n: b", 1, "complex keys (?) are not read"),
    ("[a]: b", 1, ": b after the end of the value"),
    ("a: @b", 1, "texts that begin with @ are not read"),
    ("a:\n\tb: 1", 2, "a tab in the indentation"),
    ("a:\n  b: 1\n \tc: 2", 3, "a tab in the indentation"),
    ("-\ta", 1, "a text that begins with - needs quotes"),
    ("a: 1\nb: 2\na: 3", 3, "the key a appears twice"),
    ("a: {b: 1, b: 2}", 1, "the key b appears twice"),
    ("a: 1\n---\nb: 2", 2, "--- is only read alone at the start"),
    ("--- a: 1", 1, "--- is only read alone at the start"),
    ("a: 1\n...\n", 2, "... is only read alone at the start"),
    ("a: 1\n  b: 2", 2, "a text with a colon and a space needs quotes"),
    ("a: b: c", 1, "a text with a colon and a space needs quotes"),
    ("a:\n  b: 1\n   c: 2", 3, "a text with a colon and a space needs quotes"),
    ("a: [1]\n   b: 2", 2, "the line is indented more than the key above it"),
    ("a:\n    b: 1\n  c: 2", 3, "the line is indented more than the key above it"),
    ("a:\n  - b\n  c: 1", 3, "the line is indented more than the key above it"),
    ("a: 1\nb", 2, "the line has no key"),
    ("a: 1\n- b", 2, "the line belongs to nothing above it"),
    ("- a\nb: 1", 2, "the line belongs to nothing above it"),
    ("- [a]\n  b", 2, "the line is not an item of the list above it"),
    ("a: 'b", 1, "the text in ' has no end"),
    ('a: "b\nc: "d"', 2, 'the text in " has no end before this line'),
    ('a: "b" c', 1, "c after the end of the value"),
    ('a: "b"#c', 1, "#c after the end of the value"),
    ('a: "\\q"', 1, "\\q is not an escape sequence"),
    ('a: "\\U00110000"', 1, "\\U00110000 is not an escape sequence"),
    ('a: "\\ud83d"', 1, "half a character in a text"),
    ('a: "b\\ \n  c"', 1, "a backslash before a space at the end of a line"),
    ("a: [1,\n  2]", 1, "a list or a mapping in brackets ends in its line"),
    ("a: [1 [2]]", 1, "a comma or ] is missing"),
    ("a: [b: 1]", 1, "a comma or ] is missing"),
    ("a: [,]", 1, "a list or a mapping in brackets ends in its line and has no empty item"),
    ("a: {b}", 1, "the key b has no value"),
    ("a: ['b\n  c']", 1, "a text in quotes within brackets ends in its line"),
    ("a: |x\n  b", 1, "|x is not the start of a text in lines"),
    ("a: |\n    \n  b", 3, "a blank line above is indented more than the text"),
    ("a: |\n  b\n c\n", 3, "the line is indented more than the key above it"),
    ("a: .inf", 1, ".inf is not a number that can be used"),
    ("a: 1e999", 1, "1e999 is too large"),
    ("a: " + "1" * 65, 1, "a number with too many digits"),
    ("a: \x00", 1, "a character that cannot be printed"),
    ("a: b\rc", 1, "a character that cannot be printed"),
    ("- " * (MAX_DEPTH + 1), 1, "more than 32 levels"),
    ("[" * (MAX_DEPTH + 1), 1, "more than 32 levels"),
    ("- a\n" * (MAX_VALUES + 1), MAX_VALUES + 1, "the text has more than 50,000 values"),
]  # fmt: skip


def test_a_model_yaml_is_read() -> None:
    assert read_yaml(MODEL) == {
        "model": "qwen/qwen3-8b",
        "base": [
            {
                "key": "lmstudio-community/qwen3-8b-gguf",
                "sources": [
                    {
                        "type": "huggingface",
                        "user": "lmstudio-community",
                        "repo": "Qwen3-8B-GGUF",
                    }
                ],
            }
        ],
        "metadataOverrides": {"contextLengths": [40960], "vision": False},
        "config": {
            "operation": {
                "fields": [
                    {"key": "llm.prediction.topKSampling", "value": 20},
                    {
                        "key": "llm.prediction.minPSampling",
                        "value": {"checked": True, "value": 0},
                    },
                    {
                        "key": "llm.prediction.systemPrompt",
                        "value": "You are kind.\n\n  {{ never }}: a template",
                    },
                ]
            }
        },
        "customFields": [{"key": "enableThinking", "type": "boolean", "defaultValue": True}],
    }


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_a_text_has_its_value(text: str, value: Any) -> None:
    found = read_yaml(text)
    assert found == value
    assert repr(found) == repr(value)  # 1 is neither 1.0 nor true


@pytest.mark.parametrize(("text", "line", "message"), FAULTS)
def test_what_is_not_read_is_refused_and_the_line_is_told(
    text: str, line: int, message: str
) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert str(caught.value).startswith(f"line {line}: {message}")


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(YamlError, match="more than 1,048,576 characters"):
        read_yaml("#" * (MAX_CHARACTERS + 1))


PIECES = [*"\n-:#\"'|>[]{},\\ ?&~", "\n  ", "\n    ", "- ", ": ", " #", "|-\n", ">+\n", "''",
          "a", "b: 1", "\n\n", "\\u12", "true", "1.5e", "key:\n  ", "\n- ", "\nk: ", "---\n",
          "\t", "é", "\r\n"]  # fmt: skip


def test_ten_thousand_damaged_texts_end_with_a_value_or_an_error() -> None:
    chance = random.Random(23)
    n_values = 0
    for _ in range(10_000):
        text = chance.choice([MODEL, dedent(chance.choice(VALUES)[0]), ""])
        for _ in range(chance.randint(1, 12)):
            at = chance.randint(0, len(text))
            end = at + chance.choice([0, 0, 1, 2, 9])
            text = text[:at] + chance.choice(PIECES) + text[end:]
        try:
            read_yaml(text)
            n_values += 1
        except YamlError as err:
            assert "line " in str(err)
    assert n_values > 500


N = MAX_CHARACTERS - 32
LONG = {
    "dashes": "- " * (N // 2),
    "brackets": "[" * N,
    "items": "a: [" + "b, " * (N // 3) + "]",
    "spaces in a list": "a: [b" + " " * N + "#]",
    "spaces and words": "a: [" + "b  " * (N // 3) + "#]",
    "keys": "\n".join(f"k{i}:" for i in range(N // 8)),
    "a text over lines": "a\n" * (N // 2),
    "blank lines": "a: b" + "\n" * N,
    "backslashes": 'a: "' + "\\" * N,
    "joined lines": 'a: "' + "b\\\n " * (N // 4),
    "quotes": "a: '" + "'" * N,
    "colons": "a:" * (N // 2),
    "digits": "a: " + "1" * N + "b",
    "a text in lines": "a: |\n" + " b\n" * (N // 3),
    "a folded text": "a: >\n" + " b\n\n" * (N // 4),
    "blank lines before a text": "a: |\n" + " \n" * (N // 2) + "  b",
    "braces": "{" + ",".join(f"a{i}: " for i in range(N // 10)) + "}",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_takes_a_time_in_proportion_to_its_length(text: str) -> None:
    """A second for a mebibyte at most, measured. A quadratic time would be hours."""
    began_s = time.process_time()
    with contextlib.suppress(YamlError):
        read_yaml(text)
    assert time.process_time() - began_s < 10
