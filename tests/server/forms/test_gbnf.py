"""Grammars of clients: bounds, and answers that are held to them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.server.forms.gbnf import MAX_BYTES, checked_grammar
from tests.conftest import LLAMA_CPP
from tests.support.server_process import Answer, RunningServer

YES_NO = 'root ::= "yes" | "no"'


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--allow-grammar") as running:
        yield running


def chat(server: RunningServer, grammar: Any, headers: Any = None, **more: Any) -> Answer:
    body = {"messages": [{"role": "user", "content": "Say hello"}], "temperature": 0,
            "max_tokens": 60, "grammar": grammar} | more  # fmt: skip
    return server.request("POST", "/v1/chat/completions", body, headers)


# ---- bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    YES_NO,
    'root ::= "a"{2,5} [^}"]* # {9,1}',
    'root ::= ("yes" | "no"){0,1000}\n',
    r'root ::= "{5,2}" [\]{5,2}] "\"{5,2}" x{3,} x{ 2 , 4 }',
    "root ::= item (\",\" item)*\nitem ::= [a-z]+ | \"(\" root \")\"",
    'root ::= <think> !<[5]>* .',
])  # fmt: skip
def test_a_grammar_within_bounds_is_left_as_it_is(text: str) -> None:
    assert checked_grammar(text) == text


@pytest.mark.parametrize(
    "path", sorted((LLAMA_CPP / "grammars").glob("*.gbnf")), ids=lambda p: p.stem
)
def test_llama_cpps_own_grammars_are_within_bounds(path: Any) -> None:
    assert checked_grammar(path.read_text()) == path.read_text()


DOUBLED = "".join(f"n{i + 1} ::= n{i} n{i}\n" for i in range(30))
BAD = {
    "no rule": "",
    "no root": 'start ::= "a"',
    "no grammar": "not a grammar",
    "too many bytes": YES_NO + "#" * MAX_BYTES,
    "a NUL": 'root ::= "a\0"',
    "a surrogate": 'root ::= "\ud800"',
    "more at least than at most": 'root ::= "a"{5,2}',
    "the same with spaces": 'root ::= "a"{ 5 , 2 }',
    "the same with zeros": 'root ::= "a"{0000000005,2}',
    "the same with a comment": 'root ::= "a"{5,#\n2}',
    "a count of 1,001": 'root ::= "a"{1001}',
    "a count of many digits": 'root ::= "a"{99999999999999999999}',
    "65 groups in each other": "root ::= " + "(" * 65 + '"a"' + ")" * 65,
    "501 rules": "".join(f"r{i} ::= [a]\n" for i in range(500)) + YES_NO,
    "too much written out": "root ::= " + "[a]{1,1000} " * 50,
    "a long text many times": 'root ::= "' + "a" * 1000 + '"{1000}',
    "counts of counts": "root ::= a{1,200}\na ::= b{1,200}\nb ::= [x]",
    "counts of counts in groups": "root ::= (([x]{1,200})[y]){1,200}",
    "a rule that begins with itself": 'root ::= root "a" | "b"',
    "two that begin with each other": 'root ::= a "x" | "y"\na ::= root "z"',
    "one behind what may be empty": 'root ::= a root "x"\na ::= b\nb ::= "" | "c"',
    "repeating nothing": 'root ::= ("a"?)*',
    "repeating what may be nothing": 'root ::= a{40}\na ::= "x"?',
    "beginnings that double": "root ::= n30\nn0 ::= [a]?\n" + DOUBLED,
    "256 letters, each of which may be missing": "root ::= n8 [b]\nn0 ::= [a]?\n"
    + "".join(DOUBLED.splitlines(keepends=True)[:8]),
    "450 rules, each of the next": "".join(f"r{i} ::= r{i + 1}\n" for i in range(450)) + YES_NO,
    "a count of nothing": "root ::= {3}",
    "an open string": 'root ::= "a',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_grammar_beyond_bounds_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="grammar ") as caught:
        checked_grammar(text)
    assert caught.value.param == "grammar"


# ---- answers -------------------------------------------------------------------------------


def test_a_chat_answers_in_its_grammar(server: RunningServer) -> None:
    choice = chat(server, YES_NO).json["choices"][0]
    assert choice["message"]["content"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"


def test_a_completion_goes_on_in_its_grammar(server: RunningServer) -> None:
    answer = server.post("/v1/completions", prompt=["A", "B"], n=2, grammar=YES_NO, seed=1)
    assert {choice["text"] for choice in answer.json["choices"]} <= {"yes", "no"}
    assert len(answer.json["choices"]) == 4


def test_each_choice_is_held_by_itself(server: RunningServer) -> None:
    digits = 'root ::= [0-9]{4} "-" [0-9]{4}'
    answer = chat(server, digits, n=4, temperature=2, top_k=0, min_p=0, top_p=1, seed=3)
    texts = [choice["message"]["content"] for choice in answer.json["choices"]]
    assert all(text[4] == "-" and (text[:4] + text[5:]).isdecimal() for text in texts)
    assert len(set(texts)) > 1


def test_a_stream_with_logprobs_is_held_too(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "grammar": YES_NO, "logprobs": True}
    chunks = list(server.stream("/v1/chat/completions", **body, temperature=0))
    choices = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) in ("yes", "no")
    entries = [entry for c in choices for entry in (c["logprobs"] or {}).get("content") or []]
    assert "".join(entry["token"] for entry in entries) in ("yes", "no")


def test_a_stop_string_ends_an_answer_before_its_grammar_does(server: RunningServer) -> None:
    choice = chat(server, 'root ::= "one, two, three"', stop=", three").json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one, two", "stop")


def test_a_control_token_does_not_match_its_name(server: RunningServer) -> None:
    control = chat(server, None, {"X-Dry-Run": "1"}).json["prompts"][0]["tokens"][0]
    assert control["text"] == "<|im_start|>"
    likely = {str(control["id"]): 100}
    answer = chat(server, 'root ::= "<|im_start|>" "a"{3}', logit_bias=likely)
    assert answer.json["choices"][0]["message"]["content"] == "<|im_start|>aaa"


def test_a_dry_run_shows_the_grammar(server: RunningServer) -> None:
    answer = chat(server, YES_NO, {"X-Dry-Run": "1"})
    assert answer.json["prompts"][0]["grammar"] == YES_NO
    assert answer.json["ignored_params"] == []


def test_null_means_no_grammar(server: RunningServer) -> None:
    assert chat(server, None).json["choices"][0]["message"]["content"] == "hello"


# ---- refusals ------------------------------------------------------------------------------


UNREADABLE = ["root ::= nothing", "root ::= )", 'root ::= "\\q"', "root ::= <no such token>",
              'root ::= "a" b ::= "c"']  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_grammar_that_llama_cpp_cannot_read_is_refused(server: RunningServer, text: str) -> None:
    pid = server.worker_pid()
    for answer in (
        chat(server, text, n=3),
        server.post("/v1/completions", prompt="A", grammar=text),
    ):
        assert (answer.status, answer.error["param"]) == (400, "grammar")
    assert server.worker_pid() == pid


@pytest.mark.parametrize("more", [
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
])  # fmt: skip
def test_a_grammar_stands_alone(server: RunningServer, more: dict[str, Any]) -> None:
    answer = chat(server, YES_NO, **more)
    assert (answer.status, answer.error["param"]) == (400, "grammar")


def test_few_choices_may_have_a_grammar(server: RunningServer) -> None:
    answer = server.post("/v1/completions", prompt=["A"] * 65, grammar=YES_NO)
    assert (answer.status, answer.error["param"]) == (400, "grammar")


def test_without_the_flag_a_grammar_is_refused() -> None:
    with RunningServer() as server:
        for answer in (
            chat(server, YES_NO),
            server.post("/v1/completions", prompt="A", grammar=""),
        ):
            assert (answer.status, answer.error["code"]) == (400, "unsupported_grammar")
            assert "--allow-grammar" in json.dumps(answer.error)
