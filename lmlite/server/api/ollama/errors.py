"""Errors in the format of Ollama's API."""

from lmlite.errors import ApiError
from lmlite.messages import Json


def ollama_error(error: ApiError, _request_id: str = "") -> Json:
    """Ollama's error object. It has no `param` field, so the message names the parameter."""
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return {"error": message}
