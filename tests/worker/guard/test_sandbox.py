"""A worker in its sandbox reaches nothing that it does not need, and still answers."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.worker.guard import sandbox
from tests import REPOSITORY
from tests.support.server_process import RunningServer

FORBIDDEN = {
    "a socket": "EPERM",
    "a local socket": "EPERM",
    "a socket in a thread": "EPERM",
    "a program": "EPERM",
    "a process": "EPERM",
    "a subprocess": "EPERM",
    "a signal to the parent": "EPERM",
    "io_uring": "EPERM",
    "memory of the parent": "EPERM",
    "other rights": "EPERM",
    "another connection": "EPERM",
    "accepting": "EPERM",
    "listening": "EPERM",
}
WRITES = ("a new file", "an old file", "appending", "truncating", "removing", "renaming",
          "a folder", "a link", "a write in a thread")  # fmt: skip
NEEDED = (
    "reading",
    "a thread",
    "a signal to itself",
    "memory",
    "a library",
    "standard error",
    "an open connection",
)
IN_THE_FOLDER = ("a file in the folder", "renaming in the folder", "times in the folder",
                 "truncating in the folder", "removing in the folder")  # fmt: skip


def probe(tmp_path: Path, *options: str, has_folder: bool) -> Any:
    """The outcomes of a process that enters the sandbox and tries everything."""
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
    for name in ("read", "spare"):
        (outside / name).write_bytes(b"as it was")
    command = [
        sys.executable,
        "-m",
        "tests.support.sandbox_probe",
        str(folder) if has_folder else "-",
    ]
    done = subprocess.run([*command, str(outside), *options], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"heard\n"
    return json.loads(done.stdout), outside


def untouched(outside: Path) -> bool:
    names = sorted(path.name for path in outside.iterdir())
    return names == ["read", "spare"] and (outside / "spare").read_bytes() == b"as it was"


@pytest.fixture
def landlock() -> None:
    (number, *_) = sandbox._LANDLOCK["landlock_create_ruleset"]
    if sandbox._call(number, None, 0, sandbox._VERSION) < 1:
        pytest.skip("needs a kernel with Landlock")


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize("has_folder", [True, False])
def test_landlock_allows_writes_only_in_the_folder(tmp_path: Path, has_folder: bool) -> None:
    said, outside = probe(tmp_path, has_folder=has_folder)
    expected = FORBIDDEN | dict.fromkeys(WRITES, "EACCES") | dict.fromkeys(NEEDED, "done")
    expected |= dict.fromkeys(IN_THE_FOLDER if has_folder else (), "done")
    assert said == {"missing": [], "outcomes": expected}
    assert untouched(outside)


@pytest.mark.usefixtures("landlock")
def test_landlock_may_come_before_the_rest(tmp_path: Path) -> None:
    said, outside = probe(tmp_path, "landlock before", has_folder=True)
    expected = FORBIDDEN | dict.fromkeys(WRITES, "EACCES") | dict.fromkeys(NEEDED, "done")
    assert said == {"missing": [], "outcomes": expected | dict.fromkeys(IN_THE_FOLDER, "done")}
    assert untouched(outside)


def test_a_server_may_accept_and_nothing_more(tmp_path: Path) -> None:
    said, _ = probe(tmp_path, "accepting", has_folder=False)
    outcomes = said["outcomes"]
    assert {name: outcomes[name] for name in FORBIDDEN} == FORBIDDEN | {"accepting": "done"}


def test_without_landlock_no_writes_are_allowed_at_all(tmp_path: Path) -> None:
    said, outside = probe(tmp_path, "without landlock", has_folder=False)
    expected = FORBIDDEN | dict.fromkeys(WRITES, "EPERM") | dict.fromkeys(NEEDED, "done")
    assert said == {"missing": [], "outcomes": expected}
    assert untouched(outside)


def test_without_landlock_a_folder_leaves_writes_open_and_says_so(tmp_path: Path) -> None:
    said, _ = probe(tmp_path, "without landlock", has_folder=True)
    assert said["missing"] == ["this kernel has no Landlock: writes are allowed"]
    outcomes = said["outcomes"]
    assert {name: outcomes[name] for name in FORBIDDEN} == FORBIDDEN
    assert {outcomes[name] for name in (*NEEDED, *IN_THE_FOLDER)} == {"done"}


@pytest.mark.parametrize(
    ("name", "n_bits", "expected"),
    [
        ("x86_64", 64, 0xC000003E),
        ("aarch64", 64, 0xC00000B7),
        ("riscv64", 64, 0xC00000F3),
        ("armv6l", 32, 0x40000028),
        ("armv7l", 32, 0x40000028),
        ("aarch64", 32, 0x40000028),  # a program of 32 bits under a kernel of 64
        ("x86_64", 32, None),
        ("i686", 32, None),
        ("ppc64le", 64, None),
    ],
)
def test_the_architecture_is_the_processs_own(
    monkeypatch: pytest.MonkeyPatch, name: str, n_bits: int, expected: int | None
) -> None:
    """These are AUDIT_ARCH_... of linux/audit.h."""
    monkeypatch.setattr(platform, "machine", lambda: name)
    monkeypatch.setattr(sandbox, "_address_bits", lambda: n_bits)
    machine = sandbox._machine()
    assert (machine and machine.audit_arch) == expected


def test_an_unknown_processor_or_kernel_is_reported_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    assert sandbox.enter(None) == ["there is no sandbox for Linux on ppc64le with 64 bits"]
    assert "Seccomp:\t0\n" in Path("/proc/self/status").read_text()


def test_a_kernel_without_both_is_reported_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under qemu's user mode."""
    monkeypatch.setattr(sandbox, "_call", lambda *_: -1)
    monkeypatch.setattr(sandbox, "_libc", SimpleNamespace(prctl=lambda *_: 0))
    assert sandbox.enter(None) == [
        "this kernel has no seccomp: network and programs are allowed",
        "this kernel has no Landlock: writes are allowed",
    ]


# ---- the program, as the kernel runs it ------------------------------------------------------


def verdict(
    code: Sequence[sandbox._Instruction], arch: int, number: int, arguments: Sequence[int] = ()
) -> int:
    """The filter's verdict: an interpreter for the few instructions that it uses."""
    words = {0: number, 4: arch} | {16 + 8 * i: value for i, value in enumerate(arguments)}
    word, at = 0, 0
    while True:
        step = code[at]
        at += 1
        if step.code == 0x06:
            return int(step.k)
        if step.code == 0x20:
            word = words.get(step.k, 0)
            continue
        is_true = {0x15: word == step.k, 0x35: word >= step.k, 0x45: word & step.k != 0}[step.code]
        at += step.jt if is_true else step.jf


ALLOWED, REFUSED, MISSING = 0x7FFF0000, 0x00050001, 0x00050026


@pytest.mark.parametrize("machine", sandbox._MACHINES.values(), ids=str)
@pytest.mark.parametrize("refuse_writes", [True, False])
def test_the_filter_decides_call_by_call(machine: sandbox._Machine, refuse_writes: bool) -> None:
    code = sandbox._program(machine, refuse_writes)
    assert len(code) < 4096  # the bound of the kernel

    def of(table: Any, call: str, *arguments: int) -> int:
        numbers = table[call] if isinstance(table, dict) else table
        return verdict(code, machine.audit_arch, numbers[machine.column], arguments)

    for call, numbers in sandbox._NEVER.items():
        if numbers[machine.column] is not None:
            assert of(sandbox._NEVER, call) == REFUSED, call
    for call, numbers in sandbox._WRITES.items():
        if numbers[machine.column] is not None:
            expected = REFUSED if refuse_writes else ALLOWED
            assert of(sandbox._WRITES, call) == expected, call
    assert of(sandbox._CLONE, "clone", 0x3D0F00) == ALLOWED  # pthread_create's flags
    assert of(sandbox._CLONE, "clone", 17) == REFUSED  # fork's
    assert of(sandbox._CLONE3, "clone3") == MISSING
    for call in ("kill", "tgkill"):
        assert of(sandbox._OWN_SIGNALS, call, os.getpid(), 6) == ALLOWED
        assert of(sandbox._OWN_SIGNALS, call, os.getppid(), 6) == REFUSED
    opens = {"openat": sandbox._OPENS["openat"][0]}
    assert of(opens, "openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOWED
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE | os.O_RDWR):
        assert of(opens, "openat", 0, 0, flags) == (REFUSED if refuse_writes else ALLOWED)
    # read, mmap or mmap2, futex, write, getrandom, and ARM's set_tls
    for number in (
        (0, 9, 202, 1, 318), (63, 222, 98, 64, 278), (3, 192, 240, 4, 384, 0xF0005)
    )[machine.column]:  # fmt: skip
        assert verdict(code, machine.audit_arch, number) == ALLOWED


def test_calls_of_another_abi_are_refused() -> None:
    machine = sandbox._MACHINES["x86_64", 64]
    code = sandbox._program(machine, refuse_writes=False)
    i386 = 0x40000003
    assert verdict(code, i386, 4) == REFUSED
    assert verdict(code, machine.audit_arch, 0x40000000 | 1) == REFUSED
    assert verdict(code, machine.audit_arch, 1) == ALLOWED


HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
           Path("/usr/include/asm-generic/unistd.h"),
           Path("/usr/arm-linux-gnueabihf/include/asm/unistd-eabi.h"))  # fmt: skip


@pytest.mark.parametrize("column", [0, 1, 2], ids=["x86_64", "generic", "arm"])
def test_the_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip("needs the kernel's headers")
    text = HEADERS[column].read_text()
    number = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(?:\(__NR_SYSCALL_BASE \+ )?(\d+)")
    known = {"fchmodat2": 452}  # since Linux 6.6
    known |= {name: int(n) for name, n in number.findall(text)}
    tables = {**sandbox._NEVER, **sandbox._WRITES, **sandbox._OWN_SIGNALS, **sandbox._SECCOMP,
              "openat2": sandbox._OPENAT2, **sandbox._LANDLOCK, "clone": sandbox._CLONE,
              "clone3": sandbox._CLONE3}  # fmt: skip
    tables |= {name: numbers for name, (numbers, _) in sandbox._OPENS.items()}
    for name, numbers in tables.items():
        assert numbers[column] == known.get(name), name


# ---- a real worker ---------------------------------------------------------------------------


def status_of_threads(pid: int, name: str) -> set[str]:
    """A line of the status of each thread."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        match = re.search(rf"^{name}:\s+(\S+)$", (task / "status").read_text(), re.MULTILINE)
        found.add(match[1] if match else "")
    return found


def test_a_worker_in_the_sandbox_answers_everything(tmp_path: Path) -> None:
    arguments = ("--sandbox", "on", "--cache-dir", str(tmp_path / "cache"))
    long = "one two three " * 150
    with RunningServer(*arguments) as server:
        assert server.chat("Say hello world")["choices"][0]["message"]["content"] == "hello world"
        completion = server.post("/v1/completions", prompt="one two", max_tokens=3)
        assert completion.json["usage"]["completion_tokens"] == 3
        vectors = server.post("/v1/embeddings", input=["one", "two"])
        assert len(vectors.json["data"]) == 2
        server.chat(long, max_tokens=2)
        pid = server.worker_pid()
        assert status_of_threads(pid, "Seccomp") == {"2"}
        assert status_of_threads(pid, "NoNewPrivs") == {"1"}
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) >= 3
        assert "Seccomp:\t0\n" in Path(f"/proc/{server.process.pid}/status").read_text()
        assert not any("WARNING" in line for line in server.log)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with RunningServer(*arguments) as server:
        usage = server.chat(long, max_tokens=2)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 256


def test_a_worker_that_crashes_in_the_sandbox_ends_and_is_replaced() -> None:
    with RunningServer("--sandbox", "on") as server:
        pid = server.worker_pid()
        os.kill(pid, 6)
        server.wait_for_log(rf"worker {pid} was ended by SIGABRT")
        assert server.chat("Hi")["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("flag", "filters"), [("auto", {"2"}), ("off", {"0"})])
def test_the_sandbox_is_on_unless_turned_off(flag: str, filters: set[str]) -> None:
    with RunningServer("--sandbox", flag) as server:
        assert status_of_threads(server.worker_pid(), "Seccomp") == filters
