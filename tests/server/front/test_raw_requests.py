"""Raw requests get the same replies however their bytes arrive, and harm no other connection."""

from collections.abc import Iterator

import pytest

from tests.support import raw_requests as raw
from tests.support.house import House, opened

NAMES = [name for name, _, _ in raw.ROWS]
LONG = 2000  # bytes, from which on only some of the splits are tried


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with opened() as made:
        yield made


def splits(data: bytes) -> Iterator[int]:
    """Every place where the data may be cut in two; of long data, those near its ends and some."""
    for at in range(1, len(data)):
        if min(at, len(data) - at) < LONG // 2 or at % 97 == 0:
            yield at


def test_there_are_enough_raw_requests_and_each_has_a_name() -> None:
    assert len(raw.ROWS) >= 120
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize(("_name", "data", "expected"), raw.ROWS, ids=NAMES)
def test_a_request_is_read_the_same_whole_byte_by_byte_and_in_any_two_parts(
    _name: str, data: bytes, expected: tuple[int, ...]
) -> None:
    assert raw.statuses(data) == expected
    assert raw.statuses(*(bytes([byte]) for byte in data)) == expected
    for at in splits(data):
        assert raw.statuses(data[:at], data[at:]) == expected, at


@pytest.mark.parametrize(("_name", "data", "expected"), raw.ROWS, ids=NAMES)
def test_the_server_replies_so_and_reads_no_second_request_out_of_it(
    house: House, _name: str, data: bytes, expected: tuple[int, ...]
) -> None:
    # Where nothing is answered, it is the client that has to end the connection.
    ends = not expected
    sent = data if ends else data + raw.get("Connection: close", first="GET /health HTTP/1.1")
    answers = raw.answers_of(house.exchange(sent, ends=ends))
    found = tuple(status for status, _ in answers)
    assert found == raw.statuses(sent)
    assert found[: len(expected)] == expected
    assert all(connection == b"close" for _, connection in answers[-1:])
    assert house.get("/health")[0] == 200
