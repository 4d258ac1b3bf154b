"""LoRA adapters: GET and POST /lora-adapters, and the field `lora` of requests of all APIs.

Formats: tools/server/README.md of llama.cpp. A client names adapters by their number. Pure.
"""

from pathlib import Path

from lmlite.errors import Forbidden
from lmlite.messages import Json, Scales
from lmlite.server.api.fields import Field
from lmlite.server.api.route import Poll
from lmlite.server.models.defaults import MAX_SCALE
from lmlite.server.models.registry import Registry

FIELDS = frozenset({"lora"})


def requested_scales(field: Field, defaults: Scales) -> Scales:
    """The scales that a request asks for. Adapters that it does not name are off.

    Raises BadRequest.
    """
    if field.value is None:
        return defaults
    scales = [0.0] * len(defaults)
    for item in field.items():
        if not scales:
            field.refuse("this model has no adapters: serve it with --lora FILE")
        adapter = item.entry("an adapter with its scale")
        number = adapter["id"].required().integer(0, len(scales) - 1)
        assert number is not None
        scales[number] = adapter["scale"].required().number(-MAX_SCALE, MAX_SCALE, 0.0)
    return tuple(scales)


def adapter_list(registry: Registry) -> list[Json]:
    """The reply to GET /lora-adapters: the default model's adapters. Files go without folders."""
    model = registry.find(None)
    return [
        {"id": number, "path": Path(adapter.path).name, "scale": scale}
        for number, (adapter, scale) in enumerate(
            zip(model.adapters, model.defaults.scales, strict=True)
        )
    ]


def set_adapters(registry: Registry, body: Json, _poll: Poll) -> Json:
    """POST /lora-adapters: sets the scales for requests that give none. Raises ApiError."""
    if not registry.may_manage:
        raise Forbidden("this server was started with --no-manage: send lora in each request")
    model = registry.find(None)
    model.set_scales(requested_scales(Field(body)["lora"].required(), model.defaults.scales))
    return {"success": True}
