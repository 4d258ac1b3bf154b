"""As many requests may wait as `--queue` says; a client that leaves makes room."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Chat, ChatMessage, Delta, SamplingParams
from lmlite.server.front.limits import Limits
from lmlite.server.models import restarts
from lmlite.server.models.life import Loading
from lmlite.server.models.open_requests import OpenRequest
from lmlite.server.models.supervisor import Supervisor
from tests.support.house import CHAT, WAIT_S, House, until

LONG_S = 1000.0  # a pause that no test waits for


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    """A pipe that a worker waits for while it loads; writing to it lets it go on."""
    path = tmp_path / "go on"
    os.mkfifo(path)
    return path


@pytest.fixture
def loading(open_house: Any, go_on: Path) -> House:
    """A server whose worker is half loaded."""
    house: House = open_house("wait", str(go_on), n_parallel=1, n_queue=1)
    until(lambda: house.supervisor.state == Loading(0.5))
    return house


@pytest.fixture
def restarting(loading: House, go_on: Path) -> House:
    """A server whose first worker died, and whose second worker is half loaded."""
    go_on.write_text("")
    assert loading.ask("die SIGKILL")[0] == 503
    until(lambda: loading.supervisor.state == Loading(0.5))
    return loading


@pytest.fixture
def pausing(open_house: Any, monkeypatch: pytest.MonkeyPatch) -> House:
    """A server that pauses before it starts another worker."""
    monkeypatch.setattr(restarts, "BACKOFF_S", (LONG_S,))
    house: House = open_house("crash", n_parallel=1, n_queue=1)
    until(lambda: house.supervisor.n_started == 1 and house.supervisor.pid is None)
    return house


@pytest.fixture
def ready(open_house: Any) -> House:
    house: House = open_house(n_parallel=1, n_queue=1)
    return house


@pytest.fixture(params=["loading", "restarting", "pausing", "ready"])
def house(request: pytest.FixtureRequest) -> House:
    """A server in each state; it lets two requests in."""
    found: House = request.getfixturevalue(request.param)
    return found


def let_in(house: House, stack: ExitStack, n: int) -> None:
    """Makes n clients wait for an answer."""
    for _ in range(n):
        house.send(stack.enter_context(closing(house.connect())), "hang")
    until(lambda: house.supervisor.n_open() == n)


# ---- how many --------------------------------------------------------------------------------


def test_only_as_many_clients_wait_as_may_and_one_that_leaves_makes_room(
    house: House,
) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            let_in(house, stack, 2)
            for _ in range(18):
                status, body = house.ask("echo x")
                error = json.loads(body)["error"]["message"]
                assert (status, error) == (503, "2 requests are waiting already")
            assert house.supervisor.n_open() == 2
        until(lambda: house.supervisor.n_open() == 0)


def test_twenty_clients_at_once_are_counted_one_by_one(loading: House) -> None:
    statuses: list[int] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(loading.connect())) for _ in range(20)]

        def ask(connection: Any) -> None:
            status = loading.ask_on(connection, "hang")[0]
            statuses.append(status)

        threads = [threading.Thread(target=ask, args=(each,)) for each in connections]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) == 18)
        assert (statuses, loading.supervisor.n_open()) == ([503] * 18, 2)
        loading.supervisor.stop()  # ends those that wait
        for thread in threads:
            thread.join(WAIT_S)
    assert statuses == [503] * 20


def test_a_request_beyond_the_queue_is_refused_before_its_body_while_a_model_loads(
    loading: House,
) -> None:
    with ExitStack() as stack:
        let_in(loading, stack, 2)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = loading.exchange(f"{head}Content-Length: 1000000\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 503 ")


# ---- what happens to waiting requests --------------------------------------------------------


def test_clients_that_waited_for_the_model_are_answered(loading: House, go_on: Path) -> None:
    answers: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(loading.ask("echo late"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: loading.supervisor.n_open() == 2)
    go_on.write_text("")
    for thread in threads:
        thread.join(WAIT_S)
    assert [status for status, _ in answers] == [200, 200]


def test_a_wait_for_the_model_is_limited_like_a_wait_for_a_turn(
    open_house: Any, go_on: Path
) -> None:
    house = open_house("wait", str(go_on), limits=Limits(queue_seconds=0.2))
    status, body = house.ask("echo x")
    message = "not its turn within 0.2 seconds"
    assert (status, json.loads(body)["error"]["message"]) == (503, message)
    assert house.supervisor.n_open() == 0


def test_a_stream_that_waits_for_the_model_shows_signs_of_life(
    open_house: Any, go_on: Path
) -> None:
    house = open_house("wait", str(go_on), limits=Limits(ping_seconds=0.05))
    until(lambda: house.supervisor.state == Loading(0.5))
    with closing(house.connect()) as connection:
        reply = house.begin(connection, "echo late", stream=True)
        assert (reply.status, reply.readline()) == (200, b": model_load 0.50\n")
        go_on.write_text("")
        assert reply.read().endswith(b"data: [DONE]\n\n")


def test_the_death_of_a_loading_worker_fails_no_waiting_request(
    loading: House, go_on: Path
) -> None:
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(loading.ask("echo late")))
    thread.start()
    until(lambda: loading.supervisor.n_open() == 1)
    pid = loading.supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: loading.supervisor.pid not in (None, pid))
    until(lambda: loading.supervisor.state == Loading(0.5))
    go_on.write_text("")
    thread.join(WAIT_S)
    assert [status for status, _ in answers] == [200]


def test_clients_of_a_model_that_cannot_be_loaded_are_told_not_to_come_back(
    loading: House,
) -> None:
    with closing(loading.connect()) as connection:
        loading.send(connection, "echo x")
        until(lambda: loading.supervisor.n_open() == 1)
        loading.supervisor._give_up("no")
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("Retry-After")) == (503, None)
        assert json.loads(reply.read())["error"]["message"] == "the model is not available: no"


# ---- the pipe to the worker ------------------------------------------------------------------


def chat(content: str) -> Chat:
    return Chat(0, (ChatMessage("user", content),), SamplingParams())


def text_of(reply: OpenRequest) -> str:
    text = ""
    while not reply.is_complete:
        event = reply.next(WAIT_S)
        assert event is not None, "no event in time"
        text += event.text if isinstance(event, Delta) else ""
    return text


def test_requests_that_waited_reach_the_worker_in_the_order_in_which_they_came(
    open_house: Any, go_on: Path
) -> None:
    supervisor = open_house("wait", str(go_on), n_queue=100).supervisor
    replies = [supervisor.submit(chat("tick 1 0")) for _ in range(50)]
    go_on.write_text("")
    sent_ns = [int(text_of(reply).strip().partition(":")[2]) for reply in replies]
    assert sent_ns == sorted(sent_ns)


@pytest.fixture
def stopped(open_house: Any) -> Iterator[Supervisor]:
    """A supervisor whose worker reads nothing from its pipe."""
    supervisor: Supervisor = open_house(n_queue=100).supervisor
    pid = supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    yield supervisor
    os.kill(pid, signal.SIGCONT)


def test_a_worker_that_reads_nothing_blocks_no_thread_and_leaving_clients_make_room(
    stopped: Supervisor,
) -> None:
    replies = [stopped.submit(chat("echo " + "x" * 100_000)) for _ in range(20)]
    assert stopped.n_open() == 20
    for reply in replies:
        assert reply.next(0) is None
        reply.close()
    assert stopped.n_open() == 0
    assert not stopped._open._unsent


def test_a_request_whose_client_left_before_its_turn_never_reaches_the_worker(
    loading: House, go_on: Path
) -> None:
    supervisor = loading.supervisor
    supervisor.submit(chat("die SIGKILL")).close()
    go_on.write_text("")
    assert text_of(supervisor.submit(chat("echo alive"))) == "alive"
    assert supervisor.n_started == 1
