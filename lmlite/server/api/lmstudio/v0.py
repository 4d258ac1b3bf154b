"""The replies of LM Studio's v0: OpenAI's, with what was measured and facts of the model.

In a stream these come with the last chunk of a choice.
"""

from pathlib import Path

import lmlite
from lmlite.messages import Finished, Json
from lmlite.server.api.lmstudio.pace import PacedReply
from lmlite.server.api.openai.models import model_facts
from lmlite.server.api.openai.replies import ChatReply, CompletionReply
from lmlite.server.api.reply import Incoming
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel

_TOO_LONG = "maxPredictedTokensReached"
_STOP_REASONS = {"end_token": "eosFound", "stop_string": "stopStringFound",
                 "max_tokens": _TOO_LONG, "time_limit": _TOO_LONG,
                 "context_full": "contextLengthReached"}  # fmt: skip


def v0_models(registry: Registry) -> Json:
    """The reply to GET /api/v0/models."""
    return {"object": "list", "data": [v0_model(model) for model in registry.models()]}


def v0_model(model: ServedModel) -> Json:
    """A model of v0."""
    found = {"id": model.name, "object": "model", "compatibility_type": "gguf"}
    return found | model_facts(model)


def _draft_stats(name: str, end: Finished) -> Json:
    return {
        "draft_model": name,
        "total_draft_tokens_count": end.n_drafted,
        "accepted_draft_tokens_count": end.n_accepted,
        "rejected_draft_tokens_count": end.n_drafted - end.n_accepted,
        "ignored_draft_tokens_count": 0,
    }


class V0CompletionReply(PacedReply, CompletionReply):
    """The reply to POST /api/v0/completions."""

    _end: Finished | None = None

    def add(self, event: Incoming) -> bytes:
        """Takes the next event; the last one has the cause of the end."""
        if isinstance(event, Finished):
            self._end = event
        return super().add(event)

    def more(self) -> Json:
        """What v0 adds to OpenAI's fields."""
        pace, end, ready, file = self._pace, self._end, self.model.ready, self.model.file
        assert end is not None
        called = end.reason == "tool_calls"
        draft = self.model.draft
        return {
            "stats": {
                "tokens_per_second": pace.tokens_per_s(self.n_completion),
                "time_to_first_token": pace.first_token_s,
                "generation_time": pace.generation_s,
                "stop_reason": "toolCalls" if called else _STOP_REASONS[end.cause],
                **(_draft_stats(Path(draft.path).stem, end) if draft else {}),
            },
            "model_info": {
                "arch": file.architecture,
                "quant": file.quantisation,
                "format": "gguf",
                "context_length": ready.loaded.n_ctx if ready else file.n_ctx_train,
            },
            "runtime": {
                "name": "lmlite",
                "version": lmlite.__version__,
                "supported_formats": ["gguf"],
            },
        }


class V0ChatReply(V0CompletionReply, ChatReply):
    """The reply to POST /api/v0/chat/completions."""
