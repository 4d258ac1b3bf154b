"""POST /v1/rerank: documents in the order in which they fit a query.

The fields are those that Jina's, Cohere's and llama.cpp's servers share. Pure.
"""

from dataclasses import dataclass
from typing import Any

from lmlite.messages import Embed, Json
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.fields import Field
from lmlite.server.api.reply import ComputedReply
from lmlite.server.api.sampling import MAX_INT
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults

FIELDS = {"model", "user", "query", "documents", "top_n", "return_documents"}


@dataclass(frozen=True)
class RerankCall(Call):
    """A call, with what its reply shows."""

    top_n: int | None = None  # most documents in the reply; None: all
    documents: tuple[Any, ...] = ()  # as the client sent them, if it wants them back


def parse_rerank(body: Json, defaults: Defaults = NO_DEFAULTS) -> RerankCall:
    """A body of POST /v1/rerank. Raises BadRequest."""
    asked = Field(body)
    query, documents = asked["query"].text(), asked["documents"].required()
    if not query:
        asked["query"].refuse("query is empty")
    texts = tuple(map(_text, documents.items()))
    most = defaults.limits.max_inputs
    if not 1 <= len(texts) <= most:
        documents.refuse(f"documents has {len(texts):,} items; it may have 1 to {most:,}")
    returned = documents.value if asked["return_documents"].boolean() else ()
    return RerankCall(
        Embed(0, texts, query=query),
        ignored=ignored_fields(body, FIELDS),
        top_n=asked["top_n"].integer(1, MAX_INT),
        documents=tuple(returned),
    )


def _text(document: Field) -> str:
    """The text of a document: a string, or an object with `text`."""
    if type(document.value) is str:
        return document.value
    if type(document.value) is not dict:
        document.refuse(f"{document.path} is a text, or an object with a text")
    return document["text"].text()


class RerankReply(ComputedReply):
    """The reply to POST /v1/rerank."""

    call: RerankCall

    def whole(self) -> Json:
        """The JSON object: the best documents first, equal ones in the client's order."""
        scored = self.results()
        n_prompt = sum(event.n_prompt for event in scored)
        best = sorted(scored, key=lambda event: -event.score)[: self.call.top_n]
        return {
            "id": self.id,
            "object": "list",
            "model": self.model.name,
            "scored_by": "reranking model" if self.model.file.ranker else "cosine of embeddings",
            "results": [
                {"index": event.index, "relevance_score": event.score} | self._document(event.index)
                for event in best
            ],
            "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
        }

    def _document(self, index: int) -> Json:
        if not self.call.documents:
            return {}
        found = self.call.documents[index]
        return {"document": {"text": found} if type(found) is str else found}
