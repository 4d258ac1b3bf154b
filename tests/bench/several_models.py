"""Scenarios: several models behind one port, each loaded by the first request for it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests import REAL_MODEL
from tests.bench import model
from tests.bench.client import Asked, BadReply, Connection, ask
from tests.bench.peers import NotMeasured, Server, Setup, Side
from tests.bench.users import one_after_the_other
from tests.bench.work import Values, Work

# The names of a model file without its quantisation.
SMALL, LARGE = "smollm2-135m-instruct", "random-0.5b"
SMALL_ENDS = {"0": -100, "2": -100}  # a bias against the tokens that end an answer
FOR_ONE = "700M"  # either model fits, and not both


@contextmanager
def both(side: Side, memory: str | None = None) -> Iterator[Server]:
    """A server of both models; none is loaded yet. Raises NotMeasured."""
    if not REAL_MODEL.is_file():
        raise NotMeasured("it needs the model that `make real-model` fetches")
    with tempfile.TemporaryDirectory() as folder:
        for path in (REAL_MODEL, model.MODEL_PATH):
            path.read_bytes()  # into the page cache
            (Path(folder) / path.name).symlink_to(path)
        setup = Setup(Path(folder), n_ctx=4096, n_parallel=4, needs_start=True, memory=memory)
        with side.serve(setup) as server:
            yield server


def ask_small(work: Work, n_tokens: int) -> Asked:
    """A request to the small model, whose answer does not end by itself."""
    return ask(SMALL, work.prompt(18), n_tokens, logit_bias=SMALL_ENDS)


def load_beside_a_stream(side: Side, work: Work) -> Values:
    """A 135M model streams, and somebody asks for a 0.5B, which must be loaded first."""
    silences, firsts = [], []
    with both(side) as server, Connection(server.url) as connection:
        connection.stream(ask_small(work, 4))
        for _ in range(work.n(3, 1)):
            large = ask(LARGE, work.prompt(18), 4)
            stream, late = one_after_the_other(server, ask_small(work, 300), large)
            work.count(stream, late)
            silences.append(stream.longest_silence_s)
            firsts.append(late.first_token_s)
            connection.post("/api/v1/models/unload", instance_id=LARGE)
    return {"silence": max(silences), "first": median(firsts)}


def swap(side: Side, work: Work) -> Values:
    """Two models in turn, with memory for one: each request waits for its model to be loaded."""
    n_turns = work.n(8, 3)
    small, large = [], []
    with both(side, FOR_ONE) as server, Connection(server.url) as connection:
        for _ in range(n_turns):
            small.append(connection.stream(ask_small(work, 4)))
            large.append(connection.stream(ask(LARGE, work.prompt(18), 4)))
        counts = connection.fetch("GET", "/metrics").decode().splitlines()
    if f"lmlite_model_loads_total {2 * n_turns}" not in counts:
        raise BadReply("not every request had its model loaded")
    work.count(*small, *large)
    return {
        "small": median([answer.first_token_s for answer in small]),
        "large": median([answer.first_token_s for answer in large]),
    }
