"""Times of a reply: by a clock of the test, and of a server."""

import json
from typing import Any

import pytest

from lmlite.messages import Delta, Finished, Reading, Started
from lmlite.server.api.openai.timings import Timings
from tests.support.server_process import RunningServer

FIELDS = ["cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second",
          "predicted_n", "predicted_ms", "predicted_per_token_ms",
          "predicted_per_second"]  # fmt: skip
PATHS = [("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
         ("/v1/completions", {"prompt": "Hi"})]  # fmt: skip


def test_times_are_those_of_the_prompt_and_of_the_tokens() -> None:
    now = iter([10.0, 10.25, 10.5, 12.5])
    timings = Timings(Started(1, 0, 30, 10), lambda: next(now))
    reading = Reading(1, 0, 20, 30)
    timings.note(reading)
    assert timings.progress(reading) == {"total": 30, "cache": 10, "processed": 20, "time_ms": 250}
    timings.note(Delta(1, 0, "a"))
    timings.note(Finished(1, 0, "stop", 8))
    values = [10, 20, 500.0, 25.0, 40.0, 8, 2000.0, 250.0, 4.0]
    assert timings.whole() == dict(zip(FIELDS, values, strict=True))


def test_a_choice_without_tokens_took_no_time() -> None:
    timings = Timings(Started(1, 0, 30, 30), lambda: 5.0)
    timings.note(Finished(1, 0, "length", 0))
    assert timings.whole() == dict(zip(FIELDS, [30, *[0] * 8], strict=True))


def chunks(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line[:7] == b"data: {"]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_times_come_only_when_asked_for(path: str, body: dict[str, Any]) -> None:
    body = body | {"max_tokens": 4, "temperature": 0}
    with RunningServer() as server:
        assert "timings" not in server.post(path, **body).json
        whole = server.post(path, **body, timings_per_token=True).json
        assert list(whole["timings"]) == FIELDS
        assert whole["timings"]["predicted_n"] == whole["usage"]["completion_tokens"]
        options = {"stream_options": {"include_timings": True}, "return_progress": True}
        sent = chunks(server.post(path, **body, stream=True, **options).body)
        plain = chunks(server.post(path, **body, stream=True).body)
    assert [list(chunk["timings"]) for chunk in sent if "timings" in chunk] == [FIELDS]
    assert "timings" in sent[-1]
    first = sent[0]["prompt_progress"]
    assert list(first) == ["total", "cache", "processed", "time_ms"]
    assert first["processed"] == first["cache"] <= first["total"]
    without = [chunk["choices"] for chunk in sent if "prompt_progress" not in chunk]
    assert without == [chunk["choices"] for chunk in plain]
    assert not any("timings" in chunk or "prompt_progress" in chunk for chunk in plain)
