"""The endpoints of OpenAI's Responses API, and its stored responses."""

from functools import partial

from lmlite.server.api.dry_run import TokenCount, planning
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.retrieval import cancel, delete, show
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import ItemRoute, WorkerRoute

STORED = StoredResponses()  # one store for the process

_PARSE = partial(parse_response, STORED)

ROUTES = (
    WorkerRoute("/v1/responses", _PARSE, ResponseReply, "resp_"),
    WorkerRoute("/v1/responses/input_tokens", planning(_PARSE), TokenCount, "count_"),
    ItemRoute("GET", "/v1/responses/", partial(show, STORED)),
    ItemRoute("POST", "/v1/responses/", partial(cancel, STORED)),
    ItemRoute("DELETE", "/v1/responses/", partial(delete, STORED)),
)
