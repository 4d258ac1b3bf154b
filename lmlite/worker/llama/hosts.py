"""Other hosts as devices that hold layers of a model: ggml's RPC."""

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError

# Seconds until the machine at the other end of a silent connection is taken for dead.
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


def add_hosts(lib: Any, lib_path: str | None, hosts: Iterable[str]) -> None:
    """Connects to each HOST:PORT and makes its devices known. Raises LlamaError, LibraryError.

    If a host cannot be reached, now or later, llama.cpp ends the process; a thread ends it, too,
    when a connection breaks while nothing is asked of the host.
    """
    rpc = capi.load_rpc(lib, lib_path)
    for host in hosts:
        # Never freed: it keeps the connection open, so that no later part makes another.
        if not rpc.ggml_backend_rpc_init(host.encode(), 0):
            raise LlamaError(f"the host {host} offers no device")
        lib.ggml_backend_register(rpc.ggml_backend_rpc_add_server(host.encode()))
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Ends the process when any connection breaks."""
    poll, names = select.poll(), {}
    for connection in sockets():
        with contextlib.suppress(OSError):  # not connected
            host, port = connection.getpeername()
            names[connection.fileno()] = f"{host}:{port}"
            keep_alive(connection)
            poll.register(connection, select.POLLRDHUP)
        connection.detach()
    broken = [names[fd] for fd, _ in poll.poll()]
    print(f"ggml-rpc: {broken[0]} closed its connection", file=sys.stderr, flush=True)
    os._exit(1)


def keep_alive(connection: socket.socket) -> None:
    """Notices when the other machine vanishes; connections inherit it from their listener."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, number in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, number)


def sockets() -> Iterator[socket.socket]:
    """The IPv4 sockets of the library in this process: detach them."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found = socket.socket(fileno=fd)
        except OSError:  # not a socket
            continue
        if found.family == socket.AF_INET:
            yield found
        else:
            found.detach()
