"""Joins a query with a document, as a reranking model reads them: both in one sequence.

As in llama.cpp's server: with the model's template for this, which has places for both, or else
with the tokens that its vocabulary puts between two texts.
"""

from lmlite.errors import BadRequest
from lmlite.worker.chat.control_tokens import ControlTokens
from lmlite.worker.chat.template import PRIVATE_USE
from lmlite.worker.llama.model import Model

QUERY, DOCUMENT = "{query}", "{document}"


class Pairs:
    """Makes the sequences of one reranking model."""

    def __init__(self, model: Model) -> None:
        self._vocab, self._template = model.vocab, model.template("rerank")
        self._control_tokens = ControlTokens(self._vocab.control_texts())

    def tokens(self, query: str, document: str) -> list[int]:
        """The tokens of a pair. Neither text can write control tokens. Raises BadRequest."""
        if self._template is not None:
            return self._rendered(self._template, query, document)
        before, between, after = self._vocab.separators()
        first, second = (
            self._vocab.tokenize(text, add_special=False, parse_special=False)
            for text in (query, document)
        )
        return [*before, *first, *between, *second, *after]

    def _rendered(self, template: str, query: str, document: str) -> list[int]:
        used = template + query + document
        marker = next((c for c in map(chr, PRIVATE_USE) if c not in used), None)
        if marker is None:
            raise BadRequest("the texts use every private-use character", param="documents")
        texts = {QUERY: query, DOCUMENT: document}
        marked = {name: self._control_tokens.marked(text, marker) for name, text in texts.items()}
        # Both at once: a query that spells {document} stays as it is.
        parts = [marked[DOCUMENT].join(part.split(DOCUMENT)) for part in template.split(QUERY)]
        tokens: list[int] = []
        for part in filter(None, self._control_tokens.parts(marked[QUERY].join(parts), marker)):
            tokens += self._vocab.tokenize(
                part, add_special=False, parse_special=True, continues=bool(tokens)
            )
        return tokens
