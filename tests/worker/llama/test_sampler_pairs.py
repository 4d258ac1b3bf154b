"""Extreme and strange values of two sampling fields at a time."""

import itertools
import json
import math
import random
from typing import Any

from lmlite.errors import BadRequest
from lmlite.server.api.openai.requests import parse_chat
from lmlite.server.front import wire
from lmlite.worker.llama.model import Model
from tests.support.server_process import RunningServer

CHAT = "/v1/chat/completions"
BIASED = "5"  # the token whose bias is varied

ANY: set[float] = {0, -1, 2**31}  # values out of range are clamped
# For each field: its least and greatest value, and which others it accepts.
FIELDS: dict[str, tuple[float, float, set[float]]] = {
    "temperature": (0, 2, ANY),
    "top_k": (-1, 2**31 - 1, ANY),
    "top_p": (0, 1, ANY),
    "min_p": (0, 1, ANY),
    "repeat_penalty": (1e-9, 10, {2**31}),
    "presence_penalty": (-2, 2, ANY),
    "frequency_penalty": (-2, 2, ANY),
    "typical_p": (0, 1, ANY),
    "top_n_sigma": (-1, 100, ANY),
    "xtc_probability": (0, 1, ANY),
    "dynatemp_range": (0, 2, ANY),
    "dynatemp_exponent": (0, 10, ANY),
    "dry_multiplier": (0, 100, ANY),
    "dry_allowed_length": (0, 2**31 - 1, ANY),
    "dry_penalty_last_n": (-1, 2**31 - 1, ANY),
    "repeat_last_n": (-1, 2**31 - 1, ANY),
    "mirostat": (0, 2, ANY),
    "mirostat_tau": (0, 100, ANY),
    "seed": (-(2**63), 2**64 - 1, {0, -1, 2**31}),
    "max_tokens": (-1, 2**31 - 1, {0, -1}),
    "n": (1, 8, set()),
    "top_logprobs": (0, 20, {0}),
    "logit_bias": (-100, 100, ANY),
}
STRANGE = (0, -1, math.nan, math.inf, 2**31)

Setting = tuple[str, float, bool]  # field, value, whether it is accepted


def settings(field: str) -> list[Setting]:
    least, greatest, others = FIELDS[field]
    extreme = [(field, value, True) for value in (least, greatest)]
    return extreme + [(field, value, value in others) for value in STRANGE]


def body_of(*pair: Setting) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    body: dict[str, Any] = {"messages": messages, "logprobs": True, "max_tokens": 4}
    for field, value, _ in pair:
        body[field] = {BIASED: value} if field == "logit_bias" else value
    return body


PAIRS = [
    pair
    for one, other in itertools.combinations(FIELDS, 2)
    for pair in itertools.product(settings(one), settings(other))
]


def test_each_pair_is_accepted_or_its_wrong_parameter_is_named() -> None:
    assert len(PAIRS) == 253 * 49
    for pair in PAIRS:
        wrong = [field for field, _, is_taken in pair if not is_taken]
        data = json.dumps(body_of(*pair)).encode()
        try:
            parse_chat(wire.parse_json(data))
        except BadRequest as err:
            assert wrong, pair
            if all(math.isfinite(value) for _, value, _ in pair):
                assert str(err.param).partition(".")[0] in wrong, pair
            else:  # not JSON
                assert err.param is None, pair
        else:
            assert not wrong, pair


def test_accepted_pairs_give_a_text(default_model: Model) -> None:
    """A sampler that gets NaN chooses the last token of the vocabulary, and never ends."""
    vocab = default_model.vocab
    last = vocab.piece(vocab.n_tokens - 1, special=True).decode()
    taken = [pair for pair in PAIRS if all(is_taken for _, _, is_taken in pair)]
    with RunningServer("--ctx", "128") as server:
        for pair in random.Random(1).sample(taken, 60):
            body = body_of(*pair)
            answer = server.post(CHAT, **body)
            assert answer.status == 200, (pair, answer.body)
            for choice in answer.json["choices"]:
                assert choice["finish_reason"] in ("stop", "length")
                tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
                assert last not in tokens, pair
        assert not any(" ERROR " in line for line in server.log)
