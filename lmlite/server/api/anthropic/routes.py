"""The endpoints of Anthropic's Messages API."""

from lmlite.server.api.anthropic.errors import anthropic_error
from lmlite.server.api.anthropic.replies import MessageReply, TokenCount
from lmlite.server.api.anthropic.requests import parse_count, parse_message
from lmlite.server.api.route import WorkerRoute

ROUTES = (
    WorkerRoute("/v1/messages", parse_message, MessageReply, "msg_", anthropic_error),
    WorkerRoute("/v1/messages/count_tokens", parse_count, TokenCount, "count_", anthropic_error),
)
