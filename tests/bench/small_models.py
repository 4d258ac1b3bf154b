"""Scenarios: models so small that the server itself is the cost."""

import functools
import json
import re
import time
from statistics import median

from lmlite.gguf.header import read_header
from tests import REPOSITORY
from tests.bench.client import Asked, BadReply, Connection, ask, requests_at_once
from tests.bench.peers import NotMeasured, Server, Setup, Side
from tests.bench.work import Values, Work, crowd, warm_up

TINY = Setup(REPOSITORY / "lmlite" / "models" / "tiny.gguf", n_ctx=8192)
MINILM = Setup(
    REPOSITORY.parent / "shared" / "models" / "all-minilm-l6-v2-q8_0.gguf",
    n_ctx=2048,
    n_parallel=4,
    embeds=True,
)
NORMAL = 1  # LLAMA_TOKEN_TYPE_NORMAL


@functools.cache
def never_sampled() -> dict[str, int]:
    """A bias against the tokens by which the embedded model would end its answer."""
    header = read_header(str(TINY.model_path))
    kinds = header.metadata["tokenizer.ggml.token_type"].numbers()
    return {str(token): -100 for token, kind in enumerate(kinds) if kind != NORMAL}


def ask_tiny(server: Server, work: Work, n_words: int, n_tokens: int) -> Asked:
    """A request to the embedded model; a word is up to four tokens of its vocabulary."""
    return ask(server.model, work.prompt(n_words), n_tokens, logit_bias=never_sampled())


def tiny_stream(side: Side, work: Work) -> Values:
    """One client, 300 tokens at a time."""
    with side.serve(TINY) as server, Connection(server.url) as connection:
        warm_up(server)
        answers = [connection.stream(ask_tiny(server, work, 12, 300)) for _ in range(work.n(8, 4))]
    work.count(*answers)
    return {"rate": median([answer.rate for answer in answers])}


def tiny_streams(side: Side, work: Work) -> Values:
    """8 clients, 300 tokens at a time; and what a step takes besides its decode, if one tells."""
    with side.serve(TINY) as server:
        warm_up(server)
        requests = [ask_tiny(server, work, 12, 300) for _ in range(work.n(48, 16))]
        before = steps(server)
        result = crowd(server, work, 8, requests)
        after = steps(server)
    values = {"rate": result.tokens_per_s}
    if before and after:
        n_steps, decode_s = after[0] - before[0], after[1] - before[1]
        values["share"] = (result.wall_s - decode_s) / n_steps * 1000
    return values


def steps(server: Server) -> tuple[float, float] | None:
    """(steps, seconds of their decodes) that lmlite counts; None of a server that does not."""
    try:
        with Connection(server.url) as connection:
            text = connection.fetch("GET", "/metrics").decode()
    except BadReply:
        return None
    found = dict(re.findall(r"^lmlite_step_seconds_(count|sum) (\S+)$", text, re.MULTILINE))
    return (float(found["count"]), float(found["sum"])) if len(found) == 2 else None


def tiny_requests(side: Side, work: Work) -> Values:
    """8 clients, about 11 tokens in and 2 out: requests that cost hardly any decode."""
    with side.serve(TINY) as server:
        warm_up(server)
        requests = [ask_tiny(server, work, 3, 2) for _ in range(work.n(1200, 200))]
        return {"rate": crowd(server, work, 8, requests).requests_per_s}


def embeddings(side: Side, work: Work) -> Values:
    """64 texts of 20 to 60 words: in one request, and one by one from 4 clients."""
    if not MINILM.model_path.is_file():
        raise NotMeasured(f"there is no {MINILM.model_path.name} beside the repository")
    with side.serve(MINILM) as server, Connection(server.url) as connection:
        connection.post("/v1/embeddings", model=server.model, input="warm up")
        batches, singles = [], []
        for _ in range(work.n(4, 1)):
            texts = [work.prompt(n) for n in (20 + i * 40 // 63 for i in range(64))]
            began_s = time.perf_counter()
            reply = connection.post("/v1/embeddings", model=server.model, input=texts)
            batches.append(len(texts) / (time.perf_counter() - began_s))
            work.n_prompt += reply["usage"]["prompt_tokens"]
            bodies = [json.dumps({"model": server.model, "input": text}) for text in texts]
            asked = [Asked("/v1/embeddings", body.encode()) for body in bodies]
            began_s = time.perf_counter()
            requests_at_once(server.url, asked, 4)
            singles.append(len(texts) / (time.perf_counter() - began_s))
    return {"batch": median(batches), "single": median(singles)}
