"""Reads a client's JSON field by field: checks types and ranges, and errors name the field.

An explicit null counts as absent, because OpenAI's clients send it. A boolean is not a number,
and 1.0 is not a count.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn, Self

from lmlite.errors import BadRequest, MissingParameter, Unsupported


class Field:
    """A value in a client's JSON (None: absent), and its path, which errors name.

    Every reader raises BadRequest.

    >>> [each["role"].path for each in Field({"messages": [{"role": 5}]})["messages"].items()]
    ['messages.[0].role']
    """

    ITEM: ClassVar = "[%d]"  # how a path spells an item of a list

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    def __getitem__(self, name: str) -> Self:
        """A field of an object."""
        return type(self)(self.value.get(name), f"{self.path}.{name}" if self.path else name)

    def of(self, value: Any) -> Self:
        """The same path with a different value."""
        return type(self)(value, self.path)

    # ---- errors ----------------------------------------------------------------------------

    def refuse(self, message: str) -> NoReturn:
        """Raises BadRequest."""
        raise BadRequest(message, param=self.path)

    def unsupported(self, message: str) -> NoReturn:
        """Refuses a feature that this server lacks."""
        word = next(word for word in reversed(self.path.split(".")) if not word.startswith("["))
        raise Unsupported(message, param=self.path, code=f"unsupported_{word}")

    # ---- types -----------------------------------------------------------------------------

    def required(self, words: str = "") -> Self:
        """The same field, which must be present; `words` replace the message of the error."""
        if self.value is None:
            raise MissingParameter(words or f"{self.path} is missing", param=self.path)
        return self

    def typed(self, kind: type, words: str) -> Any:
        """The value, of exactly this type, or None; `words` describe the type in an error."""
        if self.value is not None and type(self.value) is not kind:
            self.refuse(f"{self.path} is not {words}")
        return self.value

    def object(self) -> Self:
        """The same field, which must be an object; an empty object if absent."""
        return self.of(self.typed(dict, "an object") or {})

    def entry(self, what: str) -> Self:
        """The same item of a list, which must be an object; errors call it `what`."""
        if type(self.value) is not dict:
            self.refuse(f"{what} is an object")
        return self

    def items(self) -> Iterator[Self]:
        """The items of a list; an absent list counts as empty."""
        for i, value in enumerate(self.typed(list, "a list") or ()):
            yield type(self)(value, f"{self.path}.{self.ITEM % i}")

    def string(self) -> str | None:
        """A string, or None."""
        text: str | None = self.typed(str, "a string")
        return text

    def text(self) -> str:
        """A string, which must be present."""
        return self.required().string() or ""

    def boolean(self) -> bool:
        """True or false; false when absent."""
        return bool(self.typed(bool, "true or false"))

    # ---- numbers ---------------------------------------------------------------------------

    def integer(self, low: float, high: float) -> int | None:
        """A whole number in a range, or None."""
        value: int | None = self.typed(int, "a whole number")
        if value is not None:
            self._check_range(low, high)
        return value

    def number(self, low: float, high: float, default: float) -> float:
        """A number in a range, or the default."""
        if self._is_absent_number():
            return default
        self._check_range(low, high)
        return float(self.value)

    def clamped(self, low: float, high: float, default: float) -> float:
        """A number, clamped to a range; or the default."""
        return default if self._is_absent_number() else float(min(max(low, self.value), high))

    def _is_absent_number(self) -> bool:
        if self.value is not None and type(self.value) not in (int, float):
            self.refuse(f"{self.path} is not a number")
        return self.value is None

    def _check_range(self, low: float, high: float) -> None:
        if not low <= self.value <= high:
            self.refuse(f"{self.path} must be from {low} to {high}")
