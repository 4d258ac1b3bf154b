"""How long a step of the engine takes: constants, and the command that measures them.

    python -m tests.fleet --measure MODEL

Serves the model and asks it, alone on the machine, for what the simulation needs. The times come
from the histograms of `/metrics`, so they are those that users see.
"""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.support.server_process import RunningServer

N_TOKENS, N_DEEP, N_READ = 64, 2000, 512  # of an answer, a long prompt, and one that is timed
N_MANY, N_ROUNDS = 4, 3  # requests at once, and rounds of each measurement


class StepTimes(NamedTuple):
    """Seconds: of a step, and for each sequence and each token in it."""

    base_s: float  # a step with one sequence that generates takes base_s + sequence_s
    sequence_s: float
    prompt_token_s: float
    cell_s: float  # for each token that the step's sequences have in memory

    def step_s(self, n_tokens: int, n_sequences: int, n_cells: int) -> float:
        """How long a step takes that reads n_tokens of n_sequences.

        Reading a prompt replaces the cost of a step without one: the weights are read once.
        """
        generating = self.base_s + self.sequence_s * n_sequences
        return max(generating, self.prompt_token_s * n_tokens) + self.cell_s * n_cells


# `python -m tests.fleet --measure native/build/bench/random-0.5b-q4_0.gguf`, rounded: the fastest
# of several runs on two cores of a virtual x86 machine. Other work beside it doubles the times.
HALF_BILLION = StepTimes(0.008, 0.0064, 0.0042, 0.00001)


class Sums(NamedTuple):
    """A histogram's count and sum."""

    n: float
    s: float


def sums(server: RunningServer, name: str) -> Sums:
    """Of all models and paths."""
    text = server.get("/metrics").body.decode()

    def total(of: str) -> float:
        values = re.findall(rf"^lmlite_{name}_{of}{{.*}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    return Sums(total("count"), total("sum"))


def mean_s(server: RunningServer, name: str, *bodies: dict[str, Any]) -> float:
    """The mean of what these requests, sent at once, add to a histogram."""
    before = sums(server, name)
    n_before = sums(server, "prompt_tokens").n
    with ThreadPoolExecutor(len(bodies)) as pool:
        for answer in pool.map(lambda body: server.post("/v1/completions", **body), bodies):
            assert answer.status == 200, answer.body
    while sums(server, "prompt_tokens").n < n_before + len(bodies):
        pass  # a request is counted after its reply
    after = sums(server, name)
    return (after.s - before.s) / (after.n - before.n)


def measured(server: RunningServer, seed: int = 1) -> StepTimes:
    """The times of a running server that nobody else asks."""
    rng = random.Random(seed)

    def body(n_prompt: int, n_tokens: int) -> dict[str, Any]:
        prompt = [rng.randrange(300, 900) for _ in range(n_prompt)]
        return {"prompt": prompt, "max_tokens": n_tokens, "ignore_eos": True, "temperature": 0}

    def least_s(name: str, n_prompt: int, n_tokens: int, n_at_once: int = 1) -> float:
        """Of some rounds: whatever else the machine does only adds to a time."""
        rounds = [[body(n_prompt, n_tokens) for _ in range(n_at_once)] for _ in range(N_ROUNDS)]
        return min(mean_s(server, name, *bodies) for bodies in rounds)

    gaps = "between_tokens_seconds"
    mean_s(server, gaps, body(256, N_TOKENS))  # warms up
    one_s = least_s(gaps, 8, N_TOKENS)
    sequence_s = max(0.0, (least_s(gaps, 8, N_TOKENS, N_MANY) - one_s) / (N_MANY - 1))
    cell_s = max(0.0, (least_s(gaps, N_DEEP, N_TOKENS) - one_s) / N_DEEP)
    read_s = least_s("first_token_seconds", N_READ, 2)
    return StepTimes(max(0.0, one_s - sequence_s), sequence_s, read_s / N_READ, cell_s)
