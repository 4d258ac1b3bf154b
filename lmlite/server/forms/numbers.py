"""Numbers of a JSON schema: their bounds and steps, as the worker writes grammars of them.

What comes out has `minimum` and `maximum` alone, both among the values, and a `multipleOf` whose
multiples can be told by their last digits; or it lists its values.
"""

import math
from decimal import Decimal
from fractions import Fraction

from lmlite.server.forms.faults import Faults
from lmlite.server.forms.parts import Json

LOW, HIGH = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
MAX_BOUND = 1e18
MAX_MULTIPLES = 100  # that are listed
MAX_ENDINGS = 50  # of digits, by which multiples are told

Bound = Fraction | None


def number_node(said: Json, is_integer: bool, faults: Faults, path: str) -> Json:
    """The values of one of the two types. Raises Unheld."""
    ends = [_bound(said, keys, is_integer, faults, path) for keys in (LOW, HIGH)]
    low, high = ends
    step = _step(said, is_integer, faults, path)
    if step is not None and step.denominator == 1:
        is_integer = True
    if is_integer:
        low, high = _rounded(low, math.ceil), _rounded(high, math.floor)
    if low is not None and high is not None and low > high:
        key = next(key for key in said if key in LOW + HIGH)
        faults.drop(f"{path}.{key}", "cannot be honoured: no number is left")
        low = high = None
    node: Json = {"type": "integer" if is_integer else "number"}
    if step is not None:
        if low is not None and high is not None and (high - low) / step < MAX_MULTIPLES:
            return _listed(low, high, step, node, faults, path)
        if _can_be_told(step, low, high):
            node["multipleOf"] = _plain(step)
        else:
            faults.drop(f"{path}.multipleOf", "cannot be honoured beside these bounds, or alone")
    bounds = {"minimum": low, "maximum": high}
    return node | {key: _plain(end) for key, end in bounds.items() if end is not None}


def _bound(said: Json, keys: tuple[str, str], is_integer: bool, faults: Faults, path: str) -> Bound:
    """The last value that may be taken at one end."""
    found = []
    for key in (key for key in keys if key in said):
        value = said[key]
        if type(value) not in (int, float) or not math.isfinite(value):
            faults.drop(f"{path}.{key}", "is not a number")
        elif abs(value) > MAX_BOUND:
            faults.drop(f"{path}.{key}", f"is beyond {MAX_BOUND:.0e}")
        elif key == keys[0]:
            found.append(Fraction(repr(value)))
        else:
            found.append(_next(value, 1 if keys is LOW else -1, is_integer))
    if not found:
        return None
    return max(found) if keys is LOW else min(found)


def _next(value: float, sign: int, is_integer: bool) -> Fraction:
    """The number beside an exclusive bound. Between it and the bound lies no other float."""
    if is_integer:
        return Fraction(math.floor(value) + 1 if sign > 0 else math.ceil(value) - 1)
    return Fraction(repr(math.nextafter(value, sign * math.inf)))


def _step(said: Json, is_integer: bool, faults: Faults, path: str) -> Bound:
    if "multipleOf" not in said:
        return None
    value = said["multipleOf"]
    if type(value) not in (int, float) or not 1e-9 <= value <= MAX_BOUND:
        faults.drop(f"{path}.multipleOf", "is not a number from 1e-9 on")
        return None
    step = Fraction(repr(value))
    # An integer is a multiple of 3/2 if it is one of 3.
    step = Fraction(step.numerator) if is_integer else step
    return None if is_integer and step == 1 else step


def _listed(
    low: Fraction, high: Fraction, step: Fraction, node: Json, faults: Faults, path: str
) -> Json:
    multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
    if not multiples:
        faults.drop(f"{path}.multipleOf", "cannot be honoured: no number is left")
        return node | {"minimum": _plain(low), "maximum": _plain(high)}
    return node | {"enum": [_plain(n * step) for n in multiples]}


def _can_be_told(step: Fraction, low: Bound, high: Bound) -> bool:
    """Whether a multiple shows by its last digits; beside bounds only those of 1, 0.1, 0.01..."""
    decimals = -min(int(Decimal(str(_plain(step))).normalize().as_tuple().exponent), 0)
    unit = step * 10**decimals
    if unit == 1:
        return True
    n_digits = next((n for n in range(7) if 10**n % unit == 0), None)
    if n_digits is None or 10**n_digits / unit > MAX_ENDINGS:
        return False
    return high is None and low in (None, 0)


def _rounded(end: Bound, how: type[int] | object) -> Bound:
    return None if end is None else Fraction(how(end))  # type: ignore[operator]


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)
