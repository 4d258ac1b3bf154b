"""An error in the words of an API: OpenAI's or Anthropic's."""

import re
from typing import Any

from lmlite.errors import ApiError, MethodNotAllowed, PromptTooLong, Unauthorized

Json = dict[str, Any]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 503: "overloaded_error"}  # fmt: skip


def openai_error(error: ApiError, _request_id: str) -> Json:
    """OpenAI's object, which names the field at fault."""
    return error.body()


def anthropic_error(error: ApiError, request_id: str) -> Json:
    """Anthropic's object, with the request's id."""
    return message_error(error) | {"request_id": request_id}


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
