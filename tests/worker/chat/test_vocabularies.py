"""Any vocabulary makes tokens of a continued text that spell exactly this text.

A vocabulary that wants EOS behind a text gets it only where the text is whole.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from lmlite.messages import ChatMessage, Complete, Embed, SamplingParams
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.vocab import Vocab
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence
from tests.conftest import LLAMA_CPP
from tests.support.gguf_writer import CONTROL, NORMAL, Shape, llama_metadata, write_gguf

UNKNOWN, BYTE = 2, 6  # of enum llama_token_type, beside those two
NAMES = sorted(
    path.stem.removeprefix("ggml-vocab-") for path in LLAMA_CPP.glob("models/ggml-vocab-*.gguf")
)
# Vocabularies of embedding models: they drop capitals, accents and blanks of every text.
LOSSY = ("bert-bge", "nomic-bert-moe")
BEGINNINGS = [
    "".join(letters)
    for n in range(1, 4)
    for letters in itertools.product("\n \t.0a<é東🌍", repeat=n)
]


def write_sentencepiece(path: Path, **keys: Any) -> None:
    """A SentencePiece vocabulary in which some tokens are several line breaks."""
    letters = [bytes([n]).decode() for n in range(32, 127)] + ["\n", "\t", "▁", "é", "東"]
    longer = ["\n\n", "\n\n\n", "▁▁", "▁a", "▁W", ".\n", "0a", "aW", "a\n", "00", "éa"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters, *longer]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(letters + longer)
    metadata = llama_metadata(Shape(), "pieces", 0) | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-float(n) for n in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    write_gguf(path, metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()})


@contextmanager
def opened(lib: Any, path: Path) -> Iterator[Vocab]:
    model = Model(lib, str(path), vocab_only=True)
    try:
        yield model.vocab
    finally:
        model.close()


def spelled(vocab: Vocab, tokens: list[int]) -> bytes:
    return b"".join(map(vocab.piece, tokens))


def continued(vocab: Vocab, text: str) -> list[int]:
    return vocab.tokenize(text, add_special=False, parse_special=True, continues=True)


def misspelled(vocab: Vocab) -> list[str]:
    """The continued texts that their tokens do not spell."""
    texts = [begin + rest for begin in BEGINNINGS for rest in ("", "what")]
    return [text for text in texts if spelled(vocab, continued(vocab, text)) != text.encode()]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LOSSY])
def test_a_continued_text_is_what_its_tokens_spell(lib: Any, name: str) -> None:
    with opened(lib, LLAMA_CPP / "models" / f"ggml-vocab-{name}.gguf") as vocab:
        assert misspelled(vocab) == []


@pytest.mark.parametrize("spaced", [True, False])
def test_a_continued_text_keeps_its_line_breaks_where_tokens_hold_several(
    lib: Any, tmp_path: Path, spaced: bool
) -> None:
    path = tmp_path / "pieces.gguf"
    write_sentencepiece(path, add_space_prefix=spaced)
    with opened(lib, path) as vocab:
        assert misspelled(vocab) == []
        (three,) = continued(vocab, "\n\n\n")
        assert vocab.piece(three) == b"\n\n\n"


# ---- tokens around a text ---------------------------------------------------------------------

BOS, EOS = 1, 2


@pytest.fixture
def ending(lib: Any, tmp_path: Path) -> Iterator[Model]:
    """A model whose vocabulary wants EOS behind a text."""
    path = tmp_path / "ending.gguf"
    write_sentencepiece(path, add_eos_token=True)
    model = Model(lib, str(path), vocab_only=True)
    yield model
    model.close()


def test_a_prompt_does_not_end_with_eos_as_its_completion_follows(ending: Model) -> None:
    tokens = ending.vocab.tokenize("what", add_special=True, parse_special=True)
    assert tokens[0] == BOS
    assert EOS not in tokens
    whole = ending.vocab.tokenize("what", add_special=True, parse_special=True, is_whole=True)
    assert whole == [*tokens, EOS]


def test_a_prompt_in_parts_has_no_eos_in_the_middle(ending: Model) -> None:
    template = ChatTemplate(ending, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    said = [ChatMessage("user", "I write </s> and <s> to you")]
    tokens = template.render(said).prompt.ids
    template.close()
    assert tokens[0] == BOS
    assert not {BOS, EOS} & set(tokens[1:])
    assert spelled(ending.vocab, tokens) == b" I write </s> and <s> to you\n"


def prepared(model: Model, request: Complete | Embed) -> list[int]:
    (made,) = Preparer(model, cast(Any, object()), 2048, lambda _: None).prepare(request)
    return made.prompt if isinstance(made, Sequence) else made.tokens


def test_a_completion_follows_its_prompt_and_an_embedded_text_is_whole(
    ending: Model,
) -> None:
    before = ending.vocab.tokenize("what", add_special=False, parse_special=True)
    assert prepared(ending, Complete(1, ("what",), SamplingParams())) == [BOS, *before]
    assert prepared(ending, Embed(2, ("what",))) == [BOS, *before, EOS]
