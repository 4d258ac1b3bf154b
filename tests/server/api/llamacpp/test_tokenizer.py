"""The model's tokenizer over HTTP, as clients of vLLM and of llama.cpp's server use it."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Chat, Planned, Ready, Tokenize
from lmlite.server.api.llamacpp.tokenizer import (
    TextReply,
    TokenReply,
    parse_detokenize,
    parse_tokenize,
)
from lmlite.server.api.openai.requests import parse_chat
from lmlite.worker.llama.model import Model
from tests.support.house import until
from tests.support.server_process import RunningServer

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
READY = Ready(512, 1000, 64, 4, 1, 0, True)
PIECES = (b"Gr", b"\xc3", b"\xbc\xc3\x9fe", b"<|im_end|>")


def asked(**body: Any) -> Any:
    return parse_tokenize(body).request


# ---- what is asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({"prompt": "a"}, Tokenize(0, "a", add_special=True)),
        ({"prompt": "a", "add_special_tokens": False}, Tokenize(0, "a")),
        ({"prompt": ""}, Tokenize(0, "", add_special=True)),
        ({"content": "a"}, Tokenize(0, "a")),
        ({"content": "a", "add_special": True, "parse_special": False},
         Tokenize(0, "a", add_special=True, parse_special=False)),
    ],
)  # fmt: skip
def test_each_kind_of_client_has_its_defaults(body: dict[str, Any], meant: Tokenize) -> None:
    assert asked(**body) == meant


def test_a_chat_is_that_of_the_chat_endpoint_and_generates_nothing() -> None:
    body = {"messages": HI, "add_generation_prompt": True, "continue_final_message": False,
            "return_token_strs": True, "heat": 1}  # fmt: skip
    call = parse_tokenize(body)
    chat = parse_chat({"messages": HI}).request
    assert isinstance(call.request, Chat) and isinstance(chat, Chat)
    assert (call.request.messages, call.request.dry_run) == (chat.messages, True)
    assert (call.with_texts, call.ignored) == (True, ("heat",))
    alone = parse_tokenize(body | {"add_generation_prompt": False})
    assert alone.ignored == ("add_generation_prompt", "heat")


def test_tokens_are_a_list_of_ids() -> None:
    assert parse_detokenize({"tokens": [1, 2]}).request == Tokenize(0, (1, 2))
    assert parse_detokenize({"tokens": []}).request == Tokenize(0, ())


@pytest.mark.parametrize(
    ("parse", "body", "param"),
    [
        (parse_tokenize, {}, "prompt"),
        (parse_tokenize, {"prompt": ["a"]}, "prompt"),
        (parse_tokenize, {"content": 5}, "content"),
        (parse_tokenize, {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        (parse_tokenize, {"content": "a", "with_pieces": "yes"}, "with_pieces"),
        (parse_tokenize, {"messages": []}, "messages"),
        (parse_detokenize, {}, "tokens"),
        (parse_detokenize, {"tokens": "1"}, "tokens"),
        (parse_detokenize, {"tokens": [1, "2"]}, "tokens"),
        (parse_detokenize, {"tokens": [-1]}, "tokens"),
    ],
)
def test_an_error_names_the_field(parse: Any, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body)
    assert caught.value.param == param


# ---- what is answered ----------------------------------------------------------------------


def answer(**body: Any) -> Any:
    model: Any = SimpleNamespace(name="tiny", described=lambda: READY)
    reply = TokenReply(parse_tokenize({"content": "x", **body}), "tokens-1", model, 0)
    reply.add(Planned(1, 0, (5, 6, 7, 8), PIECES, 0, None))
    return reply.whole()


def test_a_reply_has_the_fields_of_both_kinds_of_clients() -> None:
    assert answer() == {
        "tokens": [5, 6, 7, 8], "count": 4, "max_model_len": 512, "token_strs": None
    }  # fmt: skip
    texts = [piece.decode("utf-8", "replace") for piece in PIECES]
    assert answer(return_token_strs=True)["token_strs"] == texts
    assert texts == ["Gr", "\ufffd", "\ufffdße", "<|im_end|>"]
    assert answer(with_pieces=True)["tokens"] == [
        {"id": 5, "piece": "Gr"},
        {"id": 6, "piece": [0xC3]},
        {"id": 7, "piece": [0xBC, 0xC3, 0x9F, 0x65]},
        {"id": 8, "piece": "<|im_end|>"},
    ]


def test_a_text_is_put_together_from_bytes() -> None:
    model: Any = SimpleNamespace(name="m")
    reply = TextReply(parse_detokenize({"tokens": [5]}), "text-1", model, 0)
    reply.add(Planned(1, 0, (5, 6, 7, 8), PIECES, 0, None))
    assert reply.whole() == {"prompt": "Grüße<|im_end|>", "content": "Grüße<|im_end|>"}


# ---- over HTTP -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def tokens(server: RunningServer, **body: Any) -> Any:
    found = server.post("/tokenize", **body)
    assert found.status == 200, found.body
    return found.json["tokens"]


def test_lm_eval_gets_what_its_remote_tokenizer_asks_for(server: RunningServer) -> None:
    """The requests of `RemoteTokenizer` in lm_eval 0.4, and what it does with the answers."""
    info = server.get("/tokenizer_info").json
    assert info["eos_token"] == "<|im_end|>"
    assert (info["bos_token"], info["pad_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert "<|im_start|>" in info["chat_template"]
    assert len(tokens(server, prompt=info["eos_token"], add_special_tokens=False)) == 1
    ids = tokens(server, prompt="Grüße, Hello!", add_special_tokens=False)
    assert server.post("/detokenize", tokens=ids).json["prompt"] == "Grüße, Hello!"
    scored = server.post("/v1/completions", prompt=[ids], max_tokens=1, temperature=0, logprobs=1,
                         echo=True, seed=1234).json["choices"][0]["logprobs"]  # fmt: skip
    assert len(scored["token_logprobs"]) == len(ids) + 1


def test_a_text_may_be_longer_than_the_context(server: RunningServer) -> None:
    found = server.post("/tokenize", content="the " * 5000).json
    assert found["count"] > found["max_model_len"] == 2048
    assert server.post("/detokenize", tokens=found["tokens"]).json["content"] == "the " * 5000


def test_special_tokens_are_parsed_unless_told_otherwise(server: RunningServer) -> None:
    assert len(tokens(server, content="<|im_end|>")) == 1
    assert len(tokens(server, content="<|im_end|>", parse_special=False)) > 1
    assert tokens(server, content="") == []


def test_a_chat_has_the_tokens_of_its_prompt(server: RunningServer) -> None:
    planned = server.request("POST", "/v1/chat/completions", {"messages": HI}, {"X-Dry-Run": "1"})
    expected = [token["id"] for token in planned.json["prompts"][0]["tokens"]]
    assert tokens(server, messages=HI) == expected


def test_impossible_requests_are_refused(server: RunningServer) -> None:
    unknown = server.post("/detokenize", tokens=[10**6])
    assert (unknown.status, unknown.error["param"]) == (400, "tokens")
    long = server.post("/tokenize", content="x" * 200_000)
    assert (long.status, long.error["param"]) == (400, "prompt")
    assert server.get("/tokenize").status == 405
    ignored = server.post("/tokenize", prompt="a", truncate=5)
    assert ignored.headers["x-ignored-params"] == "truncate"


# ---- the template, and numbers of tokens ---------------------------------------------------


def test_a_template_is_applied_and_nothing_is_generated(server: RunningServer) -> None:
    found = server.post("/apply-template", messages=HI, stream=True, max_tokens=5)
    assert found.json == {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}
    assert server.post("/apply-template", prompt="Hi").error["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HI, "tools": [TOOL]}),
        ("/v1/chat/completions", {"messages": HI, "stream": True, "n": 2}),
        ("/v1/responses", {"input": HI, "instructions": "Be brief.", "stream": True}),
    ],
)
def test_the_tokens_are_those_that_the_request_itself_would_read(
    server: RunningServer, path: str, body: dict[str, Any]
) -> None:
    counted = server.post(f"{path}/input_tokens", **body).json
    planned = server.request("POST", path, body, {"X-Dry-Run": "1"}).json
    n = planned["prompts"][0]["n_tokens"]
    assert counted == {"object": "response.input_tokens", "input_tokens": n}
    usage = server.post(path, **body | {"stream": False, "max_tokens": 1}).json["usage"]
    assert n == usage.get("prompt_tokens", usage.get("input_tokens"))


def test_the_tokens_of_a_stored_conversation_are_counted_too(server: RunningServer) -> None:
    first = server.post("/v1/responses", input="Hi", max_output_tokens=4).json
    path, body = "/v1/responses/input_tokens", {"input": "Hi"}
    alone = server.post(path, **body).json["input_tokens"]
    after = server.post(path, **body, previous_response_id=first["id"]).json["input_tokens"]
    assert after > alone + 4
    assert server.post(path).error["param"] == "input"


def test_a_count_can_be_looked_at_and_has_its_own_label(server: RunningServer) -> None:
    path = "/v1/chat/completions/input_tokens"
    shown = server.request("POST", path, {"messages": HI}, {"X-Dry-Run": "1"}).json
    assert shown["object"] == "dry_run"
    assert server.post(path, messages=HI * 400).error["code"] == "context_length_exceeded"
    label = f'lmlite_requests_total{{path="{path}",status="400"}} 1'
    until(lambda: label in server.get("/metrics").body.decode().splitlines())


# ---- other tokenizers ----------------------------------------------------------------------


TEXTS = ["Hello", " Hello", "  two", "", "a\n", "Grüße 😀", "1 2"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_its_tokens(default_model: Model, text: str) -> None:
    vocab = default_model.vocab
    ids = vocab.tokenize(text, add_special=False, parse_special=True)
    assert b"".join(vocab.pieces(ids)).decode() == text


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "command-r"])
def test_a_text_comes_back_with_other_vocabularies(lib: Any, llama_cpp: Path, name: str) -> None:
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    model = Model(lib, str(path), vocab_only=True)
    try:
        for text in TEXTS:
            ids = model.vocab.tokenize(text, add_special=False, parse_special=True)
            assert b"".join(model.vocab.pieces(ids)).decode() == text
    finally:
        model.close()


def test_a_text_that_is_larger_than_any_prompt_is_refused(server: RunningServer) -> None:
    refused = server.post("/tokenize", prompt="x" * 200_000)
    assert (refused.status, refused.json["error"]["param"]) == (400, "prompt")
    assert refused.json["error"]["message"].startswith(
        "This model's maximum context length is 2048 tokens. However, your prompt resulted in 3125 "
        "tokens. That is the least that 200000 bytes can be. "
    )
