"""The log and /metrics tell that a reply was cut short, and why."""

import os
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.server import http as http_module
from lmlite.server.api.openai.replies import ChatReply
from lmlite.server.front.limits import Limits
from tests.support.house import CHAT, WAIT_S, House, until

ENDLESS = "tick 100000 0.005"


def told(house: House) -> tuple[str, dict[str, str]]:
    """The log line of a request, without its time, and the counts of /metrics."""
    pattern = r"INFO    (\S+ \S+ \d+) \d+ ms(, cut short)?"
    until(lambda: "INFO" in house.log_text())
    lines = [re.search(pattern, line) for line in house.log_text().splitlines()]
    (line,) = [match for match in lines if match is not None]
    with closing(house.connect()) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    counted = re.findall(r"^lmlite_(requests_total|answers_cut_total)(\{.*\}) (\d+)$", text, re.M)
    return line[1] + (line[2] or ""), {name + labels: n for name, labels, n in counted}


def cut(status: int) -> tuple[str, dict[str, str]]:
    """The same for a chat that was cut short."""
    return f"POST {CHAT} {status}, cut short", {
        f'requests_total{{path="{CHAT}",status="{status}"}}': "1",
        f'answers_cut_total{{status="{status}"}}': "1",
    }


def test_a_complete_reply_is_not_counted_as_cut(house: House) -> None:
    assert house.ask("echo x", stream=True)[0] == 200
    assert told(house) == (
        f"POST {CHAT} 200",
        {f'requests_total{{path="{CHAT}",status="200"}}': "1"},
    )


def test_a_stream_whose_client_left(house: House) -> None:
    with closing(house.connect()) as connection:
        reply = house.begin(connection, ENDLESS, stream=True)
        assert (reply.status, reply.readline()[:6]) == (200, b"data: ")
        reply.close()
    until(lambda: house.server.n_connections() == 0)
    assert told(house) == cut(499)


def test_a_client_that_left_before_its_reply_began(house: House) -> None:
    with closing(house.connect()) as connection:
        house.send(connection, "hang")
        until(lambda: house.supervisor.n_open() == 1)
    until(lambda: house.server.n_connections() == 0)
    assert told(house) == (
        f"POST {CHAT} 499",
        {f'requests_total{{path="{CHAT}",status="499"}}': "1"},
    )


def test_a_client_that_does_not_read_its_stream(open_house: Any) -> None:
    house = open_house(limits=Limits(send_seconds=0.3, send_buffer=4096))
    with closing(house.connect()) as connection:
        house.send(connection, "echo " + " ".join(["word"] * 20_000), stream=True)
        until(lambda: "POST" in house.log_text())
    assert told(house) == cut(408)


def test_a_stream_whose_worker_died(house: House) -> None:
    assert house.ask("die SIGKILL", stream=True)[0] == 200
    assert told(house) == cut(503)


def test_a_stream_whose_turn_did_not_come_in_time(open_house: Any) -> None:
    house = open_house(limits=Limits(ping_seconds=0.05, queue_seconds=0.3))
    assert house.ask("queue", stream=True)[0] == 200
    assert told(house) == cut(503)


def test_a_stream_of_a_server_that_stopped(open_house: Any) -> None:
    house = open_house()
    with closing(house.connect()) as connection:
        reply = house.begin(connection, ENDLESS, stream=True)
        house.supervisor.stop()
        assert b"the server is stopping" in reply.read()
    assert told(house) == cut(503)


def test_a_stream_that_failed_by_a_bug(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_reply: Any) -> bytes:
        raise ValueError("no")

    monkeypatch.setattr(ChatReply, "tail", fail)
    with closing(house.connect()) as connection:
        house.send(connection, "echo x", stream=True)
        until(lambda: "POST" in house.log_text())
    assert told(house) == cut(500)


def test_a_reply_in_one_piece_that_failed_after_its_first_space(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(http_module, "SPACE_S", 0.05)
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    with closing(house.connect()) as connection:
        reply = house.begin(connection, f"fail {go_on}")
        go_on.write_text("")
        reply.read()
    assert told(house) == cut(500)


def test_a_log_stream_whose_viewer_left_is_complete(house: House) -> None:
    with house.dial() as viewer:
        viewer.settimeout(WAIT_S)
        viewer.sendall(b"GET /log/stream?source=server HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewer.recv(9) == b"HTTP/1.1 "
        house.server.log.line("debug", "x")
    until(lambda: house.server.n_connections() == 0)
    assert told(house)[0] == "GET /log/stream 200"
