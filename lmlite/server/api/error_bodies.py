"""An error in the words of the API that was asked: OpenAI's, or Anthropic's on its own paths."""

import re
from typing import Any

from lmlite.errors import ApiError, MethodNotAllowed, PromptTooLong, Unauthorized
from lmlite.server.front.routes import endpoint
from lmlite.server.front.wire import Head

Json = dict[str, Any]

MESSAGES_PATH = "/v1/messages"  # and what lies below it

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 503: "overloaded_error"}  # fmt: skip


def body_of(error: ApiError, head: Head | None, token: str) -> Json:
    """The JSON object of a reply; no head: none could be read. The request's id has the token."""
    if head is None or not endpoint(head.path).startswith(MESSAGES_PATH):
        return error.body()
    return message_error(error) | {"request_id": f"req-{token}"}


def headers_of(error: ApiError) -> list[tuple[str, str]]:
    """What the reply says of an error beside its body: what to do about it."""
    headers = []
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(error.retry_after_s)))
    elif error.status >= 500:
        headers.append(("X-Should-Retry", "false"))  # OpenAI's clients heed it
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allowed)))
    if isinstance(error, Unauthorized):
        headers.append(("WWW-Authenticate", "Bearer"))
    return headers


def message_error(error: ApiError) -> Json:
    """Anthropic's object. It has no place for the field at fault, so the message names it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if isinstance(error, PromptTooLong):  # in Anthropic's words, which clients look for
        n_prompt, n_ctx = error.tokens
        message = f"prompt is too long: {n_prompt} tokens > {n_ctx} maximum. {error.advice}"
    elif error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    # The worker, and what reads schemas, know the form of an answer by its name in a chat.
    message = re.sub(r"response_format(\.json_schema)?", "output_config.format", message)
    return {"type": "error", "error": {"type": kind, "message": message}}
