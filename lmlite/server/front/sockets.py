"""Sockets that listen, and connections that are told to come back."""

import contextlib
import ipaddress
import socket
from collections.abc import Sequence

from lmlite.errors import Unavailable
from lmlite.server.front import wire

REFUSED_BYTES = 64 << 10  # read of a request that is refused with its connection


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Sockets at this address; `localhost` has two, where the machine has both kinds of addresses.

    Raises OSError.
    """
    if host != "localhost":
        return [_bound(host, port, backlog)]
    sockets = [_bound("127.0.0.1", port, backlog)]
    with contextlib.suppress(OSError):  # no IPv6, or that port is taken there
        sockets.append(_bound("::1", sockets[0].getsockname()[1], backlog))
    return sockets


def _bound(host: str, port: int, backlog: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def host_of(sock: socket.socket) -> str:
    """The address where it listens, as a Host header has it."""
    address = sock.getsockname()[0]
    return f"[{address}]" if ":" in address else str(address)


def is_open(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines may reach one of them."""
    return not all(is_loopback(sock.getsockname()[0]) for sock in sockets)


def is_loopback(host: str) -> bool:
    """Also of an IPv4 address as a socket for both kinds sees it."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def refuse(sock: socket.socket) -> None:
    """Tells a connection to come back; runs in the accepting thread, and waits for nothing."""
    body = wire.to_json(Unavailable("too many connections").body())
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Retry-After", "1"),
        ("Connection", "close"),
    ]
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(wire.reply_head(503, headers) + body)
        sock.shutdown(socket.SHUT_WR)
        # What was not read when a connection is closed resets it, and with it the reply.
        sock.recv(REFUSED_BYTES)
    sock.close()


def close(sock: socket.socket) -> None:
    """Ends a connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    sock.close()
