"""Makes lmlite/models/lmlite-default.gguf: a language model written by hand, without training.

    python -m tests.make_default_model [PATH]

A language model gives each token a vector, changes it layer by layer, and compares the result
with a vector of each possible next token. Here the layers change nothing (what they add is
zero), so the whole model is two tables:

* The embedding gives a token its *state*: a vector with a single one. Every token of the
  sentences below has a state of its own; all others share state 0, "nothing said yet".
* The output table holds, for each state, a number for each token: the higher, the likelier it
  comes next. A word's successor has 16, everything else less than 10.

That is a Markov chain: the next token depends on the last one alone. A chat's prompt ends with a
line break, which is state 0, so the answer begins with a greeting, and each word leads to the
next until `<|im_end|>`. At temperature 0 the first sentence is always said; above, sentences
that are nearly as likely take turns. Where a grammar forbids the next word, the numbers of
single characters decide: they close what is open, so that JSON ends early instead of never.

The norm before the output table divides a vector by the root of its mean square: a single one
becomes the root of the vector's length. The table is divided by that, so its numbers are logits.
"""

import sys
from pathlib import Path

from tests.gguf_writer import (
    CHATML,
    SPECIAL_TOKENS,
    TENSOR_F16,
    TENSOR_F32,
    Shape,
    Tensor,
    Value,
    layer_shapes,
    llama_metadata,
    spelled,
    tensor,
    tokenizer_metadata,
    write_gguf,
)

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "lmlite" / "models" / "lmlite-default.gguf"
DESCRIPTION = (
    "A generated placeholder for trying the endpoints: it knows a few fixed sentences and "
    "answers with them whatever is asked, until the trained model takes its place."
)

# A token may stand in several sentences, where they cross over, but only once in the first.
SENTENCES = (
    ("Hello", "!", " I", " am", " the", " small", " generated", " model", " inside", " lmlite",
     ".", " Load", " a", " real", " one", " with", ":", " `", "lmlite", " serve", " MODEL",
     ".gguf", "`"),
    ("Hi", " there", "!", " This", " is", " the", " tiny", " generated", " model"),
    ("Welcome", "!", " You", " see", " the", " little", " built", "-in", " model"),
)  # fmt: skip
END = "<|im_end|>"
ELSEWHERE = 0  # the state of all tokens that the sentences lack

SUCCESSOR = 16.0
LATER_SENTENCE = 0.1  # so much less for each sentence further down: the first one wins, narrowly
AFTER_THE_END = 9.0  # a line break, for who asks to go on after <|im_end|>

SHAPE = Shape(n_layer=1, n_embd=64, n_head=2, n_head_kv=1, n_ff=64, n_ctx=4096)


def main() -> None:
    """Writes the model to the path given, or to its place in the package."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, *default_model())
    print(f"{path}: {path.stat().st_size:,} bytes")


def default_model() -> tuple[dict[str, Value], list[Tensor]]:
    """The metadata and the tensors."""
    states = states_of_words()
    metadata = llama_metadata(SHAPE, "lmlite-default", TENSOR_F16)
    metadata |= {"general.description": DESCRIPTION, "general.license": "mit"}
    metadata |= tokenizer_metadata(tuple(states), CHATML)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tensors = [
        _table("token_embd.weight", [_embedding(states.get(token, ELSEWHERE))
                                     for token in _texts(tokens)]),
        _norm("output_norm.weight"),
        _table("output.weight", _output_rows(tokens, states)),
    ]  # fmt: skip
    return metadata, tensors + [_idle(*item) for item in layer_shapes(SHAPE, 0).items()]


def states_of_words() -> dict[str, int]:
    """Each word of the sentences -> its state, from 1."""
    words = dict.fromkeys(word for sentence in SENTENCES for word in sentence)
    assert len(words) < SHAPE.n_embd, "each state needs a place in the vector"
    return {word: state for state, word in enumerate(words, 1)}


def chain(states: dict[str, int]) -> dict[tuple[int, str], float]:
    """(state, next word) -> its number. What an earlier sentence says stays."""
    logits: dict[tuple[int, str], float] = {}
    for rank, sentence in enumerate(SENTENCES):
        state = ELSEWHERE
        for word in sentence:
            logits.setdefault((state, word), SUCCESSOR - LATER_SENTENCE * rank)
            state = states[word]
    # The last word of the first sentence; the others run into the first and end with it.
    last = states[SENTENCES[0][-1]]
    return logits | {(last, END): SUCCESSOR, (last, "\n"): AFTER_THE_END}


def fallback(token: str) -> float:
    """The number of a token that the chain does not name: characters that close come first."""
    closing = {"}": 4.0, "]": 4.0, '"': 3.0, ",": 2.0, ":": 2.0}
    if token in closing:
        return closing[token]
    if token in SPECIAL_TOKENS:
        return -20.0
    if len(token) > 1:
        return -2.0
    if not token.isprintable() or not token.isascii():
        return -10.0
    return 1.0 if token.isalnum() else 0.0


def _texts(tokens: list[str]) -> list[str]:
    """The tokens as the sentences write them, instead of in the vocabulary's alphabet."""
    words = {spelled(chr(byte)): chr(byte) for byte in range(128)}
    words |= {spelled(word): word for word in states_of_words()}
    return [words.get(token, token) for token in tokens]


def _embedding(state: int) -> list[float]:
    return [float(place == state) for place in range(SHAPE.n_embd)]


def _output_rows(tokens: list[str], states: dict[str, int]) -> list[list[float]]:
    """One row for each next token, with a number for each state: the chain, read backwards."""
    logits = chain(states)
    root = SHAPE.n_embd**0.5
    return [
        [logits.get((state, token), fallback(token)) / root for state in range(SHAPE.n_embd)]
        for token in _texts(tokens)
    ]


def _table(name: str, rows: list[list[float]]) -> Tensor:
    flat = [number for row in rows for number in row]
    return tensor(name, (SHAPE.n_embd, len(rows)), flat, TENSOR_F16)


def _norm(name: str) -> Tensor:
    return tensor(name, (SHAPE.n_embd,), [1.0] * SHAPE.n_embd, TENSOR_F32)


def _idle(name: str, dims: tuple[int, ...]) -> Tensor:
    """A layer's tensor that changes nothing: ones for a norm, zeros for a matrix."""
    if len(dims) == 1:
        return _norm(name)
    return tensor(name, dims, [0.0] * (dims[0] * dims[1]), TENSOR_F16)


if __name__ == "__main__":
    main()
