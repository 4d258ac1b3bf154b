"""Which cached tokens a prompt starts from, and in which lane it runs."""

import random

import pytest

from lmlite.worker.memory.lanes import (
    BLOCK,
    MIN_SHARED,
    Lane,
    Place,
    evictable,
    is_coming,
    n_cells,
    n_common,
    n_reusable,
    n_shared,
    place,
)


def lane(seq_id: int, tokens: list[int], busy: bool = False, last_used: int = 0) -> Lane:
    return Lane(seq_id, tokens, busy, last_used)


def test_the_common_prefix_ends_at_the_first_difference() -> None:
    assert n_common([1, 2, 3], [1, 2, 9]) == 2
    assert n_common([], [1]) == 0
    assert n_common([1, 2], [1, 2, 3]) == 2


def test_the_common_prefix_is_right_at_every_length_and_difference() -> None:
    rng = random.Random(1)
    for _ in range(500):
        n = rng.randrange(3 * BLOCK)
        same = [rng.randrange(5) for _ in range(n)]
        a, b = [*same, 7, *same[:5]], [*same, 8][: n + rng.randrange(2)]
        assert n_common(a, b) == n


def test_one_token_of_a_known_prompt_is_always_read_again() -> None:
    assert n_reusable([1, 2, 3], [1, 2, 3]) == 2


def test_a_conversation_that_goes_on_runs_where_it_ran() -> None:
    lanes = [lane(0, [1]), lane(1, [1, 2, 3]), lane(2, [])]
    assert place(lanes, [1, 2, 3, 4], True) == Place(lanes[1], lanes[1], 3)


def test_a_short_common_beginning_is_copied_so_that_the_long_rest_stays() -> None:
    lanes = [lane(0, [1, 2, 3, 4, 5, 6]), lane(1, [])]
    assert place(lanes, [1, 2, 9, 9], True) == Place(lanes[1], lanes[0], 2)


def test_a_running_sequence_is_begun_from_too() -> None:
    lanes = [lane(0, [1, 2, 3], busy=True), lane(1, [7])]
    assert place(lanes, [1, 2, 3, 4], True) == Place(lanes[1], lanes[0], 3)


def test_memory_that_cannot_be_cut_begins_from_the_whole_of_an_idle_lane() -> None:
    lanes = [lane(0, [1, 2, 3], busy=True), lane(1, [1, 2]), lane(2, [1, 2, 3, 7], last_used=-1)]
    assert place(lanes, [1, 2, 3, 4], False) == Place(lanes[1], lanes[1], 2)
    # Nothing fits: the least recently used lane is written over.
    assert place(lanes, [1, 8, 8], False) == Place(lanes[2], lanes[2], 0)


def test_a_prompt_like_no_other_runs_in_an_empty_lane_and_else_in_the_oldest() -> None:
    lanes = [lane(0, [7], last_used=5), lane(1, [8], last_used=2), lane(2, [], last_used=9)]
    chosen = place(lanes, [1, 2], True)
    assert chosen is not None
    assert (chosen.lane, chosen.n_tokens) == (lanes[2], 0)
    chosen = place(lanes[:2], [1, 2], True)
    assert chosen is not None
    assert (chosen.lane, chosen.n_tokens) == (lanes[1], 0)


@pytest.mark.parametrize("can_cut", [True, False])
def test_without_an_idle_lane_there_is_no_place(can_cut: bool) -> None:
    assert place([lane(0, [1, 2], busy=True)], [1, 2], can_cut) is None


def test_a_prompt_waits_for_a_beginning_that_another_is_reading() -> None:
    long = list(range(100))
    assert is_coming([*long, 7], 0, [[*long, 8]])
    assert not is_coming([*long, 7], 100 - MIN_SHARED + 1, [[*long, 8]])
    assert not is_coming([9, *long], 0, [long])
    assert not is_coming(long, 0, [])


def test_the_oldest_idle_prefix_is_given_up_first() -> None:
    lanes = [lane(0, [1], last_used=3), lane(1, [2], last_used=1), lane(2, [3], busy=True)]
    assert evictable(lanes) is lanes[1]
    assert evictable([lane(0, []), lane(1, [1], busy=True)]) is None


# ---- cells ---------------------------------------------------------------------------------


def test_a_shared_beginning_is_held_once() -> None:
    whole, begun, cut = lane(0, [1, 2, 3]), lane(1, []), lane(2, [])
    begun.begin_with(whole, 2)
    begun.tokens += [9, 9]
    cut.begin_with(begun, 3)
    assert (begun.tokens, cut.tokens) == ([1, 2, 9, 9], [1, 2, 9])
    assert n_cells([whole, begun, cut]) == n_cells([cut, whole, begun]) == 3 + 2
    assert n_cells([whole, cut]) == 3 + 1
    assert n_shared(cut, {begun}) == 3
    assert n_shared(cut, {whole}) == 2
    cut.cut(1)
    assert n_shared(cut, {begun, whole}) == 1
    whole.cut(0)
    assert n_cells([whole, begun, cut]) == 4


def test_the_same_tokens_read_twice_take_cells_twice() -> None:
    assert n_cells([lane(0, [1, 2, 3]), lane(1, [1, 2, 3])]) == 6


def test_cells_are_counted_right_however_lanes_share_them() -> None:
    rng = random.Random(1)
    lanes = [lane(i, []) for i in range(5)]
    cells: list[list[object]] = [[] for _ in lanes]
    for _ in range(2000):
        i, j = rng.sample(range(5), 2)
        n = rng.randrange(len(lanes[j].tokens) + 1)
        match rng.randrange(3):
            case 0:
                lanes[j].tokens.append(7)
                cells[j].append(object())
            case 1:
                lanes[j].cut(n)
                del cells[j][n:]
            case 2:
                lanes[i].cut(0)
                lanes[i].begin_with(lanes[j], n)
                cells[i] = cells[j][:n]
        some = rng.sample(range(5), 3)
        assert n_cells(lanes[k] for k in some) == len({cell for k in some for cell in cells[k]})
