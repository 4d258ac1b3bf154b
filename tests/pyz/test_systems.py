"""The one file in a folder that holds a system's Python, what that depends on, and nothing else.

`make test-pyz` sets LMLITE_PYZ, which names the system: a processor, and `-musl` for that library.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmlite
from tests import REPOSITORY
from tests.pyz.elf import versions_needed
from tests.pyz.roots import HOME, CannotMakeRootError, Root, root_of
from tests.support import server_process
from tests.support.image_files import RED, png
from tests.support.server_process import RunningServer
from tests.support.streams import folded_chunks

pytestmark = pytest.mark.long

MACHINE = os.uname().machine
SYSTEM = os.environ.get("LMLITE_PYZ", MACHINE)
FILE = REPOSITORY / "dist" / f"lmlite-{lmlite.__version__}-linux-{SYSTEM}.pyz"
INSIDE = ("/usr/bin/python3", "/lmlite.pyz")
CACHE = f"{HOME}/.cache/lmlite"
MANUAL = (REPOSITORY / "lmlite" / "manual" / "one-file.md").read_text()

CHAT = "/v1/chat/completions"
HELLO, GREETING = "Hello!", "Hello! How can I help you?"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Get the weather in a city.", "parameters": CITY}
RED_URL = f"data:image/png;base64,{base64.b64encode(png(64, 48, RED)).decode()}"

# qemu's models of processors, and what the file chooses there.
VARIANTS = {
    "x86_64": {
        "qemu64,-sse3": "x64",  # SSE2
        "Nehalem": "sse42",
        "IvyBridge": "ivybridge",  # AVX
        "Haswell": "haswell",  # AVX2
    },
    "aarch64": {
        "cortex-a53": "armv8.0_1",
        "cortex-a76": "armv8.2_2",  # dotprod and 16-bit floats
        "max,sve=off": "armv8.6_0",  # i8mm
        "max": "armv8.6_2",  # SVE2
    },
    "armv7l": {
        "cortex-a9": "native",  # NEON
        "cortex-a7": "vfpv4",  # 16-bit floats, too
    },
}


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """For emulated starts on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_process, "START_S", 400.0)
        yield


@pytest.fixture(scope="module")
def file() -> Path:
    if not FILE.is_file():
        pytest.skip(f"needs {FILE.relative_to(REPOSITORY)}, which `make pyz` makes")
    return FILE


@pytest.fixture(scope="module")
def root(file: Path) -> Root:
    try:
        root = root_of(SYSTEM)
    except CannotMakeRootError as error:
        pytest.skip(str(error))
    root.clear()
    shutil.copy(file, root.folder / "lmlite.pyz")
    return root


@pytest.fixture(scope="module")
def files_before(root: Root) -> set[str]:
    return root.files()


@pytest.fixture(scope="module")
def server(root: Root, files_before: set[str]) -> Iterator[RunningServer]:
    """The first start: there is no cache folder yet."""
    assert not any("lmlite/" in path for path in files_before)
    with RunningServer(program=root.command(*INSIDE)) as server:
        yield server


def answers_everything(server: RunningServer) -> None:
    """A chat, a stream, a call of a tool, an image, an embedding."""
    assert text_of(server.chat(HELLO)) == GREETING
    messages = [{"role": "user", "content": HELLO}]
    *chunks, end = server.stream(CHAT, messages=messages, temperature=0)
    assert end == "[DONE]" and text_of(folded_chunks(chunks)) == GREETING
    called = server.chat(
        "What is the weather in Oslo?", tools=[{"type": "function", "function": WEATHER}]
    )
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    question: Any = [{"type": "text", "text": "What color is this image?"},
                     {"type": "image_url", "image_url": {"url": RED_URL}}]  # fmt: skip
    assert text_of(server.chat(question)) == "Red."
    (embedding,) = server.post("/v1/embeddings", input="a text").json["data"]
    assert sum(x * x for x in embedding["embedding"]) == pytest.approx(1, abs=1e-3)


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_it_answers_everything_where_nothing_but_python_is(server: RunningServer) -> None:
    answers_everything(server)


def test_a_killed_worker_comes_back(server: RunningServer) -> None:
    os.kill(server.worker_pid(), signal.SIGKILL)
    server.wait_for_log("was ended by SIGKILL")
    assert text_of(server.chat(HELLO)) == GREETING


@pytest.mark.usefixtures("server")
def test_a_second_start_writes_nothing_and_sigterm_ends_it_leaving_only_the_cache(
    root: Root, files_before: set[str]
) -> None:
    written = stamps(root)
    with RunningServer(program=root.command(*INSIDE)) as second:
        assert text_of(second.chat(HELLO)) == GREETING
        assert second.stop(signal.SIGTERM) == 0
    assert stamps(root) == written
    new = root.files() - files_before
    cache = f"{CACHE}/"[1:]
    assert {path for path in new if not path.startswith(cache)} == {
        cache[:-1], os.path.dirname(cache[:-1])
    }  # fmt: skip


def stamps(root: Root) -> dict[str, int]:
    """The cache's files, and when each was written."""
    cache = root.folder / CACHE[1:]
    return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def test_with_its_run_bit_it_is_a_program(root: Root) -> None:
    done = subprocess.run(
        root.command("/lmlite.pyz", "--version"), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["lmlite", lmlite.__version__], done.stderr


@pytest.mark.usefixtures("server")
def test_its_libraries_need_no_newer_glibc_than_the_manual_says(root: Root) -> None:
    libraries = list((root.folder / CACHE[1:]).rglob("*.so"))
    names = {name for path in libraries for name in versions_needed(path)}
    versions = [name.split("_") for name in names]
    assert libraries and {name for name, _ in versions} <= {"GLIBC"}
    promised = re.search(r"^\| `x86_64` \| glibc (\d+)\.(\d+) ", MANUAL, re.MULTILINE)
    assert promised is not None
    oldest = (int(promised[1]), int(promised[2]))
    assert all(tuple(map(int, number.split("."))) <= oldest for _, number in versions)
    assert (names == set()) == SYSTEM.endswith("-musl")


@pytest.mark.parametrize("model", VARIANTS[SYSTEM.partition("-")[0]])
def test_it_chooses_what_suits_the_processor_and_says_so(root: Root, model: str) -> None:
    # In qemu, 32-bit programs cannot list folders on this machine's disk: its file system numbers
    # their entries with 64 bits. So ggml would not find the variants there.
    place = ["/usr/bin/env", "LMLITE_CACHE=/mnt"] if root.processor == "armv7l" else []
    root.emulate(model)
    try:
        with RunningServer("--threads", "1", program=root.command(*place, *INSIDE)) as server:
            assert text_of(server.chat(HELLO)) == GREETING
            assert server.get("/health").json["cpu"] == VARIANTS[root.processor][model]
    finally:
        root.emulate(None if root.processor == MACHINE else "")


@pytest.mark.skipif(SYSTEM != MACHINE, reason="this machine's Python is for its processor")
def test_it_answers_everything_in_an_empty_folder_with_an_empty_environment(
    file: Path, tmp_path: Path
) -> None:
    folder, home = tmp_path / "empty", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    command = ["env", "-i", f"HOME={home}", sys.executable, str(file)]
    with RunningServer(program=command, folder=folder) as server:
        answers_everything(server)
        assert server.stop() == 0
    assert [path.name for path in folder.iterdir()] == []
    assert [path.name for path in home.iterdir()] == [".cache"]
