"""Drops the oldest turns of a conversation that is longer than the context. Pure.

System messages, the last user message and the last turn are kept. A call is dropped together with
its results.
"""

from collections.abc import Sequence

from lmlite.messages import ChatMessage


def n_turns(messages: Sequence[ChatMessage]) -> int:
    """How many turns can be dropped."""
    return max(_turns(messages), default=0)


def without_oldest(messages: Sequence[ChatMessage], n: int) -> tuple[ChatMessage, ...]:
    """The messages without their n oldest turns.

    >>> said = [ChatMessage(role, "") for role in ("system", "user", "assistant", "user")]
    >>> [message.role for message in without_oldest(said, 1)]
    ['system', 'user']
    """
    turns = _turns(messages)
    return tuple(each for each, turn in zip(messages, turns, strict=True) if not 1 <= turn <= n)


def _turns(messages: Sequence[ChatMessage]) -> list[int]:
    """Each message's turn, counted from 1; 0 for messages that must be kept.

    A turn begins with a user message; after the last user message, with an assistant message.
    """
    n_asked = max((i for i, each in enumerate(messages) if each.role == "user"), default=-1)
    turns: list[int] = []
    caller: dict[str, int] = {}  # call id -> turn of that call
    turn = 0
    for i, message in enumerate(messages):
        begins = message.role == ("user" if i < n_asked else "assistant")
        stays = message.role == "system" or i == n_asked
        turn += begins or (turn == 0 and not stays)
        caller |= {call.id: turn for call in message.tool_calls}
        turns.append(0 if stays else caller.get(message.tool_call_id or "", turn))
    last = turns[-1] if turns else 0
    return [0 if each == last else each for each in turns]
