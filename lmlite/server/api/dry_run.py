"""The reply to a request with `X-Dry-Run: 1`: prompts and sampling values, nothing generated."""

import codecs
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from lmlite.messages import Chat, Complete, Embed, Json, Planned, SamplingParams, Tokenize
from lmlite.server.api.call import Call
from lmlite.server.api.reply import ComputedReply
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.served_model import ServedModel

# Sampling parameters that have other names in requests.
_FIELDS = {"n_logprobs": ("logprobs", "top_logprobs"),
           "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens",
                          "num_predict"),
           "stop": ("stop", "stop_sequences"),
           "reasoning_budget_tokens": ("reasoning_budget_tokens", "reasoning.max_tokens",
                                       "thinking.budget_tokens")}  # fmt: skip


def planned(call: Call) -> Call:
    """The same call, but nothing is computed or streamed."""
    request = call.request
    if isinstance(request, Tokenize):  # generates nothing anyway
        return call
    if isinstance(request, Embed):
        return replace(call, request=replace(request, dry_run=True))
    assert isinstance(request, Chat | Complete)
    return replace(call, request=replace(request, n=1, dry_run=True),
                   stream=False, is_background=False)  # fmt: skip


def planning(parse: Callable[..., Call]) -> Callable[..., Call]:
    """A parser like this one, of calls that generate nothing."""
    return lambda *arguments: planned(parse(*arguments))


class TokenCount(ComputedReply):
    """A prompt's number of tokens, as OpenAI's and llama.cpp's servers tell it."""

    def whole(self) -> Json:
        """The JSON object."""
        (planned,) = self.results()
        return {"object": "response.input_tokens", "input_tokens": len(planned.tokens)}


class DryRun(ComputedReply):
    """The reply to a request that is only planned."""

    def __init__(
        self,
        body: Json,
        defaults: Defaults,
        call: Call,
        reply_id: str,
        model: ServedModel,
        created: int,
    ) -> None:
        """`body` is the request as the client wrote it."""
        super().__init__(call, reply_id, model, created)
        self._body, self._defaults = body, defaults

    def whole(self) -> Json:
        """The JSON object."""
        request, sampling = self.call.request, Json()
        if isinstance(request, Chat | Complete):
            sampling = _sampling(request.params, self._body, self._defaults)
        return {
            "id": self.id,
            "object": "dry_run",
            "created": self.created,
            "model": self.model.name,
            "prompts": [
                {
                    "text": event.text,
                    "n_tokens": len(event.tokens),
                    "n_cached": event.n_cached,
                    "tokens": _spelled(event),
                    "grammar": event.grammar,
                }
                for event in self.results()
            ],
            "sampling": sampling,
            "ignored_params": list(self.call.ignored),
        }


def _spelled(event: Planned) -> list[Json]:
    """Each token and its text; a character that spans tokens belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [
        {"id": token, "text": decoder.decode(piece)}
        for token, piece in zip(event.tokens, event.pieces, strict=True)
    ]


def _sampling(params: SamplingParams, body: Mapping[str, Any], defaults: Defaults) -> Json:
    """Each value that would be used, and its origin."""
    found = {}
    for name in (field.name for field in fields(params)):
        value = getattr(params, name)
        asked = any(_has(body, path) for path in _FIELDS.get(name, (name,)))
        origin = "request" if asked else defaults.origins.get(name, "default")
        found[name] = {"value": dict(value) if name == "logit_bias" else value, "origin": origin}
    return found


def _has(body: Mapping[str, Any], path: str) -> bool:
    """Whether the body has a value at a path, such as "reasoning.max_tokens"."""
    name, _, rest = path.partition(".")
    value = body.get(name)
    return _has(value, rest) if rest and type(value) is dict else not rest and value is not None
