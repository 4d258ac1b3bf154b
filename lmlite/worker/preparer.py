"""Turns requests into sequences and inputs: renders templates, tokenizes texts, checks samplers.

All errors of clients are found here, before a reply begins. Belongs to the reader's thread. Knows
nothing of frames.
"""

import functools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from lmlite.errors import BadRequest, PromptTooLong, Unsupported
from lmlite.messages import (
    Chat,
    ChatOptions,
    Complete,
    Embed,
    Event,
    Image,
    Note,
    Planned,
    Prompt,
    Prompted,
    SamplingParams,
    Tokenize,
)
from lmlite.worker.chat.answer import Answer, Form
from lmlite.worker.chat.template import ChatTemplate, Rendered, Tokens
from lmlite.worker.chat.truncation import n_turns, without_oldest
from lmlite.worker.embedder import Input, Query
from lmlite.worker.gap import gap_prompt
from lmlite.worker.llama.capi import DEFAULT_SEED, LlamaError
from lmlite.worker.llama.model import Model
from lmlite.worker.llama.samplers import Grammar
from lmlite.worker.media import MediaEncoder, Picture, UnreadableImage
from lmlite.worker.pairs import Pairs
from lmlite.worker.sequence import Sequence

# Tokens of prose and code are far shorter; only long runs of one character come near. A text with
# more bytes per token of the context is refused before it is tokenized: megabytes take seconds.
MAX_TOKEN_BYTES = 64
MAX_TOKENIZED_BYTES = 16 << 20  # of tokens and pieces in one frame, before they grow by 1/3
N_TOKEN_BYTES = 16  # per token in a frame, besides its piece: id and separators


class Preparer:
    """Makes sequences and inputs for one model."""

    def __init__(
        self,
        model: Model,
        template: ChatTemplate | None,
        n_ctx_seq: int,
        send: Callable[[Iterable[Event]], None],
        encoder: MediaEncoder | None = None,
        n_batch: int = 0,
        advice: str = "",
        pairs: Pairs | None = None,
        last_thought: str = "",
    ) -> None:
        """A model without a template does not generate. `send` takes notes and traces.

        `n_batch` is how many tokens of a picture can be read at once. `advice` tells how to raise
        n_ctx_seq. A reranking model has `pairs`. `last_thought`: the end of thoughts that reach
        their budget.
        """
        self._model, self._template, self._n_ctx_seq = model, template, n_ctx_seq
        self._send, self._advice = send, advice
        self._encoder, self._n_batch, self._pairs = encoder, n_batch, pairs
        self._last_thought = last_thought

    def prepare(self, request: Chat | Complete | Embed) -> list[Sequence] | list[Input]:
        """The sequences or inputs of a request. Raises ApiError if the request is invalid."""
        if isinstance(request, Embed):
            return self._embed(request)
        template = self._template
        if template is None:
            kind = "an embedding model" if self._pairs is None else "a reranking model"
            raise Unsupported(f"this is {kind}: it generates no text", param="model")
        self._check_ids((token for token, _ in request.params.logit_bias), "logit_bias")
        grammar = request.grammar
        if isinstance(request, Chat):
            rendered = self._fitting(request, template)
            sequences = self._choices(request, rendered.prompt, rendered.stops)
        else:
            sequences = self._completions(request)
            if request.json_schema is not None:
                grammar = template.grammar_of(request.json_schema)
        try:
            if grammar is not None:
                self._give_grammar(sequences, grammar)
            elif isinstance(request, Chat):
                self._give_form(sequences, rendered.form, request.options)
            self._trace(request, sequences)
        except BaseException:
            for sequence in sequences:
                sequence.close()
            raise
        return sequences

    # ---- prompts ---------------------------------------------------------------------------

    def _fitting(self, request: Chat, template: ChatTemplate) -> Rendered:
        """The prompt; without its oldest turns if it is too long and the request allows that."""
        pictures: dict[int, Picture] = {}
        options = request.options
        if request.params.reasoning_budget_tokens == 0:
            options = replace(options, thinks=False)

        def render(n_left_out: int, n_room: int) -> Rendered:
            messages = without_oldest(request.messages, n_left_out)
            self._check_bytes("".join(message.content for message in messages), "messages")
            shown = [self._picture(image, pictures) for each in messages for image in each.images]
            rendered = template.render(messages, options, shown)
            self._check_not_empty(rendered.prompt.ids, "messages")
            self._check_length(rendered.prompt.n_tokens, "messages", n_room=n_room)
            self._check_pictures(rendered.prompt)
            return rendered

        too_few, enough = 0, n_turns(request.messages) if request.truncates else 0
        try:
            return render(too_few, self._n_ctx_seq)
        except PromptTooLong:
            if not enough:
                raise
        n_room = self._n_room(request.params)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            try:
                render(middle, n_room)
                enough = middle
            except PromptTooLong:
                too_few = middle
        found = render(enough, self._n_ctx_seq)
        self._send([Note("info", f"a conversation was cut: without its {enough} oldest turns")])
        return found

    def _picture(self, image: Image, known: dict[int, Picture]) -> Picture:
        """An image as a picture. Read only once, even if a conversation is rendered again."""
        if self._encoder is None:  # the server checks this too, but is not the only caller
            raise Unsupported("this model takes no images", param=image.path)
        if id(image) not in known:
            try:
                known[id(image)] = self._encoder.read(image.data)
            except UnreadableImage as err:
                raise BadRequest(f"the image cannot be read: {err}", param=image.path) from None
        return known[id(image)]

    def _completions(self, request: Complete) -> list[Sequence]:
        sequences = []
        for number, prompt in enumerate(request.prompts):
            if request.suffix is None:
                tokens = self._tokens(prompt, "prompt")
            else:
                tokens = self._with_gap(prompt, request.suffix, request)
            self._check_length(len(tokens), "prompt")
            echo = self._text(prompt) if request.echo else None
            sequences += self._choices(request, Tokens(tokens), (), echo, number * request.n)
        return sequences

    def _with_gap(self, prompt: Prompt, suffix: str, request: Complete) -> list[int]:
        """The tokens around a gap. Texts are files of the client's: they spell no tokens."""
        vocab = self._model.vocab
        if not {"pre", "suf", "mid"} <= vocab.gap_tokens.keys():
            words = "this model cannot fill in the middle: its vocabulary has no tokens for that"
            raise Unsupported(words, param="suffix")
        texts = [suffix, *(text for names_and_text in request.files for text in names_and_text)]
        if isinstance(prompt, str):
            self._check_bytes("".join([prompt, *texts]), "prompt")
            before = vocab.tokenize(prompt, add_special=False, parse_special=False)
        else:
            self._check_bytes("".join(texts), "suffix")
            self._check_ids(prompt, "prompt")
            before = list(prompt)
        after = vocab.tokenize(suffix, add_special=False, parse_special=False, continues=True)
        n_room = self._n_room(request.params) if request.truncates else None
        return gap_prompt(vocab, before, after, request.files, n_room)

    def _n_room(self, params: SamplingParams) -> int:
        """Tokens for a prompt that is cut to fit; the others are for the answer."""
        n_most = self._n_ctx_seq // 4
        return self._n_ctx_seq - min(params.max_tokens or n_most, n_most)

    def _embed(self, request: Embed) -> list[Input]:
        if request.query is not None:
            return self._ranked(request, request.query)
        if self._pairs is not None:
            raise Unsupported("this is a reranking model: it only ranks documents", param="model")
        n_embd = self._model.n_embd
        if request.dimensions is not None and request.dimensions > n_embd:
            raise BadRequest(f"the model has {n_embd} dimensions", param="dimensions")
        inputs = []
        for index, prompt in enumerate(request.inputs):
            remark = f"Input {index} is too long."
            tokens = self._whole(prompt, "input", remark)
            inputs.append(Input(request.id, index, tokens, scales=request.scales))
        return inputs

    def _whole(self, text: Prompt, param: str, remark: str = "") -> list[int]:
        """The tokens of a text that is embedded."""
        tokens = self._tokens(text, param, remark, is_whole=True)
        self._check_length(len(tokens), param, remark)
        return tokens

    def _ranked(self, request: Embed, query_text: str) -> list[Input]:
        """An input for each document, with the query in it; or else behind one for the query."""
        if self._pairs is None:
            query = Query()
            tokens = self._whole(query_text, "query")
            inputs = [Input(request.id, -1, tokens, query, request.scales)]
        else:
            query, inputs = None, []
        for index, text in enumerate(request.inputs):
            remark = f"Document {index} is too long."
            if self._pairs is None:
                tokens = self._whole(text, "documents", remark)
            else:
                assert isinstance(text, str)
                self._check_bytes(query_text + text, "documents", remark)
                tokens = self._pairs.tokens(query_text, text)
                self._check_not_empty(tokens, "documents")
                self._check_length(len(tokens), "documents", remark)
            inputs.append(Input(request.id, index, tokens, query, request.scales))
        return inputs

    def planned(self, request: Embed) -> list[Planned]:
        """What the model would read of each input. Raises ApiError if the request is invalid."""
        pieces = self._model.vocab.pieces
        return [
            Planned(item.request_id, item.index, tuple(item.tokens), tuple(pieces(item.tokens)),
                    n_cached=0, grammar=None)
            for item in self._embed(request)
            if item.index >= 0
        ]  # fmt: skip

    def tokenize(self, request: Tokenize) -> Planned:
        """The tokens of a text, or the text of tokens. Either may exceed the context.

        Raises BadRequest.
        """
        vocab, prompt = self._model.vocab, request.prompt
        if isinstance(prompt, str):
            self._check_bytes(prompt, "prompt")
            add_special, parse_special = request.add_special, request.parse_special
            tokens = vocab.tokenize(prompt, add_special=add_special, parse_special=parse_special)
        else:
            tokens = list(prompt)
            self._check_ids(tokens, "tokens")
        pieces = tuple(vocab.pieces(tokens))
        n_bytes = sum(map(len, pieces)) + N_TOKEN_BYTES * len(tokens)
        if n_bytes > MAX_TOKENIZED_BYTES:
            raise BadRequest(f"the answer would have {n_bytes:,} bytes", param="prompt")
        return Planned(request.id, 0, tuple(tokens), pieces, n_cached=0, grammar=None)

    def _tokens(
        self, prompt: Prompt, param: str, remark: str = "", *, is_whole: bool = False
    ) -> list[int]:
        """Tokens of a prompt without a template. Its text may include control tokens."""
        if isinstance(prompt, str):
            self._check_bytes(prompt, param, remark)
            tokens = self._model.vocab.tokenize(
                prompt, add_special=True, parse_special=True, is_whole=is_whole
            )
        else:
            tokens = list(prompt)
            self._check_ids(tokens, param)
        self._check_not_empty(tokens, param)
        return tokens

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        piece = functools.partial(self._model.vocab.piece, special=True)
        return b"".join(map(piece, prompt)).decode("utf-8", "replace")

    # ---- sequences -------------------------------------------------------------------------

    def _choices(
        self,
        request: Chat | Complete,
        prompt: Tokens,
        ends: tuple[str, ...],
        echo: str | None = None,
        first_index: int = 0,
    ) -> list[Sequence]:
        seed = request.params.seed
        if seed is None:
            seed = random.SystemRandom().getrandbits(32)
        return [
            Sequence(
                request.id, first_index + i, prompt.ids, request.params,
                seed=(seed + i) % DEFAULT_SEED,  # the first choice has the seed of the request
                ends=ends, echo=echo, trace=request.trace, dry_run=request.dry_run,
                chunks=prompt.chunks, scales=request.scales,
            )
            for i in range(request.n)
        ]  # fmt: skip

    def _give_form(self, choices: list[Sequence], form: Form, options: ChatOptions) -> None:
        """Gives each choice its own parser, and its own grammar if the form has a grammar."""
        param = "tools" if options.json_schema is None else "response_format"
        thought_end = self._thought_end(form)
        for choice in choices:
            choice.stops_thoughts = options.stop_in_reasoning
            choice.thought_end = thought_end if choice.params.reasoning_budget_tokens >= 0 else ()
            try:
                if form.grammar:
                    choice.grammar = Grammar(self._model, form.grammar, form.reply)
                choice.answer, choice.preserved = Answer(self._model.lib, form), form.preserved
                if choice.answer.is_plain and not form.thinking_start:
                    choice.answer.close()
                    choice.answer = None
                if form.grammar and not form.grammar_waits:
                    self._keep_to_text(choice, form.preserved)
            except (LlamaError, ValueError) as err:
                if "empty grammar stack" in str(err):  # when the grammar read the prompt's end
                    words = f"the last message begins an answer that {param} does not allow"
                    raise BadRequest(words, param="messages") from None
                raise BadRequest(f"no grammar can be made of {param}: {err}", param=param) from None

    def _thought_end(self, form: Form) -> tuple[int, ...]:
        """The tokens that end thoughts; () if the template has none."""
        if not (form.thinking_start and form.thinking_ends):
            return ()
        tokenize, sentence = self._model.vocab.tokenize, self._last_thought
        text = f"\n\n{sentence}\n" if sentence else ""
        tokens = tokenize(text, add_special=False, parse_special=False, continues=True)
        tag = form.thinking_ends[0]
        tokens += tokenize(tag, add_special=False, parse_special=True, continues=True)
        return tuple(tokens)

    def _give_grammar(self, choices: list[Sequence], text: str) -> None:
        """Applies a client's grammar to each choice; the text is sent unparsed."""
        for choice in choices:
            try:
                choice.grammar = Grammar(self._model, text)
                self._keep_to_text(choice, frozenset())
            except LlamaError as err:
                raise BadRequest(f"grammar: {err}", param="grammar") from None

    def _keep_to_text(self, choice: Sequence, preserved: frozenset[int]) -> None:
        """Forbids control tokens: a grammar would accept one as the text of its name."""
        vocab = self._model.vocab
        banned = tuple(
            (token, -math.inf)
            for token in vocab.control_tokens
            if token not in preserved and not vocab.ends_generation(token)
        )
        choice.params = replace(choice.params, logit_bias=choice.params.logit_bias + banned)

    def _trace(self, request: Chat | Complete, sequences: list[Sequence]) -> None:
        """Sends each prompt to the log stream once."""
        if request.trace:
            for choice in sequences[:: request.n]:
                text = b"".join(choice.pieces(self._model.vocab)).decode("utf-8", "replace")
                self._send([Prompted(request.id, choice.index, text)])

    # ---- checks ----------------------------------------------------------------------------

    def _check_not_empty(self, tokens: list[int], param: str) -> None:
        # Without a token there are no logits to sample from, and the sequence would never end.
        if not tokens:
            raise BadRequest("the text has no tokens", param=param)

    def _check_bytes(self, text: str, param: str, remark: str = "") -> None:
        n_bytes = len(text.encode())
        remark = f"{remark} That is the least that {n_bytes} bytes can be."
        self._check_length(math.ceil(n_bytes / MAX_TOKEN_BYTES), param, remark)

    def _check_length(
        self, n_tokens: int, param: str, remark: str = "", n_room: int | None = None
    ) -> None:
        if n_tokens > (self._n_ctx_seq if n_room is None else n_room):
            advice = f"{remark} {self._advice}".strip()
            raise PromptTooLong(advice, param=param, tokens=(n_tokens, self._n_ctx_seq))

    def _check_ids(self, tokens: Iterable[int], param: str) -> None:
        # An id outside the vocabulary would crash the process in C.
        n_vocab = self._model.vocab.n_tokens
        for token in tokens:
            if not 0 <= token < n_vocab:
                words = f"{token} is not a token of this model, which has {n_vocab:,}"
                raise BadRequest(words, param=param)

    def _check_pictures(self, prompt: Tokens) -> None:
        if prompt.ids[-1] < 0:
            words = "the chat template ends with the image: add text behind it"
            raise BadRequest(words, param="messages")
        for chunk in prompt.chunks.values():
            assert self._encoder is not None
            n = chunk.n_tokens
            if n > self._n_batch and self._encoder.is_read_at_once(chunk):
                words = (
                    f"an image of {n:,} tokens has to be read at once; serve with a larger --batch"
                )
                raise BadRequest(words, param="messages")
