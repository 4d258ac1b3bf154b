"""lm-eval: log-likelihoods through the echo of completions, as those computed by hand.

In an environment of its own: `python -m tests.clients.lm_eval_client URL MODEL`.
"""

import json
import sys
import urllib.request
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

PAIRS = (
    ("Once upon", " a time"),
    ("Count from 1 to 5.\n1, 2, 3,", " 4, 5"),
    ("Hi", " there, Anna"),
)


def main(url: str, model: str) -> None:
    """Scores each pair in both ways; prints the scores."""
    harness = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model=model,
                                  tokenizer_backend="remote", max_length=2048)  # fmt: skip
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    scores = [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    for (context, rest), score in zip(PAIRS, scores, strict=True):
        assert abs(score - by_hand(url, context, rest)) < 1e-3
    print(" ".join(f"{score:.3f}" for score in scores))


def by_hand(url: str, context: str, rest: str) -> float:
    """The sum over the tokens of the rest, each after all that precede it."""
    ids, more = (tokens(url, text) for text in (context, context + rest))
    assert more[: len(ids)] == ids
    total = 0.0
    for i in range(len(ids), len(more)):
        body = {"prompt": more[: i + 1], "max_tokens": 0, "echo": True, "logprobs": 1}
        total += post(url, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][-1]
    return total


def tokens(url: str, text: str) -> list[int]:
    """The token ids of a text, as the harness asks for them."""
    found: list[int] = post(url, "/tokenize", {"prompt": text, "add_special_tokens": False})[
        "tokens"
    ]
    return found


def post(url: str, path: str, body: Any) -> Any:
    """The JSON of a reply."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main(*sys.argv[1:])
