"""Grammars of numbers take exactly the numbers between their bounds."""

import random
import re
from decimal import Decimal
from typing import Any

import pytest

from lmlite.worker.grammars.number_grammar import number_rule


def takes(node: dict[str, Any], text: str) -> bool:
    """Whether the rule takes a text. Without its quotes, the rule is a regular expression."""
    rule = re.sub(
        r'"([^"]*)"|\s+', lambda m: f"(?:{re.escape(m[1])})" if m[1] else "", number_rule(node)
    )
    return re.fullmatch(rule, text) is not None


def node(**more: Any) -> dict[str, Any]:
    return {"type": "number", **more}


@pytest.mark.parametrize(("schema", "taken", "refused"), [
    ({"type": "integer", "minimum": -17, "maximum": 1234}, "-17 -9 0 9 10 1234", "-18 1235 01 1.0"),
    ({"type": "integer", "minimum": 100}, "100 101 999 1000 12345678901234567890", "99 10 -100"),
    ({"type": "integer", "maximum": -3}, "-3 -10 -99", "-2 0 3 -0"),
    ({"type": "integer", "minimum": 95, "maximum": 105}, "95 99 100 105", "94 106 10"),
    (node(minimum=0, maximum=1), "0 1 0.0 1.0 0.5 0.99 0.00001", "1e-5 1.01 2 -0.1 1e5"),
    (node(minimum=-0.25, maximum=0.125), "-0.25 -0.2 0 0.125 0.1249 0.1", "-0.26 -1 0.1251 0.13"),
    (node(minimum=5e-324), "0.1 1 1e-5 1e300 3", "0 0.0 -1"),
    (node(minimum=0.1, maximum=0.3), "0.1 0.10 0.2 0.3 0.30", "0 0.09 0.31 1 0.300001"),
    (node(minimum=9.5, maximum=10.5), "9.5 9.99 10 10.5 10.0", "9.4 9 10.51 11"),
    (node(minimum=1000), "1000 1000.5 1e4 2.5e+7 10000", "999.9 1e3 1e2"),
    (node(maximum=-2.5), "-2.5 -3 -2.51 -1e9", "-2 -2.4 0 2.5"),
    (node(multipleOf=0.01), "0 1.5 -3.25 100", "0.001"),
    (node(multipleOf=0.01, minimum=0), "0.01 9.99 0", "-1 0.005"),
    (node(multipleOf=0.25), "0.25 0.5 0.50 1 -7.75", "0.2 0.3 0.255"),
    (node(multipleOf=2.5), "0 2.5 5 7.5 10 12.5 -25", "1 2 2.6 11"),
    (node(multipleOf=0.002), "0.1 0.002 0.01 1 1.998", "0.001 0.0002"),
    ({"type": "integer", "multipleOf": 5}, "0 5 10 95 -15", "1 12"),
    ({"type": "integer", "multipleOf": 4, "minimum": 0}, "0 4 8 96 100 104", "-4 2 102"),
])  # fmt: skip
def test_a_rule_takes_the_numbers_between_its_bounds(
    schema: dict[str, Any], taken: str, refused: str
) -> None:
    assert [text for text in taken.split() if not takes(schema, text)] == []
    assert [text for text in refused.split() if takes(schema, text)] == []


def bound(rng: random.Random) -> float:
    scale = 10 ** rng.randrange(-4, 7)
    return float(round(rng.uniform(-1, 1) * scale, rng.randrange(1, 8)))


def test_random_bounds_take_exactly_the_numbers_between_them() -> None:
    rng = random.Random(1)
    for _ in range(1500):
        low, high = sorted((bound(rng), bound(rng)))
        schema = node(**rng.choice([{"minimum": low}, {"maximum": high},
                                    {"minimum": low, "maximum": high}]))  # fmt: skip
        for near in (low, high, (low + high) / 2, rng.uniform(low, high), 0.0):
            for value in (near, near + 10 ** -rng.randrange(8), near - 10 ** -rng.randrange(8)):
                fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
                text = f"{Decimal(repr(value + 0.0)):f}"
                assert takes(schema, text) == fits, (schema, text)
