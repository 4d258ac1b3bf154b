"""Vocab: the tokenizer of a model. Any thread may use it."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError

_GUARDS = "\n.0a東"  # so different that hardly any text merges with all of them into one token
MAX_TOKENS = 1 << 26  # most tokens of a text; C returns -(1 << 31) if it cannot count them


class Vocab:
    """The tokenizer of a model: text to tokens, tokens to pieces."""

    def __init__(self, lib: Any, pointer: Any) -> None:
        self._lib = lib
        self.pointer = pointer
        self.n_tokens: int = lib.llama_vocab_n_tokens(pointer)
        self._adds_eos: bool = lib.llama_vocab_get_add_eos(pointer)

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        continues: bool = False,
        is_whole: bool = False,
    ) -> list[int]:
        """Tokens of the text. Raises LlamaError.

        `add_special` adds the token that the model expects before a text (BOS) and, if the text
        `is_whole`, the token after it (EOS); a text that is not whole is followed by a completion.
        `parse_special`: control tokens in the text are parsed. `continues`: other text comes before
        this text, so the tokenizer must not add a space between them.
        """
        for guard, before in self._guards if continues else ():
            tokens = self._tokenize(guard + text, False, parse_special)
            if tokens[: len(before)] == before:  # else the guard and the text merged to one token
                return tokens[len(before) :]
        tokens = self._tokenize(text, add_special, parse_special)
        return tokens[:-1] if add_special and self._adds_eos and not is_whole else tokens

    @functools.cached_property
    def _guards(self) -> list[tuple[str, list[int]]]:
        """Texts to put before a text that continues another, with their tokens to remove again.

        Empty if the tokenizer does not add a space before a text.
        """
        guards = [(text, self._tokenize(text, False, False)) for text in _GUARDS]
        return [(text, tokens) for text, tokens in guards if self._spelled(tokens) == f" {text}"]

    def _spelled(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        n_max = len(data) + 2  # most tokens have at least one byte; BOS and EOS have none
        while True:
            tokens = (ctypes.c_int32 * n_max)()
            n = self._lib.llama_tokenize(
                self.pointer, data, len(data), tokens, n_max, add_special, parse_special
            )
            if n >= 0:
                return tokens[:n]
            if not n_max < -n <= MAX_TOKENS:
                raise LlamaError("the text is too long to tokenize")
            n_max = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The token's bytes. Without `special`, those of a control token are empty."""
        buffer = ctypes.create_string_buffer(64)
        while True:
            n: int = self._lib.llama_token_to_piece(
                self.pointer, token, buffer, len(buffer), 0, special
            )
            if n >= 0:
                return buffer.raw[:n]
            buffer = ctypes.create_string_buffer(-n)  # C reports that it needs -n bytes

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; joined, they are the tokenized text."""
        pieces = [self.piece(token, special=True) for token in tokens]
        if pieces and self._has_space_in_front:
            pieces[0] = pieces[0].removeprefix(b" ")
        return pieces

    @functools.cached_property
    def _has_space_in_front(self) -> bool:
        """Whether the tokenizer adds a space before a text."""
        (first, *_) = self._tokenize("a", False, False)
        return self.piece(first).startswith(b" ")

    def spelling(self, name: str) -> str | None:
        """The text of a special token: `bos` (begins a text), `eos` (ends it) or `pad`."""
        token: int = getattr(self._lib, f"llama_vocab_{name}")(self.pointer)
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else None

    @functools.cached_property
    def gap_tokens(self) -> dict[str, int]:
        """The tokens of prompts with a gap, those that the vocabulary has, by llama.cpp's names.

        `pre`, `suf` and `mid` come before the text before the gap, before the text after it, and
        before its filling; `rep` before a repository's name, `sep` before a file's.
        """
        names = ("pre", "suf", "mid", "rep", "sep")
        tokens = {
            name: getattr(self._lib, f"llama_vocab_fim_{name}")(self.pointer) for name in names
        }
        return {name: token for name, token in tokens.items() if token >= 0}

    def separators(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens before, between and after two texts of one sequence."""
        bos, eos, sep = (
            [int(getattr(self._lib, f"llama_vocab_{name}")(self.pointer))]
            if getattr(self._lib, f"llama_vocab_get_add_{name}")(self.pointer)
            else []
            for name in ("bos", "eos", "sep")
        )
        if eos == [-1]:
            eos = [int(self._lib.llama_vocab_sep(self.pointer))]
        return bos, eos + sep, eos

    @property
    def adds_bos(self) -> bool:
        """Whether each prompt begins with the token `bos`."""
        return bool(self._lib.llama_vocab_get_add_bos(self.pointer))

    def ends_generation(self, token: int) -> bool:
        """Whether this token ends a completion."""
        return bool(self._lib.llama_vocab_is_eog(self.pointer, token))

    def control_texts(self) -> list[str]:
        """The spellings of control tokens, which are parsed only with `parse_special`."""
        pieces = {self.piece(token, special=True) for token in self.control_tokens}
        return sorted({piece.decode("utf-8", "replace") for piece in pieces} - {""})

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end a completion."""
        return tuple(filter(self.ends_generation, range(self.n_tokens)))

    @functools.cached_property
    def control_tokens(self) -> list[int]:
        """Tokens that do not stand for text."""
        wanted = capi.TOKEN_ATTR_CONTROL | capi.TOKEN_ATTR_UNKNOWN
        attribute, pointer = self._lib.llama_vocab_get_attr, self.pointer
        return [t for t in range(self.n_tokens) if attribute(pointer, t) & wanted]
