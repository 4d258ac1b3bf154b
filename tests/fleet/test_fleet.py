"""The simulation does what the engine does: exactly where policy decides, roughly in time."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fleet.fleet import Bounded, Fleet, Trace, affinity, round_robin
from tests.fleet.server import Request, Server, Sizes
from tests.fleet.step_times import StepTimes, measured
from tests.support.server_process import RunningServer

# A step of one sequence takes 1 s, each further sequence 0.25 s; 0.125 s for a prompt's token.
SIMPLE = StepTimes(base_s=0.75, sequence_s=0.25, prompt_token_s=0.125, cell_s=0)
TWO_LANES = Sizes(n_parallel=2, n_ctx=1024, n_parked_bytes=0)


def request(begin: int, n_prompt: int, n_answer: int) -> Request:
    return Request(list(range(begin, begin + n_prompt)), list(range(10**6, 10**6 + n_answer)))


def ended(server: Server) -> dict[Request, float]:
    """When each request was complete, once the server has nothing to do."""
    found: dict[Request, float] = {}
    while (now_s := server.step_end_s) is not None:
        found |= dict.fromkeys(server.end_step(), now_s)
    return found


# ---- one server, exactly ---------------------------------------------------------------------


def test_a_prompt_is_read_and_then_each_step_makes_a_token() -> None:
    server, only = Server(TWO_LANES, SIMPLE), request(0, 32, 5)
    server.submit(only, 10.0)
    assert ended(server) == {only: 10 + 32 * 0.125 + 4}
    assert (only.first_token_s, only.n_cached, server.busy_s) == (14, 0, 8)


def test_a_request_joins_after_the_step_in_which_it_arrives() -> None:
    server, first, second = Server(TWO_LANES, SIMPLE), request(0, 32, 9), request(100, 16, 2)
    server.submit(first, 0.0)
    assert (server.end_step(), server.step_end_s) == ([], 4 + 8)  # its steps alone
    server.submit(second, 5.5)
    assert server.step_end_s == 6
    assert server.end_step() == []
    # 16 tokens of the prompt with one of the first: 17 tokens.
    assert server.step_end_s == 6 + 17 * 0.125
    server.end_step()
    assert second.first_token_s == 6 + 17 * 0.125
    assert server.step_end_s == 8.125 + 1.25  # both generate, until the second is complete
    assert server.end_step() == [second]


def test_a_third_request_waits_for_one_of_two_lanes() -> None:
    server = Server(TWO_LANES, SIMPLE)
    first, second, third = request(0, 16, 3), request(100, 16, 6), request(200, 16, 1)
    for each in (first, second, third):
        server.submit(each, 0.0)
    assert server.n_open == 3
    ends = ended(server)
    assert third.first_token_s is not None
    assert ends[first] < third.first_token_s <= ends[second]


def test_a_conversation_is_read_on_from_where_it_was() -> None:
    server, first = Server(TWO_LANES, SIMPLE), request(0, 100, 20)
    server.submit(first, 0.0)
    (end_s,) = ended(server).values()
    again = Request([*first.prompt, *first.answer, 7, 8], [9])
    server.submit(again, end_s)
    ended(server)
    assert again.n_cached == 119  # the last token of an answer is never read


def test_memory_that_is_too_small_forgets_the_oldest() -> None:
    server, first = Server(TWO_LANES, SIMPLE), request(0, 600, 2)
    for each in (first, request(2000, 600, 2)):
        server.submit(each, 0.0)
        ended(server)
    again = Request([*first.prompt, 7], [9])
    server.submit(again, 10**4)
    ended(server)
    assert again.n_cached == 0


# ---- a fleet, exactly ------------------------------------------------------------------------

TRACE = Trace(n_system_prompts=3, n_system=64, n_question=8, n_answer=10, n_turns=4, think_s=5)
FAST = StepTimes(0.01, 0.001, 0.002, 0)


def test_a_fleet_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    fleets = [Fleet(3, FAST, affinity, trace=TRACE, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (fleet.run(60) for fleet in fleets)
    assert one == same != other


def test_a_tiny_fleet() -> None:
    found = Fleet(2, FAST, affinity, trace=TRACE, n_users_each=3).run(60, settle_s=10)
    assert (found.n_requests, found.n_tokens) == (69, 789)
    firsts_s = (round(found.first_p50_s, 9), round(found.first_p99_s, 9))
    assert firsts_s == (0.024, 0.266)
    assert (round(found.cached_share, 4), round(found.busy_share, 4)) == (0.8238, 0.0876)


def test_affinity_finds_more_in_memory_than_round_robin() -> None:
    shares = [
        Fleet(4, FAST, route, trace=TRACE).run(120).cached_share
        for route in (affinity, Bounded(), round_robin)
    ]
    assert shares == sorted(shares, reverse=True)


def test_a_bounded_balancer_passes_on_what_is_too_much_for_one() -> None:
    servers = [Server(TWO_LANES, SIMPLE) for _ in range(4)]
    route = Bounded(1.5)
    for n in range(8):  # one conversation's server is 1
        servers[route(1, servers, n)].submit(request(1000 * n, 16, 9), 0.0)
    assert [server.n_open for server in servers] == [0, 3, 3, 2]


def test_the_cost_is_that_of_all_servers_for_their_tokens() -> None:
    found = Fleet(2, FAST, affinity, trace=TRACE).run(60)
    assert found.cost(2, price=0.5) == pytest.approx(1e6 / found.n_tokens * 2 / 60 * 0.5)


# ---- beside a real server --------------------------------------------------------------------


def test_a_real_server_reuses_the_same_tokens() -> None:
    """One request at a time, five conversations in memory for three: place, share, evict."""
    rng = random.Random(3)
    system = [rng.randrange(300, 500) for _ in range(90)]
    texts = [system[: rng.choice((0, 90))] for _ in range(5)]
    # Nothing is parked: how many bytes a state has is not part of the simulation.
    sizes = Sizes(n_parallel=2, n_ctx=1024, n_parked_bytes=0)
    simulated = Server(sizes, FAST)
    with RunningServer("--ctx", "1024", "--parallel", "2", "--checkpoint-memory", "0") as real:
        for _ in range(25):
            prompt = rng.choice(texts)
            prompt += [rng.randrange(300, 500) for _ in range(rng.randrange(20, 60))]
            del prompt[900:]
            answer = real.post("/v1/completions", prompt=prompt, max_tokens=6, ignore_eos=True)
            details = answer.json["usage"]["prompt_tokens_details"]
            same = Request(list(prompt), [-1] * 6)
            simulated.submit(same, 0.0)
            ended(simulated)
            assert same.n_cached == details["cached_tokens"]


@pytest.mark.long
def test_a_real_server_takes_about_as_long() -> None:
    rng = random.Random(4)
    with RunningServer("--ctx", "4096", "--parallel", "4") as real:
        times = measured(real)
        requests = [request(300 + 40 * i, rng.randrange(50, 300), 64) for i in range(12)]
        simulated = Server(Sizes(), times)
        for each in requests:
            simulated.submit(each, 0.0)
        ended(simulated)
        began_s = time.monotonic()
        with ThreadPoolExecutor(len(requests)) as pool:
            bodies = [{"prompt": r.prompt, "max_tokens": 64, "ignore_eos": True} for r in requests]
            list(pool.map(lambda body: real.post("/v1/completions", **body), bodies))
        elapsed_s = time.monotonic() - began_s
    assert 1 / 4 < elapsed_s / simulated.busy_s < 4
