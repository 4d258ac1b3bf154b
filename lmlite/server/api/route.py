"""An endpoint as data. Each API lists its own in `ROUTES`; `http.py` serves all of them.

Clients put `/v1/chat/completions` or `/chat/completions` behind a base URL that their user typed
with `/v1` or without, and with a slash at its end or without. So a path has several spellings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmlite.errors import ApiError
from lmlite.messages import Json
from lmlite.server.api.call import Call
from lmlite.server.api.reply import Reply
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.registry import Registry, ServedModel

ErrorBody = Callable[[ApiError, str], Json]  # the error, and the request's id


def openai_error(error: ApiError, _request_id: str) -> Json:
    """OpenAI's object for an error."""
    return error.body()


# Makes the reply to a call: gets the reply's id, the model, and the seconds since 1970.
MakeReply = Callable[[Call, str, ServedModel, int], Reply]


@dataclass(frozen=True)
class WorkerRoute:
    """A POST of JSON that a worker answers."""

    path: str
    parse: Callable[[Json, Defaults], Call]
    reply: MakeReply
    id_prefix: str  # of the reply's id
    error_body: ErrorBody = openai_error
    has_dry_run: bool = True  # X-Dry-Run shows the prompt
    method = "POST"


@dataclass(frozen=True)
class PageRoute:
    """A GET of JSON that needs no worker. A path that ends with "/" is continued by a name."""

    path: str
    show: Callable[[Registry, str], Json]  # gets that name
    error_body: ErrorBody = openai_error
    method = "GET"


@dataclass(frozen=True)
class OwnRoute:
    """A GET about the server itself, which is part of no API."""

    path: str
    answer: Callable[[Any], None]  # gets the request's handler
    error_body: ErrorBody = openai_error
    method = "GET"


Route = WorkerRoute | PageRoute | OwnRoute


class Found(NamedTuple):
    """What is at a path."""

    routes: dict[str, Route]  # by method
    name: str  # that continues the path of the routes
    label: str  # in /metrics: clients must not choose labels


class RouteTable:
    """All routes of a server."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[str, dict[str, Route]] = {}  # by path and method
        for route in routes:
            self._routes.setdefault(route.path, {})[route.method] = route
        # The first word of paths that have no version.
        self._unversioned = {path.split("/")[1] for path in self._routes} - {"v1"}

    def endpoint(self, path: str) -> str:
        """A client's path as the table spells it."""
        words = [word for word in path.split("/") if word]
        while words[:1] == ["v1"]:
            del words[0]
        version = [] if words[:1] and words[0] in self._unversioned else ["v1"]
        return "/".join(["", *version, *words])

    def find(self, path: str) -> Found:
        """What is at a client's path; no routes when there is nothing."""
        found = self.endpoint(path)
        if found in self._routes:
            return Found(self._routes[found], "", found)
        for own, routes in self._routes.items():
            if own.endswith("/") and found.startswith(own):
                return Found(routes, found.removeprefix(own), own[:-1])
        return Found({}, "", "other")

    def error_body(self, path: str) -> ErrorBody:
        """That of the route at a client's path, or else of the nearest one above it."""
        found = self.endpoint(path)
        while found:
            for route in self._routes.get(found, {}).values():
                return route.error_body
            found = found.rpartition("/")[0]
        return openai_error
