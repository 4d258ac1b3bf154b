"""`lmlite log stream` as its users see it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli.log import is_wanted, json_line, text_block, without_stats
from tests import REPOSITORY
from tests.support.server_process import START_S, RunningServer

INPUT = {
    "timestamp": 0,
    "data": {
        "type": "llm.prediction.input",
        "modelIdentifier": "m",
        "modelPath": "/m.gguf",
        "requestId": "chatcmpl-1",
        "input": "<|im_start|>user\nHi",
    },
}
OUTPUT = {
    "timestamp": 0,
    "data": {
        "type": "llm.prediction.output",
        "modelIdentifier": "m",
        "requestId": "chatcmpl-1",
        "output": "Hello",
        "stats": {"stopReason": "eosFound", "tokensPerSecond": 1.5},
    },
}


def test_text_is_a_block_of_keys_with_the_long_text_below() -> None:
    lines = text_block(INPUT).split("\n")
    assert lines[0].startswith("timestamp: ")
    assert lines[1:] == [
        "type: llm.prediction.input",
        "modelIdentifier: m",
        "modelPath: /m.gguf",
        "requestId: chatcmpl-1",
        "input:",
        "<|im_start|>user",
        "Hi",
        "",
    ]


def test_stats_are_shown_when_asked_for() -> None:
    assert "stopReason" not in text_block(without_stats(OUTPUT))
    assert "stats.stopReason: eosFound\n" in text_block(OUTPUT)
    assert "stats" not in json.loads(json_line(without_stats(OUTPUT)))["data"]
    assert json.loads(json_line(OUTPUT)) == OUTPUT


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(("input",), [True, False]), (("output",), [False, True]), (("input", "output"), [True] * 2)],
)
def test_the_filter_lets_its_kinds_through(kinds: tuple[str, ...], expected: list[bool]) -> None:
    assert [is_wanted(record, kinds) for record in (INPUT, OUTPUT)] == expected


def test_lines_of_the_server_pass_every_filter() -> None:
    assert is_wanted({"data": {"type": "server.log", "content": "x"}}, ("input",))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


class Viewer:
    """`lmlite log stream` in a process of its own."""

    def __init__(self, server: RunningServer, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "lmlite", "log", "stream", "--url", server.url]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Viewer":
        """Returns once attached: the viewer misses nothing from now on."""
        assert self.process.stderr is not None
        assert self.process.stderr.readline().startswith("watching http://127.0.0.1:")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def test_the_exact_prompt_and_answer_are_shown_as_they_happen(server: RunningServer) -> None:
    with Viewer(server, "--json", "--stats") as viewer:
        answer = server.chat("Hi", max_tokens=2)
        received, returned = json.loads(viewer.line()), json.loads(viewer.line())
        again = server.chat("1", max_tokens=1)
        compared = json.loads(viewer.line())
    assert received["data"]["input"] == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert received["data"]["requestId"] == returned["data"]["requestId"] == answer["id"]
    assert returned["data"]["output"] == answer["choices"][0]["message"]["content"]
    n_cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert compared["data"]["cache"] == (
        f"reused {n_cached} of {again['usage']['prompt_tokens']}; "
        f"first difference at token {n_cached}: '1' was 'H'"
    )
    stats: dict[str, Any] = returned["data"]["stats"]
    assert stats["stopReason"] == "maxPredictedTokensReached"
    assert stats["predictedTokensCount"] == 2
    assert stats["promptTokensCount"] == answer["usage"]["prompt_tokens"]


def test_without_a_server_it_says_so_and_ends_with_code_1() -> None:
    with socket.socket() as taken:  # bound, so that no other process listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "lmlite", "log", "stream", "--url", url]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=START_S
        )
    assert done.returncode == 1
    assert done.stderr == f"lmlite: no server listens at {url}; start one with lmlite serve\n"


def test_a_server_with_a_key_shows_its_stream_to_those_who_have_it(tmp_path: Path) -> None:
    key, path = "a-key-of-the-tests", tmp_path / "keys"
    path.write_text(key)
    with RunningServer(LMLITE_API_KEY=key) as server:
        watch = [sys.executable, "-m", "lmlite", "log", "stream", "--url", server.url]
        for wrong, asks in (("", "a key"), ("another-key-of-none", "another key")):
            environment = {**os.environ, **({"LMLITE_API_KEY": wrong} if wrong else {})}
            done = subprocess.run(
                watch, cwd=REPOSITORY, env=environment, capture_output=True, text=True,
                timeout=START_S,
            )  # fmt: skip
            sentence = f"lmlite: {server.url} asks for {asks}: name a file that has one with "
            assert (done.returncode, done.stderr) == (1, f"{sentence}--api-key-file\n")
        headers = {"Authorization": f"Bearer {key}"}
        for viewer in (
            Viewer(server, "--json", "--api-key-file", str(path)),
            Viewer(server, "--json", LMLITE_API_KEY=key),
        ):
            with viewer:
                body = {"prompt": "Hi", "max_tokens": 1}
                assert server.request("POST", "/v1/completions", body, headers).status == 200
                assert json.loads(viewer.line())["data"]["input"] == "Hi"
        assert not any(key in line for line in server.log)
