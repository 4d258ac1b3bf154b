"""Drafts change when tokens come, and nothing else: each answer equals the one without a draft."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Delta, Failed, Finished, ReplyEvent, SamplingParams
from lmlite.worker.draft import MAX_PAUSE, PERIOD, TRIAL, Drafter, Pay, check_vocabulary
from lmlite.worker.generator import Generator
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from lmlite.worker.sequence import Sequence
from tests.support import architectures
from tests.support.gguf_writer import tiny_llama, tiny_llama_parts, write_gguf

# In floats of 32 bits a step with a draft gives the same numbers to the sixth digit.
IN_32_BITS = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
N_DRAFT = 3
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
GRAMMAR = 'root ::= ("a" | "b" | "c")+'


def one_layer(path: Path) -> None:
    """Writes `tiny_llama` without its second layer: its drafts are right now and then."""
    metadata, tensors = tiny_llama_parts()
    metadata["llama.block_count"] = 1
    write_gguf(path, metadata, [each for each in tensors if not each.name.startswith("blk.1.")])


class Bench:
    """A model that answers, with a draft model or without one."""

    def __init__(
        self, model: Model, draft: Model | None, n_ctx: int = 1024, n_parallel: int = 4
    ) -> None:
        with ExitStack() as stack:
            self.model = model

            def context(each: Model) -> Context:
                made = Context(each, n_ctx=n_ctx, n_batch=64, n_seq_max=4 * n_parallel,
                               n_threads=1, **IN_32_BITS)  # type: ignore[arg-type]  # fmt: skip
                return stack.enter_context(closing(made))

            target = context(model)
            self.drafter = None
            if draft is not None:
                drafter = Drafter(draft, context(draft), target, N_DRAFT)
                self.drafter = stack.enter_context(closing(drafter))
            self.generator = Generator(
                model, target, n_parallel=n_parallel, prefill_budget_s=0.1, drafter=self.drafter
            )
            self.close = stack.pop_all().close

    def sequence(
        self, number: int, prompt: list[int], params: SamplingParams, grammar: str | None = None
    ) -> Sequence:
        own = Grammar(self.model, grammar) if grammar else None
        return Sequence(number, 0, prompt, params, params.seed or number, (), grammar=own)

    def steps(self, *sequences: Sequence) -> Iterator[list[ReplyEvent]]:
        for sequence in sequences:
            self.generator.submit(sequence)
        while self.generator.has_work:
            yield self.generator.step()

    def answers(self, *sequences: Sequence) -> list[tuple[Any, ...]]:
        """Of each: its tokens, its text, its log-probabilities, why and when it ended."""
        events = [event for step in self.steps(*sequences) for event in step]
        return [_answer(sequence, events) for sequence in sequences]


def _answer(sequence: Sequence, events: list[ReplyEvent]) -> tuple[Any, ...]:
    own = [event for event in events if event.id == sequence.request_id]
    (end,) = [event for event in own if isinstance(event, Finished)]
    assert not any(isinstance(event, Failed) for event in own)
    deltas = [event for event in own if isinstance(event, Delta)]
    entries = [
        (entry.piece, round(entry.logprob or 0, 3), [piece for piece, _ in entry.top])
        for delta in deltas
        for entry in delta.logprobs
    ]
    text = "".join(delta.text for delta in deltas)
    return sequence.tokens, text, entries, end.reason, end.cause, end.n_completion, end.stop_string


@pytest.fixture(scope="module")
def load(lib: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Model]]:
    """Writes and loads a model."""
    with ExitStack() as stack:

        def made(write: Callable[[Path], None]) -> Model:
            path = tmp_path_factory.mktemp("models") / "model.gguf"
            write(path)
            return stack.enter_context(closing(Model(lib, str(path))))

        yield made


@pytest.fixture(scope="module")
def large(load: Callable[..., Model]) -> Model:
    return load(tiny_llama)


@pytest.fixture(scope="module", params=["one layer", "the model itself"])
def draft(request: pytest.FixtureRequest, load: Callable[..., Model], large: Model) -> Model:
    return load(one_layer) if request.param == "one layer" else large


@pytest.fixture(autouse=True)
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made whether they pay or not, except in tests of just that."""
    if "pays" not in request.node.name:
        monkeypatch.setattr(Pay, "wants", lambda _pay: True)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:
        yield lambda *given, **named: stack.enter_context(closing(Bench(*given, **named)))


def prompts(model: Model, n: int, n_tokens: int = 30) -> list[list[int]]:
    rng = random.Random(1)
    return [rng.choices(range(model.vocab.n_tokens - 3), k=n_tokens) for _ in range(n)]


@pytest.fixture
def endless(bench: Callable[..., Bench], large: Model) -> list[int]:
    """A prompt to which the model's likeliest answer has no end for 41 tokens."""
    params = SamplingParams(temperature=0, max_tokens=41)
    for prompt in prompts(large, 50):
        each = bench(large, None)
        if each.answers(each.sequence(1, prompt, params))[0][5] == 41:
            return prompt
    raise AssertionError("each answer ends")


# ---- the same answers ------------------------------------------------------------------------

KINDS: dict[str, tuple[SamplingParams, str | None]] = {
    "greedy": (GREEDY, None),
    "to its end": (SamplingParams(temperature=0, max_tokens=200), None),
    "seeded": (SamplingParams(temperature=1, seed=7, max_tokens=40, ignore_eos=True), None),
    "with penalties": (
        SamplingParams(temperature=1, seed=7, max_tokens=40, ignore_eos=True,
                       repeat_penalty=1.3, presence_penalty=0.5), None),
    "with log-probabilities": (
        SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, n_logprobs=3), None),
    "in a grammar": (SamplingParams(temperature=1, seed=3, max_tokens=40), GRAMMAR),
    "with stop strings": (
        SamplingParams(temperature=1, seed=5, max_tokens=200, stop=("a", "e")), None),
    "of one token": (SamplingParams(temperature=0, max_tokens=1), None),
    "of two tokens": (SamplingParams(temperature=0, max_tokens=2), None),
    "without an end": (
        SamplingParams(temperature=1, seed=2, max_tokens=60, ignore_eos=True), None),
    "of at least 20 tokens": (
        SamplingParams(temperature=1, seed=2, max_tokens=60, min_tokens=20), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_at_once", [1, 3])
def test_an_answer_is_the_same_with_a_draft(
    bench: Callable[..., Bench], large: Model, draft: Model, kind: str, n_at_once: int
) -> None:
    params, grammar = KINDS[kind]
    found = []
    for model in (None, draft):
        each = bench(large, model)
        asked = prompts(large, n_at_once)
        found.append(
            each.answers(*(each.sequence(n, p, params, grammar) for n, p in enumerate(asked, 1)))
        )
    assert found[0] == found[1]


def test_a_model_that_drafts_for_itself_is_always_right(
    bench: Callable[..., Bench], large: Model, endless: list[int]
) -> None:
    each = bench(large, large)
    sequence = each.sequence(1, endless, SamplingParams(temperature=0, max_tokens=41))
    n_steps = sum(1 for _ in each.steps(sequence))
    # One step reads the prompt and samples a token. Ten more have a draft of three each.
    assert (sequence.n_completion, n_steps) == (41, 11)
    assert (sequence.n_drafted, sequence.n_accepted) == (30, 30)
    state = each.generator.state()
    assert (state.n_drafted, state.n_accepted) == (30, 30)


def test_a_model_that_is_often_wrong_is_asked_less_often(
    bench: Callable[..., Bench], large: Model, load: Callable[..., Model]
) -> None:
    stranger = load(lambda path: tiny_llama(path, seed=5))
    each = bench(large, stranger)
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    sequence = each.sequence(1, prompts(large, 1)[0], params)
    (found,) = each.answers(sequence)
    plain = bench(large, None)
    assert [found] == plain.answers(plain.sequence(1, sequence.prompt, params))
    # Pauses of 1, 3, 7, 15, 31, 32, ... steps: about ten drafts, where 200 would be possible.
    assert sequence.n_accepted <= 6
    assert N_DRAFT <= sequence.n_drafted <= N_DRAFT * (200 // MAX_PAUSE + 12)


# ---- memory ----------------------------------------------------------------------------------


def test_a_conversation_that_goes_on_starts_from_the_memory_of_both_models(
    bench: Callable[..., Bench], large: Model, draft: Model
) -> None:
    found = []
    for model in (None, draft):
        each, said = bench(large, model), prompts(large, 1)[0]
        for turn in range(1, 4):
            sequence = each.sequence(turn, said, GREEDY)
            each.answers(sequence)
            assert turn == 1 or sequence.n_cached >= len(sequence.prompt) - 8
            said = sequence.tokens + prompts(large, turn, 5)[-1]
        found.append(said)
    assert found[0] == found[1]


def test_a_full_memory_takes_no_lane_for_a_draft(
    bench: Callable[..., Bench], large: Model, draft: Model
) -> None:
    """Sequences are put back, and one fills the whole context: each as without a draft."""
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    found = []
    for model in (None, draft):
        each = bench(large, model, n_ctx=256)
        asked = enumerate(prompts(large, 4, 60), 1)
        answers = each.answers(*(each.sequence(number, prompt, params) for number, prompt in asked))
        endless = SamplingParams(temperature=0, ignore_eos=True)
        answers += each.answers(each.sequence(9, prompts(large, 1)[0], endless))
        assert answers[-1][4] == "context_full"
        found.append(answers)
    assert found[0] == found[1]


def test_a_sliding_window_is_cut_behind_a_wrong_draft(
    bench: Callable[..., Bench], load: Callable[..., Model]
) -> None:
    model = load(architectures.gemma3)
    assert model.n_swa
    params, found = SamplingParams(temperature=1, seed=4, max_tokens=150, ignore_eos=True), []
    for drafting in (None, model):
        each = bench(model, drafting)
        found.append(each.answers(each.sequence(1, prompts(model, 1)[0], params)))
    assert found[0] == found[1]


# ---- several at once, and ends ---------------------------------------------------------------


def test_there_is_no_draft_while_a_prompt_is_read_or_a_step_is_full(
    bench: Callable[..., Bench], large: Model
) -> None:
    each = bench(large, large, n_parallel=16)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    asked = prompts(large, 9)
    sequences = [each.sequence(number, prompt, params) for number, prompt in enumerate(asked)]
    n_full = 0
    for _ in each.steps(*sequences):
        if len(each.generator.running) == 9:
            n_full += 1
            assert not any(sequence.n_drafted for sequence in sequences)
    assert n_full > 10

    reader = each.sequence(20, prompts(large, 1, 200)[0], params)
    alone = each.sequence(21, asked[0], params)
    for number, _ in enumerate(each.steps(alone)):
        if number == 2:
            n_drafted = alone.n_drafted
            each.generator.submit(reader)
        elif reader.lane is not None and reader.n_completion == 0:
            assert alone.n_drafted == n_drafted
    assert reader.n_drafted > 0


def test_a_cancelled_answer_leaves_the_other_as_it_is(
    bench: Callable[..., Bench], large: Model, draft: Model
) -> None:
    asked = prompts(large, 2)
    plain = bench(large, None)
    expected = plain.answers(plain.sequence(2, asked[1], GREEDY))
    each = bench(large, draft)
    first, second = (each.sequence(number, p, GREEDY) for number, p in enumerate(asked, 1))
    events = []
    for number, step in enumerate(each.steps(first, second)):
        events += step
        if number == 3:
            each.generator.cancel(1)
    assert [_answer(second, events)] == expected
    assert not any(isinstance(event, Finished) and event.id == 1 for event in events)


def test_a_draft_model_that_fails_fails_no_answer(
    bench: Callable[..., Bench],
    large: Model,
    endless: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = bench(large, None)
    expected = plain.answers(plain.sequence(1, endless, GREEDY))
    each = bench(large, large)
    assert each.drafter is not None
    decode, n_left = Context.decode, [5]

    def failing(context: Context, batch: Batch) -> bool:
        if context is each.drafter._context:  # type: ignore[union-attr]
            n_left[0] -= 1
            if n_left[0] < 0:
                raise LlamaError("out of order")
        return decode(context, batch)

    monkeypatch.setattr(Context, "decode", failing)
    sequence = each.sequence(1, endless, GREEDY)
    assert each.answers(sequence) == expected
    assert each.drafter.has_failed
    assert sequence.n_drafted == N_DRAFT  # of the first, whose decodes were in order


# ---- where it pays ---------------------------------------------------------------------------


@pytest.mark.parametrize(("price_s", "pays"), [(0.3, True), (5.0, False)])
def test_drafts_go_on_only_where_it_pays(
    bench: Callable[..., Bench], large: Model, endless: list[int], price_s: float, pays: bool
) -> None:
    """A step takes a second, and one with a draft `price_s` more, for four tokens."""
    each, now_s = bench(large, large), 0.0
    assert each.drafter is not None
    each.drafter._clock = lambda: now_s
    pay, kinds = each.drafter._pay[1], dict[int, bool]()
    while pay.n_steps < PERIOD + TRIAL:
        sequence = each.sequence(1, endless, SamplingParams(temperature=0, max_tokens=41))
        n_drafted = 0
        for _ in each.steps(sequence):
            now_s += 1 + price_s * (sequence.n_drafted > n_drafted)
            n_drafted = sequence.n_drafted
            kinds[pay.n_steps] = each.drafter._step.drafts
    assert [kinds[n] for n in range(2 * TRIAL)] == [True] * TRIAL + [False] * TRIAL
    assert {kinds[n] for n in range(2 * TRIAL, PERIOD)} == {pays}
    assert kinds[PERIOD] is True


# ---- the vocabulary --------------------------------------------------------------------------


def test_a_draft_model_must_have_the_same_vocabulary(
    large: Model, default_model: Model, load: Callable[..., Model]
) -> None:
    check_vocabulary(load(one_layer).vocab, large.vocab, "small.gguf")
    with pytest.raises(LlamaError, match=r"small.gguf cannot draft .* another vocabulary \(.* use"):
        check_vocabulary(default_model.vocab, large.vocab, "small.gguf")
