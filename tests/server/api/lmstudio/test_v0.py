"""The replies of /api/v0 are OpenAI's, with what was measured and facts of the model."""

from dataclasses import replace
from typing import Any

import pytest

import lmlite
from lmlite.messages import Cause, Delta, Finished, Started
from lmlite.server.api.lmstudio.pace import Pace
from lmlite.server.api.lmstudio.v0 import V0ChatReply, V0CompletionReply
from lmlite.server.api.openai.replies import ChatReply, CompletionReply
from lmlite.server.api.openai.requests import parse_chat, parse_completion
from lmlite.server.api.reply import Incoming
from lmlite.server.models import life
from tests.support.house import model_file
from tests.support.listed_models import listed_model

MESSAGES = [{"role": "user", "content": "Hi"}]
EVENTS: list[Incoming] = [
    life.Loading(0.5),
    Started(0, 0, n_prompt=9, n_cached=4),
    Delta(0, 0, "Hel"),
    Delta(0, 0, "lo"),
    Finished(0, 0, "stop", 3),
]
FACTS = {
    "model_info": {"arch": "llama", "quant": "F16", "format": "gguf", "context_length": 512},
    "runtime": {
        "name": "lmlite", "version": lmlite.__version__, "supported_formats": ["gguf"],
    },
}  # fmt: skip


def reply_of(kind: type[CompletionReply], **body: Any) -> CompletionReply:
    if issubclass(kind, ChatReply):
        call = parse_chat({"messages": MESSAGES, **body})
    else:
        call = parse_completion({"prompt": "Hi", **body})
    return kind(call, "id_1", listed_model("m"), 0)


def whole(kind: type[CompletionReply], events: list[Incoming] = EVENTS, **body: Any) -> Any:
    reply = reply_of(kind, **body)
    for event in events:
        reply.add(event)
    return reply.whole()


def stream(kind: type[CompletionReply], **body: Any) -> bytes:
    reply = reply_of(kind, **body, stream=True)
    return b"".join(map(reply.add, EVENTS)) + reply.tail()


KINDS = [(V0ChatReply, ChatReply), (V0CompletionReply, CompletionReply)]


@pytest.mark.parametrize(("kind", "openai"), KINDS)
def test_a_reply_is_openais_and_more(
    kind: type[CompletionReply], openai: type[CompletionReply]
) -> None:
    shown = whole(kind)
    stats = shown.pop("stats")
    assert shown == whole(openai) | FACTS
    assert stats.pop("stop_reason") == "eosFound"
    assert stats.keys() == {"tokens_per_second", "time_to_first_token", "generation_time"}
    assert all(type(value) is float and value > 0 for value in stats.values())


@pytest.mark.parametrize(("kind", "openai"), KINDS)
def test_in_a_stream_the_last_chunk_has_them(
    kind: type[CompletionReply], openai: type[CompletionReply]
) -> None:
    own, plain = stream(kind), stream(openai)
    *before, last, done, end = own.split(b"\n\n")
    *before_plain, last_plain, done_plain, end_plain = plain.split(b"\n\n")
    assert (before, done, end) == (before_plain, done_plain, end_plain)
    assert last.startswith(last_plain.removesuffix(b"}") + b',"stats":{"tokens_per_second":')


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ("end_token", "eosFound"),
        ("stop_string", "stopStringFound"),
        ("max_tokens", "maxPredictedTokensReached"),
        ("context_full", "contextLengthReached"),
        ("time_limit", "maxPredictedTokensReached"),
    ],
)
def test_the_cause_of_an_end_has_lm_studios_name(cause: Cause, shown: str) -> None:
    events = [*EVENTS[:-1], Finished(0, 0, "stop", 3, cause)]
    assert whole(V0ChatReply, events)["stats"]["stop_reason"] == shown


def test_an_end_with_calls_is_one_of_its_own() -> None:
    events = [*EVENTS[:-1], Finished(0, 0, "tool_calls", 3)]
    assert whole(V0ChatReply, events)["stats"]["stop_reason"] == "toolCalls"


def test_the_tokens_of_a_draft_model_are_counted() -> None:
    reply = reply_of(V0ChatReply)
    reply.model.draft = model_file("/models/small.gguf")
    for event in [*EVENTS[:-1], Finished(0, 0, "stop", 3, n_drafted=5, n_accepted=2)]:
        reply.add(event)
    stats = reply.whole()["stats"]
    assert {key: value for key, value in stats.items() if "draft" in key} == {
        "draft_model": "small",
        "total_draft_tokens_count": 5,
        "accepted_draft_tokens_count": 2,
        "rejected_draft_tokens_count": 3,
        "ignored_draft_tokens_count": 0,
    }


def test_times_are_counted_from_the_end_of_the_load() -> None:
    now_s = iter([10.0, 11.0, 14.0, 16.5, 17.0, 19.0])
    model = listed_model("m")
    model.ready = replace(model.ready, since_s=12.0)
    pace = Pace(model, lambda: next(now_s))
    for event in EVENTS:
        pace.note(event)
    assert (pace.load_s, pace.first_token_s, pace.generation_s) == (2.0, 4.5, 2.5)
    assert pace.tokens_per_s(11) == 4.0
    assert pace.tokens_per_s(1) == pace.tokens_per_s(0) == 0.0


def test_a_reply_without_a_token_has_no_times() -> None:
    pace = Pace(listed_model("m"))
    pace.note(EVENTS[1])
    assert (pace.load_s, pace.first_token_s, pace.generation_s) == (None, 0.0, 0.0)
    assert pace.tokens_per_s(9) == 0.0
