"""A byte-pair tokenizer, learned from the training text, that llama.cpp splits in the same way.

Text is cut into words and runs of signs (as Qwen2's tokenizer does it, every digit for itself),
and within each the most frequent pairs are merged. Two things differ from the usual recipe, both
to make copying easy, which is most of what this model does: signs never merge with letters, so
that a word is spelled alike after a quote and after a line break; and every piece of letters has
a twin with a space in front, made by a last merge, so that it is spelled alike inside a sentence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tests.support.gguf_writer import CONTROL, NORMAL, Value, byte_alphabet, spelled
from tests.tiny_model.conversation import TEMPLATE

# Qwen2's expression in the words of Python's `re`: [^\W\d_] is a letter.
SPLIT = re.compile(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|(?:[^\r\n\w]|_)?[^\W\d_]+|\d"
    r"| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>",
                "<tool_response>", "</tool_response>", "<tools>", "</tools>")  # fmt: skip
SPACE = spelled(" ")
MOST_CACHED = 100_000  # words, of which training makes up millions
USER_DEFINED = 4  # enum llama_token_type: a token of its own that counts as text


class Tokenizer:
    """Text <-> token ids; the same ids as llama.cpp gives for the same vocabulary."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = list(merges)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.tokens = [*byte_alphabet(), *("".join(pair) for pair in merges)]
        self.n_plain = len(self.tokens)
        self.tokens += CONTROL_TOKENS + PLAIN_TOKENS
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self._special = re.compile("|".join(map(re.escape, CONTROL_TOKENS + PLAIN_TOKENS)))
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, which may spell control tokens."""
        ids: list[int] = []
        end = 0
        for special in self._special.finditer(text):
            ids += self._encode_plain(text[end : special.start()])
            ids.append(self.ids[special.group()])
            end = special.end()
        return ids + self._encode_plain(text[end:])

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        if len(self._cache) > MOST_CACHED:
            self._cache.clear()
        for word in SPLIT.findall(text):
            if word not in self._cache:
                pieces = merge_all(list(spelled(word)), self._ranks)
                self._cache[word] = [self.ids[piece] for piece in pieces]
            ids += self._cache[word]
        return ids

    def twins(self) -> list[tuple[int, int]]:
        """(token with a space in front, the same without) for every such pair."""
        return [
            (self.ids[a + b], self.ids[b]) for a, b in self.merges if a == SPACE and b.isalpha()
        ]


def merge_all(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merges neighbours, the pair that was learned first before all others, until none is known."""
    while len(pieces) > 1:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces))]
        rank, i = min(pairs)
        if rank == len(ranks):
            break
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def learn(texts: Iterable[str], n_letter_merges: int, n_sign_merges: int) -> Tokenizer:
    """Learns the merges from texts."""
    letters: Counter[str] = Counter()
    signs: Counter[str] = Counter()
    special = re.compile("|".join(map(re.escape, CONTROL_TOKENS + PLAIN_TOKENS)))
    for text in texts:
        for word in SPLIT.findall(special.sub("\n", text)):
            if word[-1].isalpha():
                letters[spelled(word if word[0].isalpha() else word[1:])] += 1
            else:
                signs[spelled(word)] += 1
    merges = _most_frequent_pairs(letters, n_letter_merges)
    ascii_letters = [chr(c) for c in range(128) if chr(c).isalpha()]
    starts = [*ascii_letters, *("".join(pair) for pair in merges if "".join(pair).isascii())]
    return Tokenizer(
        merges + _most_frequent_pairs(signs, n_sign_merges) + [(SPACE, start) for start in starts]
    )


def _most_frequent_pairs(words: Counter[str], n_merges: int) -> list[tuple[str, str]]:
    spellings = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            pieces = spellings[word]
            for pair in pairwise(pieces):
                pairs[pair] += n
        # Equal counts go by spelling, so that the same texts always give the same vocabulary.
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for pieces in spellings.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges


def tokenizer_metadata(vocabulary: Tokenizer) -> dict[str, Value]:
    """The vocabulary, its merges, and how chats are written."""
    kinds = [NORMAL] * vocabulary.n_plain
    kinds += [CONTROL] * len(CONTROL_TOKENS) + [USER_DEFINED] * len(PLAIN_TOKENS)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
        "tokenizer.ggml.bos_token_id": vocabulary.ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": vocabulary.ids["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": vocabulary.ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE.read_text(),
    }
