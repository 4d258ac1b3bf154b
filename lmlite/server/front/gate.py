"""Access control: checks a request's head before anything is done for the request.

A browser lets any page send requests to this machine, from inside the user's firewall. So
requests are refused if their Host is not a name of this server, or if they come from a page of
another origin that is not listed. The check of the key comes after these. Pure.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lmlite.errors import BadRequest, Forbidden, MethodNotAllowed, Unauthorized
from lmlite.server.front.keys import is_known
from lmlite.server.front.wire import Head

Headers = list[tuple[str, str]]

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Names that containers have for their host, and mDNS names. Anybody on the network can take such a
# name, and lead a web page to this server through it. So requests to these names need a key.
LOCAL_NAME = re.compile(r"host\.[a-z0-9\-]+\.internal|[a-z0-9\-_]+(\.[a-z0-9\-_]+)*\.local")
# "null" is the origin of files and of sandboxed pages; "*" lists all pages. Any page can open a
# sandbox, so both need a key.
NO_ORIGIN, ANY_ORIGIN = "null", "*"
OPEN_TARGET = "/health"  # for load balancers, which have no key

_HOST = re.compile(r"(?P<name>[A-Za-z0-9.\-_]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_SCHEME = re.compile(r"(?!https?:)[a-z][a-z0-9+.\-]*://\*")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.\-]*://{_HOST.pattern}")


@dataclass(frozen=True)
class Gate:
    """The rules by which requests are accepted."""

    hosts: frozenset[str] = LOOPBACK_HOSTS  # in lower case, without ports
    any_address: bool = False  # accepts every address as Host: only names can be rebound
    origins: frozenset[str] = frozenset()  # as `is_origin` accepts them
    keys: tuple[bytes, ...] = ()  # if empty, no key is needed

    def check(self, head: Head) -> None:
        """Makes the checks that apply with or without a key. Raises an ApiError."""
        check_method(head, METHODS, "this server")
        host = head.headers.get("host")
        if host is not None:  # otherwise it is HTTP/1.0, which browsers do not speak
            self._check_host(host)
        origin = head.headers.get("origin")
        if origin is None:
            # Image tags do not send Origin. Pages of other ports send the value same-site.
            if head.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
                raise Forbidden("requests from web pages of other origins are refused")
        elif not self._is_listed(origin) and not _is_same(origin, host):
            raise Forbidden("requests from web pages of other origins are refused "
                            "(--cors-origin lets one in)")  # fmt: skip

    def check_key(self, head: Head) -> None:
        """Raises Unauthorized without a key. Compares the target as sent, not the decoded path."""
        if head.target.partition("?")[0] != OPEN_TARGET and not self.has_key(head):
            raise Unauthorized("this server asks for a key: Authorization: Bearer KEY")

    def has_key(self, head: Head) -> bool:
        """Whether the request has one of the keys, or does not need a key."""
        scheme, _, bearer = head.headers.get("authorization", "").partition(" ")
        offered = [head.headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            offered.append(bearer.strip())
        # All are compared, so that the time does not reveal which key is right.
        n_right = sum(is_known(key.encode("latin-1"), self.keys) for key in offered)
        return n_right > 0 or not self.keys

    def _check_host(self, host: str) -> None:
        """Refuses DNS rebinding: a page whose own host name was made to resolve to this server."""
        match = _HOST.fullmatch(host)
        if match is None:
            raise BadRequest("the Host header is malformed")
        name = match["name"].lower()
        if name in self.hosts or (self.keys and LOCAL_NAME.fullmatch(name)):
            return
        if not (self.any_address and _address(name) and is_host(name)):
            raise Forbidden(f"this server is not called {name} (--allow-host gives it a name)")

    def _is_listed(self, origin: str) -> bool:
        """Whether the origin, its scheme, or every origin is listed."""
        if origin != NO_ORIGIN and not _ORIGIN.fullmatch(origin):
            return False
        scheme = origin.partition("://")[0]
        return not self.origins.isdisjoint({origin, f"{scheme}://*", ANY_ORIGIN})

    # ---- headers for browsers --------------------------------------------------------------

    def headers(self, head: Head) -> Headers:
        """Headers of every reply. They let pages of listed origins read it."""
        if not self.origins:
            return []
        origin = head.headers.get("origin")
        if origin is None or not self._is_listed(origin):
            return [("Vary", "Origin")]
        exposed = "Retry-After, X-Ignored-Params, X-Ignored-Schema, X-Prefix-Key, X-Request-Id"
        return [
            ("Vary", "Origin"),
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", exposed),
        ]

    def preflight_headers(self, head: Head) -> Headers:
        """More headers for the reply to OPTIONS, which browsers send before a page's request."""
        if not self._is_listed(head.headers.get("origin", "")):
            return []
        headers = [
            ("Access-Control-Allow-Methods", "GET, POST, DELETE"),
            ("Access-Control-Allow-Headers", "Authorization, *"),  # * excludes Authorization
            ("Access-Control-Max-Age", "600"),
        ]
        if head.headers.get("access-control-request-private-network") == "true":
            headers.append(("Access-Control-Allow-Private-Network", "true"))
        return headers


LOOPBACK_GATE = Gate()  # for a server that only this machine can reach


def allowed_by(methods: Iterable[str]) -> tuple[str, ...]:
    """The value of `Allow` for a path with routes for these methods."""
    more = {"OPTIONS", *(["HEAD"] if "GET" in methods else [])}
    return tuple(name for name in METHODS if name in {*methods, *more})


def check_method(head: Head, allowed: Iterable[str], who: str) -> None:
    """Raises MethodNotAllowed for a method that is not allowed; `who` begins its sentence."""
    if head.method not in allowed:
        error = MethodNotAllowed(f"{who} takes {' and '.join(allowed)}")
        error.allowed = tuple(allowed)
        raise error


def is_host(name: str) -> bool:
    """Whether a text can be the name of one machine in a Host header, without a port."""
    match = _HOST.fullmatch(name)
    address = _address(name)
    return (
        match is not None
        and match["name"] == name
        and not (address is not None and address.is_unspecified)  # such as 0.0.0.0
    )


def is_origin(text: str) -> bool:
    """Whether a text can be listed: an origin as browsers write it, or a pattern.

    Browsers omit the default port of a scheme. Patterns are `*`, and `scheme://*` for the schemes
    of extensions and programs.
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
    """Whether a page comes from this server, with or without a TLS proxy before it."""
    scheme, _, rest = origin.lower().partition("://")
    return scheme in ("http", "https") and host is not None and rest == host.lower()
