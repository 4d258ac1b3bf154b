"""Responses that are fetched, listed, cancelled and deleted, and those made in the background."""

import json
import threading
from contextlib import closing
from typing import Any

import pytest

from lmlite.messages import ChatMessage
from lmlite.server.api.responses import stored as stored_module
from lmlite.server.api.responses.routes import STORED
from lmlite.server.api.responses.stored import Record, StoredResponses
from lmlite.server.front.gate import Gate
from tests.support.house import House, opened, until

PATH = "/v1/responses"
JSON_TYPE = {"Content-Type": "application/json"}


def request(house: House, method: str, path: str, **headers: str) -> tuple[int, Any]:
    with closing(house.connect()) as connection:
        body = "{}" if method == "POST" else None
        connection.request(method, path, body, JSON_TYPE | headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def post(house: House, input_: Any, **body: Any) -> Any:
    with closing(house.connect()) as connection:
        data = json.dumps({"input": input_, **body})
        connection.request("POST", PATH, data, JSON_TYPE)
        reply = connection.getresponse()
        found = json.loads(reply.read())
        assert reply.status == 200, found
        return found


def state(house: House, response_id: str) -> str:
    found: str = house.get(f"{PATH}/{response_id}")[1]["status"]
    return found


def running(house: House) -> int:
    return house.server.n_active


# ---- stored ----------------------------------------------------------------------------------


def test_a_response_is_fetched_as_it_was_sent(house: House) -> None:
    sent = post(house, "echo one two")
    assert house.get(f"{PATH}/{sent['id']}") == (200, sent)
    assert house.get(f"/responses/{sent['id']}/") == (200, sent)


def test_a_response_that_was_not_stored_is_not_found(house: House) -> None:
    sent = post(house, "echo one", store=False)
    for path in (sent["id"], f"{sent['id']}/input_items", f"{sent['id']}/other", "x"):
        status, body = house.get(f"{PATH}/{path}")
        assert (status, body["error"]["code"]) == (404, None)
    assert request(house, "DELETE", f"{PATH}/x")[0] == 404
    assert request(house, "POST", f"{PATH}/x/cancel")[0] == 404
    assert request(house, "POST", f"{PATH}/x")[0] == 404


def test_a_deleted_response_is_neither_found_nor_continued(house: House) -> None:
    sent = post(house, "echo one")
    deleted = request(house, "DELETE", f"{PATH}/{sent['id']}")
    assert deleted == (200, {"id": sent["id"], "object": "response", "deleted": True})
    assert house.get(f"{PATH}/{sent['id']}")[0] == 404
    with closing(house.connect()) as connection:
        data = json.dumps({"input": "echo", "previous_response_id": sent["id"]})
        connection.request("POST", PATH, data, JSON_TYPE)
        assert connection.getresponse().status == 400


def test_input_items_have_ids_and_come_in_pages(house: House) -> None:
    given = [{"role": "user", "content": f"echo {i}"} for i in range(5)]
    path = f"{PATH}/{post(house, given)['id']}/input_items"
    _, newest = house.get(path)
    texts = [item["content"][0]["text"] for item in newest["data"]]
    assert texts == [f"echo {i}" for i in (4, 3, 2, 1, 0)]
    assert newest["has_more"] is False
    _, first = house.get(f"{path}?order=asc&limit=2")
    assert [item["content"] for item in first["data"]] == [
        [{"type": "input_text", "text": f"echo {i}"}] for i in (0, 1)
    ]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (
        True, first["data"][0]["id"], first["data"][1]["id"])  # fmt: skip
    _, last = house.get(f"{path}?order=asc&limit=3&after={first['last_id']}")
    assert [item["content"][0]["text"] for item in last["data"]] == ["echo 2", "echo 3", "echo 4"]
    assert last["has_more"] is False
    _, none = house.get(f"{path}?order=asc&after={last['last_id']}")
    assert (none["data"], none["first_id"], none["last_id"]) == ([], None, None)


@pytest.mark.parametrize(
    ("query", "param"),
    [("order=up", "order"), ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"),
     ("after=x", "after")],
)  # fmt: skip
def test_a_wrong_page_is_refused(house: House, query: str, param: str) -> None:
    path = f"{PATH}/{post(house, 'echo 1')['id']}/input_items"
    status, body = house.get(f"{path}?{query}")
    assert (status, body["error"]["param"]) == (400, param)


def test_an_item_keeps_its_id_and_its_form(house: House) -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "echo 1"}
    answer = {"role": "assistant", "content": "Yes"}
    given = [{"role": "user", "content": "Hi"}, answer, call, output]
    _, found = house.get(f"{PATH}/{post(house, given)['id']}/input_items?order=asc")
    _, said, called, told = found["data"]
    assert said["content"] == [
        {"type": "output_text", "text": "Yes", "annotations": [], "logprobs": []}
    ]
    assert called == call | {"status": "completed"}
    assert told == output | {"id": told["id"], "status": "completed"}


def test_a_client_without_the_key_gets_no_response() -> None:
    key = b"a-key-of-sixteen-letters"
    with opened(gate=Gate(keys=(key,))) as house:
        for method in ("GET", "DELETE"):
            assert request(house, method, f"{PATH}/resp_1")[0] == 401
            with_key = {"Authorization": f"Bearer {key.decode()}"}
            assert request(house, method, f"{PATH}/resp_1", **with_key)[0] == 404


def test_a_stored_response_is_not_streamed(house: House) -> None:
    sent = post(house, "echo one")
    status, body = house.get(f"{PATH}/{sent['id']}?stream=true")
    assert (status, body["error"]["param"]) == (400, "stream")


# ---- in the background -----------------------------------------------------------------------


def test_a_background_response_is_polled_until_it_is_complete(house: House) -> None:
    queued = post(house, "echo one two", background=True)
    assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
    until(lambda: state(house, queued["id"]) == "completed")
    _, whole = house.get(f"{PATH}/{queued['id']}")
    assert whole["output"][0]["content"][0]["text"] == "one two"
    assert whole["usage"]["output_tokens"] > 0
    more = post(house, "echo three", previous_response_id=queued["id"])
    assert more["status"] == "completed"
    until(lambda: running(house) == 0)
    until(lambda: f"background {queued['id']} 200 " in house.lines.getvalue())


def test_an_answer_that_fails_is_told_as_a_failed_response(house: House) -> None:
    queued = post(house, "no such verb", background=True)
    until(lambda: state(house, queued["id"]) == "failed")
    _, failed = house.get(f"{PATH}/{queued['id']}")
    assert failed["error"]["code"] == "invalid_prompt"
    assert failed["output"] == []
    status, body = request(house, "POST", f"{PATH}/{queued['id']}/cancel")
    assert (status, body["status"]) == (200, "failed")


def test_a_cancelled_response_ends_in_the_worker_and_cannot_be_continued(house: House) -> None:
    queued = post(house, "tick 1000 0.05", background=True)
    until(lambda: state(house, queued["id"]) == "in_progress")
    until(lambda: running(house) == 1)  # without the request that asked
    status, body = request(house, "POST", f"{PATH}/{queued['id']}/cancel")
    assert (status, body["status"]) == (200, "cancelled")
    until(lambda: running(house) == 0)
    assert state(house, queued["id"]) == "cancelled"
    with closing(house.connect()) as connection:
        data = json.dumps({"input": "echo", "previous_response_id": queued["id"]})
        connection.request("POST", PATH, data, JSON_TYPE)
        reply = connection.getresponse()
        assert reply.status == 400
        assert "it is not complete" in json.loads(reply.read())["error"]["message"]


def test_deleting_a_response_ends_it(house: House) -> None:
    queued = post(house, "hang", background=True)
    assert request(house, "DELETE", f"{PATH}/{queued['id']}")[0] == 200
    until(lambda: running(house) == 0)
    assert house.get(f"{PATH}/{queued['id']}")[0] == 404


def test_only_a_background_response_can_be_cancelled(house: House) -> None:
    sent = post(house, "echo one")
    status, body = request(house, "POST", f"{PATH}/{sent['id']}/cancel")
    assert (status, body["error"]["message"]) == (
        400, "only a response with background: true can be cancelled")  # fmt: skip


def test_no_more_are_made_at_once_than_may_be(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "MAX_RUNNING", 2)
    ids = [post(house, "hang", background=True)["id"] for _ in range(2)]
    with closing(house.connect()) as connection:
        data = json.dumps({"input": "hang", "background": True})
        connection.request("POST", PATH, data, JSON_TYPE)
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        reply.read()
    for response_id in ids:
        request(house, "POST", f"{PATH}/{response_id}/cancel")
    until(lambda: running(house) == 0)


def test_a_server_that_stops_waits_for_a_background_answer() -> None:
    with opened() as house:
        queued = post(house, "tick 4 0.1", background=True)
        drain = threading.Thread(target=house.server.drain, args=(20,))
        drain.start()
        drain.join()
        assert STORED.response(queued["id"])["status"] == "completed"


def test_a_thread_that_cannot_start_leaves_no_request_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        if self.name == "background":
            raise RuntimeError("can't start new thread")
        begin(self)

    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with closing(house.connect()) as connection:
        data = json.dumps({"input": "echo 1", "background": True})
        connection.request("POST", PATH, data, JSON_TYPE)
        assert connection.getresponse().status == 503
    until(lambda: running(house) == 0)


def test_those_being_made_are_not_dropped_and_bound_what_may_begin() -> None:
    made = Record((ChatMessage("user", "x"),), b"{}", is_background=True, is_running=True)
    stored = StoredResponses(max_bytes=2 * made.n_bytes)
    stored.begin("a", made)
    stored.keep("b", Record((ChatMessage("user", "x"),), b"{}"))
    stored.begin("c", made)
    assert stored.is_running("a") and stored.is_running("c")
    with pytest.raises(Exception, match="too many background responses"):
        stored.begin("d", made)
    with pytest.raises(Exception, match="there is no response 'b'"):
        stored.response("b")


def test_an_input_that_cannot_be_stored_is_refused() -> None:
    long = Record((ChatMessage("user", "x" * (1 << 20)),), is_background=True, is_running=True)
    with pytest.raises(Exception, match="too long for a background response"):
        StoredResponses().begin("a", long)
