"""The histograms of /metrics: what a request adds to them, and under which labels."""

import re
from contextlib import closing
from types import SimpleNamespace

import pytest

from lmlite.messages import Delta, Embedded, Finished, Planned, ReplyEvent, Started
from lmlite.server.logs import Log
from lmlite.server.models.registry import Registry
from lmlite.server.watch import request_count
from lmlite.server.watch.histogram import Histogram
from lmlite.server.watch.metrics import Metrics
from lmlite.server.watch.request_count import HISTOGRAMS, RequestCount
from tests.support.house import House, until

CHAT = "/v1/chat/completions"


class Clock:
    """Seconds that a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(request_count, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def add_after(self, gap_s: float, count: RequestCount, *events: ReplyEvent) -> None:
        self.now_s += gap_s
        for event in events:
            count.add(event)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def request(model: str = "a") -> RequestCount:
    return RequestCount(Log(), "req-1", model, "a.gguf", lambda: 0)


def rows(metrics: Metrics, name: str) -> dict[str, str]:
    """A histogram's rows. Of its buckets only those that count more than the one before."""
    text = metrics.text(n_connections=0, n_dropped={}, registry=Registry())
    assert f"# TYPE lmlite_{name} histogram\n" in text
    found: dict[str, str] = {}
    for labels, value in re.findall(rf"^lmlite_{name}_(.*) (\S+)$", text, re.MULTILINE):
        if not labels.startswith("bucket") or value not in ("0", *list(found.values())[-1:]):
            found[labels] = value
    return found


def test_a_value_at_a_bound_is_within_it() -> None:
    histogram = Histogram((1, 2))
    for value in (0, 1, 1.5, 2, 9):
        histogram.add(value)
    assert (histogram.within(), histogram.total) == ([2, 4, 5], 13.5)


def test_histograms_of_the_same_bounds_add_up() -> None:
    one, other = Histogram((1, 2)), Histogram((1, 2))
    one.add(1)
    other.add(2)
    other.add(3)
    one.merge(other)
    assert (one.within(), one.total) == ([1, 2, 3], 6)


def test_a_request_counts_once_in_each_and_each_gap_of_its_answer_counts(clock: Clock) -> None:
    count, metrics = request(), Metrics()
    clock.add_after(0.25, count, Started(1, 0, 40, 30))
    clock.add_after(0.5, count, Delta(1, 0, "a"))
    clock.add_after(0.0625, count, Delta(1, 0, "b"))
    clock.add_after(2, count, Delta(1, 0, "c"), Finished(1, 0, "stop", 4))
    metrics.count(CHAT, 200, count, is_cut=False)
    of = f'model="a",path="{CHAT}"'
    assert rows(metrics, "queue_seconds") == {
        f'bucket{{{of},le="0.25"}}': "1", f"sum{{{of}}}": "0.250000", f"count{{{of}}}": "1",
    }  # fmt: skip
    assert rows(metrics, "first_token_seconds") == {
        f'bucket{{{of},le="1"}}': "1", f"sum{{{of}}}": "0.750000", f"count{{{of}}}": "1",
    }  # fmt: skip
    assert rows(metrics, "between_tokens_seconds") == {
        f'bucket{{{of},le="0.1"}}': "1", f'bucket{{{of},le="2.5"}}': "2",
        f"sum{{{of}}}": "2.062500", f"count{{{of}}}": "2",
    }  # fmt: skip
    assert rows(metrics, "prompt_tokens") == {
        f'bucket{{{of},le="64"}}': "1", f"sum{{{of}}}": "40.000000", f"count{{{of}}}": "1",
    }  # fmt: skip
    assert rows(metrics, "cached_ratio") == {
        f'bucket{{{of},le="0.75"}}': "1", f"sum{{{of}}}": "0.750000", f"count{{{of}}}": "1",
    }  # fmt: skip


def test_choices_that_are_written_in_turn_have_gaps_of_their_own(clock: Clock) -> None:
    count = request()
    for gap_s, index in ((0, 0), (1, 1), (1, 0), (1, 1)):
        clock.add_after(gap_s, count, Delta(1, index, "x"))
    gaps = count.histograms()["between_tokens_seconds"]
    assert (gaps.within()[-1], gaps.total) == (2, 4)  # not three gaps of 1 s


def test_an_embedding_has_a_prompt_but_no_times_and_no_share(clock: Clock) -> None:
    count = request()
    clock.add_after(1, count, Embedded(1, 0, 12, b""), Embedded(1, 1, 8, b""))
    found = {name: (h.within()[-1], h.total) for name, h in count.histograms().items()}
    assert found == {"between_tokens_seconds": (0, 0), "prompt_tokens": (1, 20)}


def test_a_dry_run_counts_nowhere(clock: Clock) -> None:
    count = request()
    clock.add_after(1, count, Planned(1, 0, (1, 2), (b"a", b"b"), 0, None))
    assert {name: h.within()[-1] for name, h in count.histograms().items()} == {
        "between_tokens_seconds": 0
    }


def test_models_and_paths_are_counted_apart(clock: Clock) -> None:
    metrics = Metrics()
    for model, path in (("a", CHAT), ("b", CHAT), ("a", "/v1/completions"), ("a", CHAT)):
        count = request(model)
        clock.add_after(1, count, Started(1, 0, 10, 0))
        metrics.count(path, 200, count, is_cut=False)
    counts = {k: n for k, n in rows(metrics, "prompt_tokens").items() if k.startswith("count")}
    assert counts == {
        f'count{{model="a",path="{CHAT}"}}': "2",
        'count{model="a",path="/v1/completions"}': "1",
        f'count{{model="b",path="{CHAT}"}}': "1",
    }


def test_a_client_cannot_create_labels(house: House) -> None:
    assert house.ask("echo x", model="fake")[0] == 200
    assert house.ask("echo x", model="nobody's")[0] == 404
    for path in ("/V1/chat", "/v1//chat/completions", "/chat/completions/", "/x", "/v1/x"):
        with closing(house.connect()) as connection:
            connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
            connection.getresponse().read()
    until(lambda: house.server.n_connections() == 0)
    text = house.server.metrics.text(n_connections=0, n_dropped={}, registry=house.server.registry)
    labels = set(re.findall(r'lmlite_\w+_count\{(model="[^"]*",path="[^"]*")\}', text))
    assert labels == {f'model="fake",path="{CHAT}"'}


def test_every_histogram_has_rising_bounds() -> None:
    for name, (bounds, _) in HISTOGRAMS.items():
        assert list(bounds) == sorted(set(bounds)), name
