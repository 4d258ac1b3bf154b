"""Finds out which steps of `rearrangement.py` a chat template needs to keep all texts.

To find out, it renders a conversation of the same shape in which each text is a placeholder, and
looks for the placeholders in the prompt. Thoughts have no placeholders because many templates drop
earlier thoughts on purpose. The result is remembered for all conversations of that shape, so that
a usual request is rendered only once. Belongs to the reader's thread.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from lmlite.errors import BadRequest
from lmlite.worker.chat.rearrangement import (
    STEPS,
    TO_TEXT,
    Messages,
    Step,
    is_json_object,
    rearranged,
)
from lmlite.worker.chat.tools import PROBE, PROBE_NAME

Json = dict[str, Any]
Steps = tuple[Step, ...]

MAX_SHAPES = 1024  # shapes for which the steps are remembered
# Placeholders. No template contains one, and no placeholder is part of another.
_TEXT, _CALL = "qzjtext{:06d}", "qzjcall{:06d}n{:06d}"
_PLACEHOLDER = re.compile(r"qzj(?:text\d{6}|call\d{6}n\d{6})")
_SHORT_ID = re.compile("[A-Za-z0-9]{9}")
_ATTEMPTS: tuple[Steps, ...] = tuple(STEPS[:n] for n in range(1, len(STEPS) + 1))


class Lost(NamedTuple):
    """How many texts and calls of a conversation are missing in the prompt; smaller is better."""

    texts: int
    calls: int


class Arranger:
    """The steps that one template needs, by the shape of a conversation."""

    def __init__(self, render: Callable[[Json], str]) -> None:
        """`render` makes the prompt of a request. It raises BadRequest if the template refuses."""
        self._render = render
        self._found: OrderedDict[int, Steps] = OrderedDict()  # by shape, last used last

    def arrangements(self, request: Json) -> Iterator[Messages]:
        """Yields arrangements of the messages to try in order, the most promising first."""
        tried: list[Messages] = []
        for steps in chain([self._steps(request)], _ATTEMPTS):
            messages = rearranged(request["messages"], steps)
            if messages not in tried:
                tried.append(messages)
                yield messages

    def _steps(self, request: Json) -> Steps:
        shape = shape_of(request)
        if shape not in self._found:
            self._found[shape] = self._find(_probe_of(request))
            if len(self._found) > MAX_SHAPES:
                self._found.popitem(last=False)
        self._found.move_to_end(shape)
        return self._found[shape]

    def _find(self, probe: Json) -> Steps:
        """The fewest steps among those with which the template loses the least."""
        best: Steps = ()
        least, before = self._lost(probe, best), probe["messages"]
        for steps in _ATTEMPTS:
            if least == (0, 0) or (steps[-1] in TO_TEXT and least and not least.texts):
                break
            messages = rearranged(probe["messages"], steps)
            if messages == before:
                continue
            before, lost = messages, self._lost(probe, steps)
            if lost is not None and (least is None or lost < least):
                best, least = steps, lost
        for step in reversed(best[:-1]):
            fewer = tuple(each for each in best if each is not step)
            messages = rearranged(probe["messages"], fewer)
            is_same = messages == rearranged(probe["messages"], best)
            if is_same or self._lost(probe, fewer) == least:
                best = fewer
        return best

    def _lost(self, probe: Json, steps: Steps) -> Lost | None:
        """What the prompt lacks after these steps; None if the template refuses the messages."""
        messages = probe["messages"]
        try:
            prompt = self._render(probe | {"messages": rearranged(messages, steps)})
        except BadRequest:
            return None
        written = set(_PLACEHOLDER.findall(prompt))
        texts = {message["content"] for message in messages} - {""}
        calls = (call for message in messages for call in message.get("tool_calls", ()))
        in_calls = (_PLACEHOLDER.findall(call["function"]["arguments"]) for call in calls)
        return Lost(len(texts - written), len(set(chain.from_iterable(in_calls)) - written))


def shape_of(request: Json) -> int:
    """A hash of the set of all sequences of three consecutive kinds of messages.

    Whether a template accepts a conversation depends on this. A conversation that continues in
    the same pattern keeps its shape.
    """
    kinds = ["", "", *map(_kind, request["messages"]), "", ""]
    threes = frozenset(zip(kinds, kinds[1:], kinds[2:], strict=False))
    return hash((threes, "tools" in request))


def without_repetition(messages: Messages) -> Messages:
    """A shorter conversation of the same shape, without turns that repeat a pattern."""
    kept: Messages = []
    kinds = ["", ""]
    seen: set[tuple[str, ...]] = set()
    ends: dict[tuple[str, ...], int] = {}  # last place of each pair since the last new three
    for message in messages:
        kept.append(message)
        kinds.append(_kind(message))
        three = tuple(kinds[-3:])
        # Never cut between a call and its result.
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
    """A request of the same shape, in which each text and each call is a placeholder."""
    messages = without_repetition(request["messages"])
    probe: Json = {"messages": [_probed(i, each) for i, each in enumerate(messages)]}
    return probe | {"tools": PROBE["tools"], "tool_choice": "auto"} if "tools" in request else probe


def _probed(number: int, message: Json) -> Json:
    def probed_call(i: int, call: Json) -> Json:
        arguments = f'{{"argument": "{_CALL.format(number, i)}"}}'
        if not is_json_object(call["function"]["arguments"]):
            arguments = '{"argument": "'
        return call | {"function": {"name": PROBE_NAME, "arguments": arguments}}

    probed = message | {"content": _TEXT.format(number) if message["content"] else ""}
    if "name" in message:
        probed["name"] = PROBE_NAME
    if "reasoning_content" in message:
        probed["reasoning_content"] = "thoughts"
    if "tool_calls" in message:
        probed["tool_calls"] = [probed_call(i, call) for i, call in enumerate(probed["tool_calls"])]
    return probed
