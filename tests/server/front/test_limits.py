"""Each limit holds: the request over it gets a reply, and all others are served meanwhile."""

import contextlib
import errno
import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli.command import parser
from lmlite.cli.serve import limits_of
from lmlite.server.front import sockets as listening
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.front.listener import EXHAUSTED_S
from tests import REPOSITORY
from tests.support.house import CHAT, WAIT_S, House, rest_of, until
from tests.support.process_figures import cpu_seconds
from tests.support.raw_requests import JSON, LENGTH, chunked, chunks, get, post
from tests.support.server_process import RunningServer

HEALTH = get(first="GET /health HTTP/1.1")
Figure = Callable[[str, str], None]
SCALE = 3  # times are multiplied, as other programs may use the machine


def rss_bytes(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def metric(house: House, name: str) -> int:
    until(lambda: house.server.n_connections() == 0)
    with closing(house.connect()) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    (value,) = re.findall(rf"^lmlite_{re.escape(name)} (\d+)$", text, re.MULTILINE)
    return int(value)


def held(house: House, stack: ExitStack) -> socket.socket:
    """A connection that has its thread: one request was answered."""
    sock = stack.enter_context(house.dial())
    sock.sendall(HEALTH)
    assert sock.recv(1) == b"H"
    return sock


# ---- flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_no_limit_can_be_removed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = f"--{name.replace('_', '-')}"
    for text in ("0", "-1", "inf", "nan", "none", ""):
        with pytest.raises(SystemExit) as caught:
            parser().parse_args(["serve", f"{flag}={text}"])
        assert caught.value.code == 2
        assert f"argument {flag}: " in capsys.readouterr().err


def test_limits_without_flags_are_the_defaults_and_flags_set_them() -> None:
    options = parser().parse_args(["serve"])
    assert limits_of(options) == DEFAULT_LIMITS
    options = parser().parse_args(
        ["serve", "--max-body", "512k", "--head-seconds", "0.5", "--max-headers", "1000"]
    )
    found = limits_of(options)
    assert (found.max_body, found.head_seconds, found.max_headers) == (512 << 10, 0.5, 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-body", "100G"], "argument --max-body: must be from 1K to 64M"),
        (["--max-body", "1.5M"], "argument --max-body: must be a number of bytes, such as 300M"),
        (["--max-headers", "1.5"], "argument --max-headers: must be a whole number"),
        (["--head-seconds", "1e9"], "argument --head-seconds: must be from 0.001 to 3600"),
        (["--allow-host", "my.lan:1234"], "argument --allow-host: must be a name such as"),
        (["--cors-origin", "https://*"], "argument --cors-origin: must be as browsers write it"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "n_most"), [([], 16 << 20), (["--max-body", "4M"], 4 << 20)])
def test_bodies_for_a_model_that_takes_images_may_be_larger_by_default(
    arguments: list[str], n_most: int
) -> None:
    def answer(n_bytes: int) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(post(f"Content-Length: {n_bytes}", JSON, "Expect: 100-continue", body=b""))
            return sock.recv(65536)

    with RunningServer(*arguments) as server:
        assert answer(n_most) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert answer(n_most + 1).startswith(b"HTTP/1.1 413 ")


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "request_bytes", "status"),
    [
        (Limits(max_request_line=256), get(first=f"GET /{'a' * 300} HTTP/1.1"), 431),
        (Limits(max_head=512), get("A: " + "a" * 600), 431),
        (Limits(max_headers=2), get("A: b", "C: d"), 431),
        (Limits(max_body=1024), post("Content-Length: 1025", JSON, body=b""), 413),
        (Limits(max_body=1024), chunked(body=b"400\r\n%b\r\n1\r\n" % bytes(1024)), 413),
        (Limits(max_headers=4), chunked(body=chunks()[:-2] + b"A: b\r\n" * 5), 431),
        (Limits(max_values=2), post(LENGTH, JSON, "Connection: close"), 400),
    ],
)  # fmt: skip
def test_a_request_beyond_a_limit_of_its_server_is_refused(
    open_house: Any, limits: Limits, request_bytes: bytes, status: int
) -> None:
    answer = open_house(limits=limits).exchange(request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (Limits(max_n=1), {"n": 2}),
        (Limits(max_stops=1), {"stop": ["a", "b"]}),
        (Limits(max_stop_length=3), {"stop": "long"}),
        (Limits(max_biases=1), {"logit_bias": {"1": 1, "2": 1}}),
    ],
)
def test_a_field_beyond_a_limit_of_its_server_is_refused_by_name(
    open_house: Any, limits: Limits, body: dict[str, Any]
) -> None:
    house = open_house(limits=limits)
    status, data = house.ask("echo x", **body)
    assert (status, json.loads(data)["error"]["param"]) == (400, next(iter(body)))


def test_a_connection_ends_after_its_last_allowed_request(open_house: Any) -> None:
    house = open_house(limits=Limits(max_requests_per_connection=3))
    answer = house.exchange(HEALTH * 5)
    assert re.findall(rb"Connection: (\S+)", answer) == [b"keep-alive", b"keep-alive", b"close"]


def test_the_smallest_stack_is_enough_for_the_deepest_json() -> None:
    """Python 3.13 needs 2.5 MiB to refuse some of these; with less the process dies."""
    check = (
        "import threading\n"
        "from lmlite.errors import BadRequest\n"
        "from lmlite.server.front import limits, wire\n"
        "E = b'\"\\\\ud83d\\\\ude00\"'\n"
        "def work():\n"
        "  for n in (100_000, 9_990, 4_990):\n"
        "    for a, b in ((b'[', b']'), (b'{\"a\":', b'}'), (b'{\"a\":[', b']}')):\n"
        "      try: wire.parse_json(b'{\"x\":' + a * n + E + b * n + b'}')\n"
        "      except BadRequest: pass\n"
        "  print('alive')\n"
        "threading.stack_size(limits.DEFAULT_LIMITS.thread_stack)\n"
        "threading.Thread(target=work).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# ---- connections -----------------------------------------------------------------------------


def test_a_connection_over_the_cap_is_refused_and_the_next_served(open_house: Any) -> None:
    house = open_house(limits=Limits(max_connections=2))
    with ExitStack() as stack:
        for _ in range(2):
            held(house, stack)
        answer = house.exchange(HEALTH)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 1\r\n" in answer
    until(lambda: house.server.n_connections() == 0)
    assert house.get("/health") == (200, {"status": "ready"})
    assert metric(house, 'connections_refused_total{reason="connections"}') == 1
    assert metric(house, "connections_open") == 1


def test_one_other_machine_cannot_take_all_connections(
    open_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house(limits=Limits(max_connections_per_address=2))
    with ExitStack() as stack:
        for _ in range(3):  # this machine may have more
            held(house, stack)
        monkeypatch.setattr("lmlite.server.front.listener.is_loopback", lambda _: False)
        assert house.exchange(HEALTH).startswith(b"HTTP/1.1 503 ")
    until(lambda: house.server.n_connections() == 0)
    assert metric(house, 'connections_refused_total{reason="address"}') == 1


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.1.5", False),
        ("::ffff:192.168.1.5", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, expected: bool) -> None:
    assert listening.is_loopback(host) is expected


def test_a_connection_is_refused_when_no_thread_can_start_and_the_next_is_served(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        answer = house.exchange(HEALTH)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert house.get("/health")[0] == 200
    assert metric(house, 'connections_refused_total{reason="threads"}') == 1
    until(lambda: house.server.n_connections() == 0)


def test_accepting_pauses_while_resources_are_exhausted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        def __init__(self, number: int) -> None:
            self._number = number

        def accept(self) -> None:
            raise OSError(self._number, os.strerror(self._number))

    pauses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr("lmlite.server.front.listener.time.sleep", pauses.append)
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
            patch.setattr(house.server, "socket", Exhausted(number))
            with pytest.raises(OSError, match="no connection"):
                house.server.get_request()
    assert pauses == [EXHAUSTED_S] * 3  # none for a client that left


def test_a_bug_in_accepting_is_logged_and_the_server_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(house.server, "process_request", None)
        assert house.exchange(b"", ends=True) == b""
    (line,) = house.logged(1)
    assert "ERROR   a connection failed: TypeError(" in line
    assert house.get("/health")[0] == 200


def test_localhost_listens_on_ipv4_and_ipv6_at_one_port() -> None:
    sockets = listening.listen("localhost", 0, 5)
    try:
        names = [listening.host_of(sock) for sock in sockets]
        assert names == (["127.0.0.1", "[::1]"] if socket.has_dualstack_ipv6() else ["127.0.0.1"])
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert not listening.is_open(sockets)
        with pytest.raises(OSError, match="in use"):
            listening.listen("localhost", sockets[0].getsockname()[1], 5)
    finally:
        for sock in sockets:
            sock.close()


# ---- time ------------------------------------------------------------------------------------


def test_a_request_that_waits_too_long_for_its_turn_gets_a_503(open_house: Any) -> None:
    house = open_house(limits=Limits(queue_seconds=0.3))
    status, body = house.ask("queue")
    message = "not its turn within 0.3 seconds"
    assert (status, json.loads(body)["error"]["message"]) == (503, message)
    assert house.supervisor.n_open() == 0
    assert house.ask("echo x")[0] == 200


def test_a_reply_that_takes_too_long_ends_with_length(endless: dict[str, Any]) -> None:
    with RunningServer("--max-seconds", "0.2") as server:
        answer = server.chat("Hi", **endless, max_tokens=-1)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 1 < answer["usage"]["completion_tokens"] < 4000
        assert server.chat("Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_sixty_clients_that_drip_delay_nobody_and_are_cut_off(
    open_house: Any, figure: Figure
) -> None:
    limits = Limits(max_connections=64, head_seconds=1.5)
    house = open_house(limits=limits)
    with ExitStack() as stack:
        drippers = [stack.enter_context(house.dial()) for _ in range(60)]
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                for sock in drippers:
                    with contextlib.suppress(OSError):
                        sock.send(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        until(lambda: house.server.n_connections() == 60)
        times = []
        for _ in range(10):
            began_s = time.monotonic()
            assert house.get("/health")[0] == 200
            times.append(time.monotonic() - began_s)
        assert house.server.n_connections() >= 60, "they were cut off before they were measured"
        until(lambda: house.server.n_connections() == 0)
        stop.set()
        thread.join()
        for sock in drippers:
            assert rest_of(sock).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert sorted(times)[5] <= 0.1 * SCALE, times
    figure("F8", f"{len(times)} of 10 answered, after {max(times) * 1000:.0f} ms at most")


def test_thirty_two_clients_that_never_read_are_cut_off_and_leak_nothing(
    open_house: Any, figure: Figure
) -> None:
    house = open_house(n_parallel=40, limits=Limits(send_seconds=0.5))
    words = "echo " + " ".join(["word"] * 1000)  # takes a megabyte of the kernel, in small pieces
    body = json.dumps({"messages": [{"role": "user", "content": words}], "stream": True}).encode()
    request = post(f"Content-Length: {len(body)}", JSON, body=body)
    before = rss_bytes()
    with ExitStack() as stack:
        for _ in range(32):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", house.port))
            sock.sendall(request)
        until(lambda: house.log_text().count(f"POST {CHAT} 408") == 32)
        until(lambda: house.server.n_connections() == 0)
        assert house.supervisor.n_open() == 0
    times = re.findall(rf"POST {CHAT} 408 (\d+) ms, cut short", house.log_text())
    assert min(map(int, times)) >= 500, "some were not cut off, but done"
    grown = rss_bytes() - before
    assert grown <= 8 << 20
    assert house.ask("echo x")[0] == 200
    figure("F9", f"cut off after {max(map(int, times))} ms at most of 500; {grown >> 10:+,} KiB")


# ---- a process with limits of its own --------------------------------------------------------


def test_a_server_without_descriptors_stays_idle_and_recovers(
    figure: Figure,
) -> None:
    with RunningServer() as server, ExitStack() as stack:
        pid = server.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, hard))
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == 64)
        began_s, began_cpu_s = time.monotonic(), cpu_seconds(pid)
        threading.Event().wait(1)
        share = (cpu_seconds(pid) - began_cpu_s) / (time.monotonic() - began_s)
        stack.close()
        assert server.get("/health").status == 200
        assert share <= 0.1
        figure("F11", f"{share:.0%} of a core while it had none")
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"


def test_sixty_four_idle_connections_cost_little_and_one_more_is_refused_at_once(
    figure: Figure,
) -> None:
    with RunningServer("--max-connections", "64") as server, ExitStack() as stack:
        before = rss_bytes(server.process.pid)
        for _ in range(64):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
            stack.enter_context(closing(connection))
            connection.request("GET", "/health")
            assert connection.getresponse().read().startswith(b'{"status":"ready"')
        grown = rss_bytes(server.process.pid) - before
        assert grown <= 4 << 20
        times = []
        for _ in range(5):
            began_s = time.monotonic()
            assert server.get("/health").status == 503
            times.append(time.monotonic() - began_s)
        assert min(times) <= 0.02 * SCALE, times
        figure("L5", f"{grown >> 10:+,} KiB; refused after {min(times) * 1000:.1f} ms")
