"""An endpoint as data. Each API lists its own in `ROUTES`; `http.py` serves all of them."""

from collections.abc import Callable
from dataclasses import dataclass

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
