"""Grammars of answers that call tools, corrected: llama.cpp's GBNF in, GBNF out. Pure.

llama.cpp lets any amount of text come before a call that must be made. It has no grammar for
answers that are either a call or in a form, nor for calls in bare JSON that may be made. The rules
that it writes are known here by their names.
"""

import re
from collections.abc import Sequence
from typing import Any

_PATTERN = 2  # COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN

# A literal, a class of characters, a count, or the name of a rule.
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[A-Za-z][\w-]*')
_ROOT = re.compile(r"^root ::= (.*)$", re.MULTILINE)
# Any text in front of a call and its opening; and a message that is not a call.
_TALK = re.compile(
    r'until-\d+\?? (?=(?:space |"[^"]*"\? )*[\w-]*tool-)|"all\\n" until-\d+ (?:tools|\(.*?\)) \| '
)
_BARE_CALL = re.compile(r'root ::= "(?:[^"\\]|\\.)*" space (tool-call)$', re.MULTILINE)
_FENCED = '("```json" space response-format space "```" | space response-format space)'


def without_small_talk(grammar: str) -> str:
    """The grammar of calls that must be made, without text before them except thoughts.

    >>> without_small_talk('root ::= ("<think>" until-1 "</think>")? until-7 tool-calls')
    'root ::= ("<think>" until-1 "</think>")? tool-calls'
    """
    return _ROOT.sub(lambda root: f"root ::= {_TALK.sub('', root[1])}", grammar)


def woken_by_name(grammar: str, names: Sequence[str]) -> dict[str, Any]:
    """Fields for a reply of the library, so that calls in bare JSON are held from their name on.

    `grammar` is that of calls that must be made. {} where calls are not bare JSON.
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
    """A grammar of answers that call tools or are in a form; None if that cannot be made."""
    form = without_fence(form)
    if not form or "```" in form:
        return None  # the parser of calls would take the fence for content
    rules = ["root ::= calls-root | form-root", _renamed(calls, "calls-"), _renamed(form, "form-")]
    return "\n".join(rules)


def without_fence(form: str) -> str:
    """The grammar of a form, without the fence of Markdown around it."""
    return form.replace(_FENCED, "(space response-format space)")


def _renamed(grammar: str, prefix: str) -> str:
    """The same rules, with a prefix to each name."""

    def rename(part: re.Match[str]) -> str:
        return prefix + part[0] if part[0][0].isalpha() else part[0]

    return _PART.sub(rename, grammar)
