"""Corrects llama.cpp's grammars of JSON schemas: GBNF in, GBNF out. Pure.

llama.cpp supports bounds only for integers, no multipleOf, and at most 16 digits in a number. Its
rule for names of additional properties is wrong if two properties start with the same character.
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
    """(the request with a constant in place of each schema of numbers, their rules by constant).

    `keys`: the fields of the request that have schemas. llama.cpp copies the constant into its
    grammar, where `mended` replaces it with the rule.
    """
    schemas = {key: request[key] for key in keys if key in request}
    text = json.dumps(schemas)
    # 19 digits in all, which still fit in a 64-bit integer of a JSON parser.
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
    """The grammar with the rules of numbers, and with corrected names and longer numbers."""
    bodies = dict(_RULE.findall(grammar))
    changed = {name: body for name, body in _LONGER.items() if name in bodies}
    changed |= _names_of_others(bodies)

    def replaced(rule: re.Match[str]) -> str:
        body = changed.get(rule[1], rule[2])
        number = rules.get(body.strip('"'))
        return f"{rule[1]} ::= {number or body}"

    return _RULE.sub(replaced, grammar)


def _names_of_others(bodies: dict[str, str]) -> dict[str, str]:
    """Corrected rules for the names of additional properties."""
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
    """The name of a property, from a GBNF literal that contains the name as JSON."""
    return str(json.loads(re.sub(r"\\(.)", r"\1", literal)))


def _other_than(names: list[str]) -> str:
    """GBNF of all JSON texts except these names."""
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
