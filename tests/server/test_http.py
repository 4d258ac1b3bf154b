"""The real server in front of a worker without a model: exact bytes, waiting, and leaving."""

import http.client
import json
import os
import re
import socket
import threading
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.server import http as http_module
from lmlite.server.front.limits import Limits
from lmlite.server.server import ARRIVAL_S
from tests.support.house import CHAT, WAIT_S, House, rest_of, until
from tests.support.raw_requests import BODY, CHUNKED, JSON, LENGTH, chunked, chunks, post


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    """A pipe that the worker waits for; writing to it lets the worker go on."""
    path = tmp_path / "go on"
    os.mkfifo(path)
    return path


def events_of(body: bytes) -> list[bytes]:
    assert body.endswith(b"\n\n")
    return body[:-2].split(b"\n\n")


# ---- exact answers ---------------------------------------------------------------------------


def test_a_whole_answer_is_exact(house: House) -> None:
    status, body = house.ask("echo one two")
    answer = json.loads(body)
    assert status == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", answer.pop("id"))
    assert type(answer.pop("created")) is int
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": "lmlite",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 3,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_a_streamed_answer_is_exact_to_the_byte(house: House) -> None:
    status, body = house.ask('echo one "two"', stream=True)
    first = json.loads(events_of(body)[0].removeprefix(b"data: "))
    same = (
        f'data: {{"id":"{first["id"]}","created":{first["created"]},"model":"fake",'
        '"system_fingerprint":"lmlite","object":"chat.completion.chunk","choices":[{"index":0,'
        '"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n'
    )
    assert status == 200
    assert body.decode() == (
        same % ('{"role":"assistant","content":""}', "null")
        + same % ('{"content":"one"}', "null")
        + same % ('{"content":" \\"two\\""}', "null")
        + same % ("{}", '"stop"')
        + "data: [DONE]\n\n"
    )


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(house: House) -> None:
    _, body = house.ask("echo x", stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events_of(body)
    assert done == b"data: [DONE]"
    assert all(json.loads(chunk[6:])["usage"] is None for chunk in chunks)
    last = json.loads(usage[6:])
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)


def test_each_choice_of_a_stream_has_a_role_and_an_end(house: House) -> None:
    _, body = house.ask("echo x", stream=True, n=2)
    choices = [json.loads(event[6:])["choices"][0] for event in events_of(body)[:-1]]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"] for choice in mine[1:]] == [{"content": "x"}, {}]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


def test_the_headers_of_a_stream_tell_proxies_not_to_buffer(house: House) -> None:
    with closing(house.connect()) as connection:
        headers = dict(house.begin(connection, "echo x", stream=True).getheaders())
    assert re.fullmatch(r"req-[0-9a-f]{24}", headers.pop("X-Request-Id"))
    assert abs(parsedate_to_datetime(headers.pop("Date")).timestamp() - time.time()) < WAIT_S
    assert re.fullmatch(r"[0-9a-f]{16}", headers.pop("X-Prefix-Key"))
    assert headers == {
        "Server": "lmlite",
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "Transfer-Encoding": "chunked",
        "Connection": "keep-alive",
    }


def test_a_refusal_before_the_first_byte_is_a_plain_error_even_for_a_stream(house: House) -> None:
    for stream in (False, True):
        status, body = house.ask("refuse", stream=stream)
        assert (status, json.loads(body)["error"]["message"]) == (400, "refused")


def test_a_failure_after_the_first_byte_is_an_event_and_no_done_follows(house: House) -> None:
    status, body = house.ask("die SIGKILL", stream=True)
    *_, last = events_of(body)
    assert status == 200
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_a_response_that_fails_after_the_first_byte_has_the_status_failed(house: House) -> None:
    with closing(house.connect()) as connection:
        data = json.dumps({"input": "die SIGKILL", "stream": True}).encode()
        connection.request("POST", "/v1/responses", data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        name, data = events_of(reply.read())[-1].split(b"\n")
    assert (reply.status, name) == (200, b"event: response.failed")
    response = json.loads(data.removeprefix(b"data: "))["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "dying"


def test_one_connection_serves_many_requests(house: House) -> None:
    with closing(house.connect()) as connection:
        connection.connect()
        first = connection.sock
        for i in range(20):
            status, _ = house.ask_on(connection, f"echo {i}", stream=i % 2 == 0)
            assert status == 200
            assert house.ask_on(connection, "refuse")[0] == 400
            assert connection.sock is first


def test_every_request_is_one_line_of_the_log(house: House) -> None:
    house.ask("echo one two")
    house.logged(1)
    house.get("/v1/models")
    lines = [line.split(" ", 3)[3].strip() for line in house.logged(2)]
    assert re.fullmatch(
        rf"POST {CHAT} 200 \d+ ms, 3 prompt \(1 cached\) \+ 3 completion tokens, [\d.]+ tokens/s",
        lines[0],
    )
    assert re.fullmatch(r"GET /v1/models 200 \d+ ms", lines[1])


def test_a_path_cannot_forge_a_line_of_the_log(house: House) -> None:
    house.get("/x%0A2026-01-01%20fake%1b[2J")
    (line,) = house.logged(1)
    assert "GET /x\\n2026-01-01 fake\\x1b[2J 404" in line


def test_a_model_is_shown_with_its_facts(house: House) -> None:
    shown = {
        "id": "fake", "object": "model", "created": 1234567890, "owned_by": "lmlite",
        "context_length": 512, "max_context_length": 512, "loaded_context_length": 512,
        "type": "llm", "arch": "llama", "quantization": "F16", "publisher": "", "state": "loaded",
        "capabilities": ["embeddings"], "input_modalities": ["text"],
    }  # fmt: skip
    assert house.get("/v1/models") == (200, {"object": "list", "data": [shown]})
    assert house.get("/v1/models/fake") == house.get("/v1/models/fake.gguf") == (200, shown)


# ---- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [[LENGTH], [CHUNKED]])
def test_a_client_that_waits_with_its_body_gets_100_continue(
    house: House, lines: list[str]
) -> None:
    body = BODY if lines == [LENGTH] else chunks(7)
    with house.dial() as sock:
        sock.sendall(post(*lines, JSON, "Expect: 100-continue", "Connection: close", body=b""))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert rest_of(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_of_http_1_0_gets_no_100_continue(house: House) -> None:
    data = post(LENGTH, JSON, "Expect: 100-continue", first=f"POST {CHAT} HTTP/1.0")
    assert house.exchange(data).startswith(b"HTTP/1.1 200 OK\r\n")


def test_chunks_that_never_come_are_refused_at_their_deadline(open_house: Any) -> None:
    house = open_house(limits=Limits(body_seconds=0.2))
    answer = house.exchange(chunked(body=b"5\r\nhel"))
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_request_that_no_worker_can_take_is_refused_before_its_chunks_are_read(
    open_house: Any,
) -> None:
    house = open_house("broken")
    house.supervisor.wait_until_settled(WAIT_S)
    assert house.exchange(chunked(body=b"")).startswith(b"HTTP/1.1 503 ")


# ---- loading, failing, full ------------------------------------------------------------------


def test_while_the_model_loads_health_says_so_and_requests_wait(
    open_house: Any, go_on: Path
) -> None:
    house = open_house("wait", str(go_on))
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(house.ask("echo late")))
    thread.start()
    while house.get("/health") != (503, {"status": "loading", "progress": 0.5}):
        assert thread.is_alive()
    assert house.get("/v1/models")[1]["data"][0]["context_length"] is None
    go_on.write_text("")
    thread.join()
    assert answers[0][0] == 200
    assert house.get("/health") == (200, {"status": "ready"})


def test_a_model_that_cannot_be_loaded_is_a_503_without_retry(open_house: Any) -> None:
    house = open_house("broken")
    house.supervisor.wait_until_settled(WAIT_S)
    assert house.get("/health") == (
        503, {"status": "failed", "reason": "llama.cpp cannot load fake.gguf"},
    )  # fmt: skip
    with closing(house.connect()) as connection:
        reply = house.begin(connection, "x")
        assert reply.status == 503
        assert reply.getheader("Retry-After") is None
        assert reply.getheader("X-Should-Retry") == "false"


def test_a_reply_that_outlasts_the_drain_ends_with_an_error(house: House, go_on: Path) -> None:
    with closing(house.connect()) as connection:
        house.send(connection, f"wait {go_on}")
        until(lambda: house.supervisor.n_open() == 1)
        house.server.drain(0.0)
        house.supervisor.stop()
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("Retry-After")) == (503, "1")
        assert json.loads(reply.read())["error"]["message"] == "the server is stopping"
    house.server.drain(WAIT_S)


def test_a_draining_server_refuses_requests(house: House) -> None:
    with closing(house.connect()) as connection:
        assert house.ask_on(connection, "echo x")[0] == 200
        house.server.drain(WAIT_S)
        status, body = house.ask_on(connection, "echo x")
    assert (status, json.loads(body)["error"]["message"]) == (503, "the server is stopping")


def test_a_leaving_server_serves_on_tells_health_and_ends_each_connection(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the grace time, while a connection waits in the kernel, and in the time for arrivals."""
    grace, arrivals = threading.Event(), threading.Event()
    naps = {5.0: grace, ARRIVAL_S: arrivals}
    clock = SimpleNamespace(sleep=lambda nap_s: naps[nap_s].wait(WAIT_S))
    monkeypatch.setattr("lmlite.server.server.time", clock)
    thread = threading.Thread(target=house.server.leave, args=(5.0,))
    thread.start()
    until(lambda: house.server.is_leaving)
    with closing(house.connect()) as late, closing(house.connect()) as connection:
        assert house.get("/health") == (503, {"status": "stopping"})
        reply = house.begin(connection, "echo x")
        assert (reply.status, reply.getheader("Connection")) == (200, "close")
        late.connect()
        grace.set()
        until(lambda: house.server.socket.fileno() == -1)
        with pytest.raises(ConnectionRefusedError):
            house.dial()
        assert house.ask_on(late, "echo x")[0] == 200
    arrivals.set()
    thread.join(WAIT_S)


def test_a_connection_that_waits_in_the_kernel_when_the_port_closes_is_served(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted, go_on = threading.Event(), threading.Event()
    accept = house.server.process_request

    def wait_once(request: Any, address: Any) -> None:
        if not accepted.is_set():
            accepted.set()
            go_on.wait(WAIT_S)
        accept(request, address)

    monkeypatch.setattr(house.server, "process_request", wait_once)
    with house.dial(), closing(house.connect()) as waiting:
        assert accepted.wait(WAIT_S)
        waiting.connect()
        thread = threading.Thread(target=house.server.stop_accepting)
        thread.start()
        until(lambda: house.server._stopper.fileno() == -1)
        go_on.set()
        thread.join(WAIT_S)
        assert house.ask_on(waiting, "echo x")[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "echo x"}]}),
        ("/v1/responses", {"input": "echo x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "echo x"}], "max_tokens": 9}),
        ("/api/v1/chat", {"input": "echo x", "model": "fake"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "echo x"}]}),
        ("/api/generate", {"prompt": "echo x"}),
    ],
)
def test_a_reply_proposes_a_prefix_key_and_keeps_that_of_the_client(
    house: House, path: str, body: dict[str, Any]
) -> None:
    keys = []
    for more in ({}, {"X-Prefix-Key": "mine"}):
        with closing(house.connect()) as connection:
            headers = {"Content-Type": "application/json", **more}
            connection.request("POST", path, json.dumps(body), headers)
            reply = connection.getresponse()
            assert reply.status == 200, reply.read()
            keys.append(reply.getheader("X-Prefix-Key"))
    assert re.fullmatch(r"[0-9a-f]{16}", keys[0] or "")
    assert keys[1] == "mine"


# ---- signs of life ---------------------------------------------------------------------------


def test_a_waiting_stream_says_why(open_house: Any, go_on: Path) -> None:
    house = open_house(limits=Limits(ping_seconds=0.05))
    with closing(house.connect()) as connection:
        reply = house.begin(connection, f"wait {go_on}", stream=True)
        assert reply.status == 200
        told = iter(reply.readline, b": prompt 512/1840\n")
        assert set(told) <= {b": queued 2\n", b"\n"}
        go_on.write_text("")
        assert reply.read().endswith(b"data: [DONE]\n\n")


def test_a_slow_reply_in_one_piece_begins_with_spaces(
    house: House, monkeypatch: pytest.MonkeyPatch, go_on: Path
) -> None:
    monkeypatch.setattr(http_module, "SPACE_S", 0.05)
    with closing(house.connect()) as connection:
        reply = house.begin(connection, f"wait {go_on}")
        assert reply.read(1) == b" "
        go_on.write_text("")
        assert json.loads(reply.read())["choices"][0]["message"]["content"] == "done"
        assert house.ask_on(connection, "echo again")[0] == 200


def test_a_failure_after_the_first_space_is_an_error_object(
    house: House, monkeypatch: pytest.MonkeyPatch, go_on: Path
) -> None:
    monkeypatch.setattr(http_module, "SPACE_S", 0.05)
    with closing(house.connect()) as connection:
        reply = house.begin(connection, f"fail {go_on}")
        assert reply.read(1) == b" "
        go_on.write_text("")
        assert json.loads(reply.read())["error"]["message"] == "failed late"


def test_a_request_beyond_the_queue_gets_a_503(open_house: Any) -> None:
    house = open_house(n_parallel=1, n_queue=1)
    waiting = []
    for _ in range(2):
        waiting.append(house.connect())
        house.send(waiting[-1], "hang")
    until(lambda: house.supervisor.n_open() == 2)
    status, body = house.ask("echo x")
    assert (status, json.loads(body)["error"]["message"]) == (503, "2 requests are waiting already")
    # A client that has sent only its head is refused, too.
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    answer = house.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"\r\nRetry-After: " in answer
    for connection in waiting:
        connection.close()
    until(lambda: house.supervisor.n_open() == 0)
    assert house.ask("echo x")[0] == 200


# ---- the log stream --------------------------------------------------------------------------


def watch(house: House, source: str) -> http.client.HTTPResponse:
    connection = house.connect()
    connection.request("GET", f"/log/stream?source={source}")
    reply = connection.getresponse()
    assert reply.status == 200
    return reply


def record(reply: http.client.HTTPResponse) -> Any:
    while not (line := reply.readline()).startswith(b"data: "):
        assert line
    return json.loads(line[len(b"data: ") :])["data"]


def test_a_viewer_sees_what_the_model_receives_and_returns_linked_by_an_id(house: House) -> None:
    viewer = watch(house, "model")
    _, body = house.ask("echo one two")
    received, returned = record(viewer), record(viewer)
    assert received == {
        "type": "llm.prediction.input",
        "modelIdentifier": "fake",
        "modelPath": "fake.gguf",
        "requestId": json.loads(body)["id"],
        "input": "prompt of one two",
    }
    stats = returned.pop("stats")
    assert returned == {
        "type": "llm.prediction.output",
        "modelIdentifier": "fake",
        "requestId": received["requestId"],
        "output": "one two",
    }
    assert stats.keys() == {
        "stopReason", "tokensPerSecond", "numGpuLayers", "timeToFirstTokenSec", "totalTimeSec",
        "promptTokensCount", "predictedTokensCount", "totalTokensCount",
    }  # fmt: skip
    assert (stats["stopReason"], stats["totalTokensCount"]) == ("eosFound", 6)
    viewer.close()


def test_without_a_viewer_no_prompt_is_kept_or_shown(house: House) -> None:
    house.ask("echo secret words")
    viewer = watch(house, "model")
    house.ask("echo public words")
    assert record(viewer)["input"] == "prompt of public words"
    assert "words" not in house.log_text()
    viewer.close()


def test_the_servers_own_lines_can_be_watched(house: House) -> None:
    viewer = watch(house, "server")
    house.get("/v1/models")
    seen = record(viewer)
    assert seen["type"] == "server.log"
    assert seen["content"].startswith("GET /v1/models 200 ")
    viewer.close()


# ---- slow clients ----------------------------------------------------------------------------


def test_a_dripping_head_is_refused_at_its_deadline(open_house: Any) -> None:
    house = open_house(limits=Limits(head_seconds=0.2))
    with house.dial() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert house.get("/health")[0] == 200


def test_a_body_that_never_comes_is_refused_at_its_deadline(open_house: Any) -> None:
    house = open_house(limits=Limits(body_seconds=0.2))
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    with house.dial() as sock:
        sock.sendall(head)
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_an_idle_connection_is_closed_without_a_reply(open_house: Any) -> None:
    house = open_house(limits=Limits(idle_seconds=0.2))
    with house.dial() as sock:
        assert rest_of(sock) == b""
    assert house.log_text() == ""


# ---- clients that go away --------------------------------------------------------------------


def asking(content: str, stream: bool, first: str = f"POST {CHAT} HTTP/1.1") -> bytes:
    body = {"messages": [{"role": "user", "content": content}], "stream": stream}
    data = json.dumps(body).encode()
    return post(f"Content-Length: {len(data)}", JSON, "Connection: close", body=data, first=first)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behind", [b"", b"x", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_client_that_closed_is_noticed_whatever_it_sent_after_its_body(
    house: House, stream: bool, behind: bytes
) -> None:
    with house.dial() as sock:
        sock.sendall(asking("hang", stream) + behind)
        until(lambda: house.supervisor.n_open() == 1)
    until(lambda: house.supervisor.n_open() == 0)
    (line,) = house.logged(1)
    assert f"POST {CHAT} 499 " in line


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_ends_only_its_side_gets_a_100_and_its_reply(
    house: House, go_on: Path, stream: bool
) -> None:
    with house.dial() as sock:
        sock.sendall(asking(f"wait {go_on}", stream))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        go_on.write_text("")
        answer = rest_of(sock)
    assert b'"content":"done"' in answer
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")


def test_a_client_that_ends_its_side_of_a_stream_gets_the_rest(
    open_house: Any, go_on: Path
) -> None:
    house = open_house(limits=Limits(ping_seconds=0.05))
    with house.dial() as sock:
        sock.sendall(asking(f"wait {go_on}", stream=True))
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.shutdown(socket.SHUT_WR)
        heard = b""
        while b": ping\n" not in heard:
            heard += sock.recv(65536)
        go_on.write_text("")
        assert rest_of(sock).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_client_of_http_1_0_that_ends_its_side_counts_as_gone(house: House) -> None:
    data = asking("hang", stream=False, first=f"POST {CHAT} HTTP/1.0")
    assert house.exchange(data, ends=True) == b""
    assert house.supervisor.n_open() == 0


# ---- metrics -------------------------------------------------------------------------------


def metrics(house: House) -> dict[str, str]:
    """Values by name and labels."""
    with closing(house.connect()) as connection:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = reply.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return dict(pairs)


def test_metrics_count_requests_and_tokens_and_show_the_engine(house: House) -> None:
    house.ask("echo one two")
    house.get("/nothing/here")
    house.logged(2)
    until(lambda: house.server.n_connections() == 0)
    found = metrics(house)
    of_server = [name for name in found if "bucket" not in name and "model=" not in name]
    assert {name: found[name] for name in of_server} == {
        "lmlite_connections_open": "1",
        'lmlite_connections_refused_total{reason="connections"}': "0",
        'lmlite_connections_refused_total{reason="address"}': "0",
        'lmlite_connections_refused_total{reason="threads"}': "0",
        'lmlite_requests_total{path="/v1/chat/completions",status="200"}': "1",
        'lmlite_requests_total{path="other",status="404"}': "1",
        'lmlite_tokens_total{kind="prompt"}': "2",
        'lmlite_tokens_total{kind="cached"}': "1",
        'lmlite_tokens_total{kind="completion"}': "3",
        'lmlite_log_dropped_total{reader="stderr"}': "0",
        'lmlite_log_dropped_total{reader="viewers"}': "0",
        "lmlite_requests_open": "0",
        "lmlite_worker_starts_total": "1",
        "lmlite_model_loads_total": "0",
        "lmlite_model_unloads_total": "0",
        "lmlite_models_loaded": "1",
        "lmlite_ready": "1",
        "lmlite_sequences_running": "0",
        "lmlite_sequences_waiting": "1",
        'lmlite_memory_cells{state="used"}': "100",
        'lmlite_memory_cells{state="idle"}': "12",
        'lmlite_memory_cells{state="free"}': "400",
        "lmlite_parked_bytes": "4096",
        'lmlite_draft_tokens_total{kind="drafted"}': "30",
        'lmlite_draft_tokens_total{kind="accepted"}': "20",
        "lmlite_step_seconds_sum": "0.500000",
        "lmlite_step_seconds_count": "7",
    }
    buckets = [value for name, value in found.items() if "step_seconds_bucket" in name]
    assert buckets == ["0", "0", "1", "1", "2", "2", "3", "7", "7", "7", "7", "7"]


def test_health_is_degraded_after_a_worker_died(house: House) -> None:
    assert house.get("/health") == (200, {"status": "ready"})
    house.ask("die SIGKILL")
    house.ask("echo back again")
    assert house.get("/health") == (200, {"status": "degraded"})
