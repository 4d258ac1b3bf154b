"""The endpoints of LM Studio's native API, v1 and v0, and the greeting that its tools ask for."""

from functools import partial

from lmlite.server.api.lmstudio import manage
from lmlite.server.api.lmstudio.chat import parse_native_chat
from lmlite.server.api.lmstudio.errors import native_error
from lmlite.server.api.lmstudio.models import model_list
from lmlite.server.api.lmstudio.replies import NativeReply
from lmlite.server.api.lmstudio.v0 import V0ChatReply, V0CompletionReply, v0_model, v0_models
from lmlite.server.api.openai.replies import EmbeddingReply
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.api.responses.routes import STORED
from lmlite.server.api.route import ManageRoute, PageRoute, WorkerRoute

_V1, _V0 = "/api/v1", "/api/v0"

ROUTES = (
    WorkerRoute(f"{_V1}/chat", partial(parse_native_chat, STORED), NativeReply, "resp_",
                native_error),
    PageRoute(f"{_V1}/models", lambda registry, _: model_list(registry), native_error),
    ManageRoute(f"{_V1}/models/load", manage.load, manage.LOAD_FIELDS, native_error),
    ManageRoute(f"{_V1}/models/unload", manage.unload, manage.UNLOAD_FIELDS, native_error),
    ManageRoute(f"{_V1}/models/download", manage.download, manage.DOWNLOAD_FIELDS, native_error),
    PageRoute(f"{_V1}/models/download/status/", manage.download_status, native_error),
    WorkerRoute(f"{_V0}/chat/completions", parse_chat, V0ChatReply, "chatcmpl-"),
    WorkerRoute(f"{_V0}/completions", parse_completion, V0CompletionReply, "cmpl-"),
    WorkerRoute(f"{_V0}/embeddings", parse_embeddings, EmbeddingReply, "embd-",
                has_dry_run=False),
    PageRoute(f"{_V0}/models", lambda registry, _: v0_models(registry)),
    PageRoute(f"{_V0}/models/", lambda registry, name: v0_model(registry.find(name))),
    PageRoute("/lmstudio-greeting", lambda *_: {"lmstudio": True}),
)  # fmt: skip
