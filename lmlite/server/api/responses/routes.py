"""The endpoint of OpenAI's Responses API, and its stored conversations."""

from functools import partial

from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import parse_response
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.route import WorkerRoute

STORED = StoredResponses()  # one store for the process

ROUTES = (WorkerRoute("/v1/responses", partial(parse_response, STORED), ResponseReply, "resp_"),)
