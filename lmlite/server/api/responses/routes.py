"""The endpoints of OpenAI's Responses API, and its stored conversations."""

from functools import partial

from lmlite.server.api.dry_run import TokenCount, planning
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import WorkerRoute

STORED = StoredResponses()  # one store for the process

_PARSE = partial(parse_response, STORED)

ROUTES = (
    WorkerRoute("/v1/responses", _PARSE, ResponseReply, "resp_"),
    WorkerRoute("/v1/responses/input_tokens", planning(_PARSE), TokenCount, "count_"),
)
