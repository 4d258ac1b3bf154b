"""Rewrites bounds and steps of numbers in a JSON schema for the worker's grammars of numbers.

A rewritten schema has at most `minimum` and `maximum`, both inclusive, and a `multipleOf` whose
multiples can be recognized by their last digits; or it lists its values.
"""

import math
from decimal import Decimal
from fractions import Fraction

from lmlite.server.forms.bounds import Reading
from lmlite.server.forms.parts import Json

MAX_BOUND = 1e18
MAX_MULTIPLES = 100  # up to this number, multiples between bounds are listed
MAX_ENDINGS = 50  # different endings by which multiples are recognized
_ENDS = {"minimum": "minimum", "exclusiveMinimum": "minimum",
         "maximum": "maximum", "exclusiveMaximum": "maximum"}  # fmt: skip

Bound = Fraction | None


def number_node(schema: Json, is_integer: bool, reading: Reading, path: str) -> Json:
    """Rewrites the schema of an integer or a number. Raises Unheld."""
    step = _step(schema, is_integer, reading, path)
    is_integer = is_integer or (step is not None and step.denominator == 1)
    low, high = _bounds(schema, is_integer, reading, path)
    node: Json = {"type": "integer" if is_integer else "number"}
    if step is not None and low is not None and high is not None:
        multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
        if 0 < len(multiples) <= MAX_MULTIPLES:
            return node | {"enum": [_plain(n * step) for n in multiples]}
        if not multiples:
            reading.drop(f"{path}.multipleOf", "cannot be honoured: no number is left")
            step = None
    if step is not None:
        if _is_told_by_digits(step, low, high):
            node["multipleOf"] = _plain(step)
        else:
            reading.drop(f"{path}.multipleOf", "cannot be honoured beside these bounds, or alone")
    bounds = {"minimum": low, "maximum": high}
    return node | {key: _plain(end) for key, end in bounds.items() if end is not None}


def _bounds(schema: Json, is_integer: bool, reading: Reading, path: str) -> tuple[Bound, Bound]:
    """The smallest and the largest allowed number."""
    found: dict[str, list[Fraction]] = {"minimum": [], "maximum": []}
    for key in (key for key in schema if key in _ENDS):
        value = schema[key]
        if type(value) not in (int, float):
            reading.drop(f"{path}.{key}", "is not a number")
        elif not abs(value) <= MAX_BOUND:  # NaN, too
            reading.drop(f"{path}.{key}", f"is beyond {MAX_BOUND:.0e}")
        else:
            found[_ENDS[key]].append(_inside(value, key, is_integer))
    low, high = max(found["minimum"], default=None), min(found["maximum"], default=None)
    if low is not None and high is not None and low > high:
        key = next(key for key in schema if key in _ENDS)
        reading.drop(f"{path}.{key}", "cannot be honoured: no number is left")
        return None, None
    return low, high


def _inside(value: float, key: str, is_integer: bool) -> Fraction:
    """The last number that a bound allows: for an exclusive bound, the next float or integer."""
    sign = 1 if _ENDS[key] == "minimum" else -1
    is_exclusive = key.startswith("exclusive")
    if is_integer:
        exact = sign * (value if type(value) is int else Fraction(repr(value)))
        return Fraction(sign * (math.floor(exact) + 1 if is_exclusive else math.ceil(exact)))
    return Fraction(repr(math.nextafter(value, sign * math.inf) if is_exclusive else value))


def _step(schema: Json, is_integer: bool, reading: Reading, path: str) -> Bound:
    if "multipleOf" not in schema:
        return None
    value = schema["multipleOf"]
    if type(value) not in (int, float) or not 1e-9 <= value <= MAX_BOUND:
        reading.drop(f"{path}.multipleOf", "is not a number from 1e-9 on")
        return None
    step = Fraction(repr(value))
    # An integer is a multiple of 3/2 exactly if it is a multiple of 3.
    step = Fraction(step.numerator) if is_integer else step
    return None if is_integer and step == 1 else step


def _is_told_by_digits(step: Fraction, low: Bound, high: Bound) -> bool:
    """Whether multiples are recognized by their last digits; with bounds, only for 1, 0.1, ..."""
    decimals = -min(int(Decimal(str(_plain(step))).normalize().as_tuple().exponent), 0)
    unit = step * 10**decimals
    if unit == 1:
        return True
    n_digits = next((n for n in range(7) if 10**n % unit == 0), None)
    if n_digits is None or 10**n_digits / unit > MAX_ENDINGS:
        return False
    return high is None and low in (None, 0)


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)
