"""A real `lmlite rpc-server` in its own process, and a host that says what a test tells it to."""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

from lmlite.library import RPC_NAME, reaches_hosts
from tests import REPOSITORY

NEEDS_RPC = f"needs {RPC_NAME}: run `make native` again"
HAS_RPC = reaches_hosts(None)
HELLO, DEVICE_COUNT, DEVICE_MEMORY = 14, 15, 11


class RpcHost:
    """Started by `with`, on a free port, which it keeps when it is started again."""

    def __init__(self) -> None:
        self.port = 0

    def __enter__(self) -> "RpcHost":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        command = [sys.executable, "-m", "lmlite", "rpc-server", "--port", str(self.port)]
        command += ["--threads", "1"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if match := re.search(r"at 127\.0\.0\.1:(\d+)$", line):
                self.port = int(match[1])
                break
        else:
            raise AssertionError(f"the host ended: {lines}")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def come_back(self) -> None:
        """After any signal."""
        if self._process.poll() is None:
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGCONT)
                return
        self.start()


Reply = Callable[[int], bytes]


def sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def sound(command: int) -> bytes:
    """A host with one device, 1 MiB of 2 MiB free."""
    return {
        HELLO: sized(bytes([7, 0, 0, 0]) + bytes(24)),
        DEVICE_COUNT: sized(struct.pack("<I", 1)),
        DEVICE_MEMORY: sized(struct.pack("<QQ", 1 << 20, 2 << 20)),
    }[command]


class FakeHost:
    """Answers each command with `reply`; hangs up after an empty one."""

    def __init__(self, reply: Reply = sound, port: int = 0) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "FakeHost":
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            contextlib.suppress(ConnectionError),
            connection,
            connection.makefile("rb") as stream,
        ):
            while len(head := stream.read(9)) == 9:
                command, n_bytes = struct.unpack("<BQ", head)
                stream.read(n_bytes)
                if not (reply := self._reply(command)):
                    return
                connection.sendall(reply)
