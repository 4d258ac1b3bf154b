"""The endpoint of OpenAI's Responses API, and the conversations that it stores."""

from functools import partial

from lmlite.errors import ApiError
from lmlite.messages import Json
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response, rename
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import WorkerRoute


def response_error(error: ApiError, _request_id: str) -> Json:
    """OpenAI's object, with this API's field where the worker has named that of a chat."""
    rename(error)
    return error.body()


STORED = StoredResponses()  # those of this process

ROUTES = (
    WorkerRoute(
        "/v1/responses", partial(parse_response, STORED), ResponseReply, "resp_", response_error
    ),
)
