"""Ways to rewrite a conversation for chat templates that refuse it as it is. Pure.

Each step takes messages in OpenAI's form and returns messages with the same meaning. `arranger.py`
finds out which steps a template needs.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise, takewhile
from typing import Any

Json = dict[str, Any]
Messages = list[Json]
Step = Callable[[Messages], Messages]


# ---- arguments and ids -----------------------------------------------------------------------


def repair_arguments(messages: Messages) -> Messages:
    """Replaces arguments that are not a JSON object (the call was cut short) with `{}`."""

    def repaired(call: Json) -> Json:
        function = call["function"]
        is_whole = is_json_object(function["arguments"])
        return call if is_whole else call | {"function": function | {"arguments": "{}"}}

    return [_with_calls(message, repaired) for message in messages]


def shorten_ids(messages: Messages) -> Messages:
    """Replaces ids of calls with nine letters and digits, as Mistral's templates require."""
    short: dict[str, str] = {}

    def renamed(body: Json, key: str) -> Json:
        return body | {key: short.setdefault(body[key], f"call{len(short):05d}")}

    messages = [_with_calls(message, lambda call: renamed(call, "id")) for message in messages]
    return [renamed(each, "tool_call_id") if "tool_call_id" in each else each for each in messages]


def is_json_object(text: str) -> bool:
    """Whether llama.cpp can read the text as an object."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except (ValueError, RecursionError):
        return False
    return type(value) is dict


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("too large for llama.cpp, or no number of JSON's")
    return number


def _with_calls(message: Json, change: Callable[[Json], Json]) -> Json:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": [change(call) for call in message["tool_calls"]]}


# ---- system messages -------------------------------------------------------------------------


def join_leading_systems(messages: Messages) -> Messages:
    """Joins the system messages at the beginning into one."""
    n = _n_leading_systems(messages)
    return [_joined(messages[:n]), *messages[n:]] if n > 1 else messages


def move_later_systems(messages: Messages) -> Messages:
    """Moves later system messages into the user message that follows."""
    n = _n_leading_systems(messages)
    return messages[:n] + move_all_systems(messages[n:])


def move_all_systems(messages: Messages) -> Messages:
    """Moves system messages into the next user message; makes them one if none follows."""
    n_asked = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=-1)
    moved: Messages = []
    held: Messages = []
    for i, message in enumerate(messages):
        if message["role"] == "system" and i < n_asked:
            held.append(message)
            continue
        if message["role"] == "system":
            message = {"role": "user", "content": message["content"]}
        elif message["role"] == "user":
            message = message | {"content": _text(each["content"] for each in [*held, message])}
            held = []
        moved.append(message)
    return moved


def _n_leading_systems(messages: Messages) -> int:
    return sum(1 for _ in takewhile(lambda message: message["role"] == "system", messages))


# ---- calls and their results -----------------------------------------------------------------


def move_results(messages: Messages) -> Messages:
    """Moves each result to the place after the message with its call."""
    caller: dict[str, int] = {}  # call id -> index of the last message with that call
    results: dict[int, Messages] = {}
    others: list[tuple[int, Json]] = []
    for i, message in enumerate(messages):
        caller |= {call["id"]: i for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") in caller:
            results.setdefault(caller[message["tool_call_id"]], []).append(message)
        else:
            others.append((i, message))
    return [each for i, message in others for each in (message, *results.get(i, ()))]


def drop_thoughts(messages: Messages) -> Messages:
    """Removes the reasoning from all messages."""
    return [
        {key: message[key] for key in message if key != "reasoning_content"} for message in messages
    ]


def orphans_to_text(messages: Messages) -> Messages:
    """Turns results that do not follow a call into user messages."""
    texts: Messages = []
    follows_call = False
    for message in messages:
        if message["role"] != "tool":
            follows_call = "tool_calls" in message
        elif not follows_call:
            message = _results_text([message])
        texts.append(message)
    return texts


def split_calls(messages: Messages) -> Messages:
    """Splits a message with several calls: one message for each call, followed by its results."""
    split: Messages = []
    begins = [i for i, each in enumerate(messages) if i == 0 or each["role"] != "tool"]
    for begin, end in pairwise([*begins, len(messages)]):
        is_single = len(messages[begin].get("tool_calls", ())) <= 1
        split += messages[begin:end] if is_single else _split(messages[begin:end])
    return split


def _split(messages: Messages) -> Iterator[Json]:
    """A message for each call of the first message, each followed by the results of that call."""
    first, *results = messages
    by_id: dict[str | None, Messages] = {}
    for result in results:
        by_id.setdefault(result.get("tool_call_id"), []).append(result)
    calling = first
    for call in first["tool_calls"]:
        yield calling | {"tool_calls": [call]}
        yield from by_id.pop(call["id"], ())
        calling = {"role": "assistant", "content": ""}
    for others in by_id.values():
        yield from others


def split_texts(messages: Messages) -> Messages:
    """Moves a text that came with a call into a message of its own before the call."""
    split: Messages = []
    for message in messages:
        if "tool_calls" in message and message["content"]:
            split.append({"role": "assistant", "content": message["content"]})
            message = message | {"content": ""}
        split.append(message)
    return split


def calls_to_text(messages: Messages) -> Messages:
    """Turns calls into text of the assistant."""
    return [_calls_text(each) if "tool_calls" in each else each for each in messages]


def results_to_text(messages: Messages) -> Messages:
    """Turns results into user messages; consecutive results become one message."""
    texts: Messages = []
    for turns in _neighbours(messages):
        texts += [_results_text(turns)] if turns[0]["role"] == "tool" else turns
    return texts


def _calls_text(message: Json) -> Json:
    functions = (call["function"] for call in message["tool_calls"])
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, '
        f'"arguments": {function["arguments"]}}}\n</tool_call>'
        for function in functions
    ]
    others = {key: message[key] for key in message if key != "tool_calls"}
    return others | {"content": "\n".join(filter(None, [message["content"], *calls]))}


def _results_text(messages: Iterable[Json]) -> Json:
    words = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in messages]
    return {"role": "user", "content": "\n".join(words)}


# ---- turns -----------------------------------------------------------------------------------


def join_neighbours(messages: Messages) -> Messages:
    """Joins consecutive messages of one role. Calls and results stay as they are."""
    joined: Messages = []
    for turns in _neighbours(messages):
        stay = turns[0]["role"] == "tool" or "tool_calls" in turns[0]
        joined += turns if stay else [_joined(turns)]
    return joined


def alternate(messages: Messages) -> Messages:
    """Makes user and assistant take turns, the user first; empty messages fill the gaps.

    A message with calls does not count as a turn of the assistant.
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
    """Groups consecutive messages of one role; messages with calls form groups of their own."""
    for _, turns in groupby(messages, lambda each: (each["role"], "tool_calls" in each)):
        yield list(turns)


def _joined(messages: Messages) -> Json:
    """One message with the texts and the reasoning of several messages of one role."""
    if len(messages) == 1:
        return messages[0]
    joined = messages[0] | {"content": _text(each["content"] for each in messages)}
    thoughts = _text(each.get("reasoning_content", "") for each in messages)
    return joined | {"reasoning_content": thoughts} if thoughts else joined


def _text(texts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, texts))


# ---- all of them -----------------------------------------------------------------------------

# Steps that change little come first; steps that turn calls into text come last.
STEPS: tuple[Step, ...] = (
    repair_arguments,
    shorten_ids,
    join_leading_systems,
    move_later_systems,
    move_results,
    split_calls,
    split_texts,
    drop_thoughts,
    orphans_to_text,
    join_neighbours,
    alternate,
    move_all_systems,
    calls_to_text,
    results_to_text,
)
TO_TEXT: tuple[Step, ...] = (calls_to_text, results_to_text)
_LAST: tuple[Step, ...] = (join_neighbours, alternate)  # because the other steps change roles


def rearranged(messages: Messages, steps: Sequence[Step]) -> Messages:
    """The messages after some of the STEPS, applied in an order that works."""
    for step in sorted(steps, key=_LAST.__contains__):
        messages = step(messages)
    return messages
