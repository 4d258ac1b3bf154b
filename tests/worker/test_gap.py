"""Prompts with a gap, with the vocabularies of models that were trained to fill one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.gap import SNIPPET, gap_prompt
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.vocab import Vocab

FILES = [("a.py", "import re\n"), ("b.py", "x = 1\n")]


@pytest.fixture
def vocab_of(lib: Any, llama_cpp: Path) -> Iterator[Callable[[str], Vocab]]:
    """The vocabulary of this name in llama.cpp's tree."""
    models = []

    def load(name: str) -> Vocab:
        path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
        models.append(Model(lib, str(path), vocab_only=True))
        return models[-1].vocab

    yield load
    for model in models:
        model.close()


def ids(vocab: Vocab, text: str) -> list[int]:
    return vocab.tokenize(text, add_special=False, parse_special=False)


def shown(vocab: Vocab, *arguments: Any, **options: Any) -> str:
    tokens = gap_prompt(vocab, *arguments, **options)
    return b"".join(vocab.piece(token, special=True) for token in tokens).decode()


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("starcoder", "<fim_prefix>def f(<fim_suffix>):<fim_middle>"),
        (
            "deepseek-coder",
            "<|begin▁of▁sentence|><|fim▁begin|>def f(<|fim▁hole|>):<|fim▁end|>".replace(
                "|", "\uff5c"
            ),
        ),
    ],
)
def test_a_prompt_has_the_order_and_the_tokens_of_its_model(
    vocab_of: Callable[[str], Vocab], name: str, prompt: str
) -> None:
    vocab, prompt = vocab_of(name), prompt.replace("<|", "<\uff5c").replace("|>", "\uff5c>")
    assert shown(vocab, ids(vocab, "def f("), ids(vocab, "):")) == prompt
    special = vocab.tokenize(prompt, add_special=False, parse_special=True)
    assert gap_prompt(vocab, ids(vocab, "def f("), ids(vocab, "):")) == special


def test_files_come_first_with_their_names_if_the_model_has_a_token_for_them(
    vocab_of: Callable[[str], Vocab],
) -> None:
    plain = vocab_of("starcoder")
    gap = "<fim_prefix>1<fim_suffix>2<fim_middle>"
    assert shown(plain, ids(plain, "1"), ids(plain, "2"), FILES) == (
        f"\n\n--- snippet ---\n\nimport re\n\n\n--- snippet ---\n\nx = 1\n{gap}"
    )
    whole = vocab_of("refact")
    whole.gap_tokens["sep"] = whole.gap_tokens["rep"]
    assert shown(whole, ids(whole, "1"), ids(whole, "2"), FILES) == (
        "<reponame>myproject\n<reponame>a.py\nimport re\n<reponame>b.py\nx = 1\n"
        f"<reponame>filename\n{gap}"
    )
    assert shown(whole, ids(whole, "1"), ids(whole, "2")) == gap


def test_what_is_far_from_the_gap_is_left_out_first(vocab_of: Callable[[str], Vocab]) -> None:
    vocab = vocab_of("starcoder")
    before, after, files = list(range(100, 160)), list(range(200, 260)), [("a", "x = 1\n" * 9)]
    others = ids(vocab, SNIPPET) + ids(vocab, files[0][1])
    tokens = vocab.gap_tokens

    def cut(n_before: int, n_after: int, n_others: int, n_room: int) -> None:
        assert gap_prompt(vocab, before, after, files, n_room) == [
            *others[len(others) - n_others :],
            tokens["pre"], *before[len(before) - n_before :],
            tokens["suf"], *after[:n_after], tokens["mid"],
        ]  # fmt: skip

    cut(60, 60, len(others), n_room=1000)
    cut(60, 60, 7, n_room=130)
    cut(60, 40, 0, n_room=103)
    cut(30, 10, 0, n_room=43)
    cut(0, 0, 0, n_room=2)
