"""The endpoints of OpenAI's API, except responses."""

from lmlite.server.api.dry_run import TokenCount, planning
from lmlite.server.api.openai.models import model_list, model_object
from lmlite.server.api.openai.replies import ChatReply, CompletionReply, EmbeddingReply
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.api.route import PageRoute, WorkerRoute

ROUTES = (
    WorkerRoute("/v1/chat/completions", parse_chat, ChatReply, "chatcmpl-"),
    WorkerRoute("/v1/chat/completions/input_tokens", planning(parse_chat), TokenCount, "count-"),
    WorkerRoute("/v1/completions", parse_completion, CompletionReply, "cmpl-"),
    WorkerRoute("/v1/embeddings", parse_embeddings, EmbeddingReply, "embd-"),
    PageRoute("/v1/models", lambda registry, _: model_list(registry.listed())),
    PageRoute("/v1/models/", lambda registry, name: model_object(registry.find(name), name)),
)
