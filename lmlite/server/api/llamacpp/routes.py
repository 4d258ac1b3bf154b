"""The endpoints of llama.cpp's server."""

from lmlite.server.api.dry_run import planning
from lmlite.server.api.llamacpp.adapters import FIELDS, adapter_list, set_adapters
from lmlite.server.api.llamacpp.infill import InfillReply, parse_infill
from lmlite.server.api.llamacpp.rerank import RerankReply, parse_rerank
from lmlite.server.api.llamacpp.tokenizer import (
    TemplateReply,
    TextReply,
    TokenReply,
    parse_detokenize,
    parse_tokenize,
    tokenizer_info,
)
from lmlite.server.api.openai.requests import parse_chat
from lmlite.server.api.route import ManageRoute, PageRoute, WorkerRoute


def _ranking(path: str) -> WorkerRoute:
    return WorkerRoute(path, parse_rerank, RerankReply, "rerank-")


ROUTES = (
    _ranking("/v1/rerank"),
    _ranking("/v1/reranking"),
    _ranking("/v2/rerank"),  # Cohere's
    WorkerRoute("/infill", parse_infill, InfillReply, "infill-"),
    WorkerRoute("/tokenize", parse_tokenize, TokenReply, "tokens-", has_dry_run=False),
    WorkerRoute("/detokenize", parse_detokenize, TextReply, "text-", has_dry_run=False),
    PageRoute("/tokenizer_info", lambda registry, _: tokenizer_info(registry.find(None))),
    PageRoute("/lora-adapters", lambda registry, _: adapter_list(registry)),
    ManageRoute("/lora-adapters", set_adapters, FIELDS, list_field="lora"),
    WorkerRoute("/apply-template", planning(parse_chat), TemplateReply, "prompt-"),
)
