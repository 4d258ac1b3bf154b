"""Turns an error into the event that ends its request."""

from lmlite.errors import ApiError, InternalError, PromptTooLong
from lmlite.messages import Failed
from lmlite.worker.llama.capi import LlamaError


def failed(request_id: int, error: Exception) -> Failed:
    """An ApiError is reported as it is; any other error is a bug, here or in the library."""
    if isinstance(error, PromptTooLong):  # the server words the message
        return Failed(request_id, "PromptTooLong", error.advice, error.param, error.tokens)
    if isinstance(error, ApiError):
        return Failed(request_id, type(error).__name__, error.message, error.param)
    words = str(error) if isinstance(error, LlamaError) else f"{type(error).__name__}: {error}"
    return Failed(request_id, InternalError.__name__, words)
