"""Errors in the format of Anthropic's API."""

from lmlite.errors import ApiError, PromptTooLong
from lmlite.messages import Json

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 503: "overloaded_error"}  # fmt: skip


def anthropic_error(error: ApiError, request_id: str) -> Json:
    """Anthropic's error object, with the request's id."""
    return message_error(error) | {"request_id": request_id}


def message_error(error: ApiError) -> Json:
    """Anthropic's error object. It has no `param` field, so the message names the parameter."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if isinstance(error, PromptTooLong):  # clients search for this wording of Anthropic's
        n_prompt, n_ctx = error.tokens
        message = f"prompt is too long: {n_prompt} tokens > {n_ctx} maximum. {error.advice}"
    elif error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}
