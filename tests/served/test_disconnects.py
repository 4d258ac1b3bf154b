"""Clients may leave at any moment: their sequences, cells and places are freed."""

import contextlib
import http.client
import itertools
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pytest

from tests.served.test_faults import CHAT, until
from tests.support.server_process import START_S, Answer, RunningServer

SEED = 1
N_REQUESTS = 1000
N_CLIENTS = 24
N_QUEUE = 18  # plus 4 running: two fewer than clients, so some are refused
DROP_RATE = 0.3
N_CTX = 4096  # tokens, without --ctx
WORDS = ("red", "blue", "green", "say", "tell", "count", "the", "and", "of", "from", "to", "story")


def metrics(server: RunningServer) -> dict[str, float]:
    """The server's metrics."""
    return values(server.get("/metrics"))


def values(answer: Answer) -> dict[str, float]:
    """Each metric's name with its labels -> its value."""
    lines = answer.body.decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.removeprefix("lmlite_"): float(value) for name, value in pairs}


def is_at_rest(server: RunningServer) -> bool:
    """Nothing runs, nothing waits, and every cell is idle or free."""
    found = metrics(server)
    names = (
        "requests_open",
        "sequences_running",
        "sequences_waiting",
        'memory_cells{state="used"}',
    )
    return all(found[name] == 0 for name in names)


# ---- a thousand of them ----------------------------------------------------------------------

Moment = Literal["in the request", "after the request", "after events", "out of patience"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)


@dataclass(frozen=True)
class Plan:
    """A client's request, and when the client leaves."""

    body: dict[str, Any]
    leaves: Moment | None  # None: stays to the end
    n_events: int  # to wait for
    patience_s: float  # for the beginning of its answer
    resets: bool  # resets the connection instead of closing it


def drawn(rng: random.Random, endless: dict[str, Any]) -> Plan:
    leaves = rng.choice(MOMENTS) if rng.random() < DROP_RATE else None
    n_words = rng.choice((2, 2, 5, 20) if leaves is None else (2, 20, 300))
    words = [*rng.choices(WORDS, k=2), *WORDS * 20][:n_words]
    body = {
        "messages": [{"role": "user", "content": " ".join(words)}],
        "stream": leaves == "after events" or rng.random() < 0.5,
        "n": rng.choice((1, 1, 1, 2)),
    }
    if leaves is None:
        body |= {"temperature": 0, "max_tokens": rng.choice((1, 5, 20))}
    else:
        body |= {**endless, "max_tokens": 500}
    return Plan(body, leaves, rng.randrange(1, 30), 0.2 * rng.random(), rng.random() < 0.5)


class Client:
    """Carries out a plan, on its own connection."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._plan = plan
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
        self._data = json.dumps(plan.body).encode()

    def run(self) -> str:
        """Runs the plan. Returns the outcome: left, answered or refused."""
        with contextlib.closing(self._connection):
            if self._plan.leaves is None:
                return self._stay()
            with contextlib.suppress(TimeoutError):
                self._wait(self._plan.leaves)
            if self._plan.resets and self._connection.sock is not None:
                at_once = struct.pack("ii", 1, 0)
                self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            return "left"

    def _wait(self, leaves: Moment) -> None:
        """Waits for the moment to leave."""
        if leaves == "in the request":
            self._connection.putrequest("POST", CHAT)
            self._connection.putheader("Content-Type", "application/json")
            self._connection.putheader("Content-Length", str(len(self._data)))
            self._connection.endheaders(self._data[: len(self._data) // 2])
            return
        reply = self._ask() if leaves != "after the request" else None
        if leaves == "after events" and reply is not None:
            events = (line for line in reply if line.startswith(b"data: "))
            next(itertools.islice(events, self._plan.n_events, None), None)

    def _ask(self) -> http.client.HTTPResponse:
        self._connection.request("POST", CHAT, self._data, {"Content-Type": "application/json"})
        if self._plan.leaves == "out of patience":
            assert self._connection.sock is not None
            self._connection.sock.settimeout(self._plan.patience_s)
        return self._connection.getresponse()

    def _stay(self) -> str:
        reply = self._ask()
        body = reply.read()
        if reply.status == 503:
            assert reply.headers["Retry-After"] == "1"
            return "refused"
        assert reply.status == 200, body
        objects = [body]
        if self._plan.body["stream"]:
            lines = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
            *objects, last = [line.removeprefix(b"data: ") for line in lines]
            assert last == b"[DONE]"
        choices = [choice for data in objects for choice in json.loads(data)["choices"]]
        ends = [choice["index"] for choice in choices if choice["finish_reason"]]
        assert sorted(ends) == list(range(self._plan.body["n"]))
        return "answered"


@pytest.mark.long
def test_a_thousand_requests_with_three_in_ten_dropped_leave_nothing_behind(
    endless: dict[str, Any],
) -> None:
    rng = random.Random(SEED)
    plans = [drawn(rng, endless) for _ in range(N_REQUESTS)]
    waiting = iter(plans)
    results: Counter[str] = Counter()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                plan = next(waiting, None)
            if plan is None:
                return
            while (result := Client(server.port, plan).run()) == "refused":
                with lock:
                    results["refused"] += 1
                threading.Event().wait(1)  # as Retry-After says
            with lock:
                results[result] += 1

    with RunningServer("--parallel", "4", "--queue", str(N_QUEUE)) as server:
        worker_pid = server.worker_pid()
        threads = [threading.Thread(target=work) for _ in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"seed {SEED}: {results}")
        n_dropped = sum(plan.leaves is not None for plan in plans)
        assert (results["left"], results["answered"]) == (n_dropped, N_REQUESTS - n_dropped)
        until(lambda: is_at_rest(server))
        found = metrics(server)
        idle, free = (found[f'memory_cells{{state="{name}"}}'] for name in ("idle", "free"))
        assert idle + free == N_CTX
        assert (server.worker_pid(), found["worker_starts_total"]) == (worker_pid, 1)
        statuses = {re.findall(r'status="(\d+)"', name)[0] for name in found if "status" in name}
        assert statuses <= {"200", "499", "503"}
        assert not any("ERROR" in line for line in server.log)
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"


# ---- one that does not read ------------------------------------------------------------------


def test_a_client_that_does_not_read_and_goes_away_gives_its_place_back(
    endless: dict[str, Any],
) -> None:
    # More data than the kernel buffers for this socket: four answers, 20 logprobs per token.
    body = {**endless, "messages": [{"role": "user", "content": "Hi"}], "n": 4, "stream": True}
    body |= {"logprobs": True, "top_logprobs": 20, "max_tokens": 700}
    with RunningServer("--parallel", "4") as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.sock = sock
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        assert sock.recv(1) == b"H"  # the answer has begun
        until(lambda: metrics(server).get("sequences_running") == 0)
        assert metrics(server)["requests_open"] == 1  # the engine is done, its thread is not
        sock.close()
        until(lambda: is_at_rest(server))
        server.wait_for_log(rf"POST {CHAT} 499 ")
