"""Runs a server for a long time under every kind of harm at once, and reports what went wrong.

    make soak MINUTES=60           (or: python -m tests.reliability.soak --minutes 60 --seed 1)
    make soak MINUTES=5 ARGS=kills                     its worker is killed again and again
    make soak MINUTES=5 ARGS=curl             an attacker without a key tries curl commands

`all` mixes streams, clients that leave, damaged requests, and signals to the worker. It prints a
line a minute, and at the end which promises held; the exit code is 1 if any did not. No request may
be lost: each ends in a result, in an error that names its fault, or in an error that says to retry.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests import REPOSITORY
from tests.fuzz import http as fuzz_http
from tests.served.test_disconnects import Client, drawn, values
from tests.support import raw_requests
from tests.support.process_figures import KIB, MIB, all_bytes, grown, handles, own_bytes, percentile
from tests.support.server_process import RunningServer

CHAT = "/v1/chat/completions"
STUCK_S = 120.0  # timeout of one answer; normally, none takes a tenth of it
KEY = "soak-key-0123456789abcdef"
PROBE_S = 0.05  # between probes of /health
HEALTH_P99_S = 0.05  # the goal; if missed, the end may be 1.5 times the beginning
WINDOW_S = 300.0  # compared at the beginning and at the end; shorter ones say little
SETTLED_S = 0.5  # time for the threads of closed connections to end
GROWTH_EACH = 512 * KIB, 10_000  # allowed growth in bytes, for so many requests
GROWTH_MOST = 2 * MIB  # plus this, once
MAX_SHOWN = 20  # losses shown; all are counted
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
ASKED = ("Say: red", "Count from 1 to 30.", "What is 7 + 8?", "Tell me a story.", "Say hello world")


@dataclass
class Soak:
    """One server, and counts of all outcomes."""

    server: RunningServer
    seed: int
    headers: dict[str, str]  # with the key, if the server needs one
    ends: Counter[str] = field(default_factory=Counter)  # of requests
    losses: list[str] = field(default_factory=list)
    health: list[tuple[float, float]] = field(default_factory=list)  # (when, how long), seconds
    worker_bytes: int = 0  # the largest memory of any worker
    n_kills: int = 0
    n_answered: int = 0  # answers so far, when the last worker was killed
    deadline_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.deadline_s

    def rest(self, seconds: float) -> None:
        """Waits, but not past the end of the run."""
        threading.Event().wait(max(0.0, min(seconds, self.deadline_s - time.monotonic())))

    def note(self, end: str) -> None:
        with self.lock:
            self.ends[end] += 1

    def lose(self, what: str) -> None:
        with self.lock:
            self.losses.append(what)
            self.ends["lost"] += 1
        if len(self.losses) <= MAX_SHOWN:
            print(f"LOST: {what}", flush=True)

    def run(self, actors: "Sequence[Actor]", seconds: float) -> None:
        """Runs all actors at once, and prints a line a minute."""
        self.deadline_s = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._act, args=(actor, random.Random(f"{self.seed} {i}")))
            for i, actor in enumerate(actors)
        ]
        for thread in threads:
            thread.start()
        for minute in itertools.count(1):
            self.rest(60.0)
            if not self.goes_on:
                break
            print(f"{minute} min: {self.summary()}", flush=True)
        for thread in threads:
            thread.join()

    def _act(self, actor: "Actor", rng: random.Random) -> None:
        while self.goes_on:
            try:
                actor(self, rng)
            except Exception as err:  # a bug here or in the server: must be reported
                self.lose(f"{getattr(actor, '__name__', actor)}: {type(err).__name__}: {err}")
                self.rest(1.0)

    def summary(self) -> str:
        told = ", ".join(f"{n:,} {end}" for end, n in self.ends.most_common())
        p99_ms = percentile([took_s for _, took_s in self.health[-1000:]], 0.99) * 1000
        pid = self.server.process.pid
        held, own = all_bytes(pid) / MIB, own_bytes(pid) / MIB
        return (
            f"{told}; {self.n_kills} workers killed; server {held:.1f} MiB, {own:.1f} its own, "
            f"worker {self.worker_bytes / MIB:.1f} at most; /health p99 {p99_ms:.1f} ms"
        )


Actor = Callable[[Soak, random.Random], None]  # does one action, and is called repeatedly

# ---- honest clients --------------------------------------------------------------------------


def talk(soak: Soak, rng: random.Random) -> None:
    """A chat, streamed or not, by a client that obeys Retry-After."""
    # Each text is unique, so that it is not quarantined when workers die.
    content = f"{rng.choice(ASKED)} {soak.seed}.{next(soak.numbers)}"
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": rng.choice((4, 30, 200)),
        "stream": rng.random() < 0.7,
    }
    end = outcome(soak, "POST", CHAT, json.dumps(body).encode())
    if end == "told to ask again":
        soak.rest(1.0)


def outcome(soak: Soak, method: str, path: str, body: bytes) -> str:
    """Sends a request; returns and counts its outcome."""
    connection = http.client.HTTPConnection("127.0.0.1", soak.server.port, timeout=STUCK_S)
    times_s = [time.monotonic()]
    try:
        connection.connect()
        times_s.append(time.monotonic())
        # A refusal may come before all is sent, and can still be read.
        with contextlib.suppress(ConnectionError):
            connection.request(method, path, body, JSON)
        times_s.append(time.monotonic())
        reply = connection.getresponse()
        end = end_of(reply.status, reply.headers, reply.read())
    except (OSError, http.client.HTTPException) as err:
        times_s.append(time.monotonic())
        steps = ", ".join(f"{b - a:.3f}" for a, b in itertools.pairwise(times_s))
        end = f"{type(err).__name__}: {err}; connected, asked, told in {steps} s"
    finally:
        connection.close()
    if end in ENDS:
        soak.note(end)
    else:
        soak.lose(f"{method} {path} {body[:200]!r}: {end}")
    return end


JSON = {"Content-Type": "application/json"}
ENDS = {"answered", "refused", "told to ask again", "cut short and told so"}


def end_of(status: int, headers: http.client.HTTPMessage, body: bytes) -> str:
    """One of ENDS, or the fault of a reply."""
    if status in (429, 503) and headers["Retry-After"]:
        return "told to ask again"
    if 400 <= status < 500 and b'"error"' in body:
        return "refused"
    if status != 200:
        return f"{status} {body[:200]!r}"
    if not headers["Content-Type"].startswith("text/event-stream"):
        return "cut short and told so" if b'"error"' in body[:60] else "answered"
    *_, last = [b"", *(line for line in body.split(b"\n") if line.startswith(b"data: "))]
    if last == b"data: [DONE]" or b'"message_stop"' in last:
        return "answered"
    return "cut short and told so" if b"may be sent again" in last else f"ends in {last!r}"


def probe(soak: Soak, _rng: random.Random) -> None:
    """Probes /health, and now and then the worker's memory."""
    began_s = time.monotonic()
    answer = soak.server.get("/health")
    soak.health.append((began_s, time.monotonic() - began_s))
    assert answer.status in (200, 503), answer
    if len(soak.health) % 20 == 0:
        with contextlib.suppress(AssertionError, ValueError):  # no worker runs at this moment
            soak.worker_bytes = max(soak.worker_bytes, own_bytes(soak.server.worker_pid()))
    soak.rest(PROBE_S)


# ---- harm --------------------------------------------------------------------------------------


def storm(soak: Soak, rng: random.Random) -> None:
    """Clients that all come at once, and leave at random moments of a chat or before it."""
    plans = [drawn(rng, {"temperature": 1.5}) for _ in range(60)]

    def go(number: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if plans[number].leaves is not None:
                Client(soak.server.port, plans[number]).run()
            else:
                with socket.create_connection(("127.0.0.1", soak.server.port), STUCK_S) as sock:
                    sock.sendall(raw_requests.GOOD[: rng.randrange(len(raw_requests.GOOD))])
        soak.note("left")

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(go, range(len(plans))))
    soak.rest(rng.uniform(1, 4))


def damage(soak: Soak, rng: random.Random) -> None:
    """A request with damaged bytes, then one with a damaged body for each endpoint."""
    number = next(soak.numbers)
    with socket.create_connection(("127.0.0.1", soak.server.port), STUCK_S) as sock:
        with contextlib.suppress(OSError):  # refused before all of it arrived
            sock.sendall(fuzz_http.raw_mutant(soak.seed, number))
            sock.shutdown(socket.SHUT_WR)
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := sock.recv(65536):
                data += more
    found = {status for status, _ in raw_requests.answers_of(data)}
    assert found <= fuzz_http.RAW_STATUSES | {404}, f"raw {number}: {found}"
    soak.note("damaged")
    for kind, path in PATHS.items():
        outcome(soak, "POST", path, fuzz_http.body_mutant(soak.seed, number, kind))
    soak.rest(rng.uniform(0, 0.2))


# Not /v1/responses: it rightly keeps conversations in memory.
PATHS = {
    "chat": CHAT,
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "message": "/v1/messages",
    "count": "/v1/messages/count_tokens",
}


def kill(soak: Soak, rng: random.Random, pauses_s: tuple[float, float]) -> None:
    """Signals the worker, if it has answered: if workers never answer, the model is given up."""
    soak.rest(rng.uniform(*pauses_s))
    while soak.ends["answered"] == soak.n_answered and soak.goes_on:
        soak.rest(0.05)
    soak.n_answered = soak.ends["answered"]
    with contextlib.suppress(ProcessLookupError):
        for pid in soak.server.worker_pids():
            os.kill(pid, rng.choice(SIGNALS))
            soak.n_kills += 1


def kill_seldom(soak: Soak, rng: random.Random) -> None:
    kill(soak, rng, (10, 40))


def kill_often(soak: Soak, rng: random.Random) -> None:
    kill(soak, rng, (0.2, 1.4))


# What an attacker without a key tries.
CURLS = (
    ("/health",), ("/v1/models",), ("/metrics",), ("/log/stream",), ("/", "-X", "DELETE"),
    ("/v1/models", "-H", "Authorization: Bearer " + "x" * 40), ("/v1/models", "-u", "root:root"),
    ("/health", "-H", "Host: evil.example"), ("/health", "-H", "Origin: https://evil.example"),
    ("/../../etc/passwd", "--path-as-is"), ("/v1/models?api_key=x",), ("/health", "--http1.0"),
    ("/health", "-H", "Host:"), ("/health", "-H", "X: " + "y" * 20_000), ("/health", "-I"),
    (CHAT, "-d", "{}"), (CHAT, "--json", '{"messages": []}'), (CHAT, "-F", "a=b"),
    (CHAT, "-T", "-"), (CHAT, "--json", "@-"), (CHAT, "-H", "Expect: 100-continue", "-d", "x"),
    (CHAT, "-H", "Content-Length: 99999999999", "-d", "x"), (CHAT, "-X", "OPTIONS"),
    (CHAT, "-H", "Transfer-Encoding: chunked", "-d", "x"), (CHAT, "-G", "-d", "a=b"),
    ("/health", "--max-time", "0.003"), ("/health", "--limit-rate", "10"), ("/health", "-N"),
    ("/health", "--compressed", "--tr-encoding"), ("/health", "-r", "0-1"), ("//health",),
    ("/%00", "--path-as-is"),
)  # fmt: skip
REFUSALS = {"400", "401", "403", "404", "405", "408", "411", "413", "415", "417", "431", "503"}


def curl(soak: Soak, rng: random.Random) -> None:
    """Runs one curl command without a key: only the health may be revealed."""
    path, *options = rng.choice(CURLS)
    url = f"http://127.0.0.1:{soak.server.port}{path}"
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", *options, url]
    done = subprocess.run(
        command, input=rng.randbytes(200_000), capture_output=True, timeout=STUCK_S
    )
    status = done.stdout.decode()
    if "--max-time" in options:
        soak.note("left")
    elif (status, path) == ("200", "/health") or (status, options[-1:]) == ("204", ["OPTIONS"]):
        soak.note("answered")
    elif status in REFUSALS:
        soak.note("refused")
    else:
        soak.lose(f"{command}: {status}, exit {done.returncode}")


# ---- the run -----------------------------------------------------------------------------------

KINDS: dict[str, Sequence[Actor]] = {
    "all": (talk, talk, talk, talk, storm, damage, kill_seldom, probe),
    "kills": (talk, talk, talk, talk, talk, talk, talk, talk, kill_often, probe),
    "curl": (curl, curl, curl, curl, probe),
}


@dataclass(frozen=True)
class Rest:
    """A server's resources when it is idle."""

    n_bytes: int
    handles: Counter[str]


def at_rest(soak: Soak) -> Rest:
    """Waits until all clients have left, and no work remains."""
    hello = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    deadline_s = time.monotonic() + STUCK_S
    while time.monotonic() < deadline_s:
        soak.server.request("POST", CHAT, hello.encode(), soak.headers | JSON)
        found = values(soak.server.request("GET", "/metrics", headers=soak.headers))
        idle = ("requests_open", "sequences_running", "sequences_waiting")
        if found["connections_open"] == 1 and not any(found.get(name, 1) for name in idle):
            break
        time.sleep(0.2)
    else:
        soak.lose(f"the server does not come to rest: {found}")
    time.sleep(SETTLED_S)
    pid = soak.server.process.pid
    return Rest(own_bytes(pid), handles(pid))


def kept(before: Rest, after: Rest, n_requests: int) -> list[str]:
    """Resources that a server did not release."""
    found = []
    n_bytes, n_each = GROWTH_EACH
    allowed = GROWTH_MOST + n_bytes * n_requests // n_each
    if after.n_bytes - before.n_bytes > allowed:
        found.append(f"the server grew by more than {allowed / KIB:,.0f} KiB")
    if not after.handles <= before.handles:
        found.append(f"the server holds {dict(after.handles)}, and held {dict(before.handles)}")
    return found


def faults(soak: Soak) -> Iterator[str]:
    """Other promises that did not hold."""
    if soak.losses:
        yield f"{len(soak.losses)} requests were lost"
    if soak.health[-1][0] - soak.health[0][0] > 2 * WINDOW_S:
        first_s, last_s = health_p99s(soak)
        if last_s > max(HEALTH_P99_S, 1.5 * first_s):
            yield f"/health took {last_s * 1000:.0f} ms in the end"
    health = soak.server.request("GET", "/health", headers=soak.headers)
    estimated = health.json["memory"]["estimated"]["total"]
    if soak.worker_bytes > estimated:
        yield f"a worker took more than the {estimated / MIB:.0f} MiB that were estimated"
    if soak.server.process.poll() is not None:
        yield f"the server ended with {soak.server.process.returncode}"


def health_p99s(soak: Soak) -> tuple[float, float]:
    """The 99th percentile of /health in the first and in the last WINDOW_S seconds."""
    begin_s, end_s = soak.health[0][0] + WINDOW_S, soak.health[-1][0] - WINDOW_S
    first = [took_s for at_s, took_s in soak.health if at_s <= begin_s]
    last = [took_s for at_s, took_s in soak.health if at_s >= end_s]
    return percentile(first, 0.99), percentile(last, 0.99)


def soaked(kind: str, seconds: float, seed: int) -> tuple[str, list[str]]:
    """Runs a soak. Returns figures and failures. A tenth of it, or a minute, is warm-up."""
    keys = {"LMLITE_API_KEY": KEY} if kind == "curl" else {}
    headers = {"Authorization": f"Bearer {KEY}"} if keys else {}
    limits = ("--watchdog", "10", "--max-seconds", "30", "--checkpoint-memory", "8M")
    with RunningServer("--alias", "m", *limits, folder=REPOSITORY, **keys) as server:
        warm_s = min(60.0, seconds / 10)
        warming = Soak(server, seed + 1, headers)
        warming.run(KINDS[kind], warm_s)
        before = at_rest(warming)
        soak = Soak(server, seed, headers)
        soak.run(KINDS[kind], seconds - warm_s)
        after = at_rest(soak)
        found = kept(before, after, soak.ends.total()) + list(faults(soak))
        if warming.losses:
            found.append(f"{len(warming.losses)} requests were lost in the beginning")
        first_s, last_s = health_p99s(soak)
        figures = (
            f"{soak.summary()} ({first_s * 1000:.1f} at first, {last_s * 1000:.1f} in the end); "
            f"the server's own memory {grown(before.n_bytes, after.n_bytes)}, {dict(after.handles)}"
        )
    return figures, found


def main() -> int:
    """Runs the command; returns 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(description="Everything at once, for long.")
    parser.add_argument("kind", nargs="?", choices=list(KINDS), default="all")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures, found = soaked(options.kind, options.minutes * 60, options.seed)
    for fault in found:
        print(f"FAILED: {fault}")
    print(f"{options.kind}, {options.minutes:g} minutes, seed {options.seed}: {figures}")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
