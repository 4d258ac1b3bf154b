"""The endpoints of Anthropic's Messages API."""

from lmlite.server.api.anthropic.replies import MessageReply, TokenCount
from lmlite.server.api.anthropic.requests import parse_count, parse_message
from lmlite.server.api.error_bodies import anthropic_error
from lmlite.server.api.route import WorkerRoute, by_name

ROUTES = (
    WorkerRoute("/v1/messages", parse_message, by_name(MessageReply), "msg_", anthropic_error),
    WorkerRoute(
        "/v1/messages/count_tokens", parse_count, by_name(TokenCount), "count_", anthropic_error
    ),
)
