"""Who may ask: what a request's head has to say before anything is done for it.

The checks of a `Gate`, the cheapest and least trusting first: a method that exists, a Host that
is this server's name, a web page that may ask, a key. A browser lets any page send requests to
this machine, from inside of the user's walls: pages of other origins are refused, whatever their
request would do, unless their origin is in the list. Pure.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lmlite.errors import BadRequest, Forbidden, MethodNotAllowed, Unauthorized
from lmlite.server.front.keys import is_known
from lmlite.server.front.wire import Head

Headers = list[tuple[str, str]]

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
# What containers call the machine that they run on, and machines each other without a name server.
# Anybody on the network may take such a name, and lead a page here by it: so they need a key.
LOCAL_NAME = re.compile(r"host\.[a-z0-9\-]+\.internal|[a-z0-9\-_]+(\.[a-z0-9\-_]+)*\.local")
# The origin that browsers name for pages in a sandbox and for files, and the entry for all pages.
# Any page can open a sandbox, so both need a key.
NO_ORIGIN, ANY_ORIGIN = "null", "*"
OPEN_TARGET = "/health"  # for load balancers, which have no key

_HOST = re.compile(r"(?P<name>[A-Za-z0-9.\-_]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_SCHEME = re.compile(r"(?!https?:)[a-z][a-z0-9+.\-]*://\*")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.\-]*://{_HOST.pattern}")


@dataclass(frozen=True)
class Gate:
    """What is let in. The hosts are in lower case, without ports; no keys: none is asked for.

    Origins are as `is_origin` takes them.
    """

    hosts: frozenset[str] = LOOPBACK_HOSTS
    any_address: bool = False  # as a Host: only a name can be made to lead to another server
    origins: frozenset[str] = frozenset()
    keys: tuple[bytes, ...] = ()

    def check(self, head: Head) -> None:
        """Raises an ApiError for what no key would make right."""
        check_method(head, METHODS, "this server")
        host = head.headers.get("host")
        if host is not None:  # else HTTP/1.0, which no browser speaks
            self._check_host(host)
        origin = head.headers.get("origin")
        if origin is None:
            # An image tag sends no Origin, and a page of another port is of the same site.
            if head.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
                raise Forbidden("requests from web pages of other origins are refused")
        elif not self._is_listed(origin) and not _is_same(origin, host):
            raise Forbidden("requests from web pages of other origins are refused "
                            "(--cors-origin lets one in)")  # fmt: skip

    def check_key(self, head: Head) -> None:
        """Raises Unauthorized without a key. Looks at the target as it was sent, not at a path."""
        if head.target.partition("?")[0] != OPEN_TARGET and not self.has_key(head):
            raise Unauthorized("this server asks for a key: Authorization: Bearer KEY")

    def has_key(self, head: Head) -> bool:
        """Whether it has one of the keys, or none is asked for."""
        scheme, _, bearer = head.headers.get("authorization", "").partition(" ")
        offered = [head.headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            offered.append(bearer.strip())
        # Each is compared, also after one that is right.
        n_right = sum(is_known(key.encode("latin-1"), self.keys) for key in offered)
        return n_right > 0 or not self.keys

    def _check_host(self, host: str) -> None:
        """A page whose name was made to lead here is no friend: the browser takes it for ours."""
        match = _HOST.fullmatch(host)
        if match is None:
            raise BadRequest("the Host header is malformed")
        name = match["name"].lower()
        if name in self.hosts or (self.keys and LOCAL_NAME.fullmatch(name)):
            return
        if not (self.any_address and _address(name) and is_host(name)):
            raise Forbidden(f"this server is not called {name} (--allow-host gives it a name)")

    def _is_listed(self, origin: str) -> bool:
        """Whether it is in the list by itself, by its scheme, or as any other is."""
        if origin != NO_ORIGIN and not _ORIGIN.fullmatch(origin):
            return False
        scheme = origin.partition("://")[0]
        return not self.origins.isdisjoint({origin, f"{scheme}://*", ANY_ORIGIN})

    # ---- what a page's browser wants to hear -----------------------------------------------

    def headers(self, head: Head) -> Headers:
        """Of every reply, so that a page whose origin is in the list may read it."""
        if not self.origins:
            return []
        origin = head.headers.get("origin")
        if origin is None or not self._is_listed(origin):
            return [("Vary", "Origin")]
        return [
            ("Vary", "Origin"),
            ("Access-Control-Allow-Origin", origin),
            (
                "Access-Control-Expose-Headers",
                "Retry-After, X-Ignored-Params, X-Ignored-Schema, X-Request-Id",
            ),
        ]

    def preflight_headers(self, head: Head) -> Headers:
        """Further ones of the reply to OPTIONS, by which a browser asks for a page."""
        if not self._is_listed(head.headers.get("origin", "")):
            return []
        headers = [
            ("Access-Control-Allow-Methods", "GET, POST"),
            ("Access-Control-Allow-Headers", "Authorization, *"),  # which * does not contain
            ("Access-Control-Max-Age", "600"),
        ]
        if head.headers.get("access-control-request-private-network") == "true":
            headers.append(("Access-Control-Allow-Private-Network", "true"))
        return headers


LOOPBACK_GATE = Gate()  # of a server that this machine alone can reach


def allowed_by(methods: Iterable[str]) -> tuple[str, ...]:
    """What a route takes that has something to do for these methods."""
    more = {"OPTIONS", *(["HEAD"] if "GET" in methods else [])}
    return tuple(name for name in METHODS if name in {*methods, *more})


def check_method(head: Head, allowed: Iterable[str], who: str) -> None:
    """Raises MethodNotAllowed for a method that `who` does not take."""
    if head.method not in allowed:
        error = MethodNotAllowed(f"{who} takes {' and '.join(allowed)}")
        error.allowed = tuple(allowed)
        raise error


def is_host(name: str) -> bool:
    """Whether it can stand in a Host header, without a port, for one machine."""
    match = _HOST.fullmatch(name)
    address = _address(name)
    return (
        match is not None
        and match["name"] == name
        and not (address is not None and address.is_unspecified)  # as 0.0.0.0 is
    )


def is_origin(text: str) -> bool:
    """Whether it can be in the list: an origin, or a pattern of several.

    An origin is as browsers write it: scheme, host, and a port where it is not the usual. Of a
    scheme that is not the web's, as extensions and programs have, there may be all hosts.
    """
    if text in (NO_ORIGIN, ANY_ORIGIN) or _SCHEME.fullmatch(text):
        return True
    is_usual = re.fullmatch("http:.*:80|https:.*:443", text)
    return _ORIGIN.fullmatch(text) is not None and text == text.lower() and not is_usual


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _is_same(origin: str, host: str | None) -> bool:
    """Whether a page's origin is this server, behind TLS or not."""
    scheme, _, rest = origin.lower().partition("://")
    return scheme in ("http", "https") and host is not None and rest == host.lower()
