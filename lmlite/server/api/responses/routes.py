"""The endpoint of OpenAI's Responses API, and the responses that it keeps."""

from functools import partial
from typing import Any

from lmlite.errors import ApiError
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response, rename
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import WorkerRoute


def response_error(error: ApiError, _request_id: str) -> dict[str, Any]:
    """OpenAI's object. The worker names the fields of a chat, this API's clients other ones."""
    rename(error)
    return error.body()


STORED = StoredResponses()  # those of this process

ROUTES = (
    WorkerRoute(
        "/v1/responses", partial(parse_response, STORED), ResponseReply, "resp_", response_error
    ),
)
