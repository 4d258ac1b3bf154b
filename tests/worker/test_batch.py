"""Which sequences take part in a step, and with how many tokens: no model, no context."""

import random

import pytest

from lmlite.contexts import MAX_OUTPUT_PIECE
from lmlite.messages import SamplingParams
from lmlite.worker.batch import ROW_BLOCK, compose
from lmlite.worker.memory.lanes import Lane
from lmlite.worker.sequence import Sequence

PLENTY = 1e6  # tokens in time


def sequence(n_prompt: int, n_held: int = 0, *, echo: bool = False) -> Sequence:
    """A running sequence; memory holds the first n_held tokens of its prompt."""
    params = SamplingParams(n_logprobs=0 if echo else None)
    made = Sequence(1, 0, list(range(n_prompt)), params, 0, (), "echo" if echo else None)
    made.lane = Lane(0, made.prompt[:n_held], busy=True)
    return made


def sizes(sequences: list[Sequence], n_max: int = 512, n_in_time: float = PLENTY) -> list[int]:
    return [len(piece.tokens) for piece in compose(sequences, n_max, n_in_time)]


def test_a_generating_sequence_takes_part_with_one_token_before_any_prompt() -> None:
    prompt, generating = sequence(100), sequence(10, 9)
    pieces = compose([prompt, generating], 512, PLENTY)
    assert [piece.sequence for piece in pieces] == [generating, prompt]
    assert [(p.begin, len(p.tokens), p.last_index, p.ends) for p in pieces] == [
        (9, 1, 0, True),
        (0, 100, 100, True),
    ]


def test_prompts_share_a_batch_in_order_of_admission() -> None:
    assert sizes([sequence(300), sequence(300), sequence(300)]) == [300, 212]


def test_a_prompt_that_is_cut_needs_no_logits_yet() -> None:
    (piece,) = compose([sequence(100)], 64, PLENTY)
    assert (piece.tokens, piece.ends, piece.wants_all) == (list(range(64)), False, False)


@pytest.mark.parametrize(("n_in_time", "n_read"), [(0, 31), (100, 95), (104, 95), (105, 111)])
def test_a_prompt_beside_a_stream_fills_whole_blocks_of_what_fits_the_time(
    n_in_time: float, n_read: int
) -> None:
    assert sizes([sequence(10, 9), sequence(400)], n_in_time=n_in_time) == [1, n_read]


def test_a_prompt_alone_may_take_a_whole_batch_however_slow_the_machine_is() -> None:
    assert sizes([sequence(600)], n_in_time=0) == [512]


def test_a_prompt_is_cut_too_while_a_stream_with_other_adapters_waits() -> None:
    (piece,) = compose([sequence(600)], 512, 100, others_wait=True)
    assert len(piece.tokens) == 96


def test_a_prompt_goes_no_further_than_its_next_checkpoint() -> None:
    reading = sequence(100, 20)
    reading.checkpoints_at = [50, 99]
    assert sizes([reading]) == [30]


def test_a_prompt_whose_logits_are_all_wanted_is_read_in_small_pieces() -> None:
    (piece,) = compose([sequence(500, echo=True)], 512, PLENTY)
    assert (len(piece.tokens), piece.ends, piece.wants_all) == (MAX_OUTPUT_PIECE, False, True)


def test_any_batch_fits_and_holds_each_sequence_once_with_its_next_tokens() -> None:
    rng = random.Random(1)
    for _ in range(500):
        lengths = [rng.randrange(2, 200) for _ in range(rng.randrange(1, 12))]
        running = [sequence(n, rng.choice((n - 1, rng.randrange(n)))) for n in lengths]
        n_max, n_in_time = rng.randrange(len(running), 300), rng.randrange(300)
        pieces = compose(running, n_max, n_in_time)
        n_generating = sum(each.n_pending == 1 for each in running)
        assert [p.sequence.n_pending for p in pieces[:n_generating]] == [1] * n_generating
        assert len({id(piece.sequence) for piece in pieces}) == len(pieces) > 0
        n_tokens = 0
        for piece in pieces:
            held = piece.sequence.n_held
            assert piece.tokens == piece.sequence.tokens[held : held + len(piece.tokens)] != []
            n_tokens += len(piece.tokens)
            assert piece.last_index == n_tokens - 1
            assert piece.ends == (len(piece.tokens) == piece.sequence.n_pending)
        n_most = max(n_in_time + ROW_BLOCK, 2 * ROW_BLOCK) if n_generating else n_max
        assert n_tokens <= min(n_max, n_most)
