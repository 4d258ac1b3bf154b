"""A completion in the middle of a file: `suffix` of completions, and POST /infill."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Complete, SamplingParams
from lmlite.server.api.llamacpp.infill import parse_infill
from lmlite.server.api.openai.requests import parse_completion
from tests.support.gguf_writer import tiny_llama_parts, write_gguf
from tests.support.server_process import RunningServer

# The bytes 1, 2 and 3 stand before the text before the gap, after it, and in it.
GAP = {
    f"tokenizer.ggml.fim_{name}_token_id": id_ for id_, name in enumerate(("pre", "suf", "mid"), 1)
}
CODE: dict[str, Any] = {"input_prefix": "def f(", "input_suffix": "):\n"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("gap") / "gap.gguf"
    metadata, tensors = tiny_llama_parts()
    write_gguf(path, metadata | GAP, tensors)
    with RunningServer(str(path), "--ctx", "512") as running:
        yield running


@pytest.fixture(scope="module")
def without() -> Iterator[RunningServer]:
    """The embedded model, whose vocabulary has no tokens for gaps."""
    with RunningServer() as running:
        yield running


def prompts(server: RunningServer, path: str, **body: Any) -> list[str]:
    answer = server.request("POST", path, body, {"X-Dry-Run": "1"})
    assert answer.status == 200, answer.body
    return [prompt["text"] for prompt in answer.json["prompts"]]


# ---- what is asked -------------------------------------------------------------------------


def test_the_fields_are_those_of_llama_cpps_server() -> None:
    extra = [{"filename": "a.py", "text": "x"}, {"text": ""}]
    body = {**CODE, "prompt": "self", "input_extra": extra, "n_predict": 9, "id_slot": 1}
    call = parse_infill(body)
    assert call.request == Complete(
        0, ("def f(self",), SamplingParams(max_tokens=9),
        suffix="):\n", files=(("a.py", "x"), ("tmp", "")), truncates=True,
    )  # fmt: skip
    assert call.ignored == ("id_slot",)
    request = parse_infill({**CODE, "max_tokens": 3}).request
    assert isinstance(request, Complete) and request.params.max_tokens == 3


def test_an_empty_suffix_is_none_in_a_completion() -> None:
    assert parse_completion({"prompt": "a", "suffix": ""}) == parse_completion({"prompt": "a"})
    request = parse_completion({"prompt": ["a", "b"], "suffix": "c", "n": 2}).request
    assert request == Complete(0, ("a", "b"), SamplingParams(), 2, suffix="c")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_suffix": "x"}, "input_prefix"),
        ({"input_prefix": "x"}, "input_suffix"),
        ({**CODE, "input_prefix": ["x"]}, "input_prefix"),
        ({**CODE, "prompt": [1]}, "prompt"),
        ({**CODE, "input_extra": {}}, "input_extra"),
        ({**CODE, "input_extra": ["x"]}, "input_extra.[0]"),
        ({**CODE, "input_extra": [{"filename": "x"}]}, "input_extra.[0].text"),
        ({**CODE, "input_extra": [{"filename": 5, "text": "x"}]}, "input_extra.[0].filename"),
        ({**CODE, "n_predict": "x"}, "n_predict"),
    ],
)
def test_an_error_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_infill(body)
    assert caught.value.param == param


# ---- over HTTP -----------------------------------------------------------------------------


def test_a_prompt_stands_around_its_gap(server: RunningServer) -> None:
    gap = "\x01def f(\x02):\n\x03"
    assert prompts(server, "/infill", **CODE) == [gap]
    assert prompts(server, "/infill", **CODE | {"input_prefix": "def "}, prompt="f(") == [gap]
    assert prompts(server, "/v1/completions", prompt=["def f(", "a"], suffix="):\n") == [
        gap, "\x01a\x02):\n\x03"
    ]  # fmt: skip
    ids = server.post("/tokenize", content="def f(").json["tokens"]
    assert prompts(server, "/v1/completions", prompt=ids, suffix="):\n") == [gap]


def test_a_file_cannot_write_control_tokens(server: RunningServer) -> None:
    body = {"input_prefix": "<|im_end|>", "input_suffix": "<|im_end|>"}
    answer = server.request("POST", "/infill", body, {"X-Dry-Run": "1"}).json
    (prompt,) = answer["prompts"]
    assert prompt["text"] == "\x01<|im_end|>\x02<|im_end|>\x03"
    assert "<|im_end|>" not in [token["text"] for token in prompt["tokens"]]


def test_a_file_that_does_not_fit_is_cut_far_from_the_gap(server: RunningServer) -> None:
    body = {"input_prefix": "a" * 900 + "!", "input_suffix": "!" + "b" * 900}
    extra = [{"text": "c" * 900}]
    (text,) = prompts(server, "/infill", **body, input_extra=extra, n_predict=12)
    assert text == f"\x01{'a' * 372}!\x02!{'b' * 123}\x03"
    assert server.post("/infill", **body, n_predict=12).json["tokens_evaluated"] == 500
    refused = server.post("/v1/completions", prompt="a" * 900, suffix="b")
    assert (refused.error["code"], refused.status) == ("context_length_exceeded", 400)


def test_a_reply_has_the_fields_of_llama_cpps_server(server: RunningServer) -> None:
    body = {**CODE, "n_predict": 5, "temperature": 0}
    server.post("/infill", **body)
    whole = server.post("/infill", **body).json
    text = whole.pop("content")
    assert whole == {
        "index": 0, "tokens": [], "stop": True, "model": "gap", "tokens_predicted": 5,
        "tokens_evaluated": 12, "tokens_cached": 11, "truncated": False, "stop_type": "limit",
        "stopping_word": "",
    }  # fmt: skip
    completed = server.post("/v1/completions", prompt="def f(", suffix="):\n", max_tokens=5,
                            temperature=0).json  # fmt: skip
    assert completed["choices"][0]["text"] == text
    assert completed["usage"]["prompt_tokens"] == 12
    stopped = server.post("/infill", **body, stop=[text[1]]).json
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", text[1])


def test_a_stream_ends_with_the_numbers_of_the_whole_reply(server: RunningServer) -> None:
    body = {**CODE, "n_predict": 5, "temperature": 0}
    server.post("/infill", **body)
    whole = server.post("/infill", **body).json
    *chunks, last = server.stream("/infill", **body)
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert {json.dumps(chunk | {"content": ""}) for chunk in chunks} == {
        json.dumps({"index": 0, "content": "", "tokens": [], "stop": False})
    }
    assert last == whole | {"content": ""}


def test_a_vocabulary_without_the_tokens_is_told_so(without: RunningServer) -> None:
    words = "this model cannot fill in the middle: its vocabulary has no tokens for that"
    for path, body in (("/infill", CODE), ("/v1/completions", {"prompt": "a", "suffix": "b"})):
        refused = without.post(path, **body)
        assert refused.status == 400
        assert refused.error == {
            "message": words,
            "type": "invalid_request_error",
            "param": "suffix",
            "code": "unsupported_feature",
        }


def test_an_echo_of_a_prompt_with_a_gap_is_refused(server: RunningServer) -> None:
    assert (
        server.post("/v1/completions", prompt="a", suffix="b", echo=True).error["param"] == "echo"
    )
