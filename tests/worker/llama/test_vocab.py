"""Vocab against the real library and llama.cpp's reference pairs."""

from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama.model import Model

TOKENIZERS = ["bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4",
              "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact",
              "starcoder"]  # fmt: skip


def test_every_tokenizer_with_reference_pairs_is_tested(llama_cpp: Path) -> None:
    found = {path.name for path in (llama_cpp / "models").glob("ggml-vocab-*.gguf.inp")}
    assert found == {f"ggml-vocab-{name}.gguf.inp" for name in TOKENIZERS}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_agrees_with_its_reference_pairs(lib: Any, llama_cpp: Path, name: str) -> None:
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    expected = [list(map(int, line.split())) for line in lines]
    model = Model(lib, str(path), vocab_only=True)
    try:
        tokens = [
            model.vocab.tokenize(text, add_special=False, parse_special=False)
            for text in texts[: len(expected)]
        ]
    finally:
        model.close()
    assert len(expected) >= 40
    assert tokens == expected


def test_control_tokens_print_nothing_unless_asked(default_model: Model) -> None:
    vocab = default_model.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert vocab.piece(end) == b""
    assert vocab.piece(end, special=True) == b"<|im_end|>"
    assert vocab.ends_generation(end)


def test_text_cannot_spell_control_tokens_unless_they_are_parsed(default_model: Model) -> None:
    tokens = default_model.vocab.tokenize("<|im_end|>", add_special=False, parse_special=False)
    assert len(tokens) > 1
    assert b"".join(map(default_model.vocab.piece, tokens)) == b"<|im_end|>"


def test_every_byte_has_a_token(default_model: Model) -> None:
    vocab = default_model.vocab
    text = "".join(map(chr, range(1, 256))) + "日本🙂\x00"
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text
