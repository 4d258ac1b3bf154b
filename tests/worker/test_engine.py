"""The engine: batched equals alone, reuse equals fresh, and every request ends exactly once."""

import contextlib
import ctypes
import queue
import random
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lmlite.messages import (
    Delta,
    Embedded,
    EngineState,
    Failed,
    Finished,
    Queued,
    Reading,
    ReplyEvent,
    SamplingParams,
    Started,
)
from lmlite.worker.embedder import Embedder, Input
from lmlite.worker.engine import Engine
from lmlite.worker.generator import Generator
from lmlite.worker.llama import capi
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from lmlite.worker.media import MediaEncoder
from lmlite.worker.memory.lanes import MIN_SHARED, n_cells
from lmlite.worker.sequence import Sequence
from tests.conftest import TIMES

GREEDY = SamplingParams(temperature=0)
DEADLINE_S = 60.0


class Run:
    """An engine in its thread, and what it emitted."""

    def __init__(
        self,
        model: Model,
        n_ctx: int = 1024,
        n_parallel: int = 4,
        encoder: MediaEncoder | None = None,
    ) -> None:
        self.model = model
        self.context = Context(
            model, n_ctx=n_ctx, n_batch=64, n_seq_max=4 * n_parallel, n_threads=1
        )
        self.events: queue.SimpleQueue[ReplyEvent] = queue.SimpleQueue()
        self.embedder = Embedder(self._embedding_context)
        self.generator = Generator(
            model, self.context, n_parallel=n_parallel, prefill_budget_s=0.15, encoder=encoder
        )
        self.memory = self.generator.memory
        self.engine = Engine(self.generator, self.embedder, self._emit)
        self.states: list[EngineState] = []
        self.thread = threading.Thread(target=self.engine.run)
        self.thread.start()

    def close(self) -> None:
        self.engine.stop()
        self.thread.join()
        self.embedder.close()
        self.context.close()

    def submit(self, request_id: int, prompt: str, params: SamplingParams = GREEDY) -> None:
        self.engine.submit([self.sequence(request_id, prompt, params)])

    def sequence(self, request_id: int, prompt: str, params: SamplingParams) -> Sequence:
        tokens = self.model.vocab.tokenize(prompt, add_special=True, parse_special=True)
        return Sequence(request_id, 0, tokens, params, params.seed or 0, ())

    def until_finished(self, n: int) -> dict[int, list[ReplyEvent]]:
        """Events by request, until n requests have ended."""
        by_request: dict[int, list[ReplyEvent]] = {}
        while n:
            event = self.events.get(timeout=DEADLINE_S)
            by_request.setdefault(event.id, []).append(event)
            n -= isinstance(event, Finished | Failed)
        return by_request

    def text(self, prompt: str, params: SamplingParams = GREEDY) -> str:
        self.submit(1, prompt, params)
        return joined(self.until_finished(1)[1])

    def _emit(self, events: list[ReplyEvent | EngineState]) -> None:
        for event in events:
            if isinstance(event, EngineState):
                self.states.append(event)
            else:
                self.events.put(event)

    def _embedding_context(self) -> Context:
        return Context(
            self.model, n_ctx=256, n_batch=64, n_seq_max=64, n_threads=1,
            pooling_type=capi.POOLING_TYPE_MEAN,
        )  # fmt: skip


def joined(events: list[ReplyEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def finish(events: list[ReplyEvent]) -> Finished:
    (last,) = [event for event in events if isinstance(event, Finished)]
    return last


def asked(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


QUESTIONS = ("Say: red", "Say: blue green", "Count from 2 to 9", "What is 3 + 4?", "Hello",
             "Say: one two three", "Count from 5 to 20", "Hi")  # fmt: skip
PROMPTS = [asked(question) for question in QUESTIONS]


@pytest.fixture
def run(trial: Model) -> Iterator[Run]:
    made = Run(trial)
    yield made
    made.close()


@pytest.fixture
def small(trial: Model) -> Iterator[Run]:
    """Memory for 256 tokens in all."""
    made = Run(trial, n_ctx=256)
    yield made
    made.close()


def test_together_each_prompt_gets_the_text_that_it_gets_alone(run: Run) -> None:
    alone = [run.text(prompt) for prompt in PROMPTS]
    assert len(set(alone)) > 3
    for i, prompt in enumerate(PROMPTS):
        run.submit(100 + i, prompt)
    together = run.until_finished(len(PROMPTS))
    assert [joined(together[100 + i]) for i in range(len(PROMPTS))] == alone


def test_a_known_prompt_is_reused_but_for_its_last_token_and_gives_the_same(run: Run) -> None:
    run.submit(1, PROMPTS[2])
    fresh = run.until_finished(1)[1]
    run.submit(2, PROMPTS[2])
    again = run.until_finished(1)[2]
    assert isinstance(fresh[0], Started)
    assert isinstance(again[0], Started)
    assert (fresh[0].n_cached, again[0].n_cached) == (0, fresh[0].n_prompt - 1)
    assert joined(again) == joined(fresh)


def started(events: list[ReplyEvent]) -> Started:
    (first,) = [event for event in events if isinstance(event, Started)]
    return first


LONG = "".join(f"<|im_start|>user\nSay: word {i}<|im_end|>\n" for i in range(15))


def test_sixteen_requests_with_one_long_beginning_read_it_once(run: Run) -> None:
    questions = [asked(f"Say: number {i}") for i in range(16)]
    alone = [run.text(LONG + question) for question in questions[:3]]
    n_long = len(run.sequence(0, LONG, GREEDY).prompt)
    fresh = Run(run.model, n_ctx=2048)
    fresh.engine.submit([fresh.sequence(i, LONG + q, GREEDY) for i, q in enumerate(questions)])
    by_request = fresh.until_finished(16)
    fresh.close()
    n_cached = sorted(started(events).n_cached for events in by_request.values())
    assert n_cached[0] == 0
    assert n_cached[1] >= n_long - MIN_SHARED
    assert [joined(by_request[i]) for i in range(3)] == alone


def test_a_branch_of_a_conversation_begins_where_it_branches_off(run: Run) -> None:
    run.text(LONG + asked("Say: red"))
    n_long = len(run.sequence(0, LONG, GREEDY).prompt)
    for i, question in enumerate(("Say: blue", "Hello", "Say: red")):
        run.submit(i, LONG + asked(question))
        assert started(run.until_finished(1)[i]).n_cached >= n_long


def test_a_prompt_begins_from_one_that_is_still_being_answered(run: Run) -> None:
    expected = run.text(LONG + asked("Say: blue"))
    fresh = Run(run.model, n_ctx=2048)
    endless = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)), max_tokens=50)
    fresh.submit(1, LONG + asked("Hello"), endless)
    while not isinstance(fresh.events.get(timeout=DEADLINE_S), Delta):
        pass
    fresh.submit(2, LONG + asked("Say: blue"))
    by_request = fresh.until_finished(2)
    fresh.close()
    assert started(by_request[2]).n_cached > 100
    assert joined(by_request[2]) == expected


def test_choices_of_one_prompt_share_it(run: Run) -> None:
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=5)
    sequences = [run.sequence(1, LONG, params) for _ in range(4)]
    for index, sequence in enumerate(sequences):
        sequence.index = index
    run.engine.submit(sequences)
    n_cached = [event.n_cached for event in run.until_finished(4)[1] if isinstance(event, Started)]
    assert min(sorted(n_cached)[1:]) >= len(sequences[0].prompt) - MIN_SHARED


def test_a_prompt_longer_than_a_batch_equals_the_same_prompt_in_pieces(run: Run) -> None:
    long = "".join(f"<|im_start|>user\nSay: word {i}<|im_end|>\n" for i in range(20))
    fresh = run.text(long + asked("Say: red"))
    run.text(long)
    assert run.text(long + asked("Say: red")) == fresh


def test_the_same_seed_gives_the_same_text_and_another_seed_another(run: Run) -> None:
    def sampled(seed: int) -> str:
        params = SamplingParams(
            temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=20
        )
        return run.text(asked("Tell a story."), params)

    texts = [sampled(seed) for seed in (1, 1, 2, 2)]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert texts[0] != texts[2]


def test_max_tokens_ends_with_length_after_exactly_so_many(run: Run) -> None:
    run.submit(1, asked("Count from 1 to 40"), SamplingParams(temperature=0, max_tokens=5))
    end = finish(run.until_finished(1)[1])
    assert (end.reason, end.n_completion, end.cause) == ("length", 5, "max_tokens")


def test_max_tokens_zero_generates_nothing(run: Run) -> None:
    run.submit(1, asked("Hello"), SamplingParams(max_tokens=0))
    events = run.until_finished(1)[1]
    assert [type(event) for event in events] == [Started, Finished]
    assert finish(events).n_completion == 0


def test_neither_the_model_nor_a_stop_string_ends_an_answer_before_min_tokens(run: Run) -> None:
    prompt, free = asked("Say: one two three"), SamplingParams(temperature=0, max_tokens=60)
    run.submit(1, prompt, free)
    short = run.until_finished(1)[1]
    assert finish(short).n_completion < 20
    run.submit(2, prompt, replace(free, min_tokens=20))
    long = run.until_finished(1)[2]
    assert joined(long).startswith(joined(short))
    assert finish(long).n_completion > 20
    texts = [event.text for event in long if isinstance(event, Delta)]  # one for each token
    early, late = "".join(texts[:3]), "".join(texts[3:])
    stop = next(letter for letter in early if letter in late)
    run.submit(3, prompt, replace(free, ignore_eos=True, min_tokens=3, stop=(stop,)))
    stopped = run.until_finished(1)[3]
    assert (finish(stopped).stop_string, joined(stopped)) == (stop, early + late.partition(stop)[0])


def test_ignore_eos_goes_on_to_max_tokens(run: Run) -> None:
    run.submit(1, asked("Say: red"), SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    end = finish(run.until_finished(1)[1])
    assert (end.n_completion, end.cause) == (40, "max_tokens")


MUST_GO_ON: list[dict[str, Any]] = [{"min_tokens": 20}, {"ignore_eos": True}]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_allows_nothing_more_ends_what_may_not_end(
    run: Run, temperature: float
) -> None:
    for request_id, more in enumerate(MUST_GO_ON):
        params = SamplingParams(temperature=temperature, max_tokens=30, seed=1, **more)
        sequence = run.sequence(request_id, PROMPTS[0], params)
        sequence.grammar = Grammar(run.model, 'root ::= "red"')
        run.engine.submit([sequence])
        events = run.until_finished(1)[request_id]
        assert (joined(events), finish(events).cause) == ("red", "end_token")


def test_log_probabilities_are_the_models_own_where_it_may_not_end(run: Run) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, n_logprobs=1)
    run.text(asked("Say: red"))  # so that both read the same tokens in the same way
    totals = []
    for request_id, given in enumerate((params, replace(params, ignore_eos=True))):
        run.submit(request_id, asked("Say: red"), given)
        deltas = [e for e in run.until_finished(1)[request_id] if isinstance(e, Delta)]
        totals.append([entry for delta in deltas for entry in delta.logprobs])
    n = len(totals[0])
    assert totals[1][:n] == totals[0]
    first_unwanted = totals[1][n]
    assert first_unwanted.top[0][1] > (first_unwanted.logprob or 0.0)  # the end's


def test_more_requests_than_lanes_all_end_once_in_order_of_arrival(run: Run) -> None:
    for i in range(12):
        run.submit(i, PROMPTS[i % len(PROMPTS)])
    by_request = run.until_finished(12)
    assert sorted(by_request) == list(range(12))
    for events in by_request.values():
        assert started(events).n_prompt > 0
        assert sum(isinstance(event, Finished) for event in events) == 1


def test_a_full_memory_puts_the_youngest_back_and_changes_no_text(trial: Model) -> None:
    params = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)), max_tokens=90)
    prompts = [asked(f"Count from {i} to 60") for i in (1, 2, 3)]
    roomy = Run(trial, n_ctx=2048)
    expected = [roomy.text(prompt, params) for prompt in prompts]
    roomy.close()
    tight = Run(trial, n_ctx=256)
    for i, prompt in enumerate(prompts):
        tight.submit(i, prompt, params)
    by_request = tight.until_finished(len(prompts))
    tight.close()
    assert [joined(by_request[i]) for i in range(len(prompts))] == expected
    for events in by_request.values():
        assert sum(isinstance(event, Started) for event in events) == 1
        assert finish(events).n_completion == 90


def test_a_context_that_fills_ends_with_length(small: Run) -> None:
    endless = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)))
    small.submit(1, asked("Hello"), endless)
    events = small.until_finished(1)[1]
    assert isinstance(events[0], Started)
    end = finish(events)
    assert (end.reason, end.cause) == ("length", "context_full")
    assert events[0].n_prompt + end.n_completion == small.context.n_ctx_seq == 256


def test_a_context_that_fills_at_any_token_ends_with_length_and_leaves_its_lane_to_the_next(
    default_model: Model, figure: Callable[[str, str], None]
) -> None:
    """With a prompt of k tokens, for each k (a few of them in `make test`)."""
    run = Run(default_model, n_ctx=256)
    vocab = default_model.vocab
    ends = [token for token in range(vocab.n_tokens) if vocab.ends_generation(token)]
    endless = SamplingParams(temperature=0, logit_bias=tuple((token, -100.0) for token in ends))
    expected = run.text(PROMPTS[0])
    few = (1, 2, 3, 63, 64, 65, 128, 254, 255, 256)
    n_prompts = range(1, 257) if TIMES > 1 else few
    for n_prompt in n_prompts:
        sequence = run.sequence(n_prompt, LONG * 2, endless)
        tokens = sequence.prompt[:n_prompt]
        run.engine.submit([replace(sequence, prompt=tokens)])
        events = run.until_finished(1)[n_prompt]
        assert started(events).n_prompt == n_prompt
        end = finish(events)
        assert (end.reason, end.cause) == ("length", "context_full")
        assert end.n_completion == max(1, 256 - n_prompt)
    assert run.text(PROMPTS[0]) == expected
    assert not any(lane.busy for lane in run.memory.lanes)
    run.close()
    figure("F16", f"{len(n_prompts)} of 256 places")


def test_a_waiting_request_is_told_how_many_are_in_front(run: Run) -> None:
    slow = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)), max_tokens=30)
    quick = replace(slow, max_tokens=10)
    first = run.sequence(0, PROMPTS[0], quick)
    run.engine.submit([first, *(run.sequence(i, PROMPTS[i], slow) for i in range(1, 6))])
    by_request = run.until_finished(6)
    told = [[e.n_ahead for e in by_request[i] if isinstance(e, Queued)] for i in range(6)]
    assert told == [[], [], [], [], [0], [1, 0]]


def test_a_long_prompt_tells_how_much_is_read(run: Run) -> None:
    run.submit(1, LONG + asked("Hello"))
    events = run.until_finished(1)[1]
    n_prompt = started(events).n_prompt
    told = [(e.n_read, e.n_prompt) for e in events if isinstance(e, Reading)]
    assert told == [(n, n_prompt) for n in range(64, n_prompt, 64)]


def test_a_cancelled_request_leaves_its_place_to_the_next(run: Run) -> None:
    endless = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)))
    for i in range(4):
        run.submit(i, PROMPTS[i], endless)
    run.submit(9, PROMPTS[4])
    for i in range(4):
        run.engine.cancel(i)
    by_request = run.until_finished(1)
    assert finish(by_request[9]).reason == "stop"
    for i in range(4):
        assert not any(isinstance(event, Finished) for event in by_request.get(i, []))


def test_a_waiting_request_can_be_cancelled(run: Run) -> None:
    slow = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)), max_tokens=100)
    for i in range(4):
        run.submit(i, PROMPTS[i], slow)
    run.submit(8, PROMPTS[4])
    run.engine.cancel(8)
    run.submit(9, PROMPTS[5])
    assert 8 not in run.until_finished(5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_arrivals_and_cancellations_end_every_request_once_with_its_own_text(
    trial: Model, seed: int
) -> None:
    rng = random.Random(seed)
    asks = [
        (LONG[:n] + question, SamplingParams(temperature=0, max_tokens=max_tokens))
        for n in (0, 300, 900)
        for question in PROMPTS
        for max_tokens in (1, 7, 40)
    ]
    roomy, tight = Run(trial, n_ctx=2048), Run(trial, n_ctx=512)
    asked_for = [rng.randrange(len(asks)) for _ in range(150)]
    expected = {number: roomy.text(*asks[number]) for number in set(asked_for)}
    events: list[ReplyEvent] = []
    cancelled = set()
    for request_id, number in enumerate(asked_for):
        tight.submit(request_id, *asks[number])
        if rng.random() < 0.3:
            target = max(0, request_id - rng.randrange(6))
            tight.engine.cancel(target)
            cancelled.add(target)
        for _ in range(rng.randrange(8)):  # lets the engine go on, more or less
            with contextlib.suppress(queue.Empty):
                events.append(tight.events.get(timeout=0.01))
    waited_for = set(range(len(asked_for))) - cancelled
    while waited_for - {event.id for event in events if isinstance(event, Finished)}:
        events.append(tight.events.get(timeout=DEADLINE_S))
    for run in (roomy, tight):
        run.close()
    ends = Counter(event.id for event in events if isinstance(event, Finished))
    assert set(ends.values()) == {1}
    for request_id in ends:
        mine = [event for event in events if event.id == request_id]
        assert joined(mine) == expected[asked_for[request_id]]
        assert sum(isinstance(event, Started) for event in mine) == 1
    assert not tight.generator.running
    assert not any(lane.busy for lane in tight.memory.lanes)


def without_end(run: Run, request_id: int) -> Sequence:
    endless = SamplingParams(temperature=0, logit_bias=((2, -100.0), (0, -100.0)), max_tokens=60)
    return run.sequence(request_id, PROMPTS[request_id], endless)


@pytest.mark.parametrize("code", [-1, -2, -3, 2])
def test_a_decode_that_fails_for_one_sequence_fails_its_request_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    alone = {}
    for request_id in range(4):
        run.engine.submit([without_end(run, request_id)])
        alone[request_id] = joined(run.until_finished(1)[request_id])
    sequences = [without_end(run, request_id) for request_id in range(4)]
    decode = run.context._lib.llama_decode

    def broken(pointer: Any, batch: Any) -> int:
        lanes = {batch.seq_id[i][0] for i in range(batch.n_tokens)}
        faulty = sequences[2]
        if faulty.lane and faulty.lane.seq_id in lanes and faulty.n_completion == 5:
            return code
        return int(decode(pointer, batch))

    monkeypatch.setattr(run.context, "_lib", Overridden(run.context._lib, llama_decode=broken))
    run.engine.submit(sequences)
    by_request = run.until_finished(4)
    message = f"llama_decode failed with code {code}"
    assert by_request[2][-1] == Failed(2, "InternalError", message)
    assert {i: joined(by_request[i]) for i in (0, 1, 3)} == {i: alone[i] for i in (0, 1, 3)}


def test_a_decode_that_fails_only_once_fails_no_request(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run.text(PROMPTS[0])

    def broken(_pointer: Any, _batch: Any) -> int:
        monkeypatch.undo()
        return -3

    lib = Overridden(run.context._lib, llama_decode=broken)
    monkeypatch.setattr(run.context, "_lib", lib)
    assert run.text(PROMPTS[0]) == expected


def test_logits_that_are_no_numbers_fail_the_request_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = (ctypes.c_float * 1)(float("nan"))
    with monkeypatch.context() as patched:
        lib = Overridden(run.context._lib, llama_get_logits_ith=lambda _context, _index: row)
        patched.setattr(run.context, "_lib", lib)
        run.submit(5, PROMPTS[0])
        failed = run.until_finished(1)[5][-1]
    assert failed == Failed(5, "InternalError", "the model produced invalid numbers")
    assert run.text(PROMPTS[0])


def test_an_embedding_that_is_no_numbers_fails_its_request_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, decode = Context.embedding, Context.decode
    batches = []

    def watched(context: Context, batch: Batch) -> bool:
        batches.append(batch._tokens[: len(batch)])
        return decode(context, batch)

    def broken(context: Context, seq_id: int) -> "array[float]":
        """Of every sequence that is read beside the tokens 7 and 8."""
        return array("f", [float("nan")]) if 7 in batches[-1] else embedding(context, seq_id)

    inputs = [Input(3, 0, [5, 6]), Input(4, 0, [9]), Input(4, 1, [7, 8]), Input(4, 2, [9]),
              Input(5, 0, [5, 6])]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Context, "embedding", broken)
        patched.setattr(Context, "decode", watched)
        run.engine.submit(inputs)
        events = [run.events.get(timeout=DEADLINE_S) for _ in range(4)]
    assert Failed(4, "InternalError", "the model produced invalid numbers") in events
    vectors = [event.vector for event in events if isinstance(event, Embedded) and event.id != 4]
    assert len(vectors) == 2 and vectors[0] == vectors[1]


class Overridden:
    """The library, but for some of its functions."""

    def __init__(self, lib: Any, **functions: Any) -> None:
        self._lib = lib
        self.__dict__ |= functions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)


def test_logprobs_of_a_greedy_token_are_the_best_of_their_row(run: Run) -> None:
    run.submit(1, PROMPTS[1], SamplingParams(temperature=0, n_logprobs=3))
    deltas = [event for event in run.until_finished(1)[1] if isinstance(event, Delta)]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert b"".join(entry.piece for entry in entries).decode() == joined(list(deltas))
    for entry in entries:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.piece, entry.logprob)


def test_prompt_logprobs_do_not_depend_on_how_the_prompt_is_cut(run: Run) -> None:
    params = SamplingParams(temperature=0, n_logprobs=0, max_tokens=0)
    text = " ".join(f"word {i}" for i in range(40))
    whole = run.sequence(1, text, params)
    whole.echo = text
    run.engine.submit([whole])
    (delta,) = [event for event in run.until_finished(1)[1] if isinstance(event, Delta)]
    assert delta.text == text
    assert len(delta.logprobs) == len(whole.prompt) > 64
    assert delta.logprobs[0].logprob is None
    half = run.sequence(2, text, params)
    half.prompt = half.prompt[:50]
    half.tokens = list(half.prompt)
    half.echo = "half"
    run.engine.submit([half])
    (first,) = [event for event in run.until_finished(1)[2] if isinstance(event, Delta)]
    for ours, theirs in zip(first.logprobs[1:], delta.logprobs[1:50], strict=True):
        # Memory is f16, and the order of sums differs with the cut.
        assert ours.logprob == pytest.approx(theirs.logprob, abs=0.05)


POOLINGS = [capi.POOLING_TYPE_MEAN, capi.POOLING_TYPE_LAST, capi.POOLING_TYPE_CLS]


@pytest.mark.parametrize("pooling_type", POOLINGS)
def test_a_long_input_read_in_pieces_is_embedded_as_if_read_whole(
    trial: Model, pooling_type: int
) -> None:
    text = " ".join(f"word {i}" for i in range(90))
    tokens = trial.vocab.tokenize(text, add_special=True, parse_special=True)
    assert len(tokens) > 128

    def embedded(n_batch: int) -> "array[float]":
        embedder = Embedder(
            lambda: Context(
                trial, n_ctx=256, n_batch=n_batch, n_seq_max=64, n_threads=1,
                pooling_type=pooling_type,
            )
        )  # fmt: skip
        embedder.submit(Input(1, 0, tokens))
        (event,) = embedder.step()
        embedder.close()
        assert isinstance(event, Embedded)
        return array("f", event.vector)

    pairs = zip(embedded(64), embedded(256), strict=True)
    assert sum(a * b for a, b in pairs) == pytest.approx(1.0, abs=1e-4)


# ---- what it says of itself ----------------------------------------------------------------


def test_an_idle_engine_reports_what_it_did_and_what_memory_keeps(run: Run) -> None:
    for request_id, question in ((1, "Say: red"), (2, "Say: blue")):
        run.submit(request_id, asked(question))
        run.until_finished(1)
    run.engine.stop()
    run.thread.join()
    state = run.states[-1]
    assert (state.n_running, state.n_waiting, state.n_cells_used) == (0, 0, 0)
    assert state.n_cells == run.context.n_ctx
    longest = max(len(lane.tokens) for lane in run.memory.lanes)
    assert state.n_cells_idle == n_cells(run.memory.lanes) >= longest > 0
    assert state.n_steps >= state.steps_within[-1] >= state.steps_within[0]
    assert state.step_s > 0
