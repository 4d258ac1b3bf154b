"""Numbers between bounds, as GBNF: each text that a grammar takes is a number of the schema.

Numbers are written out to DECIMALS places; very small and very large ones may have an exponent.
"""

from decimal import Decimal
from typing import Any

DIGITS = 20  # in front of the point, where no bound says how many
DECIMALS = 22  # behind it
_MAX_EXPONENT = 307  # with any digits in front of it, a float

Bound = Decimal | None


def number_rule(node: dict[str, Any]) -> str:
    """The GBNF of a schema with `minimum`, `maximum` (both may be taken) or `multipleOf`.

    >>> number_rule({"type": "integer", "minimum": 8, "maximum": 11})
    '([8-9] | "1" [0-1])'
    """
    low, high = (_decimal(node.get(key)) for key in ("minimum", "maximum"))
    step = _decimal(node.get("multipleOf"))
    n_decimals = 0 if node["type"] == "integer" else DECIMALS
    if step is not None:
        n_decimals = _n_decimals(step)
        if step != Decimal(1).scaleb(-n_decimals):
            return _signed(_multiples(step, n_decimals), low)
    has_exponents = n_decimals == DECIMALS
    parts = []
    if low is None or low < 0:
        least = Decimal(0) if high is None or high >= 0 else -high
        negative = _between(least, None if low is None else -low, n_decimals, has_exponents)
        parts.append(f'"-" ({negative})')
    if high is None or high >= 0:
        parts.append(_between(max(low or Decimal(0), Decimal(0)), high, n_decimals, has_exponents))
    return f"({' | '.join(parts)})"


def _decimal(value: int | float | None) -> Bound:
    return None if value is None else Decimal(repr(value))


def _n_decimals(value: Decimal) -> int:
    return max(-int(value.normalize().as_tuple().exponent), 0)


# ---- between two numbers that are not negative -------------------------------------------------


def _between(low: Decimal, high: Bound, n_decimals: int, has_exponents: bool) -> str:
    parts = _plain(low, high, n_decimals)
    if has_exponents:
        parts += _with_exponents(low, high)
    return " | ".join(parts)


def _plain(low: Decimal, high: Bound, n_decimals: int) -> list[str]:
    """Written out, by what stands in front of the point."""
    if n_decimals == 0:
        return [_from(int(low))] if high is None else _integers(int(low), int(high))
    first, low_digits = _split(low)
    if high is None:
        whole = f"{_from(first + 1)} {_fraction('', None, n_decimals)}".rstrip()
        return [*_with(str(first), _fraction(low_digits, None, n_decimals)), whole]
    last, high_digits = _split(high)
    if first == last:
        return _with(str(first), _fraction(low_digits, high_digits, n_decimals))
    parts = _with(str(first), _fraction(low_digits, None, n_decimals))
    free = _fraction("", None, n_decimals)
    parts += [f"{digits} {free}".rstrip() for digits in _integers(first + 1, last - 1)]
    return parts + _with(str(last), _fraction("", high_digits, n_decimals))


def _split(value: Decimal) -> tuple[int, str]:
    """(the digits in front of the point, those behind it without zeros at the end)."""
    whole, _, digits = f"{value:f}".partition(".")
    return int(whole), digits.rstrip("0")


def _with(whole: str, fraction: str | None) -> list[str]:
    return [] if fraction is None else [f'"{whole}" {fraction}'.rstrip()]


def _fraction(low: str, high: str | None, n_left: int) -> str | None:
    """What may follow the digits in front of the point; None for nothing at all.

    `low` and `high` are the digits that stand there at least and at most; None is for no end.
    """
    digits = _digits(low, high, n_left)
    if digits is None:
        return None if low else ""
    point = f'"." {digits}'
    return f"({point})" if low else f"({point})?"


def _digits(low: str, high: str | None, n_left: int) -> str | None:
    """At least one digit, up to `n_left`; None where there can be none."""
    if n_left == 0:
        return None
    if not low and high is None:
        return _run(1, n_left)
    if high == "":
        return None if low else f'"0"{{1,{n_left}}}'
    first, last = int(low[:1] or 0), int(high[:1] or 0) if high is not None else 9
    if first == last:
        return _then(first, low[1:], None if high is None else high[1:], n_left)
    # The first and the last digit go on within their bounds, those between as they like.
    parts = [_then(first, low[1:], None, n_left), _free(first + 1, last - 1, n_left)]
    parts.append(_then(last, "", None if high is None else high[1:], n_left))
    found = [part for part in parts if part is not None]
    return f"({' | '.join(found)})" if found else None


def _then(digit: int, low: str, high: str | None, n_left: int) -> str | None:
    more = _digits(low, high, n_left - 1)
    if more is None:
        return None if low else f'"{digit}"'
    return f'"{digit}" {more}' if low else f'"{digit}" ({more})?'


def _free(first: int, last: int, n_left: int) -> str | None:
    if first > last:
        return None
    return f"{_class(first, last)} {_run(0, n_left - 1)}".rstrip()


def _class(first: int, last: int) -> str:
    return f"[{first}-{last}]" if first < last else f'"{first}"'


def _run(low: int, high: int) -> str:
    return f"[0-9]{{{low},{high}}}" if high > 0 else ""


def _from(low: int) -> str:
    """Integers from `low` on, up to DIGITS digits."""
    n_digits = len(str(low))
    if low == 10 ** (n_digits - 1):
        return f"[1-9] [0-9]{{{n_digits - 1},{DIGITS - 1}}}"
    parts = _integers(low, 10**n_digits - 1)
    if n_digits < DIGITS:
        parts.append(f"[1-9] [0-9]{{{n_digits},{DIGITS - 1}}}")
    return f"({' | '.join(parts)})"


def _integers(low: int, high: int) -> list[str]:
    """The integers from `low` to `high`, 0 or more, without zeros in front."""
    parts = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)
        parts.append(_same_length(str(low), str(end)))
        low = end + 1
    return parts


def _same_length(low: str, high: str) -> str:
    n_same = next((i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b), len(low))
    head = f'"{low[:n_same]}" ' if n_same else ""
    if n_same == len(low):
        return head.rstrip()
    first, last, rest = int(low[n_same]), int(high[n_same]), len(low) - n_same - 1
    if not rest:
        return f"{head}{_class(first, last)}"
    low, high = low[n_same + 1 :], high[n_same + 1 :]
    parts = []
    if low.strip("0"):
        parts.append(f'"{first}" {_same_length(low, "9" * rest)}')
        first += 1
    tail = []
    if high.strip("9"):
        tail.append(f'"{last}" {_same_length("0" * rest, high)}')
        last -= 1
    if first <= last:
        parts.append(f"{_class(first, last)} [0-9]{{{rest}}}")
    return f"{head}({' | '.join(parts + tail)})"


def _with_exponents(low: Decimal, high: Bound) -> list[str]:
    """Numbers that are too small or too large to be written out, as 2.5e-7."""
    mantissa = f'[1-9] ("." {_run(1, DECIMALS)})? [eE]'
    parts = []
    if high is None:
        large = _integers(max(low.adjusted() + 1, 1), _MAX_EXPONENT)
        parts.append(f'{mantissa} "+"? "0"? ({" | ".join(large)})')
    # Not where nothing above 10 is a value: a model that began with 7 would have to go on with e-2.
    most = min(-low.adjusted() - 1, _MAX_EXPONENT) if low else _MAX_EXPONENT
    if (high is None or high >= 10) and most >= 2:
        parts.append(f'{mantissa} "-" "0"? ({" | ".join(_integers(2, most))})')
    return parts


# ---- multiples ---------------------------------------------------------------------------------


def _signed(rule: str, low: Bound) -> str:
    return f'("-"? ({rule}))' if low is None else f"({rule})"


def _multiples(step: Decimal, n_decimals: int) -> str:
    """Multiples of what divides a power of ten, told by their last digits."""
    unit = int(step.scaleb(n_decimals))
    n_digits = next(n for n in range(20) if 10**n % unit == 0)
    endings = [f"{n:0{n_digits}}" for n in range(0, 10**n_digits, unit)]
    n_ending_in_front = max(n_digits - n_decimals, 0)
    if not n_ending_in_front:  # any digits in front of the point
        return f'("0" | {_from(1)}) {_endings_behind(endings, n_decimals, n_digits)}'
    short = [str(n) for n in range(0, 10**n_digits, unit)]
    if n_decimals:
        short = [_pointed(text, n_decimals) for text in short]
        endings = [_pointed(text, n_decimals) for text in endings]
    few = " | ".join(f'"{text}"' for text in short)
    more = " | ".join(f'"{text}"' for text in endings)
    return f"{few} | {_from(1)} ({more})"


def _pointed(text: str, n_decimals: int) -> str:
    text = text.rjust(n_decimals + 1, "0")  # 25 -> 2.5
    return f"{text[:-n_decimals]}.{text[-n_decimals:]}".rstrip("0").rstrip(".")


def _endings_behind(endings: list[str], n_decimals: int, n_digits: int) -> str:
    free = n_decimals - n_digits
    texts = {*endings, *(each.rstrip("0") for each in endings)} - {""}
    listed = " | ".join(f'"{each}"' for each in sorted(texts))
    if not free:
        return f'("." ({listed}))?'
    return f'("." ({_run(1, free)} | [0-9]{{{free}}} ({listed})))?'
