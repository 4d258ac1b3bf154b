"""Bounds of a client's grammar in llama.cpp's GBNF, checked before llama.cpp reads it.

llama.cpp cannot be interrupted while it reads a grammar, writes each repetition out, and does not
notice all rules that begin with themselves, which then fill the memory. Whether a text is a
grammar at all, it decides itself. What passes here may still be slow to sample, if it is
ambiguous: that is what `--allow-grammar` is for.
"""

import re
from dataclasses import dataclass, field

from lmlite.errors import BadRequest

MAX_BYTES = 16 << 10
MAX_DEPTH = 64  # of parentheses
MAX_COUNT = 1000
MAX_RULES = 500  # and groups, each of which is a rule of its own
MAX_ELEMENTS = 40_000  # with all repetitions written out: 20 ms for llama.cpp
MAX_PRODUCT = 10_000  # of counts inside each other
MAX_BEGINNINGS = 250  # of what a rule may begin with

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
    """A text or a rule's name in a sequence, and how often it comes."""

    name: str  # "" for a text
    size: int = 1  # elements that llama.cpp makes of it
    low: int = 1
    high: int | None = 1


@dataclass
class _Grammar:
    rules: dict[str, list[list[_Item]]] = field(default_factory=dict)  # sequences to choose from
    empty: set[str] = field(default_factory=set)  # rules that take the empty text


def checked_grammar(text: str, path: str = "grammar") -> str:
    """The grammar at `path`, as it is. Raises BadRequest for one that would hold a worker."""
    try:
        if len(text.encode()) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES >> 10} KiB")
        if "\0" in text:
            raise ValueError("has a NUL in it")
        grammar = _parsed(text)
        if "root" not in grammar.rules:
            raise ValueError("has no rule that is called root")
        _note_empty(grammar)
        _check_beginnings(grammar)
        _check_counts(grammar)
    except ValueError as err:
        raise BadRequest(f"{path} {err}", param=path) from None
    except RecursionError:
        why = "leads through too many rules from one to another"
        raise BadRequest(f"{path} {why}", param=path) from None
    return text


def _parsed(text: str) -> _Grammar:
    grammar = _Grammar()
    open_rules: list[str] = []  # the rule that is written, and the groups that are open in it
    for token in _TOKEN.finditer(text):
        word = token[0]
        if token["comment"] is not None:
            continue
        if token["rule"] is not None:
            open_rules = [token["rule"]]
            grammar.rules[token["rule"]] = [[]]
        elif not open_rules or token["other"]:
            raise ValueError(f"has {word[:20]!r} where no such thing is expected")
        elif word == "|":
            grammar.rules[open_rules[-1]].append([])
        elif word == ")":
            open_rules.pop()
        else:
            _add(grammar, open_rules, token)
        if len(open_rules) > MAX_DEPTH or len(grammar.rules) > MAX_RULES:
            raise ValueError(f"has more than {MAX_RULES} rules, or {MAX_DEPTH} groups in a group")
    return grammar


def _add(grammar: _Grammar, open_rules: list[str], token: re.Match[str]) -> None:
    """A text, a name, a group or a count at the end of the sequence that is written."""
    sequence = grammar.rules[open_rules[-1]][-1]
    if token["count"] is not None:
        if not sequence or (sequence[-1].low, sequence[-1].high) != (1, 1):
            raise ValueError(f"has {token[0]!r} behind nothing that it could repeat")
        sequence[-1].low, sequence[-1].high = _count(token)
    elif token[0] == "(":
        group = f"({len(grammar.rules)}"
        grammar.rules[group] = [[]]
        sequence.append(_Item(group))
        open_rules.append(group)
    else:
        # A text of which nothing is left is one that may be empty.
        size = 1 if token["name"] else len(token[0])
        is_empty = token[0] in ('""', "[]", "[^]")
        sequence.append(_Item(token["name"] or "", size, low=int(not is_empty)))


def _count(token: re.Match[str]) -> tuple[int, int | None]:
    if token["low"] is None:
        return int(token[0] == "+"), 1 if token[0] == "?" else None
    # Nine digits are enough to be too many.
    low, high = int(token["low"].lstrip("0")[:9] or "0"), token["high"].lstrip("0")[:9]
    most = (int(high or "0") if token["high"] else None) if token["comma"] else low
    if most is not None and low > most:
        raise ValueError(f"has a {token[0]} whose first number is the greater one")
    if max(low, most or 0) > MAX_COUNT:
        raise ValueError(f"repeats a part more than {MAX_COUNT:,} times")
    return low, most


def _note_empty(grammar: _Grammar) -> None:
    """Finds the rules that take the empty text."""
    n_before = -1
    while n_before < len(grammar.empty):
        n_before = len(grammar.empty)
        for name, sequences in grammar.rules.items():
            if any(all(_may_be_empty(grammar, item) for item in each) for each in sequences):
                grammar.empty.add(name)


def _may_be_empty(grammar: _Grammar, item: _Item) -> bool:
    return item.low == 0 or item.name in grammar.empty


def _check_beginnings(grammar: _Grammar) -> None:
    """No rule begins with itself, repeats what may be empty, or begins in too many ways."""
    known: dict[str, int] = {}  # beginnings of each rule; 0 while they are counted

    def count(name: str) -> int:
        if name not in known:
            known[name] = 0
            known[name] = sum(count_sequence(each) for each in grammar.rules.get(name, [])) + 1
        elif known[name] == 0:
            raise ValueError(f"has a rule {name} that begins with itself")
        if known[name] > MAX_BEGINNINGS:
            raise ValueError(f"may begin in more than {MAX_BEGINNINGS:,} ways")
        return known[name]

    def count_sequence(items: list[_Item]) -> int:
        n_found = 0
        for item in items:
            n_found += count(item.name) if item.name else 1
            if not _may_be_empty(grammar, item):
                break
        return n_found

    for name in grammar.rules:
        count(name)


def _check_counts(grammar: _Grammar) -> None:
    """What llama.cpp writes out is not too much, nor are counts of counts."""
    products: dict[str, int] = {}  # of the counts inside each rule; 1 while they are looked for

    def product(name: str) -> int:
        if name not in products:
            products[name] = 1
            items = [item for each in grammar.rules.get(name, []) for item in each]
            inner = (_times(item) * (product(item.name) if item.name else 1) for item in items)
            products[name] = max(inner, default=1)
        if products[name] > MAX_PRODUCT:
            raise ValueError(f"has counts inside counts that come to more than {MAX_PRODUCT:,}")
        return products[name]

    n_elements = 0
    for name, sequences in grammar.rules.items():
        for item in (item for each in sequences for item in each):
            n_elements += item.size * _times(item)
            if item.high != 1 and item.name in grammar.empty:
                raise ValueError("repeats a part that may be empty")
        product(name)
    if n_elements > MAX_ELEMENTS:
        raise ValueError(f"has more than {MAX_ELEMENTS:,} parts, with all repetitions")


def _times(item: _Item) -> int:
    return max(item.low, item.high or 1, 1)
