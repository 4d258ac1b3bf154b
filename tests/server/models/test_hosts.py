"""What hosts say of themselves, what their layers would take, and which of them is at fault."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lmlite.errors import Unavailable
from lmlite.gguf.memory_estimate import Estimate
from lmlite.messages import Load
from lmlite.server.logs import Log
from lmlite.server.models import restarts
from lmlite.server.models.hosts import Hosts, HostUnavailable, ask
from lmlite.server.models.life import Loading
from lmlite.server.models.restarts import MAX_DEATHS
from lmlite.server.models.supervisor import Supervisor
from tests import REPOSITORY
from tests.server.models.test_supervisor import FAKE, WAIT_S, chat, events, fails
from tests.support.house import until
from tests.support.rpc_host import DEVICE_COUNT, DEVICE_MEMORY, HELLO, FakeHost, sized, sound

KIB = 1 << 10
SMALL = Estimate(weights=600 * KIB, cells=100 * KIB, states=100 * KIB, buffers=40 * KIB,
                 logits=10 * KIB, vocabulary=0, checkpoints=1 << 40)  # fmt: skip
SILENT = "it is silent: stopped, out of reach, or busy with another client"
STRANGE = "it does not speak as llama.cpp's RPC of this version does"


def with_reply(command: int, reply: bytes) -> Callable[[int], bytes]:
    """A host in order but for one reply."""
    return lambda asked: reply if asked == command else sound(asked)


def checked(*found: FakeHost, size: Estimate = SMALL, **options: Any) -> tuple[Hosts, str | None]:
    asked = Hosts(Load("m.gguf", hosts=tuple(host.address for host in found), **options), size)
    return asked, asked.fault()


def test_a_host_tells_the_memory_of_each_device() -> None:
    with FakeHost(with_reply(DEVICE_COUNT, sized(struct.pack("<I", 2)))) as host:
        assert ask(host.address) == (((1 << 20, 2 << 20),) * 2, None)


@pytest.mark.parametrize(
    "reply",
    [
        with_reply(HELLO, sized(bytes([6, 0, 0, 0]) + bytes(24))),
        with_reply(HELLO, sized(b"short")),
        with_reply(HELLO, b""),
        with_reply(HELLO, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
        with_reply(DEVICE_COUNT, sized(struct.pack("<I", 0))),
        with_reply(DEVICE_COUNT, sized(b"\xff" * 4)),
        with_reply(DEVICE_MEMORY, struct.pack("<Q", 17) + bytes(16)),
    ],
)
def test_what_is_no_host_of_this_version_is_called_so(reply: Callable[[int], bytes]) -> None:
    with FakeHost(reply) as host:
        assert ask(host.address).fault == STRANGE


@pytest.mark.parametrize("part", [b"\x01", struct.pack("<Q", 28) + b"a"])
def test_a_host_that_stops_in_an_answer_is_silent(part: bytes) -> None:
    with FakeHost(with_reply(HELLO, part)) as host:
        assert ask(host.address, timeout_s=0.1).fault == SILENT


def test_nothing_there_is_told_in_the_systems_words() -> None:
    with FakeHost() as host:
        pass
    assert ask(host.address).fault == "Connection refused"


def test_layers_count_by_shares_and_buffers_whole() -> None:
    with FakeHost() as first, FakeHost() as second:
        asked, fault = checked(first, second, tensor_split=(3.0, 1.0))
    assert fault is None
    assert [state["memory"]["estimated"] for state in asked.states] == [650 * KIB, 250 * KIB]


def test_without_shares_free_memory_decides() -> None:
    half = with_reply(DEVICE_MEMORY, sized(struct.pack("<QQ", 1 << 19, 1 << 20)))
    with FakeHost() as first, FakeHost(half) as second:
        asked, _ = checked(first, second)
    needs = [state["memory"]["estimated"] for state in asked.states]
    assert needs == [round(800 * KIB * 2 / 3) + 50 * KIB, round(800 * KIB / 3) + 50 * KIB]


def test_a_host_with_too_little_memory_is_named() -> None:
    with FakeHost() as first, FakeHost() as second:
        asked, fault = checked(first, second, tensor_split=(0.0, 2.0),
                               size=Estimate(1 << 20, 0, 0, 1 << 20, 0, 0, 0))  # fmt: skip
        reason = "its layers would take 2 MiB, and 1 MiB are free"
        assert fault == f"host {second.address} cannot be used: {reason}"
    memory = {"free": 1 << 20, "total": 2 << 20}
    assert asked.states == [
        {"host": first.address, "status": "ready", "memory": {"estimated": 0, **memory}},
        {"host": second.address, "status": "unavailable", "reason": reason,
         "memory": {"estimated": 2 << 20, **memory}},
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"uses_gpu": True}, {"n_gpu_layers": 3}])
def test_what_other_devices_take_is_not_counted_as_a_hosts(options: dict[str, Any]) -> None:
    with FakeHost() as host:
        asked, fault = checked(host, size=Estimate(1 << 40, 0, 0, 0, 0, 0, 0), **options)
    assert (fault, asked.states[0]["memory"]["estimated"]) == (None, None)


def test_one_that_is_gone_is_named_and_the_others_are_shown() -> None:
    with FakeHost() as gone:
        pass
    with FakeHost() as there:
        asked = Hosts(Load("m.gguf", hosts=(gone.address, there.address)), SMALL)
        with pytest.raises(HostUnavailable, match=f"host {gone.address} cannot be used"):
            asked.check()
    assert [state["status"] for state in asked.states] == ["unavailable", "ready"]


# ---- a worker whose host fails -----------------------------------------------------------------


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[FakeHost], Supervisor]]:
    """Starts the supervisor of a fake worker over a host, and stops it after the test."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    with ExitStack() as stack:

        def start(host: FakeHost) -> Supervisor:
            load = Load("model.gguf", hosts=(host.address,))
            found = Supervisor(load, Log("error"), (*FAKE, ""), hosts=Hosts(load, SMALL))
            stack.callback(found.stop)
            found.start()
            found.wait_until_settled(WAIT_S)
            return found

        yield start


def test_a_model_over_hosts_is_never_given_up(over: Callable[[FakeHost], Supervisor]) -> None:
    with FakeHost() as host:
        supervisor = over(host)
        for number in range(MAX_DEATHS + 1):
            fails(supervisor, f"die SIGKILL {number}")
        assert events(supervisor.submit(chat("echo x")))


def test_no_request_is_blamed_for_the_end_of_a_host(
    over: Callable[[FakeHost], Supervisor],
) -> None:
    with FakeHost() as host:
        supervisor = over(host)
        port = int(host.address.rpartition(":")[2])
    for _ in range(3):  # two would bar it
        fails(supervisor, "die SIGKILL")
        until(lambda: isinstance(supervisor.state, Loading) and supervisor.state.reason is not None)
        assert supervisor.hosts is not None
        assert supervisor.hosts.states[0]["reason"] == "Connection refused"
        with pytest.raises(Unavailable, match=f"host {host.address} cannot be used"):
            supervisor.submit(chat("echo x"))
        with FakeHost(port=port):
            until(lambda: supervisor.ready is not None)
