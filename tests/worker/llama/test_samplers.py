"""SamplerChain: each sampler's effect on logits, and that a start with the best changes nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from lmlite.messages import SamplingParams
from lmlite.worker.llama import capi, samplers
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar, SamplerChain

LOGITS = [2.0, 1.0, 0.5, -1.0, -2.0]


class Chain(SamplerChain):
    """A chain that can be tried without a context."""

    def apply(self, logits: Sequence[float]) -> dict[int, float]:
        """token -> logit of the tokens that the chain keeps of these logits."""
        each = (capi.llama_token_data(i, logit, 0) for i, logit in enumerate(logits))
        data = (capi.llama_token_data * len(logits))(*each)
        candidates = capi.llama_token_data_array(data, len(logits), -1, False)
        self._lib.llama_sampler_apply(self.pointer, candidates)
        kept = {c.id: c.logit for c in candidates.data[: candidates.size]}
        return {token: round(logit, 5) for token, logit in sorted(kept.items())}

    def accept(self, token: int) -> None:
        """Counts a token as sampled."""
        self._lib.llama_sampler_accept(self.pointer, token)


@pytest.fixture
def chain(default_model: Model) -> Any:
    """Makes a chain, and closes it after the test."""
    chains: list[Chain] = []

    def make(prompt: Sequence[int] = (), **params: Any) -> Chain:
        sampling = SamplingParams(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **params})
        made = Chain(default_model, sampling, seed=1, n_ctx=64, prompt=prompt)
        chains.append(made)
        return made

    yield make
    for made in chains:
        made.close()


def test_without_cuts_a_chain_of_temperature_1_leaves_logits_alone(chain: Any) -> None:
    assert chain(temperature=1.0).apply(LOGITS) == dict(enumerate(LOGITS))


def test_temperature_divides_logits(chain: Any) -> None:
    halves = {token: logit * 2 for token, logit in enumerate(LOGITS)}
    assert chain(temperature=0.5).apply(LOGITS) == halves


def test_top_k_keeps_the_k_likeliest(chain: Any) -> None:
    assert set(chain(temperature=1.0, top_k=2).apply(LOGITS)) == {0, 1}


def test_top_p_keeps_the_likeliest_that_add_up_to_p(chain: Any) -> None:
    # Softmax of LOGITS: 0.597, 0.220, 0.133, 0.030, 0.011 (and rounding).
    assert set(chain(temperature=1.0, top_p=0.5).apply(LOGITS)) == {0}
    assert set(chain(temperature=1.0, top_p=0.7).apply(LOGITS)) == {0, 1}
    assert set(chain(temperature=1.0, top_p=0.9).apply(LOGITS)) == {0, 1, 2}


def test_min_p_keeps_tokens_that_are_likely_beside_the_likeliest(chain: Any) -> None:
    # p/p_max = exp(logit - 2): 1, 0.37, 0.22, 0.05, 0.02.
    assert set(chain(temperature=1.0, min_p=0.3).apply(LOGITS)) == {0, 1}
    assert set(chain(temperature=1.0, min_p=0.04).apply(LOGITS)) == {0, 1, 2, 3}


def test_logit_bias_is_added(chain: Any) -> None:
    biased = chain(temperature=1.0, logit_bias=((1, 2.5), (3, -100.0))).apply(LOGITS)
    assert biased == {0: 2.0, 1: 3.5, 2: 0.5, 3: -101.0, 4: -2.0}


def test_presence_penalty_is_subtracted_once_from_each_sampled_token(chain: Any) -> None:
    made = chain(temperature=1.0, presence_penalty=0.75)
    for token in (0, 0, 3):
        made.accept(token)
    assert made.apply(LOGITS) == {0: 1.25, 1: 1.0, 2: 0.5, 3: -1.75, 4: -2.0}


def test_frequency_penalty_is_subtracted_for_each_time_a_token_was_sampled(chain: Any) -> None:
    made = chain(temperature=1.0, frequency_penalty=0.5)
    for token in (0, 0, 3):
        made.accept(token)
    assert made.apply(LOGITS) == {0: 1.0, 1: 1.0, 2: 0.5, 3: -1.5, 4: -2.0}


def test_presence_and_frequency_penalties_do_not_count_the_prompt(chain: Any) -> None:
    made = chain(prompt=[0, 1], temperature=1.0, presence_penalty=1.0, frequency_penalty=1.0)
    assert made.apply(LOGITS) == dict(enumerate(LOGITS))


def test_repeat_penalty_divides_positive_logits_and_multiplies_negative_ones(
    chain: Any,
) -> None:
    made = chain(temperature=1.0, repeat_penalty=2.0)
    for token in (0, 3):
        made.accept(token)
    assert made.apply(LOGITS) == {0: 1.0, 1: 1.0, 2: 0.5, 3: -2.0, 4: -2.0}


def test_repeat_penalty_counts_the_last_64_tokens_of_the_prompt(chain: Any) -> None:
    recent = chain(prompt=[0] + [1] * 63, temperature=1.0, repeat_penalty=2.0)
    assert recent.apply(LOGITS)[0] == 1.0
    forgotten = chain(prompt=[0] + [1] * 64, temperature=1.0, repeat_penalty=2.0)
    assert forgotten.apply(LOGITS)[0] == 2.0


def test_repeat_last_n_is_how_many_tokens_the_penalty_counts(chain: Any) -> None:
    for n, logit in ((0, 2.0), (2, 2.0), (3, 1.0), (-1, 1.0), (2**31 - 1, 1.0)):
        made = chain(prompt=[0, 1, 1], temperature=1.0, repeat_penalty=2.0, repeat_last_n=n)
        assert made.apply(LOGITS)[0] == logit


def test_dry_subtracts_more_the_longer_a_repetition_has_been(chain: Any) -> None:
    # After 0 1 2, the text had 3: another 0 1 2 3 would be a repetition of three and one.
    prompt = [0, 1, 2, 3, 0, 1, 2]
    dry = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_sequence_breakers": (), "temperature": 1.0}
    assert chain(prompt=prompt, **dry).apply(LOGITS) == {0: 2, 1: 1, 2: 0.5, 3: -3, 4: -2}
    longer = chain(prompt=prompt, **dry, dry_allowed_length=1).apply(LOGITS)
    assert longer == {0: 2, 1: 1, 2: 0.5, 3: -5, 4: -2}
    for off in ({"dry_allowed_length": 4}, {"dry_penalty_last_n": 3}, {"dry_penalty_last_n": 0}):
        assert chain(prompt=prompt, **dry, **off).apply(LOGITS) == dict(enumerate(LOGITS))


def test_dry_does_not_look_past_a_breaker(default_model: Model, chain: Any) -> None:
    (comma,) = default_model.vocab.tokenize(",", add_special=False, parse_special=False)[-1:]
    assert comma > 4
    prompt = [0, 1, comma, 3, 0, 1, comma]
    dry = {"dry_multiplier": 1.0, "dry_base": 2.0, "temperature": 1.0, "prompt": prompt}
    assert chain(**dry).apply(LOGITS)[3] == -3
    assert chain(**dry, dry_sequence_breakers=(",",)).apply(LOGITS)[3] == -1


def test_typical_p_prefers_tokens_of_the_expected_surprise(chain: Any) -> None:
    # Surprises: 0.52, 1.52, 2.02, 3.52, 4.52; expected: 1.07. The second is the nearest but one.
    assert set(chain(temperature=1.0, typical_p=0.2).apply(LOGITS)) == {1}
    assert set(chain(temperature=1.0, typical_p=0.7).apply(LOGITS)) == {0, 1}


def test_top_n_sigma_keeps_logits_near_the_greatest(chain: Any) -> None:
    # The standard deviation of LOGITS is 1.43.
    kept = chain(temperature=1.0, top_n_sigma=1.0).apply(LOGITS)
    assert {token for token, logit in kept.items() if logit > -1e9} == {0, 1}


def test_xtc_leaves_out_all_likely_tokens_but_the_last(chain: Any) -> None:
    xtc = {"temperature": 1.0, "xtc_probability": 1.0}
    assert set(chain(**xtc, xtc_threshold=0.1).apply(LOGITS)) == {2, 3, 4}
    assert set(chain(**xtc, xtc_threshold=0.2).apply(LOGITS)) == {1, 2, 3, 4}


def test_dynamic_temperature_is_between_its_ends(chain: Any) -> None:
    made = chain(temperature=1.0, dynatemp_range=0.5).apply(LOGITS)
    factors = {round(made[token] / logit, 4) for token, logit in enumerate(LOGITS)}
    assert len(factors) == 1
    assert 1 / 1.5 < factors.pop() < 1 / 0.5


def test_samplers_are_applied_in_the_order_of_the_request(chain: Any) -> None:
    # At temperature 2, min_p 0.3 keeps a third token; before it, only two.
    hot = {"temperature": 2.0, "min_p": 0.3}
    assert set(chain(**hot, samplers=("min_p", "temperature")).apply(LOGITS)) == {0, 1}
    assert set(chain(**hot, samplers=("temperature", "min_p")).apply(LOGITS)) == {0, 1, 2}
    assert chain(**hot, samplers=()).apply(LOGITS) == dict(enumerate(LOGITS))


def test_mirostat_keeps_tokens_up_to_its_limit_which_moves_with_each_choice(chain: Any) -> None:
    # Its limit begins at 2 * tau bits. One choice of a certain token raises it by eta * tau.
    made = chain(temperature=1.0, mirostat=2, mirostat_tau=1.0, mirostat_eta=0.5)
    halves = [-i * math.log(2) for i in range(8)]  # surprises of 1, 2, 3, ... bits
    made.apply([0.0])
    made.apply([0.0])
    assert set(made.apply(halves)) == {0, 1, 2}


def test_mirostat_counts_no_token_that_the_grammar_refused(
    default_model: Model, chain: Any
) -> None:
    context = Context(default_model, n_ctx=256, n_batch=64, n_seq_max=1, n_threads=1)
    grammar = Grammar(default_model, 'root ::= "z"{40}')
    tokens = default_model.vocab.tokenize("Tell me", add_special=True, parse_special=True)
    batch = Batch(64)
    index = batch.extend(tokens, 0, 0, True)
    assert context.decode(batch)
    params = {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.3}
    held, alone = chain(**params), chain(**params)
    for _ in range(5):
        token = held.sample(context, index, grammar)
        assert set(default_model.vocab.piece(token)) == {ord("z")}
        alone.apply([0.0])  # the only token that the grammar allows is as certain as this one
    fine = [-i * math.log(2) / 16 for i in range(200)]
    assert set(held.apply(fine)) == set(alone.apply(fine))
    context.close()
    grammar.close()


# ---- chains that start with the likeliest tokens -----------------------------------------------


@pytest.mark.parametrize(
    ("params", "n_best"),
    [
        ({"temperature": 0}, 1),
        ({"temperature": 0, "top_k": 0}, 1),
        ({"temperature": 1, "top_k": 40}, 40),
        ({"temperature": 1, "top_k": 128}, 128),
        ({"temperature": 1, "top_k": 129}, 0),
        ({"temperature": 1, "top_k": 0}, 0),
        ({"temperature": 0, "repeat_penalty": 1.1}, 0),
        ({"temperature": 0, "presence_penalty": -0.5}, 0),
        ({"temperature": 0, "frequency_penalty": 0.5}, 0),
        ({"temperature": 0, "logit_bias": ((3, 1.0),)}, 0),
        ({"temperature": 0, "dry_multiplier": 0.8}, 0),
        ({"temperature": 0, "top_k": 3, "typical_p": 0.5}, 3),
        ({"temperature": 0, "top_k": 0, "xtc_probability": 0.5}, 0),
        ({"temperature": 0, "dynatemp_range": 0.5, "top_k": 0}, 0),
        ({"temperature": 1, "top_n_sigma": 1.0}, 0),
        ({"temperature": 1, "samplers": ("min_p", "top_k")}, 0),
        ({"temperature": 1, "top_k": 7, "samplers": ("top_k", "penalties"),
          "repeat_penalty": 1.1}, 7),
        ({"temperature": 0, "samplers": ("top_p",)}, 0),
        ({"temperature": 1, "mirostat": 2, "top_k": 40}, -1),
        ({"temperature": 0, "mirostat": 2}, 1),
    ],
)  # fmt: skip
def test_a_chain_that_cuts_first_starts_with_the_likeliest_tokens(
    default_model: Model, params: dict[str, Any], n_best: int
) -> None:
    steps = list(samplers.chain_steps(default_model.vocab, SamplingParams(**params), 1, 64))
    assert samplers.n_best(steps) == n_best


WRITTEN = f"root ::= {' '.join(['letter'] * 24)}\nletter ::= [a-z ]\n"


@pytest.mark.parametrize("grammar", [None, WRITTEN], ids=["free", "in a grammar"])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_k": 1},
        {"temperature": 1.5, "top_k": 3, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 40, "min_p": 0.01},
        {"temperature": 1.5, "top_k": 128},
        {"temperature": 1.5, "top_k": 40, "typical_p": 0.8, "xtc_probability": 0.5},
    ],
)
def test_starting_with_the_likeliest_tokens_changes_no_choice(
    default_model: Model,
    chain: Any,
    params: dict[str, Any],
    grammar: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens until the grammar ends; the same samplers and seeds."""

    def completion(n_best: int) -> list[int]:
        with monkeypatch.context() as patched:
            patched.setattr(samplers, "n_best", lambda _params: n_best)
            made = chain(**params)
        held_to = Grammar(default_model, grammar) if grammar else None
        context = Context(default_model, n_ctx=256, n_batch=64, n_seq_max=1, n_threads=1)
        tokens = default_model.vocab.tokenize("Tell me", add_special=True, parse_special=True)
        batch, n_prompt = Batch(64), len(tokens)
        index = batch.extend(tokens, 0, 0, True)
        for position in range(n_prompt, n_prompt + 12):
            assert context.decode(batch)
            tokens.append(made.sample(context, index, held_to))
            batch.clear()
            index = batch.add(tokens[-1], position, 0, True)
        for owned in (context, held_to):
            if owned is not None:
                owned.close()
        return tokens[n_prompt:]

    steps = list(samplers.chain_steps(default_model.vocab, SamplingParams(**params), 1, 64))
    n_best = samplers.n_best(steps)
    assert n_best > 0
    assert completion(n_best) == completion(0)
