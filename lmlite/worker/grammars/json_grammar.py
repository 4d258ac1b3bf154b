"""What llama.cpp's grammars of JSON schemas lack, put right: its GBNF in, GBNF out.

It knows no bounds of numbers that are not integers, and no steps; it writes no number of more than
16 digits; and the rule of an object's other names is wrong for names that begin alike. Pure.
"""

import json
import re
from typing import Any

from lmlite.worker.grammars.number_grammar import DECIMALS, DIGITS, number_rule

Json = dict[str, Any]

_OF_NUMBERS = ("minimum", "maximum", "multipleOf")
_WITH_SCHEMAS = ("anyOf", "items", "prefixItems", "additionalProperties")
_RULE = re.compile(r"^([\w-]+) ::= (.*)$", re.MULTILINE)
_LONGER = {
    "integral-part": f"[0] | [1-9] [0-9]{{0,{DIGITS - 1}}}",
    "decimal-part": f"[0-9]{{1,{DECIMALS}}}",
    "number": '("-"? integral-part) ("." decimal-part)? ([eE] [-+]? [0-9]{1,3})?',
}
_OTHER_NAME = re.compile(r".*additional-k\d*")
_KEY = re.compile(r'("(?:[^"\\]|\\.)*") space ":" space ')
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


# ---- numbers -----------------------------------------------------------------------------------


def with_marks(request: Json, keys: tuple[str, ...]) -> tuple[Json, dict[str, str]]:
    """(the request with a number in place of each schema of numbers, their rules by that number).

    `keys` are the fields of the request that have schemas.

    llama.cpp writes such a constant into its grammar as a text, which `mended` replaces.
    """
    schemas = {key: request[key] for key in keys if key in request}
    if not schemas:
        return request, {}
    text = json.dumps(schemas)
    # 19 digits: as many as a parser of JSON keeps in an integer.
    begin = next(n for n in map(str, range(10**12, 10**13)) if n not in text)
    rules: dict[str, str] = {}

    def marked(schema: Any) -> Any:
        if type(schema) is list:
            return [marked(each) for each in schema]
        if type(schema) is not dict or "enum" in schema:
            return schema
        if schema.get("type") in ("integer", "number") and any(
            key in schema for key in _OF_NUMBERS
        ):
            mark = f"{begin}{len(rules):06}"
            rules[mark] = number_rule(schema)
            return {"type": schema["type"], "const": int(mark)}
        found = {key: marked(schema[key]) for key in _WITH_SCHEMAS if key in schema}
        for key in ("properties", "$defs"):
            if key in schema:
                found[key] = {name: marked(each) for name, each in schema[key].items()}
        return schema | found

    found = {key: marked(schema) for key, schema in schemas.items()}
    return (request | found, rules) if rules else (request, {})


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


# ---- names of other properties -----------------------------------------------------------------


def _names_of_others(bodies: dict[str, str]) -> dict[str, str]:
    """The rules of names that an object has besides those that its schema names, written again."""
    keys = {name for name, body in bodies.items()
            if _OTHER_NAME.fullmatch(name) and body.startswith('["] (')}  # fmt: skip
    if not keys:
        return {}
    members = {name: body.split(" ", 1)[0] for name, body in bodies.items()}
    changed = {}
    for body in (body for body in bodies.values() if body.startswith('"{" space ')):
        used = dict.fromkeys(re.findall(r"[\w-]+", re.sub(r'"(?:[^"\\]|\\.)*"', "", body)))
        named = [
            name
            for name in map(_name_in, (bodies.get(each, "") for each in used))
            if name is not None
        ]
        for key in (members[each] for each in used if members.get(each) in keys):
            changed[key] = f'"\\"" ({_other_than(_tree(named))}) "\\""'
    return changed


def _name_in(member: str) -> str | None:
    """The name of a property, from the rule of its name and value."""
    found = _KEY.match(member)
    if found is None:
        return None
    literal = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), found[1][1:-1])
    return str(json.loads(literal))


_Tree = dict[str, Any]  # by character; "" where a name ends


def _tree(names: list[str]) -> _Tree:
    root: _Tree = {}
    for name in names:
        node = root
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return root


def _other_than(node: _Tree) -> str:
    """What a name may go on with that is none of those in the tree; an empty end is one."""
    characters = [each for each in node if each]
    if not characters:
        return "char+"
    parts = [f"{_spelled(each)} ({_other_than(node[each])})" for each in characters]
    plain = "".join(f"\\U{ord(each):08X}" for each in characters if each not in _ESCAPES)
    letters = (letter for each, letter in _ESCAPES.items() if each not in characters)
    escapes = "".join(f"\\U{ord(letter):08X}" for letter in letters)
    parts.append(rf'[^"\\\x00-\x1F{plain}] char*')
    parts.append(rf"[\\] [{escapes}] char*")
    return " | ".join(parts if "" in node else ["", *parts])


def _spelled(character: str) -> str:
    if character in _ESCAPES:
        return rf"[\\] [\U{ord(_ESCAPES[character]):08X}]"
    return f"[\\U{ord(character):08X}]"
