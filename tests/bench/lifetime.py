"""Scenarios: the life of the server's processes. How fast they start, what they hold and keep."""

import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench import model, small_models
from tests.bench.client import Connection, ask, ask_chat
from tests.bench.peers import MemoryWatch, NotMeasured, Setup, Side, keeps_prompts, n_bytes_held
from tests.bench.work import BIG, Values, Work, crowd, warm_up


def start(side: Side, work: Work) -> Values:
    """From the start of the process to the first token, its file in the page cache; and memory."""
    setup = Setup(model.MODEL_PATH, n_ctx=4096, n_parallel=1, needs_start=True)
    model.MODEL_PATH.read_bytes()  # into the page cache, for whoever comes first
    with side.serve(setup) as server, Connection(server.url) as connection:
        answer = connection.stream(ask(server.model, work.prompt(18), 4))
        assert server.pid is not None
        held = n_bytes_held(server.pid)
    work.count(answer)
    return {"first": answer.text_s[0] - server.began_s, "memory": held / 2**20}


def smallest(side: Side, work: Work) -> Values:
    """Memory after one answer of the embedded model: of its own, and with pages of files (PSS)."""
    setup = replace(small_models.TINY, needs_start=True, n_ctx=4096)
    with side.serve(setup) as server, Connection(server.url) as connection:
        answer = connection.stream(small_models.ask_tiny(server, work, 3, 10))
        assert server.pid is not None
        own, held = (n_bytes_held(server.pid, kind) / 2**20 for kind in ("Anonymous", "Pss"))
    work.count(answer)
    return {"own": own, "memory": held}


def memory_under_load(side: Side, work: Work) -> Values:
    """The most that the process tree holds (PSS) while 8 clients have 400 tokens read each."""
    with side.serve(replace(BIG, needs_start=True)) as server:
        assert server.pid is not None
        with MemoryWatch(server.pid) as watch:
            requests = [ask(server.model, work.prompt(400), 24) for _ in range(work.n(8, 4))]
            crowd(server, work, 8, requests)
    return {"memory": watch.peak_bytes / 2**20}


def growth(side: Side, work: Work) -> Values:
    """How much memory 10,000 requests leave behind, after 1,000 to warm up; the tiny model."""
    with side.serve(replace(small_models.TINY, needs_start=True)) as server:
        assert server.pid is not None
        held = []
        for n in (work.n(1_000, 200), work.n(10_000, 400)):
            requests = [small_models.ask_tiny(server, work, 3, 2) for _ in range(n)]
            crowd(server, work, 8, requests)
            held.append(n_bytes_held(server.pid))
    return {"growth": (held[1] - held[0]) / 2**20}


def restart(side: Side, work: Work) -> Values:
    """A 1,000-token system prompt, cold; then the server starts anew and gets it again."""
    if not keeps_prompts():
        raise NotMeasured("lmlite has no --cache-dir")
    system = {"role": "system", "content": "You are helpful." + work.prompt(1000)}
    firsts = []
    with tempfile.TemporaryDirectory() as folder:
        setup = replace(BIG, needs_start=True, cache_folder=Path(folder))
        for _ in ("cold", "again"):
            question = {"role": "user", "content": "Tell me about" + work.prompt(12)}
            with side.serve(setup) as server, Connection(server.url) as connection:
                warm_up(server)
                answer = connection.stream(ask_chat(server.model, [system, question], 8))
            work.count(answer)
            firsts.append(answer.first_token_s)
    return {"first": firsts[1], "kept": firsts[1] / firsts[0]}
