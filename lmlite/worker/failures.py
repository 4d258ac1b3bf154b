"""How an error becomes the event that ends its request."""

from lmlite.errors import ApiError, InternalError, PromptTooLong
from lmlite.messages import Failed
from lmlite.worker.llama.capi import LlamaError


def failed(request_id: int, error: Exception) -> Failed:
    """An ApiError is the client's to mend; any other is ours or the library's."""
    if isinstance(error, PromptTooLong):  # the server makes the sentence
        return Failed(request_id, "PromptTooLong", error.advice, error.param, error.tokens)
    if isinstance(error, ApiError):
        return Failed(request_id, type(error).__name__, error.message, error.param)
    words = str(error) if isinstance(error, LlamaError) else f"{type(error).__name__}: {error}"
    return Failed(request_id, InternalError.__name__, words)
