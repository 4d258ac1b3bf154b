"""Many simulated servers, their users, and the balancer between them.

Each user holds one conversation after another: a system prompt that many share, then turns, each
with all that was said before it. A user reads and thinks after an answer. So the load follows the
servers: slower ones are asked less, and cost more for each token.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from tests.fleet.server import Request, Server, Sizes
from tests.fleet.step_times import StepTimes

N_TURNS_BEFORE = 20  # of each user: when a run begins, most users are amid a conversation
POOL = list(range(1 << 20))  # tokens; texts are slices of it, which seldom begin alike


@dataclass(frozen=True)
class Trace:
    """What users do. Lengths are medians of log-normal distributions."""

    n_system_prompts: int = 40  # the k-th is 1/k as popular as the first
    n_system: int = 400  # tokens
    n_question: int = 50
    n_answer: int = 100
    spread: float = 0.7  # of the logarithm
    n_turns: float = 6  # the mean of a geometric distribution
    n_most: int = 2500  # tokens, after which a conversation ends
    think_s: float = 30.0  # the mean of an exponential distribution


class User:
    """One user's conversations, the same for each seed whatever the servers do."""

    def __init__(self, trace: Trace, system_prompts: Sequence[list[int]], seed: str) -> None:
        self._trace, self._system_prompts = trace, system_prompts
        self._rng = random.Random(seed)
        self._weights = [1 / k for k in range(1, len(system_prompts) + 1)]
        self._text: list[int] = []
        self.conversation = 0  # what a balancer sees of it: a hash

    def think_s(self) -> float:
        return self._rng.expovariate(1 / self._trace.think_s)

    def ask(self) -> Request:
        """The next turn of the conversation, or the first of a new one."""
        trace, rng = self._trace, self._rng
        is_over = rng.random() < 1 / trace.n_turns or len(self._text) > trace.n_most
        if is_over or not self._text:
            self._text = list(rng.choices(self._system_prompts, self._weights)[0])
            self.conversation = rng.getrandbits(32)
        prompt = self._text + self._said(trace.n_question)
        answer = self._said(trace.n_answer)
        self._text = prompt + answer
        return Request(prompt, answer)

    def _said(self, n_median: int) -> list[int]:
        n = round(n_median * math.exp(self._rng.gauss(0, self._trace.spread)))
        return text(self._rng, max(1, min(n, 4 * n_median)))


def text(rng: random.Random, n: int) -> list[int]:
    """n tokens that no other text begins with."""
    begin = rng.randrange(len(POOL) - n)
    return POOL[begin : begin + n]


# ---- balancers -----------------------------------------------------------------------------

Route = Callable[[int, Sequence[Server], int], int]  # conversation, servers, n-th request -> index


def round_robin(conversation: int, servers: Sequence[Server], n: int) -> int:  # noqa: ARG001
    """Each request goes to the next server."""
    return n % len(servers)


def affinity(conversation: int, servers: Sequence[Server], n: int) -> int:  # noqa: ARG001
    """A conversation stays with one server."""
    return conversation % len(servers)


class Bounded:
    """Affinity, but a server with much more than its share passes requests on to the next.

    As HAProxy's `hash-balance-factor`.
    """

    def __init__(self, factor: float = 1.5) -> None:
        self._factor = factor

    def __call__(self, conversation: int, servers: Sequence[Server], n: int) -> int:  # noqa: ARG002
        n_most = math.ceil(self._factor * (sum(s.n_open for s in servers) + 1) / len(servers))
        home = conversation % len(servers)
        for i in range(home, home + len(servers)):
            if servers[i % len(servers)].n_open < n_most:
                return i % len(servers)
        raise AssertionError("some server has at most the mean")


# ---- a run ---------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What the users of a fleet had, after its first minutes."""

    n_requests: int
    n_tokens: int  # of answers
    first_p50_s: float
    first_p99_s: float
    cached_share: float  # of prompt tokens
    busy_share: float  # of the servers' time
    elapsed_s: float

    def cost(self, n_servers: int, price: float) -> float:
        """Of a million tokens of answers, at `price` for an hour of one server."""
        return n_servers * self.elapsed_s / 3600 * price / (self.n_tokens / 1e6)


@dataclass
class Fleet:
    """A plan: how many servers of which sizes, for how many users, behind which balancer."""

    n_servers: int
    times: StepTimes
    route: Route
    sizes: Sizes = field(default_factory=Sizes)
    trace: Trace = field(default_factory=Trace)
    n_users_each: int = 12  # per server
    seed: int = 1

    def run(self, elapsed_s: float, settle_s: float = 0.0) -> Outcome:
        """Simulates `elapsed_s` after a beginning of `settle_s`, which does not count."""
        run = Run(self)
        run.until(settle_s)
        busy_before_s = run.busy_s
        run.until(settle_s + elapsed_s)
        answered = [request for request in run.answered if request.arrived_s >= settle_s]
        busy_share = (run.busy_s - busy_before_s) / (self.n_servers * elapsed_s)
        return outcome(answered, elapsed_s, busy_share)


class Run:
    """A fleet at work. What happens next is the earliest event: a user asks, or a step ends."""

    def __init__(self, fleet: Fleet) -> None:
        rng, trace = random.Random(fleet.seed), fleet.trace
        prompts = [text(rng, trace.n_system) for _ in range(trace.n_system_prompts)]
        self._route = fleet.route
        self._servers = [Server(fleet.sizes, fleet.times) for _ in range(fleet.n_servers)]
        self._owners: dict[Request, User] = {}
        self._n_asked = 0
        self._order = count()  # events of the same time come in the order of their making
        self._events: list[tuple[float, int, User | Server]] = []
        self.answered: list[Request] = []
        for i in range(fleet.n_servers * fleet.n_users_each):
            user = User(trace, prompts, f"{fleet.seed} {i}")
            for _ in range(N_TURNS_BEFORE):
                user.ask()
            self._at(user.think_s(), user)

    @property
    def busy_s(self) -> float:
        """Of all servers together."""
        return sum(server.busy_s for server in self._servers)

    def until(self, end_s: float) -> None:
        """Lets everything happen that happens before."""
        while self._events and self._events[0][0] < end_s:
            now_s, _, what = heapq.heappop(self._events)
            if isinstance(what, User):
                self._ask(what, now_s)
            elif what.step_end_s == now_s:  # else an arrival has made its steps fewer
                self._end_step(what, now_s)

    def _ask(self, user: User, now_s: float) -> None:
        request = user.ask()
        self._owners[request] = user
        server = self._servers[self._route(user.conversation, self._servers, self._n_asked)]
        self._n_asked += 1
        before_s = server.step_end_s
        server.submit(request, now_s)
        if server.step_end_s is not None and server.step_end_s != before_s:
            self._at(server.step_end_s, server)

    def _end_step(self, server: Server, now_s: float) -> None:
        for request in server.end_step():
            user = self._owners.pop(request)
            self._at(now_s + user.think_s(), user)
            self.answered.append(request)
        if server.step_end_s is not None:
            self._at(server.step_end_s, server)

    def _at(self, when_s: float, what: User | Server) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what))


def outcome(answered: Sequence[Request], elapsed_s: float, busy_share: float) -> Outcome:
    """The figures of the requests that were answered."""
    firsts = sorted((request.first_token_s or 0.0) - request.arrived_s for request in answered)
    n_prompt = sum(len(request.prompt) for request in answered)
    return Outcome(
        n_requests=len(answered),
        n_tokens=sum(len(request.answer) for request in answered),
        first_p50_s=firsts[len(firsts) // 2],
        first_p99_s=firsts[len(firsts) * 99 // 100],
        cached_share=sum(request.n_cached for request in answered) / n_prompt,
        busy_share=busy_share,
        elapsed_s=elapsed_s,
    )
