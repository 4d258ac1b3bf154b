"""GBNF of numbers between bounds: every text that the grammar allows is valid for the schema.

Numbers have at most DECIMALS decimals. Very small and very large ones may have an exponent.
"""

import math
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

DIGITS = 20  # most digits before the point if there is no bound
DECIMALS = 22  # most digits after the point
_MAX_EXPONENT = 307  # with it, any mantissa below 10 is still a finite float


def number_rule(node: dict[str, Any]) -> str:
    """GBNF for a schema with `minimum`, `maximum` (both inclusive) or `multipleOf`.

    >>> number_rule({"type": "integer", "minimum": 8, "maximum": 11})
    '([8-9] | "1" [0-1])'
    """
    low, high, step = (
        Decimal(repr(node[key])) if key in node else None
        for key in ("minimum", "maximum", "multipleOf")
    )
    n_decimals = 0 if node["type"] == "integer" else DECIMALS
    if step is not None:
        n_decimals = max(-int(step.normalize().as_tuple().exponent), 0)
        if step != Decimal(1).scaleb(-n_decimals):
            sign = '"-"? ' if low is None else ""
            return f"({sign}({_multiples(int(step.scaleb(n_decimals)), n_decimals)}))"
    parts = []
    if low is None or low < 0:
        least = Decimal(0) if high is None else max(-high, Decimal(0))
        negative = _between(least, None if low is None else -low, n_decimals)
        parts.append(f'"-" ({" | ".join(negative)})')
    if high is None or high >= 0:
        parts += _between(max(low or Decimal(0), Decimal(0)), high, n_decimals)
    return f"({' | '.join(parts)})"


# ---- between two numbers that are not negative -------------------------------------------------


def _between(low: Decimal, high: Decimal | None, n_decimals: int) -> list[str]:
    parts = _written_out(low, high, n_decimals)
    if n_decimals < DECIMALS:
        return parts
    mantissa = f'[1-9] ("." [0-9]{{1,{DECIMALS}}})? [eE]'
    if high is None:
        large = " | ".join(_integers(max(low.adjusted() + 1, 1), _MAX_EXPONENT))
        parts.append(f'{mantissa} "+"? "0"? ({large})')
    # Not if all numbers are below 10: a model that starts with 7 might be forced to go on with e-2.
    most = min(-low.adjusted() - 1, _MAX_EXPONENT) if low else _MAX_EXPONENT
    if (high is None or high >= 10) and most >= 2:
        small = " | ".join(_integers(2, most))
        parts.append(f'{mantissa} "-" "0"? ({small})')
    return parts


def _integers(low: int, high: int) -> list[str]:
    return _written_out(Decimal(low), Decimal(high), 0)


def _written_out(low: Decimal, high: Decimal | None, n_decimals: int) -> list[str]:
    """Numbers without exponents: an alternative for each number of digits before the point."""
    # From here on, numbers are integers in units of the last decimal.
    at = math.ceil(Fraction(low) * 10**n_decimals)
    n_digits = max(len(str(at)), n_decimals + 1)
    last = 10**n_digits - 1 if high is None else math.floor(Fraction(high) * 10**n_decimals)
    parts = []
    while at <= last:
        n_digits = max(len(str(at)), n_decimals + 1)
        end = min(last, 10**n_digits - 1)
        parts.append(_digits(f"{at:0{n_digits}}", f"{end:0{n_digits}}", n_digits - n_decimals))
        at = end + 1
    if high is None:
        parts.append(f"[1-9] {_run(n_digits - n_decimals, DIGITS - 1, n_decimals)}")
    return parts


def _digits(low: str, high: str, n_whole: int) -> str:
    """GBNF of the digits from `low` to `high`, which have the same length.

    The point comes after the first `n_whole` digits. Zeros at the end of decimals may be omitted.
    """
    n, most = len(low), high[:1]
    if not low.strip("0") and most in ("0", "9") and not high.strip(most):
        return _run(n_whole, n_whole, n - n_whole, most) if n_whole > 0 else f"[0-{most}]{{1,{n}}}"
    first, last, zeros, nines = int(low[:1]), int(most), "0" * (n - 1), "9" * (n - 1)
    if first == last:
        spans = [(first, last, low[1:], high[1:])]
    else:
        # After the first and after the last digit the bounds go on; between them all is allowed.
        begin, end = first + (low[1:] != zeros), last - (high[1:] != nines)
        spans = [(first, first, low[1:], nines)] if begin > first else []
        spans += [(begin, end, zeros, nines)] if begin <= end else []
        spans += [(last, last, zeros, high[1:])] if end < last else []
    parts = []
    for begin, end, inner_low, inner_high in spans:
        digit = f"[{begin}-{end}]" if begin < end else f'"{begin}"'
        rest = _digits(inner_low, inner_high, n_whole - 1) if inner_low else ""
        if rest and n_whole == 1:
            rest = f'"." {rest}'
        if rest and n_whole <= 1 and inner_low == zeros:
            rest = f"({rest})?"
        parts.append(f"{digit} {rest}".rstrip())
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _run(low: int, high: int, n_decimals: int, most: str = "9") -> str:
    """From `low` to `high` digits before the point, and optional decimals."""
    whole = f"[0-{most}]{{{low},{high}}}"
    return f'{whole} ("." [0-{most}]{{1,{n_decimals}}})?' if n_decimals else whole


# ---- multiples ---------------------------------------------------------------------------------


def _multiples(unit: int, n_decimals: int) -> str:
    """Multiples of a number that divides a power of ten. Their last digits identify them."""
    n_digits = next(n for n in range(20) if 10**n % unit == 0)
    endings = [f"{n:0{n_digits}}" for n in range(0, 10**n_digits, unit)]
    n_free = n_decimals - n_digits  # decimals before the ending
    large = f"[1-9] [0-9]{{0,{DIGITS - 1}}}"
    if n_free < 0:
        few = (_pointed(str(int(ending)), n_decimals) for ending in endings)
        more = (_pointed(ending, n_decimals) for ending in endings)
        return f"{_either(few)} | {large} ({_either(more)})"
    listed = _either({*endings, *(ending.rstrip("0") for ending in endings)} - {""})
    free = f"[0-9]{{1,{n_free}}} | [0-9]{{{n_free}}} " if n_free else ""
    return f'("0" | {large}) ("." ({free}({listed})))?'


def _pointed(text: str, n_decimals: int) -> str:
    if not n_decimals:
        return text
    text = text.rjust(n_decimals + 1, "0")  # 25 -> 2.5
    return f"{text[:-n_decimals]}.{text[-n_decimals:]}".rstrip("0").rstrip(".")


def _either(texts: Iterable[str]) -> str:
    return " | ".join(f'"{text}"' for text in sorted(texts))
