"""Scenarios: what the users of a 0.5B model feel, alone and many at once.

Each serves the model, uses it as people do, and returns a value for each of its figures. Every
prompt is new, except where sharing is what is measured: no cache helps by accident. Both sides
get the same prompts in the same round.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from tests.bench.client import Asked, BadReply, Completion, Connection, ask, ask_chat
from tests.bench.peers import Server, Side, busy_process
from tests.bench.work import BIG, FEW, Values, Work, crowd, warm_up

# ---- one client ----------------------------------------------------------------------------


def one_stream(side: Side, work: Work) -> Values:
    """One client, prompts of 408 tokens, 64 tokens each: what a single user feels."""
    with side.serve(FEW) as server, Connection(server.url) as connection:
        warm_up(server)
        answers = [
            connection.stream(ask(server.model, work.prompt(408), 64)) for _ in range(work.n(6, 2))
        ]
    work.count(*answers)
    return {
        "rate": median([answer.rate for answer in answers]),
        "first": median([answer.first_token_s for answer in answers]),
    }


def conversation(side: Side, work: Work) -> Values:
    """Six turns of one chat, each with all that was said before it."""
    messages = [{"role": "system", "content": "You are helpful." + work.prompt(40)}]
    with side.serve(FEW) as server, Connection(server.url) as connection:
        warm_up(server)
        began_s = time.perf_counter()
        answers = []
        for _ in range(6):
            messages.append({"role": "user", "content": "Tell me about" + work.prompt(60)})
            answers.append(connection.stream(ask_chat(server.model, messages, 32)))
            messages.append({"role": "assistant", "content": answers[-1].text})
        wall_s = time.perf_counter() - began_s
    work.count(*answers)
    return {"wall": wall_s, "first": median([answer.first_token_s for answer in answers])}


def busy_machine(side: Side, work: Work) -> Values:
    """One client generates while another process, not of the server, keeps one core busy."""
    with side.serve(FEW) as server, Connection(server.url) as connection:
        warm_up(server)
        with busy_process():
            answers = [
                connection.stream(ask(server.model, work.prompt(18), 96))
                for _ in range(work.n(3, 1))
            ]
    work.count(*answers)
    return {"rate": median([answer.rate for answer in answers])}


# ---- several clients -----------------------------------------------------------------------


def eight_at_once(side: Side, work: Work) -> Values:
    """16 requests of 8 clients, 108-token prompts, 64 tokens each; and the most memory held."""
    with side.serve(BIG) as server:
        warm_up(server)
        requests = [ask(server.model, work.prompt(108), 64) for _ in range(work.n(16, 8))]
        result = crowd(server, work, 8, requests)
    firsts = [answer.first_token_s for answer in result.answers]
    return {"rate": result.tokens_per_s, "first": median(firsts)}


def thirty_two_at_once(side: Side, work: Work) -> Values:
    """64 requests of 32 clients where 8 run at a time: the others wait for their turn."""
    with side.serve(BIG) as server:
        warm_up(server)
        requests = [ask(server.model, work.prompt(18), 24) for _ in range(work.n(64, 32))]
        result = crowd(server, work, 32, requests)
    firsts = [answer.first_token_s for answer in result.answers]
    return {"rate": result.tokens_per_s, "first": median(firsts)}


def shared_system_prompt(side: Side, work: Work) -> Values:
    """16 questions of 4 clients behind the same 900 words, which nobody has asked before."""
    system = "You are helpful." + work.prompt(900)
    with side.serve(FEW) as server:
        warm_up(server)
        requests = [
            ask_chat(
                server.model,
                [{"role": "system", "content": system},
                 {"role": "user", "content": "Tell me about" + work.prompt(12)}],
                16,
            )
            for _ in range(work.n(16, 8))
        ]  # fmt: skip
        result = crowd(server, work, 4, requests)
    firsts = [answer.first_token_s for answer in result.answers]
    return {"wall": result.wall_s, "last": max(firsts)}


def short_requests(side: Side, work: Work) -> Values:
    """100 requests of 8 clients, 11 tokens in and 2 out: what a request costs besides tokens."""
    with side.serve(BIG) as server:
        warm_up(server)
        requests = [ask(server.model, work.prompt(11), 2) for _ in range(work.n(100, 40))]
        return {"rate": crowd(server, work, 8, requests).requests_per_s}


def arriving_prompt(side: Side, work: Work) -> Values:
    """A stream runs, and 1,209 tokens arrive from somebody else: how long it falls silent."""
    silences, firsts = [], []
    with side.serve(FEW) as server:
        warm_up(server)
        for _ in range(work.n(3, 1)):
            running = ask(server.model, work.prompt(18), 250)
            arriving = ask(server.model, work.prompt(1209), 2)
            stream, late = one_after_the_other(server, running, arriving)
            work.count(stream, late)
            silences.append(stream.longest_silence_s)
            firsts.append(late.first_token_s)
    return {"silence": median(silences), "first": median(firsts)}


def one_after_the_other(
    server: Server, running: Asked, arriving: Asked
) -> tuple[Completion, Completion]:
    """Sends the second when the first has been running for a second.

    Raises BadReply if the first ends before the second has an answer.
    """
    answers: list[Completion] = []

    def run() -> None:
        with Connection(server.url) as connection:
            answers.append(connection.stream(running))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(1.0)
    with Connection(server.url) as connection:
        late = connection.stream(arriving)
    thread.join()
    if answers[0].text_s[-1] < late.text_s[0]:
        raise BadReply("the stream ended before the other prompt was read")
    return answers[0], late


def large_bodies(side: Side, work: Work) -> Values:
    """One client generates; 8 others send 300 kB of JSON four times a second, to be refused."""
    with side.serve(FEW) as server, Connection(server.url) as connection:
        warm_up(server)

        def rate() -> float:
            answers = [
                connection.stream(ask(server.model, work.prompt(18), 96))
                for _ in range(work.n(3, 1))
            ]
            work.count(*answers)
            return median([answer.rate for answer in answers])

        quiet = rate()
        with large_body_clients(server, 8, 0.25):
            busy = rate()
    return {"kept": busy / quiet, "rate": busy}


@contextmanager
def large_body_clients(server: Server, n_clients: int, period_s: float) -> Iterator[None]:
    """So many clients that each send a large body each period, however long the answer takes."""
    padding = [{"role": "user", "content": "word " * 20} for _ in range(2000)]
    data = json.dumps({"model": server.model, "messages": 7, "padding": padding}).encode()
    done = threading.Event()

    def send() -> None:
        next_s = time.perf_counter()
        with Connection(server.url) as connection:
            while not done.wait(max(0.0, next_s - time.perf_counter())):
                connection.request("POST", "/v1/chat/completions", data)
                next_s += period_s

    threads = [threading.Thread(target=send) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
