"""`lmlite rpc-server`, and the flags of `lmlite serve` for hosts."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmlite.cli import command
from tests import REPOSITORY
from tests.support.rpc_host import HAS_RPC, NEEDS_RPC


@pytest.mark.skipif(not HAS_RPC, reason=NEEDS_RPC)
@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_only_an_address_that_others_reach_brings_a_warning(host: str, warns: bool) -> None:
    arguments = ["rpc-server", "--host", host, "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "lmlite", *arguments],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        assert server.stderr is not None
        lines: list[str] = []
        while "holds layers for others" not in (line := server.stderr.readline()):
            assert line, lines
            lines.append(line)
        server.kill()
    assert any("the protocol has no keys" in line for line in lines) == warns
    assert f" at {host}:" in line


@pytest.mark.skipif(not HAS_RPC, reason=NEEDS_RPC)
def test_a_host_name_is_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rpc-server", "--host", "localhost"]) == 2
    assert "must be an IPv4 address, such as 192.168.1.5" in capsys.readouterr().err


def test_without_the_library_both_sides_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["rpc-server", "--lib", str(tmp_path)]) == 1
    assert command.main(["serve", "--lib", str(tmp_path), "--rpc", "a:1"]) == 2
    assert capsys.readouterr().err.count("libggml-rpc.so: run `make native` again") == 2


def test_hosts_are_for_a_single_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["serve", "a.gguf", "b.gguf", "--rpc", "a:1"]) == 2
    assert "--rpc and --alias NAME are for a single model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--rpc", ""),
        ("--rpc", "a"),
        ("--rpc", "a:"),
        ("--rpc", "a:1,"),
        ("--rpc", "a:65536"),
        ("--rpc", "a:1,a:1"),
        ("--rpc", ",".join(f"a:{port}" for port in range(1, 18))),
        ("--tensor-split", "1,x"),
        ("--tensor-split", "0,0"),
        ("--tensor-split", "1,-1"),
        ("--tensor-split", "nan"),
    ],
)
def test_what_names_no_hosts_or_shares_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["serve", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: must be" in capsys.readouterr().err
