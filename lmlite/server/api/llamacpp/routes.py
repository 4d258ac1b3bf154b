"""The endpoints of llama.cpp's server."""

from lmlite.server.api.dry_run import planning
from lmlite.server.api.llamacpp.infill import InfillReply, parse_infill
from lmlite.server.api.llamacpp.tokenizer import (
    TemplateReply,
    TextReply,
    TokenReply,
    parse_detokenize,
    parse_tokenize,
    tokenizer_info,
)
from lmlite.server.api.openai.requests import parse_chat
from lmlite.server.api.route import PageRoute, WorkerRoute

ROUTES = (
    WorkerRoute("/infill", parse_infill, InfillReply, "infill-"),
    WorkerRoute("/tokenize", parse_tokenize, TokenReply, "tokens-", has_dry_run=False),
    WorkerRoute("/detokenize", parse_detokenize, TextReply, "text-", has_dry_run=False),
    PageRoute("/tokenizer_info", lambda registry, _: tokenizer_info(registry.find(None))),
    WorkerRoute("/apply-template", planning(parse_chat), TemplateReply, "prompt-"),
)
