"""Errors in the format of LM Studio's v1. Fields without a value are left out."""

from lmlite.errors import ApiError, Unsupported
from lmlite.messages import Json

_CODES = ("model_not_found", "job_not_found")  # also types


def native_error(error: ApiError, _request_id: str = "") -> Json:
    """LM Studio's error object."""
    kind = "invalid_request" if error.status < 500 else "internal_error"
    if isinstance(error, Unsupported):
        kind = "not_implemented"
    elif error.code in _CODES:
        kind = error.code
    more = {"code": error.code, "param": error.param}
    known = {name: value for name, value in more.items() if value is not None}
    return {"error": {"type": kind, "message": error.message, **known}}
