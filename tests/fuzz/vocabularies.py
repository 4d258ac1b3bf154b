"""Damages real vocabularies, and has those that the pre-check accepts loaded and used.

    python -m tests.fuzz.vocabularies --count 1000 --seed 1     so many of each; totals at the end
    python -m tests.fuzz.vocabularies --only 42 --keep 42.gguf --name gpt-2      one, to look at

A mutant is one of llama.cpp's own `ggml-vocab-*` files with one to three things changed: the value
of a key, bytes of tokens, types and merges, or its end. It depends on the seed, the vocabulary's
name and its number alone. What is accepted is loaded by another process, which reads and writes
text with it; the exit code is 1 if that process died.
"""

import argparse
import contextlib
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from lmlite.errors import ModelFileError
from lmlite.gguf.file import read_model_file
from lmlite.gguf.header import STRING, read_header
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.model import Model
from tests import REPOSITORY
from tests.conftest import LLAMA_CPP
from tests.fuzz.gguf import PROBE, WHOLES, Patience

KINDS = ("llama-spm", "gpt-2", "phi-3", "starcoder", "bert-bge")
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by gguf_type
TEXTS = (b"", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"none", b"default", b"\xff\xfe", b"x\0y")

# ---- mutants -------------------------------------------------------------------------------


class Original:
    """A vocabulary's file, and where in it the values of its keys are."""

    def __init__(self, name: str) -> None:
        path = LLAMA_CPP / "models" / f"ggml-vocab-{name}.gguf"
        self.data = path.read_bytes()
        metadata = read_header(str(path)).metadata
        # A key's value lies behind its name and its type; of a list, behind type and length too.
        self.places = {
            key: (self._behind(key) + (4 if value.n is None else 16), value.kind, value.n)
            for key, value in metadata.items()
        }

    def _behind(self, key: str) -> int:
        name = struct.pack("<Q", len(key)) + key.encode()
        return self.data.index(name) + len(name)


def mutant(original: Original, name: str, seed: int, number: int) -> bytes:
    """The mutant of this number."""
    rng = random.Random(f"{seed} {name} {number}")
    data = bytearray(original.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice([key for key in original.places if key.startswith("tokenizer")])
        at, kind, n = original.places[key]
        if rng.random() < 0.05:
            del data[rng.randrange(len(data)) :]
        elif kind == STRING:
            with contextlib.suppress(struct.error):  # an earlier change left none there
                _change_texts(rng, data, at, n)
        else:
            place = at + (0 if n is None else rng.randrange(n)) * SIZES[kind]
            value = rng.choice((*WHOLES, rng.randrange(200_000)))
            data[place : place + SIZES[kind]] = struct.pack("<Q", value)[: SIZES[kind]]
    return bytes(data)


def _change_texts(rng: random.Random, data: bytearray, at: int, n: int | None) -> None:
    """Another text, or some bytes of a text in a list: of its first ten thousand, as they lie."""
    length = _length(data, at)
    if n is None:
        text = rng.choice(TEXTS)
        data[at : at + 8 + length] = struct.pack("<Q", len(text)) + text
        return
    for _ in range(rng.randrange(min(n, 10_000))):
        at += 8 + length
        length = _length(data, at)
    match rng.randrange(4):
        case 0:
            data[at + 8 : at + 8 + length] = rng.randbytes(length)
        case 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, length + 1, 1 << 31, 1 << 63)))
        case 2:
            text = rng.choice(TEXTS)
            data[at : at + 8 + length] = struct.pack("<Q", len(text)) + text
        case _:  # the same as the one behind it
            following = at + 8 + length
            n_bytes = _length(data, following)
            data[at : at + 8 + length] = data[following : following + 8 + n_bytes]


def _length(data: bytearray, at: int) -> int:
    """Of the text at a place. Raises struct.error when an earlier change left none there."""
    (length,) = struct.unpack_from("<Q", data, at)
    if length > len(data) - at:
        raise struct.error("the text has no end")
    return int(length)


# ---- a loader in another process -----------------------------------------------------------


def load_each() -> None:
    """Loads the files that standard input names, and says what came of each."""
    lib = capi.load()
    lib.llama_backend_init()
    for line in sys.stdin:
        try:
            model = Model(lib, line.rstrip("\n"), vocab_only=True)
        except LlamaError:
            print("refused by the library", flush=True)
            continue
        vocab = model.vocab
        for text in (PROBE, "a" * 300, ""):
            for token in vocab.tokenize(text, add_special=True, parse_special=True):
                vocab.piece(token, special=True)
        for token in range(0, vocab.n_tokens, 1 + vocab.n_tokens // 1000):
            vocab.piece(token, special=True)
            vocab.ends_generation(token)
        model.close()
        print("used", flush=True)


class Loader:
    """Such a process; another one when it died."""

    def __init__(self) -> None:
        self._start()

    def __call__(self, path: Path) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        with Patience(self._process):
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline().strip()
        if said:
            return said
        self.close()
        self._start()
        return "died"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.vocabularies", "--load"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip


# ---- the run -------------------------------------------------------------------------------


def run(seed: int, numbers: range) -> Counter[str]:
    """Tries so many of each kind and prints each death. Totals by outcome."""
    totals: Counter[str] = Counter()
    loader = Loader()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.gguf"
        try:
            for name in KINDS:
                original = Original(name)
                for number in numbers:
                    path.write_bytes(mutant(original, name, seed, number))
                    try:
                        read_model_file(path, vocab_only=True)
                        outcome = loader(path)
                    except ModelFileError:
                        outcome = "refused"
                    totals[outcome] += 1
                    if outcome == "died":
                        print(f"seed {seed} {name} number {number}: the loader died", flush=True)
        finally:
            loader.close()
    return totals


def main() -> int:
    """The command; 1 when a loader died."""
    parser = argparse.ArgumentParser(description="Damaged vocabularies against the check.")
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", choices=KINDS, default=KINDS[0])
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--keep", help="write that mutant of that name to a file")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load_each()
        return 0
    if options.keep:
        data = mutant(Original(options.name), options.name, options.seed, options.only)
        Path(options.keep).write_bytes(data)
        return 0
    totals = run(options.seed, range(options.count))
    told = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(totals.items()))
    print(f"seed {options.seed}: {totals.total():,} mutants of {len(KINDS)} vocabularies: {told}")
    return int(totals["died"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
