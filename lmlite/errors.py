"""Every failure that a client can see, with its status, type, code and param.

Raised anywhere; only `server/http.py` turns them into bytes. A worker sends the name of the class
and the message over the pipe, and `KINDS` turns the name back into the class.
"""

from collections.abc import Iterator
from dataclasses import dataclass


class ModelFileError(Exception):
    """A model file that cannot be served; the message names the file's fault in one sentence."""


class ModelFileMissing(ModelFileError):
    """A missing model file, or a missing part of a split one; it may come back."""


class SettingsError(ModelFileError):
    """A model's settings file that cannot be used; the message names the file and the key."""


class ApiError(Exception):
    """An error that becomes `{"error": {"message", "type", "param", "code"}}`.

    The class decides status, type and code; an instance adds the message and the name of the
    field at fault. OpenAI's clients retry after 408, 409, 429 and every status from 500, so a
    failure that would repeat needs another status.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object of the reply. It always has all four keys."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> list[tuple[str, str]]:
        """Headers of the reply that tell the client whether to retry."""
        if self.retry_after_s is not None:
            return [("Retry-After", str(self.retry_after_s))]
        # OpenAI's clients obey this header.
        return [("X-Should-Retry", "false")] if self.status >= 500 else []


class InternalError(ApiError):
    """A bug in lmlite, or a library call that failed."""


class BadRequest(ApiError):
    """The client must change the request: the same one would fail again."""

    status = 400
    type = "invalid_request_error"


class MissingParameter(BadRequest):
    """A required field is absent."""

    code = "missing_required_parameter"


class PromptTooLong(BadRequest):
    """The prompt does not fit the context. Clients look for the code or for OpenAI's sentences."""

    code = "context_length_exceeded"

    def __init__(self, advice: str, *, param: str, tokens: tuple[int, int]) -> None:
        """`tokens`: how many tokens the prompt has, and how many fit."""
        n_prompt, n_ctx = self.tokens = tokens
        self.advice = advice
        message = (
            f"This model's maximum context length is {n_ctx} tokens. "
            f"However, your {param} resulted in {n_prompt} tokens. {advice}"
        )
        super().__init__(message, param=param)


class Unsupported(BadRequest):
    """A feature that this server or model lacks. Not 501: clients would retry after it."""

    code = "unsupported_feature"


class NotOffered(Unsupported):
    """The same, for clients that do not retry after 501."""

    status = 501


class Unauthorized(BadRequest):
    """The request has no key, or a wrong one."""

    status = 401
    code = "invalid_api_key"

    def headers(self) -> list[tuple[str, str]]:
        """Adds a header that says how to send a key."""
        return [*super().headers(), ("WWW-Authenticate", "Bearer")]


class Forbidden(BadRequest):
    """The request names a foreign host, or comes from a foreign web page."""

    status = 403
    type = "permission_error"


class NotFound(BadRequest):
    """No such route."""

    status = 404


class ModelNotFound(NotFound):
    """A model name that this server does not know."""

    code = "model_not_found"


class MethodNotAllowed(BadRequest):
    """A method that is not among those `allowed`, which the reply lists."""

    status = 405
    code = "method_not_supported"
    allowed: tuple[str, ...] = ()

    def headers(self) -> list[tuple[str, str]]:
        """Adds the allowed methods."""
        return [*super().headers(), ("Allow", ", ".join(self.allowed))]


class RequestTimeout(BadRequest):
    """The head or the body of a request did not arrive in time."""

    status = 408


class LengthRequired(BadRequest):
    """A body whose length is not announced."""

    status = 411


class BodyTooLarge(BadRequest):
    """A body over the server's cap."""

    status = 413


class UnsupportedMediaType(BadRequest):
    """A body that is not plain JSON."""

    status = 415


class ExpectationFailed(BadRequest):
    """An `Expect` header other than `100-continue`."""

    status = 417


class HarmfulRequest(BadRequest):
    """The request ended the model's worker, and would end it again."""

    status = 422
    code = "request_ended_worker"


class HeadTooLarge(BadRequest):
    """A request line or header block over the limits."""

    status = 431


class VersionNotSupported(BadRequest):
    """An HTTP version other than 1.0 and 1.1."""

    status = 505


class Unavailable(ApiError):
    """The model is loading, restarting, full or stopping. The client may retry."""

    status = 503
    retry_after_s: int | None = 1


class ModelFailed(Unavailable):
    """The model has no worker and will not get one: waiting does not help."""

    retry_after_s = None


def _family(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


KINDS: dict[str, type[ApiError]] = {kind.__name__: kind for kind in _family(ApiError)}


@dataclass(frozen=True)
class FieldNames:
    """An API's names of the fields in which a worker may find an error."""

    messages: str
    form: str  # the form of the reply


CHAT_NAMES = FieldNames("messages", "response_format")  # the names that the worker uses
