"""The endpoints of Ollama's API, and the greeting by which programs know it."""

import time
from functools import partial
from typing import Any

import lmlite
from lmlite.messages import Json
from lmlite.server.api.ollama import models
from lmlite.server.api.ollama.bodies import shared_form
from lmlite.server.api.ollama.errors import ollama_error
from lmlite.server.api.ollama.replies import (
    EmbedReply,
    OldEmbedReply,
    chat_reply,
    chat_text,
    completion_text,
    envelope,
    generate_reply,
)
from lmlite.server.api.ollama.requests import (
    parse_chat,
    parse_embed,
    parse_embeddings_old,
    parse_generate,
    unloads,
)
from lmlite.server.api.route import ItemRoute, ManageRoute, OwnRoute, PageRoute, Poll, WorkerRoute
from lmlite.server.models.registry import Registry


def _greet(handler: Any) -> None:
    kind = ("Content-Type", "text/plain; charset=utf-8")
    handler.send_body(200, b"Ollama is running", [kind])


def _unload(said: Json, registry: Registry, body: Json, poll: Poll) -> Json:
    models.unload(registry, body, poll)
    more = {"done": True, "done_reason": "unload"}
    return envelope(body.get("model") or "", int(time.time())) | said | more


def _work(path: str, parse: Any, reply: Any, said: Json) -> WorkerRoute:
    return WorkerRoute(
        f"/api/{path}",
        parse,
        reply,
        "ollama-",
        ollama_error,
        shared_form=shared_form,
        instead=lambda body: partial(_unload, said) if unloads(body) else None,
    )


def _refusal(method: str, path: str) -> ItemRoute:
    return ItemRoute(method, f"/api/{path}", models.refuse, ollama_error)


ROUTES = (
    OwnRoute("/", _greet),
    PageRoute("/api/version", lambda *_: {"version": models.VERSION, "lmlite": lmlite.__version__},
              ollama_error),
    PageRoute("/api/tags", lambda registry, _: models.tags(registry), ollama_error),
    PageRoute("/api/ps", lambda registry, _: models.running(registry), ollama_error),
    ManageRoute("/api/show", models.show, models.SHOW_FIELDS, ollama_error),
    ManageRoute("/api/pull", models.pull, models.PULL_FIELDS, ollama_error),
    _work("chat", parse_chat, chat_reply, chat_text("")),
    _work("generate", parse_generate, generate_reply, completion_text("")),
    _work("embed", parse_embed, EmbedReply, {"embeddings": []}),
    _work("embeddings", parse_embeddings_old, OldEmbedReply, {"embedding": []}),
    _refusal("DELETE", "delete"),
    _refusal("POST", "copy"),
    _refusal("POST", "create"),
    _refusal("POST", "push"),
    _refusal("POST", "blobs/"),
)  # fmt: skip
