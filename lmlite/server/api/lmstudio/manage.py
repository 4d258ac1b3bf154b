"""The requests of LM Studio's v1 that load, unload and download models. Errors are ApiError.

They name models by identifier, never by path.
"""

import time
from typing import Any

from lmlite.errors import ApiError, Forbidden, ModelNotFound, Unsupported
from lmlite.messages import Json
from lmlite.server.api.fields import Field
from lmlite.server.api.lmstudio.models import instance_id, kind_of, load_config
from lmlite.server.api.route import Poll
from lmlite.server.api.sampling import MAX_INT
from lmlite.server.models.downloads import Downloads
from lmlite.server.models.registry import Registry

MAX_IDENTIFIER = 200
MAX_PARALLEL = 256  # LLAMA_MAX_SEQ in llama-cparams.h

# Numbers of a request -> the fields of a Load, with the least and the greatest value.
_NUMBERS = {"context_length": ("n_ctx", 1, MAX_INT), "eval_batch_size": ("n_batch", 1, MAX_INT),
            "parallel": ("n_parallel", 1, MAX_PARALLEL),
            "gpu_layers": ("n_gpu_layers", -1, MAX_INT)}  # fmt: skip
_NAMES = {own: name for name, (own, *_) in _NUMBERS.items()} | {"flash_attn": "flash_attention"}
# Four are lmlite's own: parallel, gpu_layers, identifier, ttl.
LOAD_FIELDS = frozenset({"model", "echo_load_config", "identifier", "ttl", *_NAMES.values()})
UNLOAD_FIELDS = frozenset({"instance_id"})
DOWNLOAD_FIELDS = frozenset({"model", "quantization"})


def load(registry: Registry, body: Json, poll: Poll) -> Json:
    """POST /api/v1/models/load: returns once the model is loaded."""
    _check_managed(registry)
    asked, began_s = Field(body), time.monotonic()
    wanted = asked["model"].text(), asked["identifier"].string()
    if wanted[1] and not (wanted[1].isprintable() and len(wanted[1]) <= MAX_IDENTIFIER):
        asked["identifier"].refuse(f"identifier is a name of at most {MAX_IDENTIFIER} characters")
    ttl_s, is_shown = asked["ttl"].integer(1, MAX_INT), asked["echo_load_config"].boolean()
    try:
        model = registry.load(*wanted, ttl_s, _changes(asked), poll)
    except ApiError as err:
        if err.param in _NAMES:
            err.message = err.message.replace(err.param, _NAMES[err.param])
            err.param = _NAMES[err.param]
        raise
    found: Json = {
        "type": kind_of(model),
        "instance_id": instance_id(model),
        "load_time_seconds": round(time.monotonic() - began_s, 3),
        "status": "loaded",
    }
    return found | {"load_config": load_config(model)} if is_shown else found


def _changes(asked: Field) -> dict[str, Any]:
    """The fields of a Load that a request sets."""
    numbers = {own: asked[name].integer(*bounds) for name, (own, *bounds) in _NUMBERS.items()}
    found: dict[str, Any] = {name: n for name, n in numbers.items() if n is not None}
    if asked["flash_attention"].value is not None:
        found["flash_attn"] = "on" if asked["flash_attention"].boolean() else "off"
    return found


def unload(registry: Registry, body: Json, poll: Poll) -> Json:
    """POST /api/v1/models/unload: returns once its answers have ended and it is gone."""
    _check_managed(registry)
    name = Field(body)["instance_id"].text()
    try:
        registry.unload(name, poll)
    except ModelNotFound as err:
        err.param = "instance_id"
        raise
    return {"instance_id": name}


def download(registry: Registry, body: Json, _poll: Poll) -> Json:
    """POST /api/v1/models/download: starts a download, unless the model is there."""
    asked = Field(body)
    return _downloads(registry).start(asked["model"].text(), asked["quantization"].string())


def download_status(registry: Registry, job_id: str) -> Json:
    """GET /api/v1/models/download/status/JOB."""
    return _downloads(registry).status(job_id)


def _downloads(registry: Registry) -> Downloads:
    _check_managed(registry)
    if registry.downloads is None:
        raise Unsupported("this server downloads nothing: start it with --allow-download")
    return registry.downloads


def _check_managed(registry: Registry) -> None:
    if not registry.may_manage:
        raise Forbidden("this server was started with --no-manage: clients cannot manage models")
