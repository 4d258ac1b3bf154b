"""Draws the conversations of the training on other processors, while the model learns from them."""

import os
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.tiny_model import corpus
from tests.tiny_model.tokenizer import Tokenizer

Arrays = tuple[np.ndarray, np.ndarray]  # tokens and weights of a batch, (conversations, longest)


class Batch(NamedTuple):
    """What one step of the training learns from."""

    tokens: Tensor  # (conversations, longest - 1): what is read; behind a conversation's end zeros
    places: Tensor  # (answer tokens): behind which of these tokens, counted through, each stands
    wanted: Tensor  # (answer tokens): the tokens to be predicted
    weights: Tensor  # (answer tokens)


def batches(
    seed: int, vocabulary: Tokenizer, n_tokens: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of about `n_tokens` without end: the same for the same seed, however many draw."""
    merges, n_workers = tuple(vocabulary.merges), max(1, (os.cpu_count() or 1) - 1)
    with ProcessPoolExecutor(n_workers) as workers:
        ahead = deque(
            workers.submit(drawn, seed, number, merges, n_tokens) for number in range(2 * n_workers)
        )
        try:
            for number in count(len(ahead)):
                for arrays in ahead.popleft().result():
                    yield on_device(arrays, device)
                ahead.append(workers.submit(drawn, seed, number, merges, n_tokens))
        finally:
            workers.shutdown(wait=False, cancel_futures=True)


cut_by = lru_cache(1)(Tokenizer)  # which remembers the words that it has cut


def drawn(
    seed: int, number: int, merges: tuple[tuple[str, str], ...], n_tokens: int
) -> list[Arrays]:
    """The batches of a pool; runs in a process of its own."""
    rng = random.Random(f"{seed} {number} batches")
    pool = corpus.examples(seed, number, cut_by(merges))
    return [padded(batch) for batch in corpus.batches(pool, n_tokens, rng)]


def padded(batch: list[corpus.Example]) -> Arrays:
    """The conversations as rows of one length; what is added weighs nothing."""
    n = max(len(ids) for ids, _ in batch)
    tokens = np.zeros((len(batch), n), np.int16)
    weights = np.zeros((len(batch), n), np.float32)
    for row, (ids, weighs) in enumerate(batch):
        tokens[row, : len(ids)] = ids
        weights[row, : len(ids)] = weighs
    return tokens, weights


def on_device(arrays: Arrays, device: torch.device) -> Batch:
    """Finds what is to be predicted, and moves all to where the model is."""
    tokens, weights = arrays
    places = np.flatnonzero(weights[:, 1:])
    columns = (
        tokens[:, :-1].astype(np.int64), places,
        tokens[:, 1:].ravel()[places].astype(np.int64), weights[:, 1:].ravel()[places],
    )  # fmt: skip
    return Batch(*(torch.from_numpy(column).to(device) for column in columns))
