"""One client's socket: deadlines, whole writes, clients that leave, and refusals that arrive."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmlite.server.front import connection
from lmlite.server.front.connection import Connection
from lmlite.server.front.limits import Limits
from tests.support.house import until
from tests.support.raw_requests import Line

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Dial = Callable[[Limits], tuple[socket.socket, Connection]]


@pytest.fixture
def dial() -> Iterator[Dial]:
    """A client's socket, and the server's side of it."""
    opened: list[socket.socket] = []

    def connect(limits: Limits) -> tuple[socket.socket, Connection]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            opened.append(client)
            accepted, _ = listening.accept()
            opened.append(accepted)
        return client, Connection(accepted, limits)

    yield connect
    for sock in opened:
        sock.close()


def reset(client: socket.socket) -> None:
    """Closes with a reset, so that the server gets no end of the stream."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# ---- reading -------------------------------------------------------------------------------


def test_what_follows_a_head_and_its_body_is_the_next_request(dial: Dial) -> None:
    client, server = dial(Limits())
    client.sendall(HEAD + b"body" + HEAD)
    assert [server.read_head(), server.read_body(4), server.read_head()] == [HEAD, b"body", HEAD]


def test_a_silent_client_is_not_an_error(dial: Dial) -> None:
    _, silent = dial(Limits(idle_seconds=0.01))
    client, left = dial(Limits())
    client.close()
    assert [silent.read_head(), left.read_head()] == [None, None]


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\r\n\r", b"\r\n\r\n"])
def test_empty_lines_before_a_head_are_skipped(dial: Dial, end: bytes) -> None:
    client, server = dial(Limits(idle_seconds=0.05, head_seconds=60))
    client.sendall(b"\r\n" + HEAD + end)
    assert server.read_head() == HEAD
    assert server.read_head() is None


def test_a_whole_head_has_one_deadline(dial: Dial) -> None:
    for seconds in (0, 0.01):  # over before the wait, and during it
        client, server = dial(Limits(head_seconds=seconds))
        client.sendall(HEAD[:-1])
        with pytest.raises(TimeoutError):
            server.read_head()


def test_a_head_that_is_cut_short_raises_connection_error(dial: Dial) -> None:
    client, server = dial(Limits())
    client.sendall(HEAD[:-1])
    client.close()
    with pytest.raises(ConnectionError):
        server.read_head()


def test_reading_stops_at_the_longest_head_that_is_allowed(dial: Dial) -> None:
    client, server = dial(Limits(max_head=20))
    client.sendall(b"a" * 21)
    assert server.read_head() == b"a" * 21


def test_a_larger_body_has_more_time(dial: Dial) -> None:
    client, patient = dial(Limits(body_seconds=0, body_rate=1))
    client.sendall(b"abcd")
    assert patient.read_body(4) == b"abcd"
    client, hasty = dial(Limits(body_seconds=0, body_rate=1 << 30))
    with pytest.raises(TimeoutError):
        hasty.read_body(4)


def test_the_deadline_of_chunks_moves_with_their_announced_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("lmlite.server.front.connection.time.monotonic", lambda: now)

    class Slow(Line):
        def recv(self, n_bytes: int) -> bytes:
            nonlocal now
            now += 1
            return super().recv(n_bytes)

    def read(*parts: bytes) -> bytes:
        line: Any = Slow(parts)
        return Connection(line, Limits(body_seconds=2.5, body_rate=1)).read_chunks(1000)

    # The seventh part comes in the seventh second: 2.5, and one for each of five bytes.
    assert read(b"5\r\n", b"h", b"e", b"l", b"l", b"o", b"\r\n0\r\n\r\n") == b"hello"
    with pytest.raises(TimeoutError):
        read(b"4\r\n", b"h", b"e", b"l", b"l", b"\r\n0", b"\r\n\r", b"\n")
    with pytest.raises(TimeoutError):
        read(b"1;a", b"b", b"c", b"d", b"e\r\nx\r\n0\r\n\r\n")


# ---- writing -------------------------------------------------------------------------------


def test_a_write_to_a_client_that_does_not_read_times_out(dial: Dial) -> None:
    _, server = dial(Limits(send_seconds=0.05))
    with pytest.raises(TimeoutError):
        server.write(bytes(64 << 20))


def test_a_client_that_closed_is_gone_even_if_it_sent_bytes_ahead(dial: Dial) -> None:
    client, server = dial(Limits())
    assert not server.is_gone()
    client.sendall(HEAD + b"ahead")
    assert server.read_head() == HEAD
    assert not server.is_gone(b"?")
    client.close()
    until(lambda: server.is_gone(b"?"))
    assert server.read_body(5) == b"ahead"


def test_a_client_that_ended_only_its_side_is_asked_now_and_then_and_is_not_gone(
    dial: Dial,
) -> None:
    client, server = dial(Limits(ping_seconds=60))
    client.sendall(b"ahead")
    client.shutdown(socket.SHUT_WR)
    until(lambda: server.is_gone())  # it counts as gone if it cannot be asked
    for _ in range(20):
        assert not server.is_gone(b"?")
    server.write(b"!")
    assert client.recv(2, socket.MSG_WAITALL) == b"?!"
    assert server.read_body(5) == b"ahead"


def test_the_next_question_detects_a_client_that_closed_later(
    dial: Dial,
) -> None:
    client, server = dial(Limits(ping_seconds=0.001))
    client.shutdown(socket.SHUT_WR)
    until(lambda: server.is_gone())
    assert not server.is_gone(b"?")
    client.close()
    until(lambda: server.is_gone(b"?"))


def test_a_client_that_cannot_be_asked_is_gone(dial: Dial) -> None:
    client, server = dial(Limits(send_seconds=0.05))
    client.shutdown(socket.SHUT_WR)
    until(lambda: server.is_gone())
    assert server.is_gone(bytes(64 << 20))


def test_a_client_that_reset_the_connection_is_gone(dial: Dial) -> None:
    client, server = dial(Limits())
    reset(client)
    assert server.is_gone()


# ---- the end after a refusal ---------------------------------------------------------------


def test_a_client_that_still_sends_reads_why_it_is_refused(dial: Dial) -> None:
    client, server = dial(Limits())
    server.write(b"no")
    thread = threading.Thread(target=server.linger)
    thread.start()
    client.sendall(bytes(8 << 20))
    assert client.recv(10) + client.recv(10) == b"no"
    client.close()
    thread.join()


@pytest.mark.parametrize(
    ("name", "value"), [("LINGER_S", 0.0), ("LINGER_S", 0.01), ("LINGER_BYTES", 5)]
)
def test_a_client_that_keeps_sending_is_cut_off(
    dial: Dial, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(connection, name, value)
    client, server = dial(Limits())
    client.sendall(b"words" if name == "LINGER_BYTES" else b"")
    server.linger()
    assert client.recv(1) == b"", "it was told that no more follows"


def test_lingering_does_not_wait_for_a_client_that_is_gone(dial: Dial) -> None:
    client, server = dial(Limits())
    reset(client)
    server.linger()
