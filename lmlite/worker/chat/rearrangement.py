"""Messages in other words or another order, for chat templates that refuse them as they are.

Each step takes messages as the bridge does, in OpenAI's form, and gives back others that say the
same, or equal ones where it has nothing to do. Pure: which steps a template needs is found out in
`arranger.py`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise, takewhile
from typing import Any

from lmlite.worker.chat.tools import spoken, told_results

Json = dict[str, Any]
Messages = list[Json]
Step = Callable[[Messages], Messages]

BETWEEN = "\n\n"  # texts that become one


# ---- arguments and ids -----------------------------------------------------------------------


def whole_arguments(messages: Messages) -> Messages:
    """Arguments that are no JSON object, as those of a call that was cut short, become `{}`."""

    def mended(function: Json) -> Json:
        whole = is_json_object(function["arguments"])
        return function if whole else function | {"arguments": "{}"}

    return [_with_calls(message, lambda call: {"function": mended(call["function"])})
            for message in messages]  # fmt: skip


def short_ids(messages: Messages) -> Messages:
    """Ids of calls have nine letters and digits: Mistral's templates take no others."""
    short: dict[str, str] = {}

    def renamed(old: str) -> str:
        return short.setdefault(old, f"call{len(short):05d}")

    renumbered = [_with_calls(message, lambda call: {"id": renamed(call["id"])})
                  for message in messages]  # fmt: skip
    return [
        message | {"tool_call_id": renamed(message["tool_call_id"])}
        if "tool_call_id" in message
        else message
        for message in renumbered
    ]


def is_json_object(text: str) -> bool:
    """Whether llama.cpp can read the text as an object."""
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_number, parse_int=_number
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return False
    return type(value) is dict


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is Python's, not JSON's")


def _number(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("too large for llama.cpp")
    return number


def _with_calls(message: Json, change: Callable[[Json], Json]) -> Json:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": [call | change(call) for call in message["tool_calls"]]}


# ---- the system's texts ----------------------------------------------------------------------


def leading_systems_joined(messages: Messages) -> Messages:
    """The system's texts at the beginning are one."""
    n = _n_leading(messages)
    return [_joined(messages[:n]), *messages[n:]] if n > 1 else messages


def later_systems_told(messages: Messages) -> Messages:
    """Later texts of the system stand before the next text of the user."""
    n = _n_leading(messages)
    return messages[:n] + _told_by_user(messages[n:])


def all_systems_told(messages: Messages) -> Messages:
    """No message has the role of the system."""
    return _told_by_user(messages)


def _n_leading(messages: Messages) -> int:
    return sum(1 for _ in takewhile(lambda message: message["role"] == "system", messages))


def _told_by_user(messages: Messages) -> Messages:
    """The system's texts in front of the user's; behind the user's last, they are turns."""
    n_asked = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=-1)
    told: Messages = []
    held: Messages = []
    for i, message in enumerate(messages):
        if message["role"] == "system" and i < n_asked:
            held.append(message)
        elif message["role"] == "system":
            told.append({"role": "user", "content": message["content"]})
        elif message["role"] == "user":
            told.append(message | {"content": _joined([*held, message])["content"]})
            held = []
        else:
            told.append(message)
    return told


# ---- calls and their results -----------------------------------------------------------------


def results_behind_calls(messages: Messages) -> Messages:
    """Each result stands behind the message with its call."""
    caller: dict[str, int] = {}  # the last message with a call of this id
    results: dict[int, Messages] = {}
    others: list[tuple[int, Json]] = []
    for i, message in enumerate(messages):
        caller |= {call["id"]: i for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") in caller:
            results.setdefault(caller[message["tool_call_id"]], []).append(message)
        else:
            others.append((i, message))
    return [each for i, message in others for each in (message, *results.get(i, ()))]


def without_thoughts(messages: Messages) -> Messages:
    """No message has thoughts."""
    return [
        {key: message[key] for key in message if key != "reasoning_content"} for message in messages
    ]


def orphans_told(messages: Messages) -> Messages:
    """Results that stand behind no call are words of the user."""
    told: Messages = []
    follows_call = False
    for message in messages:
        if message["role"] != "tool":
            follows_call = "tool_calls" in message
            told.append(message)
        else:
            told.append(message if follows_call else told_results([message]))
    return told


def one_call_each(messages: Messages) -> Messages:
    """A message has one call, and what it resulted in follows."""
    apart: Messages = []
    for calling, results in _with_results(messages):
        if len(calling.get("tool_calls", ())) > 1:
            apart += _calls_apart(calling, results)
        else:
            apart += [calling, *results]
    return apart


def _with_results(messages: Messages) -> Iterator[tuple[Json, Messages]]:
    """Each message, and the results behind it, with which the first may begin."""
    begins = [i for i, each in enumerate(messages) if i == 0 or each["role"] != "tool"]
    for begin, end in pairwise([*begins, len(messages)]):
        yield messages[begin], messages[begin + 1 : end]


def _calls_apart(message: Json, results: Messages) -> Iterator[Json]:
    by_id: dict[str | None, Messages] = {}
    for result in results:
        by_id.setdefault(result.get("tool_call_id"), []).append(result)
    for call in message["tool_calls"]:
        yield message | {"tool_calls": [call]}
        yield from by_id.pop(call["id"], ())
        message = {"role": "assistant", "content": ""}
    for others in by_id.values():
        yield from others


def texts_apart(messages: Messages) -> Messages:
    """What was said along with a call is a turn of its own, before it."""
    apart: Messages = []
    for message in messages:
        if "tool_calls" in message and message["content"]:
            apart += [{"role": "assistant", "content": message["content"]},
                      message | {"content": ""}]  # fmt: skip
        else:
            apart.append(message)
    return apart


def calls_told(messages: Messages) -> Messages:
    """Calls are words of the assistant."""
    return [spoken(message) for message in messages]


def results_told(messages: Messages) -> Messages:
    """Results are words of the user; those that follow each other are one."""
    told: Messages = []
    for turns in _neighbours(messages):
        told += [told_results(turns)] if turns[0]["role"] == "tool" else turns
    return told


# ---- who speaks when -------------------------------------------------------------------------


def neighbours_joined(messages: Messages) -> Messages:
    """Texts of one role that follow each other are one."""
    joined: Messages = []
    for turns in _neighbours(messages):
        stay = turns[0]["role"] == "tool" or "tool_calls" in turns[0]
        joined += turns if stay else [_joined(turns)]
    return joined


def alternated(messages: Messages) -> Messages:
    """User and assistant take turns, the user first: where one has nothing to say, it says ''.

    A call does not count as said, but follows what the user said.
    """
    turns: Messages = []
    last = "assistant"
    for message in messages:
        role = message["role"]
        if role == last:
            last = "user" if role == "assistant" else "assistant"
            turns.append({"role": last, "content": ""})
        if role in ("user", "assistant") and "tool_calls" not in message:
            last = role
        turns.append(message)
    if not any(turn["role"] == "user" for turn in turns):
        turns.append({"role": "user", "content": ""})
    return turns


def _neighbours(messages: Messages) -> Iterator[Messages]:
    """Messages of one role that follow each other, those with calls apart."""
    for _, turns in groupby(messages, lambda each: (each["role"], "tool_calls" in each)):
        yield list(turns)


def _joined(messages: Sequence[Json]) -> Json:
    """One message with the texts, and the thoughts, of several of one role."""
    if len(messages) == 1:
        return messages[0]
    joined = messages[0] | {"content": _text(each["content"] for each in messages)}
    thoughts = _text(each.get("reasoning_content", "") for each in messages)
    return joined | {"reasoning_content": thoughts} if thoughts else joined


def _text(texts: Iterable[str]) -> str:
    return BETWEEN.join(filter(None, texts))


# ---- all of them -----------------------------------------------------------------------------

# From what changes least to what changes most; those that tell of calls in words come last.
STEPS: tuple[Step, ...] = (
    whole_arguments,
    short_ids,
    leading_systems_joined,
    later_systems_told,
    results_behind_calls,
    one_call_each,
    texts_apart,
    without_thoughts,
    orphans_told,
    neighbours_joined,
    alternated,
    all_systems_told,
    calls_told,
    results_told,
)
IN_WORDS: tuple[Step, ...] = (calls_told, results_told)
# Who speaks when is settled when it is known who speaks.
_LAST: tuple[Step, ...] = (neighbours_joined, alternated)


def rearranged(messages: Messages, steps: Sequence[Step]) -> Messages:
    """The messages after some of the STEPS, each after those that have to come before it."""
    for step in sorted(steps, key=_LAST.__contains__):
        messages = step(messages)
    return messages
