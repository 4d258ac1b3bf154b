"""SamplerChain and Grammar: from a row of logits to a token. Each has one owner with a close().

A chain is a list of llama.cpp's samplers. If its first sampler keeps only the likeliest tokens, the
chain gets only those: collecting 150,000 tokens would take half a millisecond. The engine thread
uses both; a grammar is created earlier, when its request is prepared.
"""

import ctypes
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmlite.messages import SamplingParams
from lmlite.worker.grammars.triggers import Triggers
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import INVALID_NUMBERS, Context
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.vocab import Vocab

MAX_BEST = 128  # up to this number a heap is faster than a sort, as in llama.cpp's top-k


class NothingAllowed(LlamaError):
    """A grammar allows no further token."""

    def __init__(self) -> None:
        super().__init__("the grammar allows no further token")


class SamplerChain:
    """A list of C samplers: from a row of logits to a token. Remembers the sampled tokens."""

    def __init__(
        self, model: Model, params: SamplingParams, *, seed: int, n_ctx: int, prompt: Sequence[int]
    ) -> None:
        """Makes the chain for one completion of `prompt`. Raises LlamaError."""
        self._lib = model.lib
        steps = list(chain_steps(model.vocab, params, seed, n_ctx))
        self._n_best = n_best(steps)
        self.pointer = self._lib.llama_sampler_chain_init(
            self._lib.llama_sampler_chain_default_params()
        )
        if not self.pointer:  # passing NULL on to C would crash the process
            raise LlamaError("llama.cpp refused a chain of samplers")
        for step in steps:
            sampler = getattr(self._lib, f"llama_sampler_init_{step.name}")(*step.arguments)
            if not sampler:
                self.close()
                raise LlamaError("llama.cpp refused a sampler")
            for token in prompt[-step.n_window :] if step.n_window else ():
                if token >= 0:  # ids of pictures are negative
                    self._lib.llama_sampler_accept(sampler, token)
            self._lib.llama_sampler_chain_add(self.pointer, sampler)

    def sample(
        self,
        context: Context,
        index: int,
        grammar: "Grammar | None" = None,
        banned: Sequence[int] = (),
    ) -> int:
        """The next token, which the grammar allows, from the logits at a batch index.

        Chooses a banned token only if the grammar allows no others. Raises NothingAllowed.
        """
        if banned:
            try:
                with context.without(banned, index):
                    return self.sample(context, index, grammar)
            except NothingAllowed:
                pass
        active = grammar.pointer if grammar and grammar.is_active else None
        chain, n_best = self.pointer, self._n_best
        token: int = self._lib.lml_sample(context.pointer, index, chain, active, n_best)
        if token < 0:
            raise NothingAllowed if active else LlamaError(INVALID_NUMBERS)
        if grammar and not grammar.is_active:
            grammar.accept_free(token)
        return token

    def take(self, token: int, grammar: "Grammar | None") -> None:
        """Takes a token that was not sampled. Raises NothingAllowed if the grammar refuses it."""
        self._lib.llama_sampler_accept(self.pointer, token)
        if grammar and grammar.is_active:
            grammar.accept([token])
        elif grammar:
            grammar.accept_free(token)

    def close(self) -> None:
        """Frees the chain and its samplers."""
        self._lib.llama_sampler_free(self.pointer)


class Grammar:
    """Keeps one completion in a form. It has a state, so each completion needs its own."""

    def __init__(self, model: Model, text: str, reply: bytes | None = None) -> None:
        """`text` is GBNF; `reply` is the reply of lml_chat_render that contains the grammar.

        Without a reply the grammar is active from the first token. Raises LlamaError if llama.cpp
        cannot read the grammar.
        """
        self._lib, self._vocab, self.text = model.lib, model.vocab, text
        if reply is None:
            own = {"grammar_lazy": False, "generation_prompt": ""}
            reply = json.dumps({"grammar": text, **own}).encode()
        parsed = json.loads(reply)
        self.is_active = not parsed["grammar_lazy"]  # else it waits for a trigger
        self._triggers = Triggers(() if self.is_active else parsed["triggers"])
        error = ctypes.c_void_p()
        self.pointer = self._lib.lml_grammar_init(model.vocab.pointer, reply, ctypes.byref(error))
        if not self.pointer:
            raise LlamaError(capi.take_fault(self._lib, error))

    def accept_free(self, token: int) -> None:
        """Takes a token sampled without the grammar, and looks for a trigger. Raises LlamaError."""
        heard = self._triggers.hear(token, self._vocab.piece(token, special=True))
        if heard:
            self.is_active = True
            self.accept(heard)

    def accept(self, tokens: Sequence[int]) -> None:
        """Takes tokens while active. Raises NothingAllowed if it refuses one of them."""
        data = (ctypes.c_int32 * len(tokens))(*tokens)
        if not self._lib.lml_grammar_accept(self.pointer, data, len(tokens)):
            raise NothingAllowed

    def close(self) -> None:
        """Frees the sampler."""
        self._lib.llama_sampler_free(self.pointer)


class Step(NamedTuple):
    """One sampler of a chain: llama_sampler_init_NAME and its arguments."""

    name: str
    arguments: tuple[Any, ...]
    n_window: int = 0  # last tokens of the prompt that it counts


def chain_steps(vocab: Vocab, params: SamplingParams, seed: int, n_ctx: int) -> Iterator[Step]:
    """The samplers of a chain. The last one chooses; those that change nothing are left out.

    Order as in llama.cpp, or as the request has it: bias first, then `params.samplers`.
    """
    if params.logit_bias:
        each = (capi.llama_logit_bias(token, bias) for token, bias in params.logit_bias)
        biases = (capi.llama_logit_bias * len(params.logit_bias))(*each)
        yield Step("logit_bias", (vocab.n_tokens, len(biases), biases))
    is_greedy = (params.temperature, params.dynatemp_range) == (0, 0)
    is_greedy &= "temperature" in params.samplers
    cuts = _cuts(params, seed)
    # Only these two may leave out the likeliest token.
    if params.mirostat or (is_greedy and not cuts.keys() & {"typ_p", "xtc"}):
        cuts = {}
    for name in params.samplers:
        if name in cuts:
            yield cuts[name]
        elif name in ("penalties", "dry"):
            yield from (_penalties if name == "penalties" else _dry)(vocab, params, n_ctx)
        elif name == "temperature" and params.dynatemp_range:
            dynamic = params.temperature, params.dynatemp_range, params.dynatemp_exponent
            yield Step("temp_ext", dynamic)
        elif name == "temperature" and not is_greedy:
            yield Step("temp", (params.temperature,))
    if is_greedy:
        yield Step("greedy", ())
    elif params.mirostat:
        yield Step("mirostat_v2", (seed, params.mirostat_tau, params.mirostat_eta))
    else:
        yield Step("dist", (seed,))


def _cuts(params: SamplingParams, seed: int) -> dict[str, Step]:
    """The samplers that leave out tokens, by their names in requests."""
    xtc = params.xtc_probability, params.xtc_threshold, 1, seed
    return {
        name: step
        for name, is_on, step in (
            ("top_n_sigma", params.top_n_sigma > 0, Step("top_n_sigma", (params.top_n_sigma,))),
            ("top_k", params.top_k > 0, Step("top_k", (params.top_k,))),
            ("typ_p", params.typical_p < 1, Step("typical", (params.typical_p, 1))),
            ("top_p", params.top_p < 1, Step("top_p", (params.top_p, 1))),
            ("min_p", params.min_p > 0, Step("min_p", (params.min_p, 1))),
            ("xtc", params.xtc_probability > 0, Step("xtc", xtc)),
        )
        if is_on
    }


def _penalties(vocab: Vocab, params: SamplingParams, n_ctx: int) -> Iterator[Step]:
    n_window = _window(params.repeat_last_n, n_ctx)
    if params.repeat_penalty != 1 and n_window:
        arguments = vocab.n_tokens, n_window, params.repeat_penalty, 0, 0
        yield Step("penalties", arguments, n_window)
    counted = params.frequency_penalty, params.presence_penalty
    if any(counted):
        # OpenAI counts all sampled tokens but not the prompt, so this is a separate sampler.
        yield Step("penalties", (vocab.n_tokens, n_ctx, 1, *counted))


def _dry(vocab: Vocab, params: SamplingParams, n_ctx: int) -> Iterator[Step]:
    n_window = _window(params.dry_penalty_last_n, n_ctx)
    if params.dry_multiplier and n_window:
        texts = [text.encode() for text in params.dry_sequence_breakers]
        breakers = ctypes.cast(
            (ctypes.c_char_p * len(texts))(*texts), ctypes.POINTER(ctypes.c_void_p)
        )
        yield Step("dry", (
            vocab.pointer, params.dry_multiplier, params.dry_base, params.dry_allowed_length,
            n_window, breakers, len(texts),
        ), n_window)  # fmt: skip


def _window(n: int, n_ctx: int) -> int:
    """How many last tokens to count; -1: as many as the context holds."""
    return min(n, n_ctx) if n >= 0 else n_ctx


def n_best(steps: Sequence[Step]) -> int:
    """How many of the likeliest tokens a chain needs, from its samplers; 0: all tokens.

    -1: all, and those that a grammar refuses never reach the chain: it learns from each choice.

    >>> n_best([Step("top_k", (40,)), Step("dist", (1,))]), n_best([Step("min_p", (0.1, 1))])
    (40, 0)
    """
    if steps[-1].name == "mirostat_v2":
        return -1
    first = steps[0]
    n: int = 1 if first.name == "greedy" else first.arguments[0] if first.name == "top_k" else 0
    return n if n <= MAX_BEST else 0
