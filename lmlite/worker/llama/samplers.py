"""SamplerChain and Grammar: from a row of logits to a token. Each has one owner with a close().

A chain is a list of llama.cpp's samplers. If its first sampler keeps only the likeliest tokens, the
chain gets only those: collecting 150,000 tokens would take half a millisecond. The engine thread
uses both; a grammar is created earlier, when its request is prepared.
"""

import ctypes
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lmlite.messages import SamplingParams
from lmlite.worker.grammars.triggers import Triggers
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import INVALID_NUMBERS, Context
from lmlite.worker.llama.model import Model

MAX_BEST = 128  # up to this number a heap is faster than a sort, as in llama.cpp's top-k
REPEAT_WINDOW = 64  # repeat_penalty looks at this many last tokens, as in llama.cpp


class NothingAllowed(LlamaError):
    """A grammar allows no further token."""

    def __init__(self) -> None:
        super().__init__("the grammar allows no further token")


class SamplerChain:
    """A list of C samplers: from a row of logits to a token. Remembers the sampled tokens."""

    def __init__(
        self, model: Model, params: SamplingParams, *, seed: int, n_ctx: int, prompt: Sequence[int]
    ) -> None:
        """Makes the chain for one completion of `prompt`. Raises LlamaError.

        Order as in llama.cpp: bias and penalties, then top-k, top-p and min-p, then temperature.
        """
        self._lib = model.lib
        self._n_best = n_best(params)
        self.pointer = self._lib.llama_sampler_chain_init(
            self._lib.llama_sampler_chain_default_params()
        )
        if not self.pointer:  # passing NULL on to C would crash the process
            raise LlamaError("llama.cpp refused a chain of samplers")
        for sampler in self._samplers(model.vocab.n_tokens, params, seed, n_ctx, prompt):
            if not sampler:
                self.close()
                raise LlamaError("llama.cpp refused a sampler")
            self._lib.llama_sampler_chain_add(self.pointer, sampler)

    def _samplers(
        self, n_vocab: int, params: SamplingParams, seed: int, n_ctx: int, prompt: Sequence[int]
    ) -> Iterable[Any]:
        lib = self._lib
        if params.logit_bias:
            each = (capi.llama_logit_bias(token, bias) for token, bias in params.logit_bias)
            biases = (capi.llama_logit_bias * len(params.logit_bias))(*each)
            yield lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases)
        if params.repeat_penalty != 1:
            repeat = lib.llama_sampler_init_penalties(
                n_vocab, REPEAT_WINDOW, params.repeat_penalty, 0, 0
            )
            window = prompt[-REPEAT_WINDOW:]
            for token in (token for token in window if token >= 0):  # ids of pictures are negative
                lib.llama_sampler_accept(repeat, token)
            yield repeat
        if params.presence_penalty or params.frequency_penalty:
            # OpenAI counts all sampled tokens but not the prompt, so this is a separate sampler.
            yield lib.llama_sampler_init_penalties(
                n_vocab, n_ctx, 1, params.frequency_penalty, params.presence_penalty
            )
        if params.temperature == 0:
            yield lib.llama_sampler_init_greedy()
            return
        yield lib.llama_sampler_init_top_k(params.top_k)
        yield lib.llama_sampler_init_top_p(params.top_p, 1)
        yield lib.llama_sampler_init_min_p(params.min_p, 1)
        yield lib.llama_sampler_init_temp(params.temperature)
        yield lib.llama_sampler_init_dist(seed)

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


def n_best(params: SamplingParams) -> int:
    """How many of the likeliest tokens a chain needs; 0: all tokens.

    >>> n_best(SamplingParams(temperature=0)), n_best(SamplingParams(repeat_penalty=1.1))
    (1, 0)
    """
    penalties = params.presence_penalty, params.frequency_penalty
    if params.logit_bias or params.repeat_penalty != 1 or any(penalties):
        return 0
    n = params.top_k if params.temperature else 1
    return n if n <= MAX_BEST else 0
