"""llama.cpp's grammars of JSON schemas, corrected: its GBNF in, GBNF out. Pure.

It only knows bounds of integers, no steps, and no number of more than 16 digits; and its rule for
the names of an object's other properties is wrong for names that begin alike.
"""

import json
import re
from typing import Any

from lmlite.worker.grammars.number_grammar import DECIMALS, DIGITS, number_rule

Json = dict[str, Any]

_OF_NUMBERS = {"minimum", "maximum", "multipleOf"}
_RULE = re.compile(r"^([\w-]+) ::= (.*)$", re.MULTILINE)
_LITERAL = r'"(?:[^"\\]|\\.)*"'
_LONGER = {
    "integral-part": f"[0] | [1-9] [0-9]{{0,{DIGITS - 1}}}",
    "decimal-part": f"[0-9]{{1,{DECIMALS}}}",
    "number": '("-"? integral-part) ("." decimal-part)? ([eE] [-+]? [0-9]{1,3})?',
}
_OTHER_NAME = re.compile(r".*additional-k\d*")
_MEMBER = re.compile(rf'"({_LITERAL[1:-1]})" space ":" space ')
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def with_marks(request: Json, keys: tuple[str, ...]) -> tuple[Json, dict[str, str]]:
    """(the request with a number in place of each schema of numbers, their rules by that number).

    `keys` are the fields of the request that have schemas. llama.cpp writes such a constant into
    its grammar as a text, which `mended` replaces.
    """
    schemas = {key: request[key] for key in keys if key in request}
    text = json.dumps(schemas)
    # 19 digits: as many as a parser of JSON keeps in an integer.
    begin = next(n for n in map(str, range(10**12, 10**13)) if n not in text)
    rules: dict[str, str] = {}

    def marked(value: Any) -> Any:
        if type(value) is list:
            return [marked(each) for each in value]
        if type(value) is not dict or type(value.get("enum")) is list:
            return value
        if value.get("type") not in ("integer", "number") or not value.keys() & _OF_NUMBERS:
            return {key: marked(each) for key, each in value.items()}
        mark = f"{begin}{len(rules):06}"
        rules[mark] = number_rule(value)
        return {"type": value["type"], "const": int(mark)}

    return request | {key: marked(schema) for key, schema in schemas.items()}, rules


def mended(grammar: str, rules: dict[str, str]) -> str:
    """The grammar with the rules of numbers in it, and with right names and long numbers."""
    bodies = dict(_RULE.findall(grammar))
    changed = {name: body for name, body in _LONGER.items() if name in bodies}
    changed |= _names_of_others(bodies)

    def replaced(rule: re.Match[str]) -> str:
        body = changed.get(rule[1], rule[2])
        number = rules.get(body.strip('"'))
        return f"{rule[1]} ::= {number or body}"

    return _RULE.sub(replaced, grammar)


def _names_of_others(bodies: dict[str, str]) -> dict[str, str]:
    """New rules for the names that an object may have besides those that its schema names."""
    wrong = {name for name, body in bodies.items()
             if _OTHER_NAME.fullmatch(name) and body.startswith('["] (')}  # fmt: skip
    changed = {}
    for body in bodies.values() if wrong else ():
        if body.startswith('"{" space '):
            rules = re.findall(r"[\w-]+", re.sub(_LITERAL, "", body))
            members = [bodies.get(name, "") for name in dict.fromkeys(rules)]
            names = [_name_in(found[1]) for found in map(_MEMBER.match, members) if found]
            for key in wrong & {member.split(" ", 1)[0] for member in members}:
                changed[key] = f'"\\"" ({_other_than(names)}) "\\""'
    return changed


def _name_in(literal: str) -> str:
    """The name of a property, from a GBNF literal of it as JSON."""
    return str(json.loads(re.sub(r"\\(.)", r"\1", literal)))


def _other_than(names: list[str]) -> str:
    """GBNF of the texts that are none of these."""
    behind: dict[str, list[str]] = {}
    for name in names:
        behind.setdefault(name[:1], []).append(name[1:])
    may_end = behind.pop("", None) is None
    if not behind:
        return "char+"
    parts = [""] if may_end else []
    parts += [f"{_spelled(each)} ({_other_than(rest)})" for each, rest in behind.items()]
    plain = "".join(_code(each) for each in behind if each not in _ESCAPES)
    letters = (letter for each, letter in _ESCAPES.items() if each not in behind)
    parts.append(rf'[^"\\\x00-\x1F{plain}] char*')
    parts.append(rf"[\\] [{''.join(map(_code, letters))}] char*")
    return " | ".join(parts)


def _spelled(character: str) -> str:
    if character in _ESCAPES:
        return rf"[\\] [{_code(_ESCAPES[character])}]"
    return f"[{_code(character)}]"


def _code(character: str) -> str:
    return f"\\U{ord(character):08X}"
