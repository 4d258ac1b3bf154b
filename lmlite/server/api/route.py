"""Endpoints as data. Each API lists its endpoints in `ROUTES`; `http.py` serves all of them.

Clients append `/v1/chat/completions` or `/chat/completions` to a base URL that a user has typed,
with or without `/v1` and with or without a final slash. So several spellings of a path are valid.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmlite.errors import ApiError
from lmlite.messages import Json
from lmlite.server.api.call import Call
from lmlite.server.api.reply import Reply
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel

# A waiting handler calls it now and then. It raises ConnectionAbortedError if the client is gone.
Poll = Callable[[], object]
Query = dict[str, str]  # the fields after the "?" of a target; of a repeated one, the last value
Manage = Callable[[Registry, Json, Poll], Json]
ErrorBody = Callable[[ApiError, str], Json]  # the error, and the request's id


def openai_error(error: ApiError, _request_id: str) -> Json:
    """OpenAI's object for an error."""
    return error.body()


# Makes the reply to a call. Arguments: the call, the reply's id, the model, seconds since 1970.
MakeReply = Callable[[Call, str, ServedModel, int], Reply]


@dataclass(frozen=True)
class WorkerRoute:
    """A POST endpoint that takes JSON; a worker does the work."""

    path: str
    parse: Callable[[Json, Defaults], Call]
    reply: MakeReply
    id_prefix: str  # the reply's id starts with it
    error_body: ErrorBody = openai_error
    has_dry_run: bool = True  # the header X-Dry-Run makes the reply show the prompt
    # A body in the field names that all APIs share: model, ttl, preset and the sampling values.
    shared_form: Callable[[Json], Json] = lambda body: body
    # What manages the model instead, if a body asks for no more.
    instead: Callable[[Json], Manage | None] = lambda _: None
    method = "POST"


@dataclass(frozen=True)
class ManageRoute:
    """A POST endpoint that takes JSON and manages models, which may take its time."""

    path: str
    manage: Manage
    fields: frozenset[str]  # that a body may have; others are ignored, and named in the reply
    error_body: ErrorBody = openai_error
    list_field: str | None = None  # a body that is a list stands for this field
    method = "POST"


@dataclass(frozen=True)
class PageRoute:
    """A GET endpoint that returns JSON without a worker."""

    path: str  # if it ends with "/", clients append a name
    show: Callable[[Registry, str], Any]  # arguments: the registry and that name
    error_body: ErrorBody = openai_error
    method = "GET"


@dataclass(frozen=True)
class OwnRoute:
    """A GET endpoint of lmlite's own, about the server itself."""

    path: str
    answer: Callable[[Any], None]  # argument: the request's handler
    error_body: ErrorBody = openai_error
    method = "GET"


@dataclass(frozen=True)
class ItemRoute:
    """An endpoint about one thing that the server keeps. A body is read and dropped."""

    method: str
    path: str  # ends with "/"; clients append the thing's name
    answer: Callable[[str, Query], Json]  # arguments: that name, and the query
    error_body: ErrorBody = openai_error


Route = WorkerRoute | ManageRoute | PageRoute | OwnRoute | ItemRoute


class Found(NamedTuple):
    """The routes at a client's path."""

    routes: dict[str, Route]  # by method; empty for an unknown path
    name: str  # the name that the client appended to the routes' path
    label: str  # the path in /metrics; one of ours, so that clients cannot create labels


class RouteTable:
    """All routes of a server."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[str, dict[str, Route]] = {}  # by path and method
        for route in routes:
            self._routes.setdefault(route.path, {})[route.method] = route
        # The first words of the paths that do not start with /v1.
        self._unversioned = {path.split("/")[1] for path in self._routes} - {"v1"}

    def endpoint(self, path: str) -> str:
        """A client's path in the spelling of this table."""
        words = [word for word in path.split("/") if word]
        while words[:1] == ["v1"]:
            del words[0]
        if not words:
            return "/"
        version = [] if words[0] in self._unversioned else ["v1"]
        return "/".join(["", *version, *words])

    def find(self, path: str) -> Found:
        """The routes at a client's path."""
        found = self.endpoint(path)
        if found in self._routes:
            return Found(self._routes[found], "", found)
        for own, routes in self._routes.items():
            if len(own) > 1 and own.endswith("/") and found.startswith(own):
                return Found(routes, found.removeprefix(own), own[:-1])
        return Found({}, "", "other")

    def error_body(self, path: str) -> ErrorBody:
        """The error format of the route at a client's path, or of its nearest parent path."""
        found = self.endpoint(path)
        while found:
            routes = self._routes.get(found) or self._routes.get(f"{found}/", {})
            for route in routes.values():
                return route.error_body
            found = found.rpartition("/")[0]
        return openai_error
