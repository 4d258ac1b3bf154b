"""Vectors: a real model's against its reference, and the promises that hold for every model."""

import base64
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Scales, Scored
from lmlite.worker.embedder import Embedder, Input, Query
from lmlite.worker.llama import capi
from lmlite.worker.llama.context import Batch, Context
from lmlite.worker.llama.model import Model
from tests.conftest import shared_model
from tests.support import rank_models
from tests.support.gguf_writer import Shape, tiny_llama
from tests.support.server_process import RunningServer

EMBED = "/v1/embeddings"


@pytest.fixture(scope="module")
def minilm(minilm_path: Path) -> Iterator[RunningServer]:
    with RunningServer(str(minilm_path)) as running:
        yield running


@pytest.fixture(scope="module")
def chat_model() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Any:
    return json.loads(shared_model("all-minilm-l6-v2.reference.json").read_text())


def embed(server: RunningServer, value: Any, **body: Any) -> Any:
    answer = server.post(EMBED, input=value, **body)
    assert answer.status == 200, answer.body
    return answer.json


def vectors(reply: Any) -> list[list[float]]:
    return [row["embedding"] for row in reply["data"]]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def rows_of(reference: Any) -> list[tuple[str, int, list[float]]]:
    return [(row["text"], row["n_tokens"], row["embedding"]) for row in reference["texts"]]


def test_each_text_alone_agrees_with_its_reference(minilm: RunningServer, reference: Any) -> None:
    for text, n_tokens, expected in rows_of(reference):
        reply = embed(minilm, text)
        assert cosine(vectors(reply)[0], expected) >= 0.998
        assert reply["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def test_all_texts_in_one_batch_agree_with_their_references(
    minilm: RunningServer, reference: Any
) -> None:
    rows = rows_of(reference)
    reply = embed(minilm, [text for text, _, _ in rows])
    assert [row["index"] for row in reply["data"]] == list(range(len(rows)))
    for vector, (_, _, expected) in zip(vectors(reply), rows, strict=True):
        assert cosine(vector, expected) >= 0.998
    assert reply["usage"]["prompt_tokens"] == sum(n for _, n, _ in rows)


def test_more_inputs_than_fit_one_batch_are_all_answered_in_order(minilm: RunningServer) -> None:
    texts = [f"sentence number {i} of a long list of sentences" for i in range(150)]
    many = vectors(embed(minilm, texts))
    for i in (0, 70, 149):
        assert cosine(many[i], vectors(embed(minilm, texts[i]))[0]) >= 0.999


def test_an_input_over_the_models_context_is_refused_by_index(minilm: RunningServer) -> None:
    answer = minilm.post(EMBED, input=["short", "word " * 600])
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["message"] == (
        "This model's maximum context length is 512 tokens. However, your input resulted in 602 "
        "tokens. Input 1 is too long. Shorten the prompt: this model was trained for 512 tokens "
        "(see --rope-scaling)."
    )


def test_an_input_of_exactly_the_context_is_embedded(minilm: RunningServer) -> None:
    assert embed(minilm, "word " * 510)["usage"]["prompt_tokens"] == 512


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_embedding_model_refuses_to_talk(minilm: RunningServer, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
    answer = minilm.post(path, **body)
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert "embedding model" in answer.error["message"]


def test_models_says_that_it_embeds(minilm: RunningServer) -> None:
    (model,) = minilm.get("/v1/models").json["data"]
    assert (model["id"], model["type"]) == ("all-minilm-l6-v2-q8_0", "embeddings")
    assert (model["context_length"], model["quantization"]) == (512, "Q8_0")


# ---- a chat model embeds too -----------------------------------------------------------------


def test_a_chat_model_embeds_beside_its_chats(chat_model: RunningServer) -> None:
    before = chat_model.chat("Hi")
    vector = vectors(embed(chat_model, "Hi"))[0]
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
    assert chat_model.chat("Hi")["choices"] == before["choices"]


def test_a_context_of_an_odd_size_embeds_up_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    tiny_llama(path, shape=Shape(n_ctx=100))
    with RunningServer(str(path)) as server:
        assert embed(server, [[5] * 100, [6]])["usage"]["prompt_tokens"] == 101
        assert server.post(EMBED, input=[5] * 101).error["code"] == "context_length_exceeded"


def test_base64_holds_the_same_numbers_as_little_endian_float32(chat_model: RunningServer) -> None:
    (plain,) = vectors(embed(chat_model, "Hi", encoding_format="float"))
    (encoded,) = [
        row["embedding"] for row in embed(chat_model, "Hi", encoding_format="base64")["data"]
    ]
    data = base64.b64decode(encoded, validate=True)
    assert len(data) == 4 * len(plain)
    assert array("f", data).tolist() == plain


def test_dimensions_cut_and_renormalise(chat_model: RunningServer) -> None:
    (whole,) = vectors(embed(chat_model, "Hi there"))
    n = max(i for i, x in enumerate(whole) if x) + 1
    (cut,) = vectors(embed(chat_model, "Hi there", dimensions=n))
    assert len(cut) == n
    assert math.hypot(*cut) == pytest.approx(1.0, abs=1e-5)
    assert cosine(cut, whole[:n]) == pytest.approx(1.0, abs=1e-6)


def test_the_four_forms_of_an_input_agree(chat_model: RunningServer) -> None:
    tokens = [40, 41]
    assert vectors(embed(chat_model, tokens)) == vectors(embed(chat_model, [tokens]))
    assert vectors(embed(chat_model, "Hi")) == vectors(embed(chat_model, ["Hi"]))


# ---- steps -----------------------------------------------------------------------------------


class CountingContext:
    """In place of a Context: says yes to all, and notes how many tokens each step had."""

    n_batch = 512
    pooling_type = capi.POOLING_TYPE_MEAN

    def __init__(self) -> None:
        self.steps: list[int] = []

    def set_adapters(self, _scales: Scales) -> None: ...

    def decode(self, batch: Batch) -> bool:
        self.steps.append(len(batch))
        return True

    def embedding(self, _seq_id: int) -> "array[float]":
        return array("f", [1.0, 0.0])

    def clear_memory(self, *, data: bool = False) -> None:
        pass


@pytest.mark.parametrize(
    ("n_together", "lengths", "steps"),
    [
        (None, [200, 200, 112, 1], [512, 1]),
        (256, [200, 56, 1, 100, 156], [256, 101, 156]),
        (256, [400, 10, 500, 20, 30], [400, 10, 500, 50]),
        (256, [1] * 70, [64, 6]),
        (1024, [500, 12, 1], [512, 1]),
    ],
)
def test_a_step_takes_whole_inputs_up_to_a_bound(
    n_together: int | None, lengths: list[int], steps: list[int]
) -> None:
    context: Any = CountingContext()
    embedder = Embedder(lambda: context, n_together)
    for index, n_tokens in enumerate(lengths):
        embedder.submit(Input(7, index, [5] * n_tokens))
    events: list[Any] = []
    while embedder.has_work:
        events += embedder.step()
    assert context.steps == steps
    assert [(event.index, event.n_prompt) for event in events] == list(enumerate(lengths))


def test_a_causal_ranking_model_may_read_a_long_pair_in_pieces(lib: Any, tmp_path: Path) -> None:
    rank_models.qwen3(tmp_path / "rank.gguf")
    model = Model(lib, str(tmp_path / "rank.gguf"))

    def scores(n_batch: int) -> list[float]:
        def make_context() -> Context:
            return Context(model, n_ctx=128, n_batch=n_batch, n_seq_max=4, n_threads=1,
                           pooling_type=capi.POOLING_TYPE_UNSPECIFIED)  # fmt: skip

        with closing(Embedder(make_context)) as embedder:
            for index, n_tokens in enumerate((10, 100, 9)):
                embedder.submit(Input(7, index, [*range(30, 30 + n_tokens)]))
            events: list[Any] = []
            while embedder.has_work:
                events += embedder.step()
        return [event.score for event in events]

    assert scores(16) == pytest.approx(scores(128), abs=1e-3)
    assert len({round(score, 2) for score in scores(16)}) == 3
    model.close()


def test_a_query_that_is_tried_again_is_still_no_document() -> None:
    """A step whose last document fails has read the query already."""
    context: Any = CountingContext()
    numbers = iter([1.0, 1.0, math.nan, 1.0, 1.0, 0.5])
    context.embedding = lambda _seq_id: array("f", [next(numbers), 0.0])
    embedder, query = Embedder(lambda: context), Query()
    for index in (-1, 0, 1):
        embedder.submit(Input(7, index, [5] * 3, query))
    events: list[Any] = []
    while embedder.has_work:
        events += embedder.step()
    assert events == [Scored(7, 0, 6, 1.0), Scored(7, 1, 3, 1.0)]
