"""Batched equals alone, reused equals fresh, put back equals uninterrupted: in numbers.

No order of additions is the same for every batch, so no two ways to read a prompt give the same
bits. How far they may be apart depends on the model. Where weights and memory are floats of 32
bits, it is the sixth digit: that shows best whether a sequence sees its own tokens and no others.
The embedded model, as it is served, has weights of 8 bits. What it computes is rounded to 8 bits
at every layer, and where that falls to the other side, logits move by a half; another token moves
them by 5. So about one greedy answer of 20 goes another way somewhere, always at a near-tie.
"""

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Delta, SamplingParams, TokenLogprob
from lmlite.worker.generator import Generator
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.sequence import Sequence
from tests import REPOSITORY
from tests.support import architectures
from tests.support.gguf_writer import tiny_llama

N_BATCH = 512
N_AT_ONCE = 8
N_OUT = 24  # tokens of each answer


@dataclass
class Exam:
    """A model, how its memory is kept, and how much chance there is in its answers."""

    model: Model
    tolerance: float  # by which a logit may differ
    n_ties: int  # answers of 50 that may come to a near-tie
    is_ever_full: bool = True  # its memory
    options: dict[str, Any] = field(default_factory=dict)

    def context(self, n_ctx: int = 2048) -> Context:
        return Context(
            self.model, n_ctx=n_ctx, n_batch=min(n_ctx, N_BATCH), n_seq_max=2 * N_AT_ONCE,
            n_threads=1, **self.options,
        )  # fmt: skip

    def prompts(self, n: int, max_tokens: int) -> list[list[int]]:
        """Pieces of the README, and tokens by chance, of one token and more."""
        rng = random.Random(1)
        vocab = self.model.vocab
        text = (REPOSITORY / "README.md").read_text()
        tokens = vocab.tokenize(text, add_special=False, parse_special=False)
        made = []
        for _ in range(n):
            n_tokens = rng.choice((1, 2, 5, rng.randrange(1, max_tokens)))
            begin = rng.randrange(len(tokens) - n_tokens)
            by_chance = rng.choices(range(vocab.n_tokens), k=n_tokens)
            made.append(rng.choice((tokens[begin : begin + n_tokens], by_chance)))
        return made


IN_32_BITS = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
KINDS = {kind.__name__: kind for kind in
         (tiny_llama, architectures.gemma3, architectures.lfm2, architectures.mamba)}  # fmt: skip
FLASH = "tiny_llama with flash attention"


@pytest.fixture(scope="module", params=[*KINDS, FLASH, "embedded"])
def exam(
    request: pytest.FixtureRequest, lib: Any, default_model: Model, tmp_path_factory: Any
) -> Iterator[Exam]:
    if request.param == "embedded":
        yield Exam(default_model, tolerance=2.0, n_ties=25)
        return
    path: Path = tmp_path_factory.mktemp("models") / "model.gguf"
    KINDS[request.param.split()[0]](path)
    model = Model(lib, str(path))
    # A recurrent memory has one state for each lane, however many tokens went into it.
    is_ever_full = request.param != "mamba"
    options, n_ties = IN_32_BITS, 2
    if request.param == FLASH:  # one kernel for 64 rows and more, another one for fewer
        options, n_ties = IN_32_BITS | {"flash_attn": "on"}, 10
    yield Exam(model, 0.01, n_ties=n_ties, is_ever_full=is_ever_full, options=options)
    model.close()


# ---- one decode ------------------------------------------------------------------------------


class Decoder:
    """A context without an engine: prompts in, the logits behind each out."""

    def __init__(self, exam: Exam) -> None:
        self._context = exam.context()
        self._batch = Batch(N_BATCH)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def logits(self, *prompts: list[int]) -> list[list[float]]:
        """Of prompts that are read in one batch, by an empty memory."""
        context = self._context
        context.clear_memory()
        self._batch.clear()
        ends = [self._batch.extend(p, 0, seq_id, True) for seq_id, p in enumerate(prompts)]
        assert context.decode(self._batch)
        get = context._lib.llama_get_logits_ith
        return [get(context.pointer, end)[: context.n_vocab] for end in ends]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_logits_of_200_prompts_in_batches_are_those_of_each_alone(exam: Exam) -> None:
    prompts = exam.prompts(200, N_BATCH // N_AT_ONCE)
    with Decoder(exam) as decoder:
        alone = [decoder.logits(prompt)[0] for prompt in prompts]
        batched: list[list[float]] = []
        for begin in range(0, len(prompts), N_AT_ONCE):
            batched += decoder.logits(*prompts[begin : begin + N_AT_ONCE])
    distances = [apart(a, b) for a, b in zip(alone, batched, strict=True)]
    assert max(distances) <= exam.tolerance


def test_one_other_token_moves_logits_further_than_that(exam: Exam) -> None:
    rng = random.Random(2)
    distances = []
    with Decoder(exam) as decoder:
        for prompt in exam.prompts(50, N_BATCH // N_AT_ONCE):
            other = list(prompt)
            other[len(prompt) // 2] = rng.randrange(exam.model.vocab.n_tokens)
            distances.append(apart(decoder.logits(prompt)[0], decoder.logits(other)[0]))
    assert statistics.median(distances) > exam.tolerance


# ---- whole answers ---------------------------------------------------------------------------


@dataclass
class Answer:
    tokens: list[int]
    entries: list[TokenLogprob]  # one for each
    n_cached: int


class Examinee:
    """A generator that is driven step by step, and notes which requests it puts back."""

    def __init__(self, exam: Exam, n_ctx: int = 2048) -> None:
        vocab = exam.model.vocab
        ends = [token for token in range(vocab.n_tokens) if vocab.ends_generation(token)]
        self._ends = {vocab.piece(token, special=True) for token in ends}
        # Nobody ends before its time; and two tokens are known that might have been said.
        self._params = SamplingParams(
            temperature=0, max_tokens=N_OUT, n_logprobs=2 + len(ends),
            logit_bias=tuple((token, -1000.0) for token in ends),
        )  # fmt: skip
        self._events: list[Any] = []
        self.context = exam.context(n_ctx)
        self._generator = Generator(
            exam.model, self.context, n_parallel=N_AT_ONCE, prefill_budget_s=0.01
        )
        self.put_back: set[int] = set()

    def __enter__(self) -> "Examinee":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def answers(self, *prompts: list[int]) -> list[Answer]:
        """Greedy answers to prompts that come at the same moment."""
        sequences = [
            Sequence(number, 0, prompt, self._params, 0, ())
            for number, prompt in enumerate(prompts)
        ]
        self._events.clear()
        for sequence in sequences:
            self._generator.submit(sequence)
        while self._generator.has_work:
            self._events += self._generator.step()
            self.put_back |= {s.request_id for s in self._generator.waiting if s.chain is not None}
        return [self._answer(sequence) for sequence in sequences]

    def _answer(self, sequence: Sequence) -> Answer:
        deltas = [e for e in self._events if isinstance(e, Delta) and e.id == sequence.request_id]
        entries = [self._allowed(entry) for delta in deltas for entry in delta.logprobs]
        return Answer(sequence.tokens[len(sequence.prompt) :], entries, sequence.n_cached)

    def _allowed(self, entry: TokenLogprob) -> TokenLogprob:
        top = tuple((piece, value) for piece, value in entry.top if piece not in self._ends)
        return TokenLogprob(entry.piece, entry.logprob, top)


def is_same(a: Answer, b: Answer, tolerance: float) -> bool:
    """Whether two answers are the same to the end; up to a near-tie they must be.

    Two logits may each move by the tolerance, so that a choice between them is one of chance
    where they are not further apart than twice that.
    """
    assert len(a.tokens) == len(b.tokens) == len(a.entries) == len(b.entries) == N_OUT
    for i, (x, y) in enumerate(zip(a.entries, b.entries, strict=True)):
        assert x.logprob is not None and y.logprob is not None
        if a.tokens[i] != b.tokens[i]:
            assert x.top[0][1] - x.top[1][1] <= 2 * tolerance
            return False
        assert abs(x.logprob - y.logprob) <= 2 * tolerance
    return True


def fresh(exam: Exam, prompts: list[list[int]]) -> list[Answer]:
    """Each by an engine of its own."""
    made = []
    for prompt in prompts:
        with Examinee(exam) as examinee:
            made += examinee.answers(prompt)
    return made


def check(exam: Exam, expected: list[Answer], found: list[Answer]) -> None:
    same = [is_same(a, b, exam.tolerance) for a, b in zip(expected, found, strict=True)]
    assert len(same) == 50
    assert same.count(False) <= exam.n_ties


def test_answers_to_50_prompts_8_at_once_are_those_of_each_alone(exam: Exam) -> None:
    prompts = exam.prompts(50, 100)
    with Examinee(exam) as examinee:
        check(exam, fresh(exam, prompts), examinee.answers(*prompts))


def test_answers_that_begin_from_what_memory_holds_are_those_of_fresh_ones(exam: Exam) -> None:
    rng = random.Random(3)
    prompts = exam.prompts(10, 100)
    found: list[Answer] = []
    with Examinee(exam) as examinee:
        for number in range(50):
            if number >= 10:  # a conversation that goes on, or one that branches off
                before = rng.randrange(number)
                said = prompts[before] + found[before].tokens
                begin = rng.choice((said, said[: rng.randrange(1, len(said))]))
                prompts.append(begin + rng.choice(prompts)[:20])
            found += examinee.answers(prompts[number])
    assert sum(answer.n_cached > 0 for answer in found) >= 5
    check(exam, fresh(exam, prompts), found)


def test_answers_of_sequences_that_were_put_back_equal_uninterrupted_ones(exam: Exam) -> None:
    if not exam.is_ever_full:
        pytest.skip("no sequence is put back")
    prompts = exam.prompts(50, 100)
    with Examinee(exam, n_ctx=256) as examinee:
        found = examinee.answers(*prompts)
        assert len(examinee.put_back) >= 5
    check(exam, fresh(exam, prompts), found)
