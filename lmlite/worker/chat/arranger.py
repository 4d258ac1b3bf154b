"""Finds out in which words and order a chat template takes a conversation without losing a text.

The template is asked: a conversation of the same shape, with a mark in place of each text, is
rendered, and the marks are looked for. Thoughts are not, as many templates drop earlier ones on
purpose. What is found holds for all conversations of that shape, so that the usual request is
rendered once. Belongs to the reader's thread.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lmlite.errors import BadRequest
from lmlite.worker.chat.rearrangement import (
    IN_WORDS,
    STEPS,
    Messages,
    Step,
    is_json_object,
    rearranged,
)
from lmlite.worker.chat.tools import PROBE, PROBE_NAME

Json = dict[str, Any]
Steps = tuple[Step, ...]

MAX_SHAPES = 1024  # whose steps are remembered
# In no template, and not a part of each other.
_TEXT, _CALL = "qzjtext{:06d}", "qzjcall{:06d}n{:06d}"
_SHORT_ID = re.compile("[A-Za-z0-9]{9}")
_MARK = re.compile(r"qzj(?:text\d{6}|call\d{6}n\d{6})")


class Lost(NamedTuple):
    """How much of a conversation is not in the prompt; less is smaller."""

    texts: int
    calls: int


class Arranger:
    """What is known of one template."""

    def __init__(self, render: Callable[[Json], str]) -> None:
        """`render` makes the prompt of a request. It raises BadRequest when it refuses."""
        self._render = render
        self._found: OrderedDict[int, Steps] = OrderedDict()  # by shape; the last used, last

    def arrangements(self, request: Json) -> Iterator[Messages]:
        """The request's messages as its template takes them; then, should it refuse, otherwise."""
        messages = request["messages"]
        tried = [rearranged(messages, self._steps(request))]
        yield tried[0]
        for steps in _attempts():
            other = rearranged(messages, steps)
            if other not in tried:
                tried.append(other)
                yield other

    def _steps(self, request: Json) -> Steps:
        shape = shape_of(request)
        if shape not in self._found:
            self._found[shape] = self._find(_probe_of(request))
            if len(self._found) > MAX_SHAPES:
                self._found.popitem(last=False)
        self._found.move_to_end(shape)
        return self._found[shape]

    def _find(self, probe: Json) -> Steps:
        """The least steps that lose the least."""
        best: Steps = ()
        least, before = self._lost(probe, best), probe["messages"]
        for steps in _attempts():
            if least == (0, 0) or (steps[-1] in IN_WORDS and least and not least.texts):
                break
            messages = rearranged(probe["messages"], steps)
            if messages == before:
                continue
            before, lost = messages, self._lost(probe, steps)
            if lost is not None and (least is None or lost < least):
                best, least = steps, lost
        for step in reversed(best[:-1]):
            fewer = tuple(each for each in best if each is not step)
            if self._does_nothing(probe, best, fewer) or self._lost(probe, fewer) == least:
                best = fewer
        return best

    def _does_nothing(self, probe: Json, steps: Steps, fewer: Steps) -> bool:
        messages = probe["messages"]
        return rearranged(messages, steps) == rearranged(messages, fewer)

    def _lost(self, probe: Json, steps: Steps) -> Lost | None:
        """What these steps lose; None: the template refuses."""
        messages = probe["messages"]
        try:
            prompt = self._render(probe | {"messages": rearranged(messages, steps)})
        except BadRequest:
            return None
        written = set(_MARK.findall(prompt))
        texts = {message["content"] for message in messages} - {""}
        calls = (call for message in messages for call in message.get("tool_calls", ()))
        marks = {mark for call in calls for mark in _MARK.findall(call["function"]["arguments"])}
        return Lost(len(texts - written), len(marks - written))


def _attempts() -> Iterator[Steps]:
    return (STEPS[:n] for n in range(1, len(STEPS) + 1))


def shape_of(request: Json) -> int:
    """What a template's opinion of a conversation depends on: which three follow each other.

    A conversation that goes on as it was keeps its shape.
    """
    kinds = [*map(_kind, request["messages"])]
    padded = ["", "", *kinds, "", ""]
    threes = frozenset(zip(padded, padded[1:], padded[2:], strict=False))
    return hash((threes, "tools" in request))


def without_repetition(messages: Messages) -> Messages:
    """A shorter conversation of the same shape: long ones repeat what they have had."""
    kept: Messages = []
    kinds = ["", ""]
    seen: set[tuple[str, ...]] = set()
    ends: dict[tuple[str, ...], int] = {}  # of pairs, since there was a new three
    for message in messages:
        kept.append(message)
        kinds.append(_kind(message))
        three = tuple(kinds[-3:])
        # Not between a call and its result.
        if message["role"] == "tool" or (len(kept) > 1 and "tool_calls" in kept[-2]):
            ends = ends if three in seen else {}
        elif three in seen and three[1:] in ends:
            end = ends[three[1:]]
            del kept[end:-1], kinds[end + 2 : -1]
            ends = {pair: i for pair, i in ends.items() if i <= end}
        else:
            ends = ends if three in seen else {}
            ends[three[1:]] = len(kept) - 1
        seen.add(three)
    return kept


def _kind(message: Json) -> str:
    calls = message.get("tool_calls", ())
    ids = [call["id"] for call in calls] or [message.get("tool_call_id")]
    features = {
        "t": bool(message["content"]),
        "r": "reasoning_content" in message,
        "c": len(calls) == 1,
        "C": len(calls) > 1,
        "a": not all(is_json_object(call["function"]["arguments"]) for call in calls),
        "i": any(call_id and not _SHORT_ID.fullmatch(call_id) for call_id in ids),
    }
    role: str = message["role"]
    return role + "".join(key for key, holds in features.items() if holds)


def _probe_of(request: Json) -> Json:
    """A request of the same shape, in which each text, and each call, is a mark."""
    messages = without_repetition(request["messages"])
    probe: Json = {"messages": [_probed(i, each) for i, each in enumerate(messages)]}
    return probe | {"tools": PROBE["tools"], "tool_choice": "auto"} if "tools" in request else probe


def _probed(number: int, message: Json) -> Json:
    probed = message | {"content": _TEXT.format(number) if message["content"] else ""}
    if "name" in message:
        probed["name"] = PROBE_NAME
    if "reasoning_content" in message:
        probed["reasoning_content"] = "thoughts"
    if "tool_calls" in message:
        probed["tool_calls"] = [
            _probed_call(_CALL.format(number, i), call)
            for i, call in enumerate(message["tool_calls"])
        ]
    return probed


def _probed_call(mark: str, call: Json) -> Json:
    whole = is_json_object(call["function"]["arguments"])
    arguments = f'{{"argument": "{mark}"}}' if whole else '{"argument": "'
    return call | {"function": {"name": PROBE_NAME, "arguments": arguments}}
