"""What clients see through a balancer: streams, keys, retries, affinity, and restarts."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.balancers.fleet import (
    N_SERVERS,
    WAIT_S,
    Conversation,
    LostRequest,
    balancer,
    chat,
    free_port,
    request,
)
from tests.balancers.programs import NAMES, program
from tests.support.house import until
from tests.support.scripted_server import Reply, ScriptedServer, end, piece, said
from tests.support.server_process import RunningServer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GRACE = ("--grace-seconds", "3")  # as in the manual
N_CLIENTS = 3
N_BETWEEN = 5  # answers before each restart


@pytest.fixture(params=NAMES)
def name(request: Any) -> str:
    if program(request.param) is None:
        pytest.skip(f"needs {request.param}: `make balancers` fetches it")
    return str(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def scripted(*replies: Reply, status: int = 200) -> ScriptedServer:
    """A server that is ready, and answers chats as told."""
    server = ScriptedServer(*replies, status=status)
    server.answers["GET /health"] = (200, {})
    return server


def port_of(server: ScriptedServer) -> int:
    return int(server.url.rpartition(":")[2])


# ---- one request -----------------------------------------------------------------------------


def test_each_piece_of_a_stream_is_passed_on_at_once(
    name: str, stack: ExitStack, tmp_path: Path
) -> None:
    """The server sends the second piece only when the first has arrived."""
    arrived = threading.Event()
    answer: Reply = [piece(content="a"), lambda: arrived.wait(WAIT_S), piece(content="b"), end()]
    server = stack.enter_context(scripted(answer))
    port = stack.enter_context(balancer(name, [port_of(server)] * N_SERVERS, tmp_path))
    with request(port, "POST", "/v1/chat/completions", {"messages": QUESTION}) as reply:
        assert reply.readline() == piece(content="a").splitlines(keepends=True)[0]
        assert not arrived.is_set()
        arrived.set()
        assert reply.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("answer", ["none", "503"])
def test_what_a_server_has_received_is_not_sent_again(
    name: str, answer: str, stack: ExitStack, tmp_path: Path
) -> None:
    reply: Reply = [] if answer == "none" else [b"{}"]
    server = stack.enter_context(scripted(*[reply] * N_SERVERS, status=503))
    port = stack.enter_context(balancer(name, [port_of(server)] * N_SERVERS, tmp_path))
    with pytest.raises(LostRequest, match=r"50[23]"):
        chat(port, QUESTION)
    assert len(server.chats) == 1


@pytest.mark.parametrize("key", [None, "key"])
def test_servers_that_are_down_cost_no_request(
    name: str, key: str | None, stack: ExitStack, tmp_path: Path
) -> None:
    server = stack.enter_context(scripted(*[said("x")] * 6))
    servers = [free_port(), port_of(server), free_port()]
    port = stack.enter_context(balancer(name, servers, tmp_path))
    assert [chat(port, QUESTION, key and f"{key}{i}").text for i in range(6)] == ["x"] * 6


def test_the_servers_check_the_key_which_the_balancer_passes_on(
    name: str, stack: ExitStack, tmp_path: Path
) -> None:
    server = stack.enter_context(RunningServer(LMLITE_API_KEY="the-right-key-of-all"))
    port = stack.enter_context(balancer(name, [server.port] * N_SERVERS, tmp_path))
    found = []
    for key in ("a-wrong-key", "the-right-key-of-all"):
        headers = {"Authorization": f"Bearer {key}"}
        with request(port, "GET", "/v1/models", headers=headers) as reply:
            found.append(reply.status)
    with request(port, "GET", "/health") as reply:
        found.append(reply.status)
    assert found == [401, 200, 200]


# ---- which server ----------------------------------------------------------------------------


def test_requests_with_one_prefix_key_go_to_one_server_and_others_to_all(
    name: str, stack: ExitStack, tmp_path: Path
) -> None:
    servers = [stack.enter_context(scripted(*[said("x")] * 100)) for _ in range(N_SERVERS)]
    port = stack.enter_context(balancer(name, [port_of(s) for s in servers], tmp_path))

    def spread(*keys: str | None) -> list[int]:
        before = [len(server.chats) for server in servers]
        for key in keys:
            chat(port, QUESTION, key)
        return sorted(len(s.chats) - n for s, n in zip(servers, before, strict=True))

    assert spread(*["one key"] * 9) == [0, 0, 9]
    assert spread(*[None] * 9) == [3, 3, 3]
    assert min(spread(*(f"{i:x}" for i in range(30)))) > 0


def test_a_client_that_sends_the_key_of_its_first_reply_stays_on_one_server(
    name: str, stack: ExitStack, tmp_path: Path
) -> None:
    servers = [stack.enter_context(RunningServer()) for _ in range(N_SERVERS)]
    port = stack.enter_context(balancer(name, [s.port for s in servers], tmp_path))
    conversation = Conversation([])
    for question in ("Hello!", "Who are you?", "And what is 2 + 2?", "Thanks."):
        conversation.turn(port, question, max_tokens=8)
    assert len({reply.key for reply in conversation.replies}) == 1
    for before, reply in zip(conversation.replies[1:], conversation.replies[2:], strict=False):
        assert reply.n_cached >= before.n_prompt


# ---- restarts --------------------------------------------------------------------------------


class Load:
    """Clients that talk without a pause, inside `with`; half of them send the proposed key."""

    def __init__(self, port: int) -> None:
        self.n_answers = 0
        self.lost: list[str] = []
        self._port, self._is_over = port, threading.Event()
        self._threads = [
            threading.Thread(target=self._talk, args=(i % 2 == 0,)) for i in range(N_CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def wait_for_answers(self) -> None:
        """Waits for some more answers."""
        n = self.n_answers + N_BETWEEN
        until(lambda: self.n_answers >= n)

    def _talk(self, echoes: bool) -> None:
        while not self._is_over.is_set():
            conversation = Conversation([], echoes=echoes)
            try:
                for question in ("Hello!", "Tell me a story.", "Go on."):
                    conversation.turn(self._port, question, max_tokens=32)
                    self.n_answers += 1
            except LostRequest as lost:
                self.lost.append(str(lost))


@pytest.mark.long
def test_a_rolling_restart_of_all_servers_under_load_loses_no_request(
    name: str, stack: ExitStack, tmp_path: Path
) -> None:
    servers = [stack.enter_context(RunningServer(*GRACE)) for _ in range(N_SERVERS)]
    port = stack.enter_context(balancer(name, [s.port for s in servers], tmp_path))
    with Load(port) as load:
        for server in servers:
            load.wait_for_answers()
            assert server.stop() == 0
            again = stack.enter_context(RunningServer(*GRACE, "--port", str(server.port)))
            stack.callback(again.process.kill)  # saves its grace time
            again.wait_for_log("POST /v1/chat/completions 200")
    assert load.lost == []
    assert load.n_answers > N_SERVERS * N_BETWEEN
