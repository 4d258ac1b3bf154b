"""The chat templates in llama.cpp's tree, and a vocabulary with all of their special tokens."""

import re
from functools import cache
from pathlib import Path

from tests.conftest import LLAMA_CPP
from tests.support.gguf_writer import CONTROL, Shape, llama_metadata, tokenizer_metadata, write_gguf

FOLDER = LLAMA_CPP / "models" / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

# Forms of special tokens: <end>, </end>, <|end|>, <|end>, <end|>, [END], ]<]end[>[, ]~b]
SPECIAL = re.compile(
    r"""</?[|\uff5c]?[\w:/"▁]{1,40}[|\uff5c]?>|\[/?[A-Z_]{2,30}\]|\]<\]\w+\[>\[|\[e~\[|\]~!?b[\[\]]"""
)


@cache
def source_of(name: str) -> str:
    """The template's text."""
    return (FOLDER / f"{name}.jinja").read_text()


@cache
def specials(name: str) -> list[str]:
    """All texts in the template that may be control tokens of its model."""
    return sorted(set(SPECIAL.findall(source_of(name))))


def write_special_vocabulary(path: Path) -> None:
    """Writes a model without weights. Its control tokens are the specials of all templates."""
    metadata = llama_metadata(Shape(), "special", 0) | tokenizer_metadata([" the"], None)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    more = sorted({text for name in NAMES for text in specials(name)} - set(tokens))
    metadata["tokenizer.ggml.tokens"] = tokens + more
    metadata["tokenizer.ggml.token_type"] = kinds + [CONTROL] * len(more)
    write_gguf(path, metadata)
