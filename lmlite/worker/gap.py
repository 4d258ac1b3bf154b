"""Prompts with a gap for the model to fill, as in the middle of a source file.

The order is that of llama.cpp's server: files, then the text before the gap, then the text after
it. Models that were trained with whole repositories have tokens for names of files.
"""

from collections.abc import Iterable

from lmlite.worker.llama.vocab import Vocab

# The names of what has no name in a request, and what comes before a file without a token for it.
REPOSITORY, CURRENT_FILE = "myproject", "filename"
SNIPPET = "\n\n--- snippet ---\n\n"


def gap_prompt(
    vocab: Vocab,
    before: list[int],
    after: list[int],
    files: Iterable[tuple[str, str]] = (),
    n_room: int | None = None,
) -> list[int]:
    """The tokens of a prompt that ends where the gap's text begins. `files`: names and texts.

    With `n_room`, at most that many tokens if possible: the text after the gap keeps a quarter of
    the room or more, and the end of the files is kept. The vocabulary must have pre, suf and mid.
    """
    tokens, others = vocab.gap_tokens, _file_tokens(vocab, files)
    head = vocab.tokenize("", add_special=True, parse_special=False)
    if n_room is not None:
        n_free = max(0, n_room - len(head) - 3)
        after = after[: max(n_free // 4, n_free - len(before))]
        before = before[max(0, len(before) + len(after) - n_free) :]
        others = others[max(0, len(others) + len(before) + len(after) - n_free) :]
    return [*head, *others, tokens["pre"], *before, tokens["suf"], *after, tokens["mid"]]


def _file_tokens(vocab: Vocab, files: Iterable[tuple[str, str]]) -> list[int]:
    def read(text: str) -> list[int]:
        return vocab.tokenize(text, add_special=False, parse_special=False)

    tokens, found = vocab.gap_tokens, list[int]()
    for name, text in files:
        found += [tokens["sep"], *read(f"{name}\n")] if "sep" in tokens else read(SNIPPET)
        found += read(text)
    if found and "sep" in tokens:
        found += [tokens["sep"], *read(f"{CURRENT_FILE}\n")]
    if found and "rep" in tokens:
        found[:0] = [tokens["rep"], *read(f"{REPOSITORY}\n")]
    return found
