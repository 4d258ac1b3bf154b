"""Ollama's lists of models, and the requests that manage them. Errors are ApiError."""

import hashlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from lmlite.errors import BadRequest, ModelNotFound, NotOffered, Unsupported
from lmlite.messages import Json
from lmlite.server.api.abilities import reasoning_settings, template_of, uses_tools
from lmlite.server.api.lmstudio import manage
from lmlite.server.api.lmstudio.models import in_short
from lmlite.server.api.ollama.bodies import named
from lmlite.server.api.route import Poll, Query
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel

# Clients compare it with the version from which Ollama had what they need. It is the one whose
# fields these are.
VERSION = "0.33.0"
FOR_EVER_S = 2**63 / 1e9  # as long as Ollama's longest duration
SHOW_FIELDS = frozenset({"model", "name"})
PULL_FIELDS = frozenset({"model", "name", "stream"})
_POLL_S = 0.25
_HOSTS = ("hf.co/", "huggingface.co/")  # how Ollama names the models of Hugging Face


def tags(registry: Registry) -> Json:
    """The reply to GET /api/tags: all models, under each of their names."""
    models = registry.listed()
    return {"models": [_row(model, name) for model in models for name in model.names]}


def running(registry: Registry) -> Json:
    """The reply to GET /api/ps: the models that are loaded."""
    return {"models": [_running(registry, model) for model in registry.loaded() if model.ready]}


def show(registry: Registry, body: Json, _poll: Poll) -> Json:
    """The reply to POST /api/show."""
    model = registry.find(named(body).text())
    file, arch = model.file, model.file.architecture
    params = [f"{name} {getattr(model.defaults.params, name)}" for name in model.defaults.origins]
    return {
        "modified_at": _modified(model),
        "details": _details(model),
        "capabilities": _capabilities(model),
        "template": template_of(model),
        "parameters": "\n".join(params),
        "model_info": {
            "general.architecture": arch,
            "general.name": file.name,
            "general.parameter_count": file.n_params,
            f"{arch}.context_length": file.n_ctx_train,
            f"{arch}.embedding_length": file.shape.n_embd,
        },
    }


def pull(registry: Registry, body: Json, poll: Poll) -> Json:
    """POST /api/pull: returns once the model is there."""
    wanted = named(body).text()
    for host in _HOSTS:
        wanted = wanted.removeprefix(host)
    try:
        registry.find(wanted)
    except ModelNotFound:
        _download(registry, wanted, poll)
    return {"status": "success"}


def _download(registry: Registry, wanted: str, poll: Poll) -> None:
    try:
        job = manage.download(registry, {"model": wanted}, poll)
    except Unsupported as err:
        raise NotOffered(err.message) from None
    while "job_id" in job and job["status"] == "downloading":
        poll()
        time.sleep(_POLL_S)
        job = manage.download_status(registry, job["job_id"])
    if "error" in job:
        raise BadRequest(job["error"], param="model")


def unload(registry: Registry, body: Json, poll: Poll) -> None:
    """Unloads the model of a body, unless it is not loaded."""
    model = registry.find(named(body).string())
    if model.supervisor is not None:
        manage.unload(registry, {"instance_id": model.name}, poll)


def refuse(_name: str, _query: Query) -> NoReturn:
    """The requests that change files of models."""
    raise NotOffered(
        "this server makes, copies, sends and deletes no models: put GGUF files into its folder, "
        "or remove them there"
    )


# ---- a model -------------------------------------------------------------------------------


def _row(model: ServedModel, name: str) -> Json:
    return {
        "name": name,
        "model": name,
        "modified_at": _modified(model),
        "size": sum(part.n_bytes for part in model.file.parts),
        "digest": _digest(model),
        "details": _details(model),
        "capabilities": _capabilities(model),
    }


def _running(registry: Registry, model: ServedModel) -> Json:
    ready, resident = model.ready, registry.resident(model)
    assert ready is not None
    left_s = FOR_EVER_S if resident is None or resident.ttl_s is None else resident.ttl_s
    if resident is not None and not resident.n_users:
        left_s = min(left_s, resident.left_s(time.monotonic()))
    row = _row(model, model.name)
    n_bytes = model.plan.estimate.total if model.plan else row["size"]
    return {
        **row,
        "size": n_bytes,
        "size_vram": n_bytes if ready.loaded.n_gpu_layers else 0,
        "expires_at": (datetime.now(UTC) + timedelta(seconds=min(left_s, FOR_EVER_S))).isoformat(),
        "context_length": ready.loaded.n_ctx,
    }


def _details(model: ServedModel) -> dict[str, Any]:
    file = model.file
    return {
        "parent_model": "",
        "format": "gguf",
        "family": file.architecture,
        "families": [file.architecture],
        "parameter_size": in_short(file.n_params),
        "quantization_level": file.quantisation,
        "context_length": model.ready.loaded.n_ctx if model.ready else file.n_ctx_train,
        "embedding_length": file.shape.n_embd,
    }


def _capabilities(model: ServedModel) -> list[str]:
    if model.file.embeds_only:
        return [] if model.file.ranker else ["embedding"]
    has = {"completion": True, "tools": uses_tools(model), "vision": model.sees,
           "thinking": bool(reasoning_settings(model))}  # fmt: skip
    return [name for name, is_had in has.items() if is_had]


def _modified(model: ServedModel) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.file.mtime))


def _digest(model: ServedModel) -> str:
    """Changes when a file of the model changes. Of the files' facts: reading them takes long."""
    facts = [(part.dev, part.ino, part.n_bytes, part.mtime_ns) for part in model.file.parts]
    return hashlib.sha256(repr((model.name, facts)).encode()).hexdigest()
