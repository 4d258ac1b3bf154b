"""X-Prefix-Key: what requests must have in common to get the same one, and what they need not."""

from dataclasses import replace
from typing import Any

import pytest

from lmlite.messages import (
    Chat,
    ChatMessage,
    ChatOptions,
    Complete,
    Embed,
    Image,
    SamplingParams,
    Work,
)
from lmlite.server.api.call import N_BLOCK, N_TEXT, prefix_key

SYSTEM, FIRST = ChatMessage("system", "Be brief."), ChatMessage("user", "Which bird?")
ANSWER, NEXT = ChatMessage("assistant", "A heron."), ChatMessage("user", "How tall?")
CHAT = Chat(0, (SYSTEM, FIRST), SamplingParams())


def key(work: Work, model: str = "one", offered: str | None = None) -> str | None:
    return prefix_key(work, model, offered)


def completion(prompt: str | tuple[int, ...]) -> Complete:
    return Complete(0, (prompt,), SamplingParams())


def test_a_conversation_keeps_its_key_over_its_turns_and_over_processes() -> None:
    assert key(CHAT) == "7272926ee4545b86"
    assert key(replace(CHAT, messages=(SYSTEM, FIRST, ANSWER, NEXT))) == key(CHAT)
    assert key(replace(CHAT, n=2, id=7, params=SamplingParams(temperature=0))) == key(CHAT)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (FIRST,)},
        {"messages": (SYSTEM, NEXT)},
        {"messages": (SYSTEM, ChatMessage("user", FIRST.content, images=(Image(b"i", 0, ""),)))},
        {"messages": (SYSTEM, ANSWER, FIRST)},
        {"options": ChatOptions(tools=({"type": "function", "function": {"name": "f"}},))},
    ],
    ids=["system prompt", "first question", "image", "answer before it", "tools"],
)
def test_what_stands_before_the_first_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert key(replace(CHAT, **change)) != key(CHAT)


def test_another_model_has_another_key() -> None:
    assert key(CHAT, "one") != key(CHAT, "two")


@pytest.mark.parametrize("block", ["x" * N_BLOCK, tuple(range(N_BLOCK))], ids=["text", "tokens"])
def test_the_first_block_of_a_completion_is_its_key(block: Any) -> None:
    grown = block + block[:1]
    assert key(completion(grown)) == key(completion(block))
    assert key(completion(block[1:])) != key(completion(block))


def test_of_a_long_message_only_the_beginning_is_hashed() -> None:
    long = replace(CHAT, messages=(ChatMessage("user", "x" * N_TEXT),))
    longer = replace(CHAT, messages=(ChatMessage("user", "x" * N_TEXT + "y"),))
    assert key(long) == key(longer)


def test_a_lone_surrogate_has_a_key_too() -> None:
    assert key(completion("\ud800")) != key(completion("\ud801"))


@pytest.mark.parametrize("offered", ["k", "user:42/conversation-7", "~" * 64])
def test_a_key_of_the_client_is_kept(offered: str) -> None:
    assert key(CHAT, offered=offered) == offered


@pytest.mark.parametrize("offered", ["", "k" * 65, "two words", "é", "a\tb"])
def test_a_key_that_is_no_short_word_is_replaced(offered: str) -> None:
    assert key(CHAT, offered=offered) == key(CHAT)


def test_an_embedding_has_no_key() -> None:
    assert key(Embed(0, ("text",)), offered="k") is None
