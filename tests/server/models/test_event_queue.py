"""One request that was let in: what identifies it, and how many ends it has."""

from dataclasses import replace
from typing import Any

import pytest

from lmlite.messages import Chat, ChatMessage, ChatOptions, Complete, Embed, SamplingParams
from lmlite.server.models.event_queue import fingerprint, n_results

CHAT = Chat(1, (ChatMessage("user", "Hi"),), SamplingParams(seed=7))
COMPLETE = Complete(1, ("Once", (1, 2)), SamplingParams(seed=7), n=3)
EMBED = Embed(1, ("a", "b"))


@pytest.mark.parametrize("request_", [CHAT, COMPLETE, EMBED])
def test_a_request_that_is_sent_again_is_the_same(request_: Any) -> None:
    assert fingerprint(replace(request_, id=2)) == fingerprint(request_)


@pytest.mark.parametrize("request_", [CHAT, COMPLETE])
def test_a_viewer_and_a_seed_make_no_other_request(request_: Any) -> None:
    watched = replace(request_, trace=True)
    assert fingerprint(watched) == fingerprint(request_)
    for seed in (8, None):
        params = replace(request_.params, seed=seed)
        assert fingerprint(replace(request_, params=params)) == fingerprint(request_)


def test_another_text_or_another_way_to_answer_is_another_request() -> None:
    others = [
        replace(CHAT, messages=(ChatMessage("user", "Ho"),)),
        replace(CHAT, n=2),
        replace(CHAT, params=replace(CHAT.params, temperature=0.1)),
        replace(CHAT, grammar="root ::= [a]"),
        replace(CHAT, options=ChatOptions(({"type": "function"},))),
    ]
    assert len({fingerprint(request) for request in (CHAT, *others)}) == 6


@pytest.mark.parametrize(("request_", "n"), [(replace(CHAT, n=2), 2), (COMPLETE, 6), (EMBED, 2)])
def test_a_request_has_an_end_for_each_choice_and_input(request_: Any, n: int) -> None:
    assert n_results(request_) == n
