"""The client of the commands, against servers that answer anything."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from lmlite.cli.client import Client, NoServerError
from lmlite.cli.flags import CommandError

Answering = Callable[[bytes], str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Starts a server that sends these bytes to one client, and ends; returns its URL."""
    threads, sockets = [], []

    def start(data: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(data)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join()
    for listener in sockets:
        listener.close()


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (answer("200 OK", b"[1]"), "{url} does not answer as lmlite does"),
        (answer("200 OK", b"{"), "{url} does not answer as lmlite does"),
        (answer("200 OK", b'{"models": 1}'), "{url} has no list of models"),
        (answer("200 OK", b'{"models": [{"key": 1}]}'), "{url} has no list of models"),
        (
            answer("404 Not Found", b'{"error": {"message": "there is no\\nmodel"}}'),
            r"there is no\nmodel",
        ),
        (answer("200 OK", b'  {"error": {"message": "no room"}}'), "no room"),
        (answer("502 Bad Gateway", b"<html>"), "{url} answers 502"),
        (answer("500 Oops", b'{"error": "oops"}'), "{url} answers 500"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
            "{url} does not answer as lmlite does",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "{url} does not answer as lmlite does",
        ),
        (b"SSH-2.0-x\r\n", "the connection to {url} failed: SSH-2.0-x\\r\\n"),
    ],
)
def test_an_answer_that_is_of_no_use_is_one_sentence(
    data: bytes, sentence: str, answering: Answering
) -> None:
    url = answering(data)
    with pytest.raises(CommandError) as refused:
        Client(url).model_list()
    assert (str(refused.value), refused.value.code) == (sentence.replace("{url}", url), 1)


def test_nobody_who_listens_is_told_from_other_failures() -> None:
    with socket.socket() as taken:  # bound, so that no other process listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NoServerError):
            Client(url).model_list()


@pytest.mark.parametrize("url", ["https://127.0.0.1:1234", "127.0.0.1:1234", "http://", "x"])
def test_an_address_of_another_form_is_a_wrong_command_line(url: str) -> None:
    with pytest.raises(CommandError, match=r"must look like http://127\.0\.0\.1:1234") as refused:
        Client(url).model_list()
    assert refused.value.code == 2


def test_a_server_that_stays_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody reads
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CommandError, match=f"{url} does not answer"):
            Client(url).ask("GET", "/", timeout_s=0.05)
