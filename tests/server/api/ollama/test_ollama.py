"""Ollama's API over HTTP, with the embedded model."""

import base64
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.server.api.ollama.bodies import shared_form
from lmlite.server.api.ollama.requests import parse_chat
from lmlite.server.front.gate import Gate
from lmlite.server.front.limits import Limits
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.downloads.conftest import model as small_model
from tests.server.front.test_gate import BEARER, KEY
from tests.server.front.test_gate import ask as ask_house
from tests.support.fake_hub import opened_hub
from tests.support.house import until
from tests.support.image_files import RED, png
from tests.support.server_process import RunningServer

THINK = "Think first: What is 12 + 9?"
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}  # fmt: skip
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def user(content: str, **more: Any) -> Any:
    return [{"role": "user", "content": content, **more}]


def ask(server: RunningServer, path: str, **body: Any) -> Any:
    """A reply in one piece, greedy."""
    answer = server.post(path, **{"stream": False, "options": {"temperature": 0}, **body})
    assert answer.status == 200, answer.body
    return answer.json


def lines(server: RunningServer, path: str, **body: Any) -> list[Any]:
    """The lines of a streamed reply, greedy."""
    answer = server.post(path, **{"options": {"temperature": 0}, **body})
    assert (answer.status, answer.headers["content-type"]) == (200, NDJSON), answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def test_programs_know_the_server_by_its_greeting_and_version(server: RunningServer) -> None:
    for method, body in (("GET", b"Ollama is running"), ("HEAD", b"")):
        answer = server.request(method, "/")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"].startswith("text/plain")
    assert server.get("/api/version").json == {"version": "0.33.0", "lmlite": "0.1.0"}


def test_a_stream_says_what_a_reply_in_one_piece_says(server: RunningServer) -> None:
    for path, body in (
        ("/api/chat", {"messages": user(THINK)}),
        ("/api/generate", {"prompt": THINK}),
    ):
        whole, found = ask(server, path, **body), lines(server, path, **body)
        assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
        said = [line.get("message", line) for line in found]
        text = "content" if path == "/api/chat" else "response"
        for name in (text, "thinking"):
            expected = whole.get("message", whole)[name]
            assert "".join(each.get(name, "") for each in said) == expected != ""
        for name in ("done_reason", "prompt_eval_count", "eval_count", "model"):
            assert found[-1][name] == whole[name]
        times = [found[-1][f"{name}_duration"] for name in ("total", "prompt_eval", "eval")]
        assert times[0] >= times[1] + times[2] > 0
        assert all(type(each) is int for each in times)


def test_tools_are_called_with_objects_and_their_results_read(server: RunningServer) -> None:
    messages = user("What is the weather in Oslo?")
    called = ask(server, "/api/chat", messages=messages, tools=[WEATHER])["message"]
    (call,) = called["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}
    first, _ = lines(server, "/api/chat", messages=messages, tools=[WEATHER])
    assert first["message"]["tool_calls"][0]["function"] == call["function"]
    result = {"role": "tool", "content": "rain, 4 degrees", "tool_name": "get_weather"}
    for id_ in ({"id": call["id"]}, {}):  # older clients drop the id
        turn = called | {"tool_calls": [{"function": call["function"], **id_}]}
        reply = ask(server, "/api/chat", messages=[*messages, turn, result], tools=[WEATHER])
        assert reply["message"]["content"] == "The result is rain, 4 degrees."


def test_an_image_is_seen_and_a_form_kept(server: RunningServer) -> None:
    image = base64.b64encode(png(64, 48, RED)).decode()
    asked = user("What color is this image?", images=[image])
    assert ask(server, "/api/chat", messages=asked)["message"]["content"] == "Red."
    seen = ask(server, "/api/generate", prompt="What color is this image?", images=[image])
    assert seen["response"] == "Red."
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    formed = ask(server, "/api/chat", messages=user("Anna is 12."), format=schema)
    assert json.loads(formed["message"]["content"]).keys() == {"name"}


def test_an_answer_that_the_client_began_is_only_continued(server: RunningServer) -> None:
    begun = [*user("Count from 1 to 5."), {"role": "assistant", "content": "1, 2,"}]
    whole = ask(server, "/api/chat", messages=begun)["message"]["content"]
    openai = server.post("/v1/chat/completions", messages=begun, temperature=0).json
    assert openai["choices"][0]["message"]["content"] == f"1, 2,{whole}"
    parts = lines(server, "/api/chat", messages=begun)
    assert "".join(part["message"]["content"] for part in parts) == whole


def test_thinking_can_be_turned_off(server: RunningServer) -> None:
    assert "thinking" in ask(server, "/api/generate", prompt=THINK)
    assert "thinking" not in ask(server, "/api/generate", prompt=THINK, think=False)


def test_embeddings_are_those_of_openais_endpoint(server: RunningServer) -> None:
    vectors = [
        row["embedding"] for row in server.post("/v1/embeddings", input=["a", "b"]).json["data"]
    ]
    found = ask(server, "/api/embed", input=["a", "b"])
    assert (found["embeddings"], found["model"]) == (vectors, "tiny")
    assert found["prompt_eval_count"] > 0
    assert ask(server, "/api/embed", input="a")["embeddings"] == vectors[:1]
    assert ask(server, "/api/embeddings", prompt="a") == {"embedding": vectors[0]}


def test_lists_show_what_programs_look_for(server: RunningServer) -> None:
    (row,) = server.get("/api/tags").json["models"]
    assert (row["name"], row["model"], len(row["digest"])) == ("tiny", "tiny", 64)
    assert row["capabilities"] == ["completion", "tools", "vision", "thinking"]
    ask(server, "/api/generate")
    (running,) = server.get("/api/ps").json["models"]
    assert running["digest"] == row["digest"] and running["size_vram"] == 0
    assert running["context_length"] == server.get("/v1/models").json["data"][0]["context_length"]
    assert datetime.fromisoformat(running["expires_at"]) > datetime.now(UTC) + timedelta(days=9999)
    shown = ask(server, "/api/show", model="tiny:latest")
    assert shown["details"] == row["details"] and shown["capabilities"] == row["capabilities"]
    assert (shown["model_info"]["general.architecture"], shown["details"]["family"]) == (
        "llama",
    ) * 2
    assert shown["model_info"]["llama.context_length"] >= running["context_length"]
    assert "<|im_start|>" in shown["template"]


def test_what_is_refused_has_ollamas_form(server: RunningServer) -> None:
    for path, body, status, words in (
        ("chat", {"model": "none", "messages": user("Hi")}, 404, "there is no model 'none'"),
        ("chat", {"messages": user("Hi"), "keep_alive": "soon"}, 400, "keep_alive is a number"),
        ("show", {"model": "none"}, 404, "there is no model 'none'"),
        ("show", {}, 400, "model is missing"),
        ("generate", {"prompt": 5}, 400, "prompt is not a string"),
        ("embed", {"input": [""]}, 400, "input"),
        ("pull", {"model": "acme/m"}, 501, "--allow-download"),
        ("create", {"model": "m"}, 501, "this server makes, copies, sends and deletes no models"),
        ("copy", {"source": "tiny", "destination": "m"}, 501, "this server makes"),
        ("push", {"model": "tiny"}, 501, "this server makes"),
        ("blobs/sha256:00", {}, 501, "this server makes"),
    ):
        answer = server.post(f"/api/{path}", **body)
        assert (answer.status, answer.json.keys()) == (status, {"error"}), path
        assert words in answer.json["error"], path
    answer = server.request("DELETE", "/api/delete", {"model": "tiny"})
    assert (answer.status, answer.json.keys()) == (501, {"error"})
    assert server.get("/api/chat").status == 405


def test_an_option_without_effect_is_named(server: RunningServer) -> None:
    answer = server.post("/api/chat", messages=user("Hi"), options={"num_ctx": 8, "num_predict": 1})
    assert answer.headers["x-ignored-params"] == "options.num_ctx"


def test_a_dry_run_shows_the_prompt_and_where_values_come_from(server: RunningServer) -> None:
    body = {"prompt": "Hi", "system": "Rhyme.", "options": {"top_k": 3, "num_predict": 5}}
    found = server.request("POST", "/api/generate", body, {"X-Dry-Run": "1"}).json
    assert found["prompts"][0]["text"].startswith("<|im_start|>system\nRhyme.<|im_end|>")
    assert found["sampling"]["top_k"] == {"value": 3, "origin": "request"}
    assert found["sampling"]["max_tokens"] == {"value": 5, "origin": "request"}
    nothing = server.request("POST", "/api/chat", {}, {"X-Dry-Run": "1"}).json
    assert nothing["prompts"][0]["n_tokens"] == 0


def test_a_model_is_loaded_for_a_time_and_unloaded(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(small_model())
    with RunningServer("--models", str(tmp_path)) as server:
        assert server.get("/api/ps").json == {"models": []}
        head = {"model": "m", "done": True}
        loaded = ask(server, "/api/chat", model="m:latest", keep_alive="1h")
        assert loaded.pop("created_at").endswith("Z")
        assert loaded == head | {
            "done_reason": "load",
            "message": {"role": "assistant", "content": ""},
        }
        (row,) = server.get("/api/ps").json["models"]
        left = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=50) < left <= timedelta(hours=1)
        for _ in range(2):  # also one that is not loaded
            found = ask(server, "/api/generate", model="m", keep_alive=0)
            assert found.pop("created_at").endswith("Z")
            assert found == head | {"done_reason": "unload", "response": ""}
            assert server.get("/api/ps").json == {"models": []}
        ask(server, "/api/embed", model="m", keep_alive=0.5)  # loads it, for a second
        until(lambda: server.get("/api/ps").json == {"models": []})


def test_no_manage_refuses_to_unload_and_to_pull() -> None:
    with RunningServer("--no-manage") as server:
        for path, body in (("chat", {"keep_alive": 0}), ("pull", {"model": "acme/m"})):
            answer = server.post(f"/api/{path}", **body)
            assert (answer.status, answer.json.keys()) == (403, {"error"})
        assert server.post("/api/pull", model="tiny").json == {"status": "success"}


def test_a_pull_is_a_download(tmp_path: Path) -> None:
    with (
        opened_hub() as hub,
        RunningServer("--models", str(tmp_path), "--allow-download", HF_ENDPOINT=hub.url) as server,
    ):
        hub.files["acme/m"] = {"m-F32.gguf": small_model()}
        assert server.post("/api/pull", model="hf.co/acme/m").json == {"status": "success"}
        (row,) = server.get("/api/tags").json["models"]
        assert server.post("/api/pull", model=row["name"]).json == {"status": "success"}
        missing = server.post("/api/pull", model="hf.co/acme/none")
        assert (missing.status, missing.json.keys()) == (400, {"error"})


def test_the_checks_of_other_apis_hold_here_too(open_house: Any) -> None:
    house = open_house(gate=Gate(keys=(KEY,)), limits=Limits(max_images=1))
    paths = ("/", "/api/version", "/api/tags", "/api/ps", "/api/chat", "/api/show", "/api/delete")
    for path in paths:
        assert ask_house(house, "GET", path).status == 401, path
    wrong = ask_house(house, "POST", "/api/chat", {}, **BEARER, Origin="https://evil.example")
    assert (wrong.status, json.loads(wrong.body).keys()) == (403, {"error"})
    dot = base64.b64encode(png(1, 1, RED)).decode()
    many = {"messages": user("Hi", images=[dot, dot])}
    seeing = replace(NO_DEFAULTS, takes_images=True, limits=Limits(max_images=1))
    with pytest.raises(BadRequest, match="more than 1 images"):
        parse_chat(shared_form(many), seeing)


def test_a_waiting_stream_gets_spaces(open_house: Any, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    house = open_house(limits=Limits(ping_seconds=0.05))
    with closing(house.connect()) as connection:
        body = json.dumps({"messages": user(f"wait {go_on}")})
        connection.request("POST", "/api/chat", body, {"Content-Type": "application/json"})
        reply: http.client.HTTPResponse = connection.getresponse()
        assert (reply.status, reply.read(3)) == (200, b"   ")
        go_on.write_text("")
        *_, last = (json.loads(line) for line in reply.read().splitlines())
        assert last["done"] is True
