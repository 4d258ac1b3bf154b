"""Listening sockets and their addresses."""

import contextlib
import ipaddress
import socket
from collections.abc import Sequence


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets at this address; two for `localhost` if the machine has IPv4 and IPv6.

    Raises OSError.
    """
    if host != "localhost":
        return [_bound(host, port, backlog)]
    sockets = [_bound("127.0.0.1", port, backlog)]
    with contextlib.suppress(OSError):  # no IPv6, or the port is taken in IPv6
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
    """The address of a listening socket, as a Host header spells it."""
    address = sock.getsockname()[0]
    return f"[{address}]" if ":" in address else str(address)


def is_open(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines can reach one of the sockets."""
    return not all(is_loopback(sock.getsockname()[0]) for sock in sockets)


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address; IPv6 sockets show IPv4 ones as ::ffff:..."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
