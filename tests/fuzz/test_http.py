"""Damaged requests get replies, and do no harm."""

import pytest

from tests.fuzz import http as fuzz_http


def test_five_thousand_damaged_requests_are_read_the_same_in_any_two_parts() -> None:
    totals = fuzz_http.check_raw(1, range(5000))
    assert totals.total() == 5000
    # They reach all of it: the head, the gate, what is said of the body, the body.
    assert {"200", "400", "403", "405", "411", "413", "415", "431", "505"} <= set(totals)


def test_a_server_is_unchanged_after_two_hundred_damaged_requests() -> None:
    assert fuzz_http.check_sockets(1, range(200)).total() == 200


def test_damaged_bodies_are_requests_or_errors_of_the_client_at_every_endpoint() -> None:
    totals = fuzz_http.check_bodies(1, range(100))
    assert set(totals) == {f"{kind} {status}" for kind in fuzz_http.BASES for status in (200, 400)}


def test_a_mutant_depends_only_on_its_numbers_and_every_base_is_valid() -> None:
    assert fuzz_http.raw_mutant(1, 2) == fuzz_http.raw_mutant(1, 2) != fuzz_http.raw_mutant(1, 3)
    first = fuzz_http.body_mutant(1, 2, "chat")
    assert first == fuzz_http.body_mutant(1, 2, "chat") != fuzz_http.body_mutant(2, 2, "chat")
    for kind, parse in fuzz_http.parsers().items():
        parse(fuzz_http.BASES[kind])


def test_the_fuzzer_finds_a_parser_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr(fuzz_http, "parsers", lambda: {"embeddings": broken})
    with pytest.raises(AssertionError, match=r"embeddings .*unhashable"):
        fuzz_http.check_bodies(1, range(20))
