"""Which lane a prompt takes, and how much it reuses."""

from lmlite.worker.prefix import Lane, choose, evictable, n_common, n_reusable


def lane(seq_id: int, tokens: list[int], busy: bool = False, last_used: int = 0) -> Lane:
    return Lane(seq_id, tokens, busy, last_used)


def test_the_common_prefix_ends_at_the_first_difference() -> None:
    assert n_common([1, 2, 3], [1, 2, 9]) == 2
    assert n_common([], [1]) == 0
    assert n_common([1, 2], [1, 2, 3]) == 2


def test_one_token_of_a_known_prompt_is_always_read_again() -> None:
    assert n_reusable(lane(0, [1, 2, 3]), [1, 2, 3]) == 2


def test_the_lane_with_the_longest_prefix_is_chosen() -> None:
    lanes = [lane(0, [1]), lane(1, [1, 2, 3]), lane(2, [9])]
    chosen = choose(lanes, [1, 2, 3, 4])
    assert chosen is lanes[1]


def test_among_equals_the_lane_idle_longest_is_chosen() -> None:
    lanes = [lane(0, [7], last_used=5), lane(1, [8], last_used=2)]
    assert choose(lanes, [1, 2]) is lanes[1]


def test_a_busy_lane_is_never_chosen() -> None:
    assert choose([lane(0, [1, 2], busy=True)], [1, 2]) is None


def test_the_oldest_idle_prefix_is_given_up_first() -> None:
    lanes = [lane(0, [1], last_used=3), lane(1, [2], last_used=1), lane(2, [3], busy=True)]
    assert evictable(lanes) is lanes[1]
    assert evictable([lane(0, []), lane(1, [1], busy=True)]) is None
