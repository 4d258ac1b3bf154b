"""`lmlite chat -p`, as scripts use it."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tests.conftest import DEFAULT_MODEL
from tests.support.image_files import RED, png
from tests.support.scripted_server import ScriptedServer, data, end, piece, said
from tests.support.server_process import RunningServer

COMMAND = [sys.executable, "-m", "lmlite", "chat"]
WAIT_S = 60


def chat(url: str, *arguments: str, piped: str | bytes = b"", **environment: str) -> Any:
    """Runs it to its end; stdout and stderr are text."""
    done = subprocess.run(
        [*COMMAND, "--url", url, *arguments],
        cwd=REPOSITORY, env={**os.environ, **environment}, timeout=WAIT_S, capture_output=True,
        input=piped.encode() if isinstance(piped, str) else piped,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def unused_url(host: str = "127.0.0.1") -> tuple[socket.socket, str]:
    """An address at which nobody listens, and the socket that keeps it so."""
    taken = socket.socket()
    taken.bind((host, 0))
    return taken, f"http://{host}:{taken.getsockname()[1]}"


# ---- what is asked and what is printed -----------------------------------------------------


def test_only_the_answer_is_printed() -> None:
    with ScriptedServer([piece(content="Hel"), piece(content="lo.\x1b[1m"), end()]) as server:
        assert chat(server.url, "-p", "Hi") == (0, "Hello.\x1b[1m\n", "")
    assert server.chats == [
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "piped", "asked"),
    [
        (["-p", "Summarise:"], "one\ntwo\n", "Summarise:\none\ntwo"),
        ([], "Größe?\n", "Größe?"),
        (["-p", "Hi"], "", "Hi"),
    ],
)
def test_piped_input_is_added_to_the_text(arguments: list[str], piped: str, asked: str) -> None:
    with ScriptedServer(said("Yes.")) as server:
        assert chat(server.url, *arguments, piped=piped) == (0, "Yes.\n", "")
    assert server.chats[0]["messages"] == [{"role": "user", "content": asked}]


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["two"], {"model": "two"}),
        (["--max-tokens", "9", "--temperature", "0.5", "--ttl", "60"],
         {"max_tokens": 9, "temperature": 0.5, "ttl": 60}),
        (["--reasoning", "off"], {"reasoning_effort": "none"}),
        (["--reasoning", "on"], {"chat_template_kwargs": {"enable_thinking": True}}),
        (["--reasoning", "high"], {"reasoning_effort": "high"}),
        (["-s", "Be short."], {"messages": [{"role": "system", "content": "Be short."},
                                            {"role": "user", "content": "Hi"}]}),
    ],
)  # fmt: skip
def test_a_flag_is_a_field_of_the_request(flags: list[str], fields: dict[str, Any]) -> None:
    plain = ["messages", "stream", "stream_options"]
    with ScriptedServer(said("Yes.")) as server:
        assert chat(server.url, *flags, "-p", "Hi")[0] == 0
    (asked,) = server.chats
    assert {name: asked[name] for name in fields} == fields
    assert sorted(asked) == sorted({*plain, *fields})


def test_an_image_is_sent_with_the_type_that_its_bytes_have(tmp_path: Path) -> None:
    path, picture = tmp_path / "picture.jpg", png(2, 2, RED)
    path.write_bytes(picture)
    with ScriptedServer(said("Red.")) as server:
        assert chat(server.url, "-p", "Colour?", "--image", str(path))[0] == 0
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert server.chats[0]["messages"][0]["content"] == [
        {"type": "text", "text": "Colour?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


def test_thoughts_are_not_part_of_the_output() -> None:
    thoughts = [piece(reasoning_content="Hm."), piece(content="Yes."), end()]
    with ScriptedServer(thoughts) as server:
        assert chat(server.url, "-p", "Hi") == (0, "Yes.\n", "")


def test_a_cut_answer_and_figures_are_remarks_on_standard_error() -> None:
    with ScriptedServer([piece(content="One"), piece(content=" two"), end("length")]) as server:
        code, out, remarks = chat(server.url, "-p", "Count", "--stats")
    assert (code, out) == (0, "One two\n")
    cut, figures = remarks.splitlines()
    assert cut == "lmlite: the answer is cut: it reached --max-tokens, or its context is full"
    assert figures.startswith("7 prompt tokens (3 cached), 5 tokens, ")
    assert figures.endswith(" s, stop reason: length")


def test_text_that_the_encoding_of_the_output_lacks_is_replaced() -> None:
    with ScriptedServer(said("é☃\ud800")) as server:
        done = chat(server.url, "-p", "Hi", PYTHONIOENCODING="ascii")
    assert done == (0, "???\n", "")


def test_the_key_of_the_file_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a-key-of-the-tests\n")
    with ScriptedServer(said("Yes.")) as server:
        assert chat(server.url, "-p", "Hi", "--api-key-file", str(path))[0] == 0
    sent = [headers["authorization"] for headers in server.headers]
    assert sent == ["Bearer a-key-of-the-tests"] * 2


# ---- what may go wrong ---------------------------------------------------------------------


def test_an_error_of_the_server_is_a_sentence_without_control_characters() -> None:
    refusal = json.dumps({"error": {"message": "there is no model \x1b[2J"}}).encode()
    with ScriptedServer([refusal], status=404) as server:
        done = chat(server.url, "-p", "Hi")
    assert done == (1, "", "lmlite: there is no model \\x1b[2J\n")


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (data({"error": {"message": "the worker died"}}), "the worker died"),
        (b"", "the server ended in the middle of the answer"),
        (b"data: nonsense\n\n", "the server sends something else than an answer"),
        (b"data: []\n\n", "the server sends something else than an answer"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(last: bytes, why: str) -> None:
    with ScriptedServer([piece(content="Hel"), last]) as server:
        assert chat(server.url, "-p", "Hi") == (1, "Hel\n", f"lmlite: {why}\n")


def test_a_reply_that_is_no_json_is_told_by_its_status() -> None:
    with ScriptedServer([b"<html>"], status=502) as server:
        assert chat(server.url, "-p", "Hi") == (1, "", f"lmlite: {server.url} answers 502\n")


@pytest.mark.parametrize("url", ["https://localhost:1", "localhost:1234", "http://:1"])
def test_an_address_that_is_none_is_explained(url: str) -> None:
    why = "lmlite: the address must look like http://127.0.0.1:1234, or unix:/PATH\n"
    assert chat(url, "-p", "Hi") == (2, "", why)


def test_a_server_on_another_machine_has_to_be_there() -> None:
    taken, url = unused_url("127.0.0.2")  # a different name of this machine
    why = f"lmlite: no server listens at {url}; start one with lmlite serve\n"
    with taken:
        assert chat(url, "-p", "Hi") == (1, "", why)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "the image {} cannot be read: No such file or directory"),
        (b"text", "the image {} is not a PNG, JPEG, WebP, GIF or BMP, by its first bytes"),
    ],
)
def test_a_file_that_is_no_image_is_refused(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with ScriptedServer() as server:
        done = chat(server.url, "-p", "Hi", "--image", str(path))
    assert done == (1, "", f"lmlite: {why.format(path)}\n")
    assert server.chats == []


@pytest.mark.parametrize(
    ("piped", "why"),
    [
        (b" \n", "there is no question: give one with -p, or on standard input"),
        (b"\xff", "standard input is not text in UTF-8"),
    ],
)
def test_wrong_use_ends_with_code_2(piped: bytes, why: str) -> None:
    assert chat("http://127.0.0.1:1", piped=piped) == (2, "", f"lmlite: {why}\n")


def test_ctrl_c_ends_it_with_code_130_and_stops_the_answer() -> None:
    server = ScriptedServer()
    server.add([piece(content="One\n"), server.wait_until_left])
    with server:
        running = subprocess.Popen(
            [*COMMAND, "--url", server.url, "-p", "Count"],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "One\n"
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=WAIT_S)
        assert server.left.wait(WAIT_S)
    assert (running.returncode, rest) == (130, ("", ""))


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with ScriptedServer(said("Yes.")) as server:
        done = subprocess.run(
            [*COMMAND, "--url", server.url, "-p", "Hi"],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
            timeout=WAIT_S,
        )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- a real model --------------------------------------------------------------------------


def test_a_served_model_answers_and_sees() -> None:
    with RunningServer() as server:
        asked = [server.url, "-p", "Say hello world", "--temperature", "0"]
        assert chat(*asked) == (0, "hello world\n", "")
        assert chat(*asked, "tiny", "--max-tokens", "1")[0] == 0
        assert chat(server.url, "--temperature", "0", piped="What is 7 + 8?")[1] == "15\n"
        picture = ["--image", "tests/support/pictures/one-red-circle.png"]
        seen = chat(server.url, *picture, "-p", "What is in this image?", "--temperature", "0")
        assert seen == (0, "One red circle.\n", "")
        missing = chat(*asked, "none-such")
    assert missing[:2] == (1, "") and "'none-such'" in missing[2]


@pytest.mark.parametrize("model", [[], ["tiny"], [str(DEFAULT_MODEL)]])
def test_without_a_server_it_starts_one_and_ends_it(model: list[str], tmp_path: Path) -> None:
    taken, url = unused_url()
    with taken:
        mark = {"LMLITE_MODELS": str(tmp_path)}  # a folder without models
        done = chat(url, *model, "-p", "Say hello world", "--temperature", "0", **mark)
    assert done == (0, "hello world\n", "")
    assert processes_with(str(tmp_path)) == []


def test_the_server_that_it_starts_has_the_models_of_the_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").symlink_to(DEFAULT_MODEL)
    asked = ["-p", "Say hello world", "--temperature", "0"]
    taken, url = unused_url()
    with taken:
        done = chat(url, "two", *asked, LMLITE_MODELS=str(tmp_path))
        assert done == (0, "hello world\n", "")
        code, out, why = chat(url, "none-such", *asked, LMLITE_MODELS=str(tmp_path))
    assert (code, out) == (1, "")
    assert why == "lmlite: there is no model 'none-such'; this server has: one, two\n"


def processes_with(value: str) -> list[str]:
    """The processes that have a value in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            found += [path.parent.name] if value.encode() in path.read_bytes() else []
    return found


def test_a_file_that_cannot_be_served_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with ScriptedServer() as server:
        code, out, why = chat(server.url, str(path), "-p", "Hi")
    assert (code, out, server.headers) == (1, "", [])
    assert why.startswith("lmlite: ") and "broken.gguf" in why and why.count("\n") == 1
