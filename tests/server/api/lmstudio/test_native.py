"""LM Studio's native API over HTTP, with the embedded model."""

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.downloads.conftest import model as small_model
from tests.support.fake_hub import opened_hub
from tests.support.house import until
from tests.support.image_files import RED, png
from tests.support.server_process import Answer, RunningServer

CHAT, MODELS = "/api/v1/chat", "/api/v1/models"
LOAD, UNLOAD = f"{MODELS}/load", f"{MODELS}/unload"
THINK = "Think first: What is 12 + 9?"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def ask(server: RunningServer, input_: Any, **body: Any) -> Any:
    """A reply, greedy unless told otherwise."""
    answer = server.post(CHAT, **{"input": input_, "temperature": 0, **body})
    assert answer.status == 200, answer.body
    return answer.json


def text_of(reply: Any) -> str:
    return "".join(item["content"] for item in reply["output"] if item["type"] == "message")


def error_of(answer: Answer) -> Any:
    return answer.status, answer.json["error"]


# ---- chats -----------------------------------------------------------------------------------


def test_a_reply_has_every_field(server: RunningServer) -> None:
    reply = ask(server, "Say hello")
    stats, response_id = reply.pop("stats"), reply.pop("response_id")
    assert reply == {"model_instance_id": "tiny",
                     "output": [{"type": "message", "content": "hello"}]}  # fmt: skip
    assert response_id.startswith("resp_")
    speeds = [stats.pop(name) for name in ("tokens_per_second", "time_to_first_token_seconds")]
    assert all(type(speed) is float and speed > 0 for speed in speeds)
    assert stats.keys() == {"input_tokens", "total_output_tokens", "reasoning_output_tokens"}
    assert all(type(n) is int for n in stats.values())


def test_a_stream_says_the_same_in_events(server: RunningServer) -> None:
    *events, end = server.stream(CHAT, input=THINK, temperature=0)
    names = [event["type"] for event in events]
    assert [name for i, name in enumerate(names) if name != names[i - 1]] == [
        "chat.start", "prompt_processing.start", "prompt_processing.end",
        "reasoning.start", "reasoning.delta", "reasoning.end",
        "message.start", "message.delta", "message.end",
    ]  # fmt: skip
    assert events[0]["model_instance_id"] == "tiny"
    texts = {
        kind: "".join(e["content"] for e in events if e["type"] == f"{kind}.delta")
        for kind in ("reasoning", "message")
    }
    shown = [{"type": kind, "content": text} for kind, text in texts.items()]
    assert end["type"] == "chat.end"
    assert end["result"]["output"] == shown == ask(server, THINK)["output"]
    assert end["result"]["stats"]["reasoning_output_tokens"] > 0


def test_a_conversation_goes_on_and_may_branch(server: RunningServer) -> None:
    first = ask(server, "My name is Alice.")["response_id"]
    for _ in range(2):
        assert "Alice" in text_of(ask(server, "What is my name?", previous_response_id=first))
    responses = server.post("/v1/responses", input="What is my name?", temperature=0,
                            previous_response_id=first)  # fmt: skip
    assert "Alice" in str(responses.json["output"])
    assert "response_id" not in ask(server, "Hi", store=False)


def test_an_image_is_seen(server: RunningServer) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(64, 48, RED)).decode()}"
    items = [{"type": "image", "data_url": url}, {"type": "text", "content": "What is this?"}]
    assert "red" in text_of(ask(server, items))


def test_reasoning_can_be_turned_off(server: RunningServer) -> None:
    assert [item["type"] for item in ask(server, THINK, reasoning="off")["output"]] == ["message"]
    assert "reasoning" in str(ask(server, THINK, reasoning="on")["output"])
    assert error_of(server.post(CHAT, input=THINK, reasoning="high")) == (400, {
        "type": "invalid_request",
        "message": "reasoning is high, but tiny takes off, on",
        "param": "reasoning",
    })  # fmt: skip


def test_what_is_refused_has_lm_studios_form(server: RunningServer) -> None:
    assert error_of(server.post(CHAT, input="Hi", integrations=["mcp/x"])) == (400, {
        "type": "not_implemented",
        "message": "integrations are not supported: this server connects to no other and runs "
        "no tools",
        "code": "unsupported_integrations",
        "param": "integrations",
    })  # fmt: skip
    assert error_of(server.post(CHAT, model="tiny")) == (400, {
        "type": "invalid_request",
        "message": "input is missing",
        "code": "missing_required_parameter",
        "param": "input",
    })  # fmt: skip
    status, error = error_of(server.post(CHAT, input="Hi", model="none"))
    assert (status, error["type"], error["param"]) == (404, "model_not_found", "model")
    status, error = error_of(server.post(CHAT, input="Hi", model=7))
    assert (status, error["type"], error["param"]) == (400, "invalid_request", "model")
    status, error = error_of(server.post(CHAT, input="Hi", context_length=10**6))
    assert (status, error["param"]) == (400, "context_length")
    status, error = error_of(server.get(CHAT))
    assert (status, error["type"]) == (405, "invalid_request")
    long = server.post(CHAT, input="word " * 5000, stream=True)
    assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")


def test_an_ignored_field_is_named(server: RunningServer) -> None:
    answer = server.post(CHAT, input="Hi", context_length=64, top_a=1, max_output_tokens=1)
    assert answer.headers["x-ignored-params"] == "context_length, top_a"
    assert answer.json["stats"]["total_output_tokens"] == 1


def test_a_dry_run_shows_the_prompt(server: RunningServer) -> None:
    answer = server.request("POST", CHAT, {"input": "Hi", "system_prompt": "Rhyme."},
                            {"X-Dry-Run": "1"})  # fmt: skip
    (prompt,) = answer.json["prompts"]
    assert prompt["text"].startswith("<|im_start|>system\nRhyme.<|im_end|>")


# ---- models ----------------------------------------------------------------------------------


def test_the_lists_show_the_model(server: RunningServer) -> None:
    (v1,) = server.get(MODELS).json["models"]
    assert (v1["key"], v1["type"], v1["format"]) == ("tiny", "llm", "gguf")
    assert v1["lmlite"]["state"] == "loaded"
    assert v1["capabilities"] == {
        "vision": True,
        "trained_for_tool_use": True,
        "reasoning": {"allowed_options": ["off", "on"], "default": "on"},
    }
    (instance,) = v1["loaded_instances"]
    about = instance["lmlite"]
    assert (about["n_users"], about["ttl_seconds"]) == (0, None)
    assert about["memory"]["estimated"]["total"] > about["memory"]["held"]["own"] > 0
    (v0,) = server.get("/api/v0/models").json["data"]
    assert server.get("/api/v0/models/tiny").json == v0
    assert v0["loaded_context_length"] == instance["config"]["context_length"]
    assert (v0["id"], v0["type"], v0["state"]) == ("tiny", "vlm", "loaded")
    missing = server.get("/api/v0/models/none")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


def test_broken_files_are_listed_with_their_fault(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF")
    with RunningServer("--models", str(tmp_path)) as server:
        found = server.get(MODELS).json
        assert found["models"] == []
        (broken,) = found["lmlite"]["broken"]
        assert broken["key"] == "half"
        assert broken["lmlite"]["fault"].startswith("half.gguf ")


def test_tools_of_lm_studio_are_greeted(server: RunningServer) -> None:
    assert server.get("/lmstudio-greeting").json == {"lmstudio": True}


def test_v0_answers_as_openai_does_and_measures(server: RunningServer) -> None:
    turn = {"messages": [{"role": "user", "content": "Say hello"}], "temperature": 0}
    whole = server.post("/api/v0/chat/completions", **turn).json
    assert whole["choices"] == server.post("/v1/chat/completions", **turn).json["choices"]
    assert whole["stats"]["stop_reason"] == "eosFound"
    chunks = list(server.stream("/api/v0/chat/completions", **turn))
    assert [i for i, chunk in enumerate(chunks) if "stats" in chunk] == [len(chunks) - 2]
    text = server.post("/api/v0/completions", prompt="One", max_tokens=2).json
    assert text["stats"]["stop_reason"] in ("maxPredictedTokensReached", "eosFound")
    vectors = server.post("/api/v0/embeddings", input="Hi").json
    assert vectors == server.post("/v1/embeddings", input="Hi").json


@pytest.mark.parametrize("path", ["/v1/api/v1/models", "//api//v1/models/", "/v1//api/v1/models"])
def test_the_base_url_of_a_client_may_end_with_v1(server: RunningServer, path: str) -> None:
    assert "models" in server.get(path).json


@pytest.mark.parametrize("path", ["/api/v1", "/api/models", "/api/v2/models", "/v1/v0/models",
                                  "/api/v1/v1/models"])  # fmt: skip
def test_no_other_path_is_one_of_this_api(server: RunningServer, path: str) -> None:
    assert server.get(path).status == 404


# ---- managing --------------------------------------------------------------------------------


def test_a_model_is_unloaded_loaded_and_loaded_by_a_request() -> None:
    with RunningServer() as server:
        assert server.post(UNLOAD, instance_id="tiny").json == {"instance_id": "tiny"}
        assert server.get(MODELS).json["models"][0]["loaded_instances"] == []
        assert server.get("/v1/models").json["data"][0]["state"] == "not-loaded"
        assert error_of(server.post(UNLOAD, instance_id="tiny"))[0] == 404

        *events, end = server.stream(CHAT, input="Say hello", temperature=0)
        names = [event["type"] for event in events]
        assert names[:2] == ["chat.start", "model_load.start"]
        ended = events[names.index("model_load.end")]
        assert names[names.index("model_load.end") + 1] == "prompt_processing.start"
        assert set(names[2 : names.index("model_load.end")]) == {"model_load.progress"}
        load_s = end["result"]["stats"]["model_load_time_seconds"]
        assert load_s == ended["load_time_seconds"] > 0
        assert text_of(end["result"]) == "hello"

        server.post(UNLOAD, instance_id="tiny")
        loaded = server.post(LOAD, model="tiny", context_length=256, identifier="mine",
                             echo_load_config=True, num_experts=2)  # fmt: skip
        assert loaded.headers["x-ignored-params"] == "num_experts"
        assert loaded.json["load_time_seconds"] > 0
        assert loaded.json["load_config"]["context_length"] == 256
        assert (loaded.json["instance_id"], loaded.json["status"]) == ("mine", "loaded")
        assert ask(server, "Say hello", model="mine")["model_instance_id"] == "mine"
        again = server.post(LOAD, model="mine").json
        assert (again["instance_id"], again["status"]) == ("mine", "loaded")
        assert server.post(LOAD, model="tiny", context_length=512).status == 400
        assert server.post(UNLOAD, instance_id="mine").json == {"instance_id": "mine"}


def test_a_context_is_at_most_what_the_model_was_trained_for() -> None:
    with RunningServer() as server:
        server.post(UNLOAD, instance_id="tiny")
        for _ in range(2):  # the second time it is loaded already
            answer = server.post(LOAD, model="tiny", context_length=10**6, echo_load_config=True)
            assert answer.json["load_config"]["context_length"] == 2048
        status, error = error_of(server.post(LOAD, model="tiny", context_length=4096))
        assert (status, error["param"]) == (400, "context_length")
        assert error["message"] == "'tiny' is loaded with another context_length; unload it first"


def test_a_model_that_is_not_there_is_not_loaded(server: RunningServer, tmp_path: Path) -> None:
    for name in ("none", "/etc/passwd", f"{tmp_path}/x.gguf", "../tiny.gguf"):
        status, error = error_of(server.post(LOAD, model=name))
        assert (status, error["type"], error["param"]) == (404, "model_not_found", "model")
    assert error_of(server.post(LOAD))[1]["param"] == "model"


def test_nothing_is_downloaded_unless_it_is_allowed(server: RunningServer) -> None:
    status, error = error_of(server.post(f"{MODELS}/download", model="acme/m"))
    assert (status, error["type"]) == (400, "not_implemented")
    assert error["message"] == "this server downloads nothing: start it with --allow-download"


def test_a_model_is_downloaded_listed_and_loaded(tmp_path: Path) -> None:
    folder = str(tmp_path / "models")  # it does not exist yet
    with (
        opened_hub() as hub,
        RunningServer("--allow-download", HF_ENDPOINT=hub.url, LMLITE_MODELS=folder) as it,
    ):
        hub.files["acme/small"] = {"small-F32.gguf": small_model()}
        asked = {"model": f"{hub.url}/acme/small", "quantization": "F32"}
        job = it.post(f"{MODELS}/download", **asked).json
        assert job["total_size_bytes"] == len(small_model())

        def status() -> Any:
            return it.get(f"{MODELS}/download/status/{job['job_id']}").json

        until(lambda: status()["status"] != "downloading")
        assert (status()["status"], status()["downloaded_bytes"]) == (
            "completed", len(small_model()),
        )  # fmt: skip
        assert it.post(f"{MODELS}/download", **asked).json == {"status": "already_downloaded"}
        assert it.post(LOAD, model="acme/small").json["instance_id"] == "acme/small"
        assert [model["key"] for model in it.get(MODELS).json["models"]] == ["tiny", "acme/small"]

        code, error = error_of(it.get(f"{MODELS}/download/status/job_1"))
        assert (code, error["type"]) == (404, "job_not_found")
        code, error = error_of(it.post(f"{MODELS}/download", model="acme/none"))
        assert (code, error["type"], error["param"]) == (400, "invalid_request", "model")
        code, error = error_of(it.post(f"{MODELS}/download", model="https://elsewhere.example/m"))
        assert (code, error["type"], error["param"]) == (400, "invalid_request", "model")


def test_managing_needs_the_key_and_can_be_turned_off(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-key-of-the-test\n")
    keys.chmod(0o600)
    bearer = {"Authorization": "Bearer secret-key-of-the-test"}
    asked: list[tuple[str, str, Any]] = [
        ("POST", LOAD, {"model": "tiny"}),
        ("POST", UNLOAD, {"instance_id": "tiny"}),
        ("POST", f"{MODELS}/download", {"model": "acme/m"}),
        ("GET", f"{MODELS}/download/status/job_1", None),
    ]
    with RunningServer("--no-manage", "--api-key-file", str(keys)) as server:
        for method, path, body in asked:
            answer = server.request(method, path, body)
            assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
            answer = server.request(method, path, body, bearer)
            assert error_of(answer) == (403, {
                "type": "invalid_request",
                "message": "this server was started with --no-manage: clients cannot manage models",
            })  # fmt: skip
        for path in (MODELS, "/api/v0/models", "/lmstudio-greeting"):
            assert server.get(path).status == 401
            assert server.request("GET", path, None, bearer).status == 200


def test_a_strict_server_refuses_fields_that_have_no_effect() -> None:
    with RunningServer("--strict") as server:
        status, error = error_of(server.post(LOAD, model="tiny", num_experts=2))
        assert (status, error["param"]) == (400, "num_experts")


def test_an_unload_waits_for_the_running_answer_and_notices_that_its_client_left() -> None:
    with RunningServer() as server:
        long = {"ignore_eos": True, "max_output_tokens": 1500}
        events = server.stream(CHAT, input="Hi", **long)
        assert next(events)["type"] == "chat.start"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with closing(connection):
            body = json.dumps({"instance_id": "tiny"})
            connection.request("POST", UNLOAD, body, {"Content-Type": "application/json"})
        *_, end = events
        assert end["type"] == "chat.end" and "response_id" in end["result"]
        server.wait_for_log(f"POST {UNLOAD} 499")
