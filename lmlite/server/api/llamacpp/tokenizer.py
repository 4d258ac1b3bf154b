"""The model's tokenizer and template: /tokenize, /detokenize, /tokenizer_info, /apply-template.

Evaluation harnesses use vLLM's fields (`prompt`, `add_special_tokens`, `return_token_strs`, or the
`messages` of a chat). Other clients use those of llama.cpp's server (`content`, `add_special`,
`with_pieces`). Pure.
"""

from dataclasses import dataclass, replace
from typing import Any

from lmlite.messages import Json, Tokenize
from lmlite.server.api.call import Call, ignored_fields
from lmlite.server.api.dry_run import planned
from lmlite.server.api.fields import Field
from lmlite.server.api.openai.requests import parse_chat, token_ids
from lmlite.server.api.reply import ComputedReply
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults
from lmlite.server.models.served_model import ServedModel

_SHAPE = {"with_pieces", "return_token_strs"}
_TEXT_FIELDS = {"model", "prompt", "add_special_tokens", "content", "add_special", "parse_special",
                *_SHAPE}  # fmt: skip
# Known besides a chat's fields. A last message of the assistant is always continued.
_CHAT_FIELDS = {"add_generation_prompt", "continue_final_message", "add_special_tokens", *_SHAPE}


@dataclass(frozen=True)
class TokenizerCall(Call):
    """A call to turn a text into tokens, or tokens into a text."""

    with_pieces: bool = False  # show each token as {"id", "piece"} in the reply
    with_texts: bool = False  # add a list of the tokens' texts to the reply


def parse_tokenize(body: Json, defaults: Defaults = NO_DEFAULTS) -> TokenizerCall:
    """Parses a body of POST /tokenize. Raises BadRequest."""
    call = _chat(body, defaults) if body.get("messages") is not None else _text(body)
    return replace(
        call,
        with_pieces=Field(body)["with_pieces"].boolean(),
        with_texts=Field(body)["return_token_strs"].boolean(),
    )


def parse_detokenize(body: Json, _defaults: Defaults = NO_DEFAULTS) -> TokenizerCall:
    """Parses a body of POST /detokenize. Raises BadRequest."""
    tokens = Field(body)["tokens"].required()
    ids = token_ids(tokens) if tokens.typed(list, "a list of token ids") else ()
    ignored = ignored_fields(body, {"model", "tokens"})
    return TokenizerCall(Tokenize(0, ids), ignored=ignored)


def _text(body: Json) -> TokenizerCall:
    """Parses a body with a text. By default vLLM adds special tokens, llama.cpp does not."""
    asked = Field(body)
    is_content = asked["content"].value is not None
    text = asked["content" if is_content else "prompt"].text()
    switch = asked["add_special" if is_content else "add_special_tokens"]
    adds = not is_content if switch.value is None else switch.boolean()
    parses = asked["parse_special"].value is None or asked["parse_special"].boolean()
    ignored = ignored_fields(body, _TEXT_FIELDS)
    request = Tokenize(0, text, adds, parses)
    return TokenizerCall(request, ignored=ignored)


def _chat(body: Json, defaults: Defaults) -> TokenizerCall:
    call = planned(parse_chat(body, defaults))
    known = set(_CHAT_FIELDS)
    if body.get("add_generation_prompt") is False:  # false is not supported
        known.remove("add_generation_prompt")
    ignored = tuple(name for name in call.ignored if name not in known)
    return TokenizerCall(call.request, ignored=ignored)


class TokenReply(ComputedReply):
    """The reply to POST /tokenize."""

    call: TokenizerCall

    def whole(self) -> Json:
        """The JSON object, with the fields for both kinds of clients."""
        (planned,) = self.results()
        tokens: list[Any] = list(planned.tokens)
        if self.call.with_pieces:
            pairs = zip(planned.tokens, planned.pieces, strict=True)
            tokens = [{"id": token, "piece": _text_or_bytes(piece)} for token, piece in pairs]
        texts = [piece.decode("utf-8", "replace") for piece in planned.pieces]
        return {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": self.model.described().n_ctx,
            "token_strs": texts if self.call.with_texts else None,
        }


class TextReply(ComputedReply):
    """The reply to POST /detokenize."""

    def whole(self) -> Json:
        """The JSON object: the text under both names that clients expect."""
        (planned,) = self.results()
        return {"prompt": planned.text, "content": planned.text}


class TemplateReply(ComputedReply):
    """The reply to POST /apply-template."""

    def whole(self) -> Json:
        """The JSON object: the prompt that the chat template makes."""
        (planned,) = self.results()
        return {"prompt": planned.text}


def tokenizer_info(model: ServedModel) -> Json:
    """The reply to GET /tokenizer_info, with names from Hugging Face's tokenizer_config.json."""
    ready = model.described()
    return {
        "tokenizer_class": "GGUF",
        "bos_token": ready.bos_token,
        "eos_token": ready.eos_token,
        "pad_token": ready.pad_token,
        "add_bos_token": ready.adds_bos,
        "chat_template": (model.load and model.load.chat_template) or model.file.chat_template,
        "model_max_length": ready.n_ctx,
        "vocab_size": ready.n_vocab,
    }


def _text_or_bytes(piece: bytes) -> str | list[int]:
    """The piece as llama.cpp's server writes it: as a list of bytes if it is not valid UTF-8."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
