"""Checks the size of a client's GBNF grammar before llama.cpp reads it.

llama.cpp cannot be interrupted while it reads a grammar. It expands each repetition, and does not
detect every left-recursive rule, which then fills the memory. The syntax is checked by llama.cpp,
not here. Sampling with an ambiguous grammar may still be slow even within these limits, so
grammars are accepted only with --allow-grammar.
"""

import re
from dataclasses import dataclass

from lmlite.errors import BadRequest

MAX_BYTES = 16 << 10
MAX_DEPTH = 64  # nested parentheses
MAX_COUNT = 1000  # the largest number of a repetition
MAX_RULES = 500  # including groups: for llama.cpp each group is a rule
MAX_ELEMENTS = 40_000  # after all repetitions are expanded; llama.cpp reads these in 20 ms
MAX_PRODUCT = 10_000  # the largest product of the counts of nested repetitions
MAX_BEGINNINGS = 250  # ways in which a rule may begin

_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
    | (?P<text>"(?:\\.|[^"\\])*" | \[(?:\\.|[^\]\\])*\] | !?<[^>]*> | \.)
    | (?P<rule>[A-Za-z0-9-]+)\s*::=
    | (?P<name>[A-Za-z0-9-]+)
    | (?P<count>[*+?] | \{\s*(?P<low>\d+)\s*(?P<comma>,?)\s*(?P<high>\d*)\s*\})
    | (?P<sign>[()|])
    | (?P<other>\S)""",
    re.DOTALL | re.VERBOSE,
)


@dataclass
class _Item:
    """A literal, a rule's name or a group in a sequence, and how often it is repeated."""

    name: str  # "" for a literal
    size: int = 1  # elements that llama.cpp makes from it
    low: int = 1
    high: int | None = 1

    @property
    def times(self) -> int:
        """How many copies llama.cpp makes when it expands the repetition."""
        return max(self.low, self.high or 1, 1)


_Rules = dict[str, list[list[_Item]]]  # by name: the alternative sequences


def checked_grammar(text: str, path: str = "grammar") -> str:
    """Returns the grammar of the field `path` unchanged. Raises BadRequest if it is too costly."""
    try:
        if len(text.encode()) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES >> 10} KiB")
        if "\0" in text:
            raise ValueError("has a NUL in it")
        rules = _parsed(text)
        if "root" not in rules:
            raise ValueError("has no rule that is called root")
        _check_counts(rules, _empty(rules))
    except ValueError as err:
        raise BadRequest(f"{path} {err}", param=path) from None
    except RecursionError:
        why = "leads through too many rules from one to another"
        raise BadRequest(f"{path} {why}", param=path) from None
    return text


def _parsed(text: str) -> _Rules:
    rules: _Rules = {}
    open_rules: list[str] = []  # the current rule, and its groups that are not closed yet
    for token in _TOKEN.finditer(text):
        word = token[0]
        if token["comment"] is not None:
            continue
        if token["rule"] is not None:
            open_rules = [token["rule"]]
            rules[token["rule"]] = [[]]
        elif not open_rules or token["other"]:
            raise ValueError(f"has {word[:20]!r} in the wrong place")
        elif word == "|":
            rules[open_rules[-1]].append([])
        elif word == ")":
            open_rules.pop()
        elif word == "(":
            group = f"({len(rules)}"
            rules[open_rules[-1]][-1].append(_Item(group))
            rules[group] = [[]]
            open_rules.append(group)
        else:
            _add(rules[open_rules[-1]][-1], token)
        if len(open_rules) > MAX_DEPTH or len(rules) > MAX_RULES:
            raise ValueError(f"has more than {MAX_RULES} rules, or {MAX_DEPTH} groups in a group")
    return rules


def _add(sequence: list[_Item], token: re.Match[str]) -> None:
    """Appends a literal or a name to a sequence, or sets the repetition of the last item."""
    if token["name"] is not None:
        sequence.append(_Item(token["name"]))
    elif token["text"] is not None:
        is_empty = token[0] in ('""', "[]", "[^]")
        sequence.append(_Item("", len(token[0]), low=int(not is_empty)))
    elif sequence and (sequence[-1].low, sequence[-1].high) == (1, 1):
        sequence[-1].low, sequence[-1].high = _count(token)
    else:
        raise ValueError(f"has {token[0]!r} with nothing before it to repeat")


def _count(token: re.Match[str]) -> tuple[int, int | None]:
    if token["low"] is None:
        return int(token[0] == "+"), 1 if token[0] == "?" else None
    # Ten digits are enough to exceed MAX_COUNT.
    low = int(token["low"].lstrip("0")[:10] or "0")
    high = int(token["high"].lstrip("0")[:10] or "0") if token["high"] else None
    most = high if token["comma"] else low
    if most is not None and low > most:
        raise ValueError(f"has a {token[0]} whose first number is the greater one")
    if max(low, most or 0) > MAX_COUNT:
        raise ValueError(f"repeats a part more than {MAX_COUNT:,} times")
    return low, most


def _empty(rules: _Rules) -> set[str]:
    """The rules that match the empty text. Raises ValueError for left recursion."""
    known: dict[str, int] = {}  # number of ways in which each rule may begin; 0 during counting
    empty: set[str] = set()

    def count(name: str) -> int:
        if name not in known:
            known[name] = 0
            known[name] = 1 + sum(count_first(name, items) for items in rules.get(name, ()))
        elif known[name] == 0:
            raise ValueError(f"has a rule {name} that begins with itself")
        if known[name] > MAX_BEGINNINGS:
            raise ValueError(f"may begin in more than {MAX_BEGINNINGS:,} ways")
        return known[name]

    def count_first(name: str, items: list[_Item]) -> int:
        n_found = 0
        for item in items:
            n_found += count(item.name) if item.name else 1
            if item.low > 0 and item.name not in empty:
                return n_found
        empty.add(name)
        return n_found

    for name in rules:
        count(name)
    return empty


def _check_counts(rules: _Rules, empty: set[str]) -> None:
    """Raises ValueError for repetitions of empty parts, and for too large expansions."""
    products: dict[str, int] = {}  # product of the counts inside each rule; 1 during computation

    def product(name: str) -> int:
        if name not in products:
            products[name] = 1
            items = [item for each in rules.get(name, ()) for item in each]
            inner = (item.times * (product(item.name) if item.name else 1) for item in items)
            products[name] = max(inner, default=1)
        if products[name] > MAX_PRODUCT:
            raise ValueError(f"has counts inside counts that come to more than {MAX_PRODUCT:,}")
        return products[name]

    items = [item for name in rules for each in rules[name] for item in each]
    if any(item.high != 1 and item.name in empty for item in items):
        raise ValueError("repeats a part that may be empty")
    if sum(item.size * item.times for item in items) > MAX_ELEMENTS:
        raise ValueError(f"has more than {MAX_ELEMENTS:,} parts, with all repetitions")
    for name in rules:
        product(name)
