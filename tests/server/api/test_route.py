"""Each endpoint is found under every spelling that a base URL may give its path, and no other."""

import json
from contextlib import closing
from typing import Any

import pytest

from lmlite.server.front.gate import Gate
from lmlite.server.http import ROUTES
from tests.server.front.test_gate import APP, BEARER, KEY, ask
from tests.support.house import CHAT, House
from tests.support.server_process import RunningServer

ENDPOINTS = [
    "/v1/models", "/v1/models/fake", "/v1/chat/completions", "/v1/completions", "/v1/responses",
    "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens", "/v1/rerank",
]  # fmt: skip
SPELLINGS = ["{}", "/v1{}", "/v1{}/", "//v1{}", "/v1/{}", "/v1/v1{}", "/v1//v1/{}//", "///{}"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_base_url_may_end_with_a_version_a_slash_both_or_neither(path: str) -> None:
    for spelling in SPELLINGS:
        assert ROUTES.endpoint(spelling.format(path.removeprefix("/v1"))) == path
    doubled = path.replace("/", "//")
    assert ROUTES.endpoint(doubled) == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/health", "/health"),
        ("//health/", "/health"),
        ("/v1/health", "/health"),
        ("/log//stream", "/log/stream"),
        ("/metrics", "/metrics"),
        ("/api/v1/models", "/api/v1/models"),
        ("/v1//api/v0/models/org/m/", "/api/v0/models/org/m"),
        ("/api/models", "/api/models"),
        ("/", "/"),
        ("/v1", "/"),
        ("", "/"),
        ("/v1/api//chat/", "/api/chat"),
        ("/V1/models", "/v1/V1/models"),
        ("/v2/rerank", "/v2/rerank"),
        ("/v3/models", "/v1/v3/models"),
        ("/models/v1/models", "/v1/models/v1/models"),
        ("/v1/../v1/models", "/v1/../v1/models"),
        ("/./models", "/v1/./models"),
        ("/models;x", "/v1/models;x"),
        ("\\v1\\models", "/v1/\\v1\\models"),
    ],
)
def test_other_parts_of_a_path_are_left_alone(path: str, expected: str) -> None:
    assert ROUTES.endpoint(path) == expected


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_api_is_served_under_every_spelling(house: House, spelling: str) -> None:
    turn = [{"role": "user", "content": "echo x"}]

    def at(path: str, method: str = "POST", **body: Any) -> tuple[int, Any]:
        reply = ask(house, method, spelling.format(path), body or None)
        return reply.status, json.loads(reply.body)

    assert at("/chat/completions", messages=turn)[1]["object"] == "chat.completion"
    assert at("/completions", n=1)[1]["error"]["param"] == "prompt"
    assert at("/embeddings", n=1)[1]["error"]["param"] == "input"
    assert at("/responses", input="echo x")[1]["object"] == "response"
    assert at("/messages", messages=turn, max_tokens=9)[1]["type"] == "message"
    assert at("/messages/count_tokens", n=1)[1]["error"]["message"] == "messages is missing"
    assert at("/models", "GET")[1]["data"][0]["id"] == "fake"
    assert at("/models/fake", "GET")[1]["id"] == "fake"
    assert at("/models/other", "GET")[0] == at("/chats", "GET")[0] == 404


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spelling_of_a_path_changes_nothing_else_in_a_reply(
    open_house: Any, spelling: str
) -> None:
    house = open_house(gate=Gate(origins=frozenset({APP}), keys=(KEY,)))
    chat, messages = spelling.format("/chat/completions"), spelling.format("/messages")
    assert ask(house, "POST", chat, {}).status == 401
    wrong = ask(house, "DELETE", chat, **BEARER)
    assert wrong.status == 405
    wrong = ask(house, "GET", chat, **BEARER)
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST, OPTIONS")
    options = ask(house, "OPTIONS", chat, Origin=APP)
    assert (options.status, options.headers["Allow"]) == (204, "POST, OPTIONS")
    assert options.headers["Access-Control-Allow-Origin"] == APP
    head = ask(house, "HEAD", spelling.format("/models"), **BEARER)
    assert (head.status, head.body) == (200, b"")
    assert json.loads(ask(house, "POST", messages, {}, **BEARER).body)["type"] == "error"
    house.logged(6)
    with closing(house.connect()) as connection:
        connection.request("GET", "/metrics", headers=BEARER)
        lines = connection.getresponse().read().decode().splitlines()
    found = {line for line in lines if line.startswith("lmlite_requests_total")}
    assert f'lmlite_requests_total{{path="{CHAT}",status="401"}} 1' in found
    assert f'lmlite_requests_total{{path="{CHAT}",status="405"}} 2' in found
    assert 'lmlite_requests_total{path="/v1/messages",status="400"} 1' in found


def test_an_empty_model_name_counts_as_absent_in_every_api() -> None:
    turn = [{"role": "user", "content": "Hi"}]
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": turn, "max_tokens": 1},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/messages": {"messages": turn, "max_tokens": 1},
        "/v1/messages/count_tokens": {"messages": turn},
        f"{CHAT}/input_tokens": {"messages": turn},
        "/v1/responses/input_tokens": {"input": "Hi"},
        "/apply-template": {"messages": turn},
        "/v1/rerank": {"query": "Hi", "documents": ["Hi"]},
        "/api/chat": {"messages": turn, "options": {"num_predict": 1}},
        "/api/generate": {"prompt": "Hi", "options": {"num_predict": 1}},
        "/api/embed": {"input": "Hi"},
        "/api/embeddings": {"prompt": "Hi"},
    }
    with RunningServer() as server:
        for path, body in bodies.items():
            assert server.post(path, **body, model="").status == 200, path
            assert server.post(path, **body, model=" ").status == 404, path
        assert server.post(CHAT, **bodies[CHAT], model="").json["model"] == "tiny"


def test_a_model_is_found_by_every_alias_and_replies_show_the_first() -> None:
    names = ["first", "gpt-4o", "org/model"]
    with RunningServer(*(word for name in [*names, "first"] for word in ("--alias", name))) as it:
        assert it.model == "first"
        rows = it.get("/v1/models").json["data"]
        assert [row.pop("id") for row in rows] == names
        assert rows[0] == rows[1] == rows[2]
        for name in [*names, "tiny.gguf", ""]:
            assert it.chat("Hi", model=name, max_tokens=1)["model"] == "first"
        for path, name in (
            ("gpt-4o", "gpt-4o"),
            ("org/model", "org/model"),
            ("tiny.gguf", "first"),
            ("tiny", "first"),
        ):
            assert it.get(f"/v1/models/{path}").json["id"] == name
        message = "there is no model 'tin'; this server has: first, gpt-4o, org/model, tiny"
        assert it.get("/v1/models/tin").error["message"] == message
