"""A soak of some seconds: no request is lost, and the soak would notice lost requests."""

from collections import Counter
from collections.abc import Callable
from http.client import HTTPMessage
from shutil import which

import pytest

from tests.reliability import soak

SECONDS = 6.0
Figure = Callable[[str, str], None]


@pytest.mark.long
def test_a_worker_that_is_killed_again_and_again_loses_no_request(figure: Figure) -> None:
    figures, faults = soak.soaked("kills", SECONDS, seed=1)
    assert faults == []
    figure("R3", figures)


@pytest.mark.long
def test_every_fault_at_once_leaves_the_server_unchanged(figure: Figure) -> None:
    figures, faults = soak.soaked("all", SECONDS, seed=1)
    assert faults == []
    figure("S1", figures)


@pytest.mark.long
@pytest.mark.skipif(which("curl") is None, reason="needs curl")
def test_a_stranger_with_curl_learns_nothing_and_leaves_nothing(figure: Figure) -> None:
    figures, faults = soak.soaked("curl", SECONDS, seed=1)
    assert faults == []
    figure("S1", figures)


EVENT = b'data: {"choices": []}\n\n'


@pytest.mark.parametrize(("status", "type_", "retry", "body", "end"), [
    (200, "application/json", "", b'{"choices": []}', "answered"),
    (200, "text/event-stream", "", EVENT + b"data: [DONE]\n\n", "answered"),
    (200, "text/event-stream", "", EVENT + b'data: {"error": "it may be sent again"}\n\n',
     "cut short and told so"),
    (503, "application/json", "1", b'{"error": {}}', "told to ask again"),
    (422, "application/json", "", b'{"error": {}}', "refused"),
])  # fmt: skip
def test_each_way_in_which_a_request_may_end_is_recognised(
    status: int, type_: str, retry: str, body: bytes, end: str
) -> None:
    assert soak.end_of(status, headers(type_, retry), body) == end


@pytest.mark.parametrize(("status", "type_", "body"), [
    (200, "text/event-stream", EVENT),
    (200, "text/event-stream", EVENT + b'data: {"error": "sorry"}\n\n'),
    (200, "text/event-stream", b""),
    (500, "application/json", b'{"error": {}}'),
    (503, "application/json", b'{"error": {}}'),
    (404, "text/html", b"<html>"),
])  # fmt: skip
def test_every_other_end_of_a_request_counts_as_lost(status: int, type_: str, body: bytes) -> None:
    assert soak.end_of(status, headers(type_, ""), body) not in soak.ENDS


def headers(type_: str, retry: str) -> HTTPMessage:
    found = HTTPMessage()
    found["Content-Type"] = type_
    if retry:
        found["Retry-After"] = retry
    return found


def test_a_server_that_keeps_anything_is_a_fault() -> None:
    before = soak.Rest(20 << 20, Counter(threads=5))
    after = soak.Rest(23 << 20, Counter(threads=6))
    assert soak.kept(before, before, n_requests=10_000) == []
    assert soak.kept(before, after, n_requests=10_000) == [
        "the server grew by more than 2,560 KiB",
        "the server holds {'threads': 6}, and held {'threads': 5}",
    ]
