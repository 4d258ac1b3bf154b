"""A table of routes, and which of them a path means, however a client came to spell it; pure.

Clients put `/v1/chat/completions` or `/chat/completions` behind a base URL that their user typed
with `/v1` or without, and with a slash at its end or without.
"""

from collections.abc import Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar


class Route(Protocol):
    """One method at one path. A path that ends with "/" is continued by a name."""

    @property
    def method(self) -> str:
        """GET or POST."""

    @property
    def path(self) -> str:
        """Begins with /v1/ where clients may leave that out."""


R = TypeVar("R", bound=Route)


class Found(NamedTuple, Generic[R]):
    """What is at a path."""

    routes: dict[str, R]  # by method
    name: str  # that continues the path of the routes
    label: str  # for counts: a client must not choose their names


class RouteTable(Generic[R]):
    """All routes of a server."""

    def __init__(self, routes: Iterable[R]) -> None:
        self._routes: dict[str, dict[str, R]] = {}  # by path and method
        for route in routes:
            self._routes.setdefault(route.path, {})[route.method] = route
        # The first word of paths that have no version.
        self._unversioned = {path.split("/")[1] for path in self._routes} - {"v1"}

    def endpoint(self, path: str) -> str:
        """A client's path as the table has it, with the version that it may lack or repeat."""
        words = [word for word in path.split("/") if word]
        while words[:1] == ["v1"]:
            del words[0]
        version = [] if words[:1] and words[0] in self._unversioned else ["v1"]
        return "/".join(["", *version, *words])

    def find(self, path: str) -> Found[R]:
        """What is at a client's path; no routes when there is nothing."""
        found = self.endpoint(path)
        if found in self._routes:
            return Found(self._routes[found], "", found)
        for own, routes in self._routes.items():
            if own.endswith("/") and found.startswith(own):
                return Found(routes, found.removeprefix(own), own[:-1])
        return Found({}, "", "other")

    def nearest(self, path: str) -> R | None:
        """A route at the path, or else at the nearest one above it."""
        found = self.endpoint(path)
        while found not in self._routes and found:
            found = found.rpartition("/")[0]
        return next(iter(self._routes[found].values())) if found else None
