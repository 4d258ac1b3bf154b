"""Log-probabilities of a prompt's tokens and of sampled ones, from the rows of a decode."""

from collections.abc import Iterator

from lmlite.messages import TokenLogprob
from lmlite.worker.batch import Piece
from lmlite.worker.llama.model import Context, Vocab


class Logprobs:
    """What the context's last decode says of tokens."""

    def __init__(self, context: Context, vocab: Vocab) -> None:
        self._context, self._vocab = context, vocab

    def of(self, token: int, index: int, n_top: int) -> TokenLogprob:
        """A token's at a batch index, and the n_top likeliest. Raises LlamaError."""
        logprob, top = self._context.logprobs(index, token, n_top)
        piece = self._vocab.piece
        alternatives = tuple((piece(t, special=True), value) for t, value in top)
        return TokenLogprob(piece(token, special=True), logprob, alternatives)

    def of_prompt(self, piece: Piece) -> Iterator[TokenLogprob]:
        """Those that a piece of a prompt tells: of each token, at the row of the one before it."""
        sequence = piece.sequence
        assert sequence.params.n_logprobs is not None
        if piece.begin == 0:
            first = self._vocab.piece(sequence.prompt[0], special=True)
            # A beginning that the tokenizer put there is no part of the client's text.
            is_theirs = (sequence.echo or "").encode().startswith(first)
            yield TokenLogprob(first if is_theirs else b"", None, ())
        following = sequence.prompt[piece.begin + 1 : piece.begin + 1 + piece.n_tokens]
        for index, token in enumerate(following, piece.last_index - piece.n_tokens + 1):
            yield self.of(token, index, sequence.params.n_logprobs)
