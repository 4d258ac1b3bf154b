"""A model over two hosts: the same words as on one machine, and what a host's faults do."""

import http.client
import itertools
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.library import RPC_NAME
from tests.served.test_faults import CHAT, open_stream, until
from tests.server.models.test_worker_faults import begin_chat, rest_of
from tests.support.rpc_host import (
    DEVICE_COUNT,
    DEVICE_MEMORY,
    HAS_RPC,
    HELLO,
    NEEDS_RPC,
    FakeHost,
    RpcHost,
    sized,
    sound,
)
from tests.support.server_process import RunningServer

pytestmark = pytest.mark.skipif(not HAS_RPC, reason=NEEDS_RPC)

STORY = "Tell me a story."
WATCHDOG_S = "1"
ENDED = "the model's worker ended; the request may be sent again"

numbers = itertools.count()


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[RpcHost]]:
    with RpcHost() as first, RpcHost() as second:
        yield [first, second]


@pytest.fixture(scope="module")
def server(hosts: list[RpcHost]) -> Iterator[RunningServer]:
    with RunningServer(*over(hosts), "--watchdog", WATCHDOG_S, "--batch", "16") as running:
        yield running


def over(hosts: list[RpcHost], *split: str) -> list[str]:
    return ["--rpc", ",".join(host.address for host in hosts), *split]


def words(server: RunningServer, n: int = 48) -> str:
    return str(server.chat(STORY, max_tokens=n)["choices"][0]["message"]["content"])


# ---- both hosts work ---------------------------------------------------------------------------


def test_two_hosts_give_the_words_of_one_machine(server: RunningServer) -> None:
    with RunningServer("--batch", "16") as alone:
        assert words(server) == words(alone)


@pytest.mark.parametrize("split", ["3,1", "1,0"])
def test_a_split_changes_no_words(split: str, server: RunningServer) -> None:
    expected = words(server)
    with RpcHost() as first, RpcHost() as second:
        with RunningServer(*over([first, second], "--tensor-split", split)) as divided:
            assert words(divided) == expected
            shares = [each["memory"]["estimated"] for each in divided.get("/health").json["hosts"]]
        assert (shares[0] > shares[1] > 0) if split == "3,1" else shares[1] == 0


def test_a_real_model_over_two_hosts_has_the_words_of_one(real_model: Path) -> None:
    with RpcHost() as first, RpcHost() as second:
        found = []
        for hosts in ([first], [first, second]):
            with RunningServer(str(real_model), *over(hosts)) as running:
                found.append(words(running))
    assert found[0] == found[1] != ""


def test_health_shows_each_host_with_its_memory(
    server: RunningServer, hosts: list[RpcHost]
) -> None:
    found = server.get("/health").json["hosts"]
    assert [each["host"] for each in found] == [host.address for host in hosts]
    for each in found:
        assert each["status"] == "ready"
        memory = each["memory"]
        assert 0 < memory["estimated"] < memory["free"] <= memory["total"]


def test_embeddings_need_no_further_connection(server: RunningServer) -> None:
    """They have a context of their own, which is made once the sandbox is closed."""
    answer = server.post("/v1/embeddings", input="Hi")
    assert answer.status == 200
    assert server.get("/health").json["status"] == "ready"


def test_a_worker_has_exactly_the_connections_to_its_hosts(
    server: RunningServer, hosts: list[RpcHost]
) -> None:
    assert peers_of(server.worker_pid()) == sorted(host.port for host in hosts)


def peers_of(pid: int) -> list[int]:
    """The remote ports of a process's TCP sockets (proc(5): net/tcp)."""
    folder = f"/proc/{pid}/fd"
    links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sorted(int(row[2].split(":")[1], 16) for row in rows if row[9] in inodes)


# ---- a host fails, in each phase ---------------------------------------------------------------

Streams = list[http.client.HTTPResponse]


def idle(_server: RunningServer, _endless: dict[str, Any]) -> Streams:
    return []


def in_prefill(server: RunningServer, endless: dict[str, Any]) -> Streams:
    """A prompt of many steps, which no earlier one has begun with."""
    return [begin_chat(server, f"{next(numbers)} " + "one two three. " * 110, **endless)]


def in_decode(server: RunningServer, endless: dict[str, Any]) -> Streams:
    asked = [{"role": "user", "content": f"Say: number {next(numbers)}"} for _ in range(3)]
    return [open_stream(server, **endless, messages=[message]) for message in asked]


def while_loading(server: RunningServer, _endless: dict[str, Any]) -> Streams:
    first_pid = server.worker_pid()
    os.kill(first_pid, signal.SIGKILL)
    until(lambda: set(server.worker_pids()) - {first_pid} != set())
    (pid,) = set(server.worker_pids()) - {first_pid}
    until(lambda: RPC_NAME in Path(f"/proc/{pid}/maps").read_text())
    return []


def blames(server: RunningServer, host: RpcHost) -> bool:
    """Whether /health says that the model waits for this host, and for no other."""
    answer = server.get("/health")
    found = {each["host"]: each["status"] for each in answer.json.get("hosts", ())}
    reason = answer.json.get("reason", "")
    return (
        answer.status == 503
        and answer.json["status"] == "loading"
        and f"host {host.address} cannot be used: " in reason
        and [address for address in found if found[address] == "unavailable"] == [host.address]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("begin", [idle, in_prefill, in_decode, while_loading])
def test_a_host_that_fails_in_any_phase_is_named_and_used_again(
    server: RunningServer,
    hosts: list[RpcHost],
    endless: dict[str, Any],
    begin: Callable[[RunningServer, dict[str, Any]], Streams],
    number: int,
) -> None:
    expected = words(server)
    streams = begin(server, endless)
    failing = hosts[1]
    failing.signal(number)
    for stream in streams:
        error = rest_of(stream)[-1]["error"]
        assert (error["type"], error["message"]) == ("server_error", ENDED)
    if begin is idle and number == signal.SIGSTOP:  # nothing shows it before it is asked
        answer = server.post(CHAT, messages=[{"role": "user", "content": STORY}])
        assert (answer.status, answer.error["message"]) == (503, ENDED)
    until(lambda: blames(server, failing))
    answer = server.post(CHAT, messages=[{"role": "user", "content": STORY}])
    assert (answer.status, answer.error["type"]) == (503, "server_error")
    assert failing.address in answer.error["message"]
    failing.come_back()
    until(lambda: server.get("/health").status == 200)
    assert words(server) == expected


# ---- nonsense ----------------------------------------------------------------------------------

PLENTY = sized(struct.pack("<QQ", 1 << 40, 1 << 40))
LATER = {
    "of another size": sized(b"no"),
    "of zeros": sized(bytes(8)),
    "of ones": sized(b"\xff" * 8),
    "without end": struct.pack("<Q", 1 << 62),
    "that is cut": struct.pack("<Q", 8) + b"four",
}


def with_plenty(later: bytes) -> Callable[[int], bytes]:
    """A host that is in order until the worker asks for more than its memory."""

    def reply(command: int) -> bytes:
        if command == DEVICE_MEMORY:
            return PLENTY
        return sound(command) if command in (HELLO, DEVICE_COUNT) else later

    return reply


@pytest.mark.parametrize("later", LATER)
def test_nonsense_from_a_host_ends_no_server(
    later: str, server: RunningServer, hosts: list[RpcHost]
) -> None:
    expected, pid = words(server), server.process.pid
    hosts[1].end()
    until(lambda: blames(server, hosts[1]))
    n_before = failures(server)
    with FakeHost(with_plenty(LATER[later]), hosts[1].port):
        until(lambda: failures(server) > n_before)
    hosts[1].start()
    until(lambda: server.get("/health").status == 200)
    assert words(server) == expected
    assert server.process.pid == pid and server.process.poll() is None


def failures(server: RunningServer) -> int:
    """Workers that ended, or could not load."""
    return sum(bool(re.search(r"ERROR +worker|trying again: llama", line)) for line in server.log)
