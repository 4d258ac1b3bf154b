"""Grammars of answers that call tools, put right: llama.cpp's GBNF in, GBNF out.

llama.cpp lets a call that must be made come after any amount of text, knows no answer that may be
a call or be in a form, and holds no call that may be made where a call is bare JSON. Pure: looks at
the rules that the library writes, by their names.
"""

import re
from collections.abc import Sequence
from typing import Any

_PATTERN = 2  # COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN

# A literal, a class of characters, a count, or the name of a rule.
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[A-Za-z][\w-]*')
_ROOT = re.compile(r"^root ::= (.*)$", re.MULTILINE)
# Any text, up to a call or to what may stand in front of one; and a message of its own.
_TALK = re.compile(
    r'until-\d+\?? (?=(?:space |"[^"]*"\? )*[\w-]*tool-)|"all\\n" until-\d+ (?:tools|\(.*?\)) \| '
)
_BARE_CALL = re.compile(r'root ::= "(?:[^"\\]|\\.)*" space (tool-call)$', re.MULTILINE)
_FENCED = '("```json" space response-format space "```" | space response-format space)'


def without_small_talk(grammar: str) -> str:
    """The grammar of calls that must be made, without a place for talk; thoughts may come first.

    >>> without_small_talk('root ::= ("<think>" until-1 "</think>")? until-7 tool-calls')
    'root ::= ("<think>" until-1 "</think>")? tool-calls'
    """
    return _ROOT.sub(lambda root: f"root ::= {_TALK.sub('', root[1])}", grammar)


def woken_by_name(grammar: str, names: Sequence[str]) -> dict[str, Any]:
    """What a reply of the library has to say, for calls in bare JSON to be held from their name on.

    `grammar` is that of calls that must be made; {} where a call begins otherwise.
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
    """A grammar of answers that call tools, or else are in a form; None where none can be made."""
    form = without_fence(form)
    if not form or "```" in form:
        return None  # a parser of calls would take a fence for content
    either = "root ::= calls-root | form-root"
    return "\n".join([either, _renamed(calls, "calls-"), _renamed(form, "form-")])


def without_fence(form: str) -> str:
    """The grammar of a form, without the marks of Markdown around it."""
    return form.replace(_FENCED, "(space response-format space)")


def _renamed(grammar: str, prefix: str) -> str:
    """The same rules, each with a name that no other grammar has."""

    def rename(part: re.Match[str]) -> str:
        return prefix + part[0] if part[0][0].isalpha() else part[0]

    return _PART.sub(rename, grammar)
