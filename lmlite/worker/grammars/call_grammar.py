"""Corrects llama.cpp's grammars of answers that call tools: GBNF in, GBNF out. Pure.

llama.cpp allows any text before a required call. It makes no grammar for an answer that is either
a call or JSON of a schema, nor for optional calls that are bare JSON. This code finds the rules in
llama.cpp's grammars by their names.
"""

import re
from collections.abc import Sequence
from typing import Any

_PATTERN = 2  # COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN

# A literal, a class of characters, a count, or the name of a rule.
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[A-Za-z][\w-]*')
_ROOT = re.compile(r"^root ::= (.*)$", re.MULTILINE)
# Matches free text before a call's opening, and the alternative of a message without a call.
_TALK = re.compile(
    r'until-\d+\?? (?=(?:space |"[^"]*"\? )*[\w-]*tool-)|"all\\n" until-\d+ (?:tools|\(.*?\)) \| '
)
_BARE_CALL = re.compile(r'root ::= "(?:[^"\\]|\\.)*" space (tool-call)$', re.MULTILINE)
_FENCED = '("```json" space response-format space "```" | space response-format space)'


def without_small_talk(grammar: str) -> str:
    """A grammar of required calls, without the text before them. Thoughts stay allowed.

    >>> without_small_talk('root ::= ("<think>" until-1 "</think>")? until-7 tool-calls')
    'root ::= ("<think>" until-1 "</think>")? tool-calls'
    """
    return _ROOT.sub(lambda root: f"root ::= {_TALK.sub('', root[1])}", grammar)


def woken_by_name(grammar: str, names: Sequence[str]) -> dict[str, Any]:
    """Fields for the library's reply: a grammar that starts at the name in a bare JSON call.

    `grammar` is the grammar of required calls. Returns {} if its calls are not bare JSON.
    """
    root = _BARE_CALL.search(grammar)
    if root is None:
        return {}
    waiting = _BARE_CALL.sub(r"root ::= \1", grammar)
    of_type = r'(?:"type"\s*:\s*"function"\s*,\s*)?'
    name = "|".join(map(re.escape, names))
    begun = rf'^\s*(\{{\s*{of_type}"name"\s*:\s*"(?:{name})")'
    trigger = {"type": _PATTERN, "value": begun, "token": -1}
    return {"grammar": waiting, "grammar_lazy": True, "triggers": [trigger]}


def call_or_form(calls: str, form: str) -> str | None:
    """A grammar of answers that are either calls or in a form; None if there can be none."""
    form = without_fence(form)
    if not form or "```" in form:
        return None  # the parser of calls would read a Markdown fence as content
    rules = ["root ::= calls-root | form-root", _renamed(calls, "calls-"), _renamed(form, "form-")]
    return "\n".join(rules)


def without_fence(form: str) -> str:
    """The grammar of a form, without the optional Markdown fence around the JSON."""
    return form.replace(_FENCED, "(space response-format space)")


def _renamed(grammar: str, prefix: str) -> str:
    """The same rules, with a prefix before each name."""

    def rename(part: re.Match[str]) -> str:
        return prefix + part[0] if part[0][0].isalpha() else part[0]

    return _PART.sub(rename, grammar)
