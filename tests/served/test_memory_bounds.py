"""Memory, descriptors and threads are the same before and after much work."""

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.peers import n_bytes_held, tree
from tests.conftest import TIMES
from tests.served.test_faults import CHAT, until
from tests.support.process_figures import (
    MIB,
    all_bytes,
    grown,
    handles,
    own_bytes,
    peak_bytes,
)
from tests.support.server_process import RunningServer

FULL = TIMES > 1
Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--checkpoint-memory", "0") as running:
        yield running


def ask_many(server: RunningServer, n: int, bodies: list[bytes | None]) -> None:
    """Sends n requests, one after the other, on connections that are reused for a while."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for number in range(n):
        if number % 500 == 0:
            connection.close()
        body = bodies[number % len(bodies)]
        if body is None:
            connection.request("GET", "/v1/models")
        else:
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        connection.getresponse().read()
    connection.close()


def test_the_embedded_model_takes_little_memory_of_its_own() -> None:
    """Anonymous pages, which no file backs and no other process shares, of server and worker."""
    with RunningServer() as server:
        server.chat("Hello!")
        assert len(tree(server.process.pid)) == 2
        assert n_bytes_held(server.process.pid, "Anonymous") <= 40 * MIB
        assert "libssl" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_short_requests_leave_nothing_behind(server: RunningServer, figure: Figure) -> None:
    n_requests, pid = 10_000 if FULL else 2_000, server.process.pid
    held = handles(pid)
    bodies = [None, b"{}", b"[]", b'{"messages": []}', b'{"messages": 5}']
    ask_many(server, 1_000, bodies)
    before = own_bytes(pid)
    ask_many(server, n_requests, bodies)
    until(lambda: handles(pid) <= held)
    after = own_bytes(pid)
    assert after - before <= MIB // 2
    figure("M1", f"{grown(before, after)} after {n_requests:,} requests")


@pytest.mark.long
def test_generations_leave_no_memory_behind(server: RunningServer, figure: Figure) -> None:
    n_requests, pid = 10_000 if FULL else 400, server.worker_pid()

    def body(number: int) -> bytes:
        messages = [{"role": "user", "content": f"Say: {number}"}]
        return json.dumps({"messages": messages, "max_tokens": 2}).encode()

    bodies: list[bytes | None] = [body(number) for number in range(97)]
    ask_many(server, 400, bodies)
    before = own_bytes(pid)
    ask_many(server, n_requests, bodies)
    after = own_bytes(pid)
    assert after - before <= 2 * MIB
    figure("M2", f"{grown(before, after)} after {n_requests:,} generations")


def test_workers_that_come_and_go_leave_nothing_behind(
    server: RunningServer, figure: Figure
) -> None:
    n_cycles, pid = 100 if FULL else 10, server.process.pid
    server.chat("Hi")
    before, held = own_bytes(pid), handles(pid)
    for _ in range(n_cycles):
        worker_pid = server.worker_pid()
        os.kill(worker_pid, signal.SIGKILL)
        until(lambda gone=worker_pid: gone not in server.worker_pids())  # type: ignore[misc]
        server.chat("Hi")
    until(lambda: handles(pid) <= held)
    assert held["zombies"] == 0
    after = own_bytes(pid)
    assert after - before <= 2 * MIB
    figure("M3", f"{grown(before, after)} after {n_cycles} workers")


def test_large_bodies_are_not_kept(server: RunningServer, figure: Figure) -> None:
    n_bodies, pid = 1_200 if FULL else 160, server.process.pid
    messages = [{"role": "user", "content": "x" * MIB}]
    body = json.dumps({"messages": messages, "temperature": 99}).encode()
    threads = [
        threading.Thread(target=ask_many, args=(server, n_bodies // 8, [body])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n_held = all_bytes(pid)
    assert n_held <= 40 * MIB
    figure("M4", f"{n_held // MIB} MiB after {n_bodies:,}, {peak_bytes(pid) // MIB} at most")


@pytest.mark.long
def test_memory_of_bodies_of_many_sizes_is_given_back(server: RunningServer) -> None:
    """By default, each thread's allocator would keep twice the largest body."""
    pid, sizes = server.process.pid, [MIB * k // 4 for k in range(1, 13)]
    messages = [[{"role": "user", "content": "x" * n}] for n in sizes]
    bodies: list[bytes | None] = [
        json.dumps({"messages": each, "temperature": 99}).encode() for each in messages
    ]
    ask_many(server, len(bodies), bodies)
    before = own_bytes(pid)
    threads = [threading.Thread(target=ask_many, args=(server, 24, bodies)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last answers were sent, but their memory may be freed a moment later.
    until(lambda: own_bytes(pid) - before <= 4 * MIB)


def environment(pid: int) -> set[str]:
    """The names of a process's environment variables at its start."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {pair.partition(b"=")[0].decode() for pair in pairs}


def test_the_allocator_is_configured_before_the_server_starts_unless_the_user_did(
    server: RunningServer,
) -> None:
    told = {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert environment(server.process.pid) >= told
    assert environment(server.worker_pid()).isdisjoint(told)
    with RunningServer(MALLOC_ARENA_MAX="1") as other:
        assert environment(other.process.pid) & told == {"MALLOC_ARENA_MAX"}


def test_the_longest_heads_cost_little(server: RunningServer, figure: Figure) -> None:
    pid = server.process.pid
    server.get("/health")
    before = own_bytes(pid)
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 16_000
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(16)]
    for sock in sockets:
        sock.sendall(head)
    n_held = before
    for _ in range(50):  # meanwhile the connections arrive
        n_held = max(n_held, own_bytes(pid))
        assert server.get("/health").status == 200
    for sock in sockets:
        sock.close()
    assert n_held - before <= 4 * MIB
    figure("M5", f"{grown(before, n_held)} for 16 heads of 16,000 bytes")


def test_an_idle_server_is_small(figure: Figure) -> None:
    with RunningServer() as server:
        estimated: Any = server.get("/health").json["memory"]["estimated"]
        parent = all_bytes(server.process.pid)
        of_the_model = sum(estimated[name] for name in ("cells", "vocabulary", "logits"))
        worker = own_bytes(server.worker_pid()) - of_the_model
        figure("M6", f"server {parent / MIB:.1f} MiB, worker {worker / MIB:.1f} of its own")
        slack = 1.0 if FULL else 1.25  # Python and C library differ between machines
        assert parent <= slack * 24 * MIB
        assert worker <= slack * 20 * MIB
