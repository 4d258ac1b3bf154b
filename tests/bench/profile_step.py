"""Python's own share of a step: what the engine's loop takes beside the library's calls.

    make profile                              (or: python -m tests.bench.profile_step --help)

Runs the real engine on the embedded model in this process. Its events become frames and are thrown
away. Each call into the library is timed; the rest of a step is Python's share. Then each token of
a long answer is timed from when it is sampled: the grammar looks for the beginning of a call, the
token becomes text, and the chat template's parser reads it.
"""

import argparse
import cProfile
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmlite.messages import (
    Chat,
    ChatMessage,
    ChatOptions,
    EngineState,
    Finished,
    ReplyEvent,
    SamplingParams,
)
from lmlite.worker.__main__ import Outbox
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.embedder import Embedder
from lmlite.worker.engine import Engine
from lmlite.worker.generator import Generator
from lmlite.worker.llama import capi
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.loader import default_n_threads
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence as Completion
from lmlite.worker.threads import ThreadGovernor
from tests import REPOSITORY

GOAL_MS, GOAL_MS_EACH = 0.3, 0.08  # of a step, and of each sequence in it
N_ROUNDS = 5
MODEL = REPOSITORY / "lmlite" / "models" / "tiny.gguf"


class TimedLibrary:
    """The library, with the sum of the times that its functions took."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.elapsed_s = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._lib, name)

        def timed(*arguments: Any) -> Any:
            begin_s = time.perf_counter()
            result = function(*arguments)
            self.elapsed_s += time.perf_counter() - begin_s
            return result

        setattr(self, name, timed)
        return timed


class Run:
    """Some completions at once, from the first step to the last."""

    def __init__(self, lib: TimedLibrary, model: Model, n_streams: int, n_tokens: int) -> None:
        self._lib, self._n_left = lib, n_streams
        context = Context(
            model, n_ctx=4096, n_batch=512, n_seq_max=n_streams, n_threads=default_n_threads()
        )
        self._outbox = Outbox(open(os.devnull, "wb"))  # noqa: SIM115 (closed with the process)
        embedder = Embedder(lambda: context)
        governor = ThreadGovernor(default_n_threads())  # its bookkeeping is a part of each step
        generator = Generator(
            model, context, n_parallel=n_streams, prefill_budget_s=0.15, governor=governor
        )
        engine = self._engine = Engine(generator, embedder, self._emit)
        ends = tuple(
            (t, -100.0) for t in range(model.vocab.n_tokens) if model.vocab.ends_generation(t)
        )
        params = SamplingParams(max_tokens=n_tokens, seed=1, logit_bias=ends)
        prompt = model.vocab.tokenize("Once upon a time", add_special=True, parse_special=True)
        engine.submit([Completion(i, 0, prompt, params, i, ()) for i in range(n_streams)])
        self.n_steps = 0
        begin_s, before_s = time.perf_counter(), lib.elapsed_s
        engine.run()
        self.step_ms = (time.perf_counter() - begin_s) / self.n_steps * 1e3
        self.library_ms = (lib.elapsed_s - before_s) / self.n_steps * 1e3
        context.close()

    def _emit(self, events: Iterable[ReplyEvent | EngineState]) -> None:
        events = list(events)
        self._outbox.send(events)
        self.n_steps += 1
        self._n_left -= sum(isinstance(event, Finished) for event in events)
        if not self._n_left:
            self._engine.stop()


# ---- long answers ----------------------------------------------------------------------------

N_LONG, N_PART = 20_000, 1000  # tokens of an answer, and those at each end that are compared
MOST_GROWTH = 2  # of the time that a token takes
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
TOOLS = (
    {"type": "function", "function": {
        "name": "write", "description": "",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}},
)  # fmt: skip
# What each begins with; one long text follows.
LONG_ANSWERS = {
    "plain text": "",
    "a thought": "<think>\n",
    "text beside tools": "Once upon a time",
    "arguments of a call": '<tool_call>\n{"name": "write", "arguments": {"text": "',
}


def token_us(model: Model, kind: str) -> list[float]:
    """Microseconds that each token of a long answer takes."""
    template = ChatTemplate(model, PLAIN if kind == "plain text" else None)
    options = ChatOptions() if kind == "plain text" else ChatOptions(tools=TOOLS)
    preparer = Preparer(model, template, 1 << 16, lambda _events: None)
    chat = Chat(1, (ChatMessage("user", "Hi"),), SamplingParams(), options=options)
    (made,) = preparer.prepare(chat)
    assert isinstance(made, Completion)
    tokens = model.vocab.tokenize("Of many words, and no end.\n", add_special=False,
                                  parse_special=False)  # fmt: skip
    pieces = [model.vocab.piece(token).replace(b"\n", b"\\n") for token in tokens]
    made.extended(LONG_ANSWERS[kind].encode(), None)
    times = []
    for number in range(N_LONG):
        begin_s = time.perf_counter()
        grammar = made.active_grammar
        if grammar is not None and kind == "text beside tools":
            grammar.accept_free(tokens[number % len(tokens)])
        made.extended(pieces[number % len(tokens)], None)
        times.append((time.perf_counter() - begin_s) * 1e6)
    made.close()
    template.close()
    return times


def show_long_answers(model: Model) -> int:
    """Prints a line for each kind; how many take too much longer at the end than at the start."""
    missed = 0
    print(f"\nan answer of {N_LONG:,} tokens   first {N_PART:,}   last {N_PART:,}  (us a token)")
    for kind in LONG_ANSWERS:
        times = token_us(model, kind)
        # The first tokens include what is made only once.
        first, last = statistics.median(times[50:N_PART]), statistics.median(times[-N_PART:])
        grows = last > MOST_GROWTH * first
        missed += grows
        print(f"{kind:26} {first:11.1f} {last:12.1f}{'  MISSED' if grows else ''}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each number of streams, and each long answer; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="Measure Python's share of a step.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8], metavar="N")
    parser.add_argument("--tokens", type=int, default=400, metavar="N", help="of each stream")
    parser.add_argument("--functions", type=int, default=0, metavar="N",
                        help="also the N functions that take most of the time")  # fmt: skip
    options = parser.parse_args(arguments)
    lib = TimedLibrary(capi.load())
    lib.llama_backend_init()
    model = Model(lib, str(MODEL))
    missed = 0
    print("streams   step ms   library ms   Python ms   goal ms")
    for n in options.streams:
        runs = [Run(lib, model, n, options.tokens) for _ in range(N_ROUNDS)]
        step_ms = statistics.median(run.step_ms for run in runs)
        python_ms = statistics.median(run.step_ms - run.library_ms for run in runs)
        goal_ms = GOAL_MS + GOAL_MS_EACH * n
        missed += python_ms > goal_ms
        mark = "  MISSED" if python_ms > goal_ms else ""
        figures = (step_ms, step_ms - python_ms, python_ms)
        print(f"{n:7} {figures[0]:9.3f} {figures[1]:12.3f} {figures[2]:11.3f} {goal_ms:9.2f}{mark}")
    missed += show_long_answers(model)
    if options.functions:
        profile = cProfile.Profile()
        profile.runcall(Run, lib, model, max(options.streams), options.tokens)
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.functions)
    model.close()
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
