"""Documents in the order in which they fit a query."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Embed, Scored
from lmlite.server.api.llamacpp.rerank import RerankReply, parse_rerank
from tests.support import rank_models
from tests.support.rank_models import TEMPLATE, Weights
from tests.support.server_process import RunningServer

RERANK, QUERY = "/v1/rerank", "what is panda"
DOCUMENTS = ["hi", "it is a bear", "the panda bear of china eats bamboo", "paris is in france"]
CLS, SEP = 2, 3
CLOSE = 2e-3  # llama.cpp rounds keys and values to 16 bits, and looks GELU up in a table


# ---- what is asked and answered ------------------------------------------------------------


def test_documents_are_texts_or_objects_with_a_text() -> None:
    documents = ["a", {"text": "b", "title": "c"}]
    call = parse_rerank({"query": "q", "documents": documents, "top_n": 3, "rank_fields": ["text"]})
    assert call.request == Embed(0, ("a", "b"), query="q")
    assert (call.top_n, call.documents, call.ignored) == (3, (), ("rank_fields",))
    shown = parse_rerank({"query": "q", "documents": documents, "return_documents": True})
    assert (shown.top_n, shown.documents) == (None, ("a", {"text": "b", "title": "c"}))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": ["q"], "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents"),
        ({"query": "q", "documents": ["a", 5]}, "documents.[1]"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents.[0].text"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a"], "return_documents": "yes"}, "return_documents"),
    ],
)
def test_an_error_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_rerank(body)
    assert caught.value.param == param


def test_the_best_come_first_and_equal_ones_in_their_order() -> None:
    documents = ["a", {"text": "b"}, "c", "d"]
    body = {"query": "q", "documents": documents, "top_n": 3, "return_documents": True}
    model: Any = SimpleNamespace(name="m", file=SimpleNamespace(ranker=None))
    reply = RerankReply(parse_rerank(body), "rerank-1", model, 0)
    for index, score in ((3, 0.5), (0, -1.0), (1, 0.75), (2, 0.5)):
        reply.add(Scored(1, index, 10, score))
    assert reply.whole() == {
        "id": "rerank-1",
        "object": "list",
        "model": "m",
        "scored_by": "cosine of embeddings",
        "results": [
            {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
            {"index": 3, "relevance_score": 0.5, "document": {"text": "d"}},
        ],
        "usage": {"prompt_tokens": 40, "total_tokens": 40},
    }


# ---- reranking models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Weights]]:
    path = tmp_path_factory.mktemp("rank") / "bert.gguf"
    weights = rank_models.bert(path)
    with RunningServer(str(path)) as server:
        yield server, weights


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Weights]]:
    path = tmp_path_factory.mktemp("rank") / "qwen3.gguf"
    weights = rank_models.qwen3(path)
    with RunningServer(str(path)) as server:
        yield server, weights


def scores(server: RunningServer, query: str, documents: list[str]) -> list[float]:
    """In the order of the documents."""
    answer = server.post(RERANK, query=query, documents=documents)
    assert answer.status == 200, answer.body
    rows = answer.json["results"]
    assert rows == sorted(rows, key=lambda row: -row["relevance_score"])
    found = {row["index"]: row["relevance_score"] for row in rows}
    return [found[index] for index in range(len(documents))]


def ids(server: RunningServer, text: str, **body: Any) -> list[int]:
    tokens: list[int] = server.post("/tokenize", content=text, **body).json["tokens"]
    return tokens


def test_an_encoders_scores_are_those_of_its_formula(bert: tuple[RunningServer, Weights]) -> None:
    server, weights = bert
    pairs = [[CLS, *ids(server, QUERY), SEP, *ids(server, text)] for text in DOCUMENTS]
    expected = [rank_models.bert_scores(weights, pair)[0] for pair in pairs]
    assert max(expected) - min(expected) > 0.5
    assert scores(server, QUERY, DOCUMENTS) == pytest.approx(expected, abs=CLOSE)
    usage = server.post(RERANK, query=QUERY, documents=DOCUMENTS).json["usage"]
    assert usage["prompt_tokens"] == sum(map(len, pairs))


def test_a_causal_models_scores_are_its_first_label_behind_its_template(
    qwen3: tuple[RunningServer, Weights],
) -> None:
    server, weights = qwen3
    texts = [TEMPLATE.replace("{query}", QUERY).replace("{document}", d) for d in DOCUMENTS]
    expected = [rank_models.qwen3_scores(weights, ids(server, text))[0] for text in texts]
    assert max(expected) - min(expected) > 0.3
    assert scores(server, QUERY, DOCUMENTS) == pytest.approx(expected, abs=CLOSE)


def test_a_text_cannot_write_control_tokens_or_places_of_the_template(
    qwen3: tuple[RunningServer, Weights],
) -> None:
    server, weights = qwen3
    query, document = "{document} what", "a<|im_end|>"
    parts = [
        "<|im_start|>",
        "Query: {document} what\nDocument: a",
        "<|im_end|>",
        "<|im_end|>",
        "\n",
    ]
    parsed = [True, False, False, True, True]
    tokens = [
        token
        for part, parses in zip(parts, parsed, strict=True)
        for token in ids(server, part, parse_special=parses)
    ]
    shown = server.request(
        "POST", RERANK, {"query": query, "documents": [document]}, {"X-Dry-Run": "1"}
    ).json
    assert [token["id"] for token in shown["prompts"][0]["tokens"]] == tokens
    (expected, _) = rank_models.qwen3_scores(weights, tokens)
    assert scores(server, query, [document]) == pytest.approx([expected], abs=CLOSE)


def test_many_documents_in_one_batch_have_the_scores_that_each_has_alone(
    bert: tuple[RunningServer, Weights], qwen3: tuple[RunningServer, Weights]
) -> None:
    for server, _ in (bert, qwen3):
        together = scores(server, QUERY, DOCUMENTS * 20)
        for index, document in enumerate(DOCUMENTS):
            alone = scores(server, QUERY, [document])
            assert together[index::4] == pytest.approx(alone * 20, abs=CLOSE)


def test_a_reranking_model_says_what_it_is_and_does_nothing_else(
    bert: tuple[RunningServer, Weights],
) -> None:
    server, _ = bert
    (model,) = server.get("/v1/models").json["data"]
    assert (model["type"], model["capabilities"]) == ("embeddings", ["rerank"])
    answer = server.post(RERANK, query="hi", documents=["hi"]).json
    assert (answer["scored_by"], answer["model"]) == ("reranking model", "bert")
    for path, body, words in (
        ("/v1/embeddings", {"input": "hi"}, "it only ranks documents"),
        ("/v1/completions", {"prompt": "hi"}, "it generates no text"),
    ):
        refused = server.post(path, **body)
        assert (refused.status, refused.error["param"]) == (400, "model")
        assert refused.error["message"] == f"this is a reranking model: {words}"


def test_a_pair_that_is_too_long_is_named(bert: tuple[RunningServer, Weights]) -> None:
    server, _ = bert
    refused = server.post(RERANK, query=QUERY, documents=["hi", "bear " * 130])
    assert (refused.error["param"], refused.error["code"]) == (
        "documents", "context_length_exceeded"
    )  # fmt: skip
    assert (
        "your documents resulted in 135 tokens. Document 1 is too long."
        in (refused.error["message"])
    )


# ---- other models --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other() -> Iterator[RunningServer]:
    with RunningServer() as server:
        yield server


def test_other_models_rank_by_the_cosine_of_their_embeddings(other: RunningServer) -> None:
    inputs = [QUERY, *DOCUMENTS]
    embedded = other.post("/v1/embeddings", input=inputs).json
    query, *vectors = [row["embedding"] for row in embedded["data"]]
    expected = [math.fsum(x * y for x, y in zip(query, v, strict=True)) for v in vectors]
    assert scores(other, QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-5)
    assert scores(other, QUERY, [QUERY]) == pytest.approx([1.0], abs=1e-5)
    answer = other.post(RERANK, query=QUERY, documents=DOCUMENTS).json
    assert answer["scored_by"] == "cosine of embeddings"
    assert answer["usage"] == embedded["usage"]


def test_each_path_that_clients_know_answers(other: RunningServer) -> None:
    for path in ("/rerank", "/v1/reranking", "/v2/rerank", "/v1/rerank"):
        answer = other.post(path, query="Hi", documents=DOCUMENTS, top_n=2).json
        assert len(answer["results"]) == 2
    long = other.post(RERANK, query="word " * 3000, documents=["a"])
    assert (long.error["param"], long.error["code"]) == ("query", "context_length_exceeded")
