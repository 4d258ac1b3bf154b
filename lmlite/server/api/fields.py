"""Fields of a JSON object, each of a type and in a range, or an error that names it.

An explicit null counts as absent, as OpenAI's clients send it. A boolean is not a number, and
1.0 is not a count. `path` is the field's name in an error, where it lies deeper.
"""

from typing import Any, NoReturn

from lmlite.errors import BadRequest, MissingParameter, Unsupported

Body = dict[str, Any]


def unsupported(field: str, message: str) -> NoReturn:
    """Refuses a feature that this server lacks."""
    word = next(word for word in reversed(field.split(".")) if not word.startswith("["))
    raise Unsupported(message, param=field, code=f"unsupported_{word}")


def required(body: Body, field: str, path: str | None = None) -> Any:
    """The value of a field that must be there."""
    if body.get(field) is None:
        raise MissingParameter(f"{path or field} is missing", param=path or field)
    return body[field]


def typed(body: Body, field: str, kind: type, words: str, path: str | None = None) -> Any:
    """The value, of exactly this type, or None; `words` describe the type in an error."""
    value = body.get(field)
    if value is not None and type(value) is not kind:
        raise BadRequest(f"{path or field} is not {words}", param=path or field)
    return value


def boolean(body: Body, field: str, path: str | None = None) -> bool:
    """True or false; false when absent."""
    return bool(typed(body, field, bool, "true or false", path))


def string(body: Body, field: str, path: str | None = None) -> str | None:
    """A string, or None."""
    text: str | None = typed(body, field, str, "a string", path)
    return text


def integer(
    body: Body, field: str, low: float, high: float, default: int | None = None
) -> int | None:
    """A whole number in a range, or the default."""
    value: int | None = typed(body, field, int, "a whole number")
    if value is None:
        return default
    check_range(value, field, low, high)
    return value


def number(
    body: Body, field: str, low: float, high: float, default: float, path: str | None = None
) -> float:
    """A number in a range, or the default."""
    value = _numeric(body, field, path)
    if value is None:
        return default
    check_range(value, path or field, low, high)
    return float(value)


def clamped(
    body: Body, field: str, low: float, high: float, default: float, path: str | None = None
) -> float:
    """A number, brought into a range; or the default."""
    value = _numeric(body, field, path)
    return default if value is None else float(min(max(low, value), high))


def _numeric(body: Body, field: str, path: str | None = None) -> float | None:
    value = body.get(field)
    if value is not None and type(value) not in (int, float):
        raise BadRequest(f"{path or field} is not a number", param=path or field)
    return value


def check_range(value: float, path: str, low: float, high: float) -> None:
    """Raises BadRequest for a value outside."""
    if not low <= value <= high:
        raise BadRequest(f"{path} must be from {low} to {high}", param=path)
