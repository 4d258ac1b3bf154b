"""GET /v1/models: the models that are served, under each of their names."""

from collections.abc import Iterable

from lmlite.messages import Json
from lmlite.server.api.abilities import uses_tools
from lmlite.server.models.served_model import ServedModel


def model_list(models: Iterable[ServedModel]) -> Json:
    """All models, each under all of its names: a client may look for any of them."""
    rows = [model_object(model, name) for model in models for name in model.names]
    return {"object": "list", "data": rows}


def model_object(model: ServedModel, name: str) -> Json:
    """A model under this name, or under its first one. Clients ignore fields they do not know."""
    facts = model_facts(model)
    return {
        "id": name if name in model.names else model.name,
        "object": "model",
        "created": model.file.mtime,
        "owned_by": "lmlite",
        "context_length": facts.get("loaded_context_length"),
        "input_modalities": ["text", "image"] if model.sees else ["text"],
        **facts,
    }


def model_facts(model: ServedModel) -> Json:
    """What LM Studio tells of a model, under its names."""
    file, entry, ready = model.file, model.entry, model.ready
    kind = "vlm" if model.sees else "llm"
    has = {"vision": model.sees, "tool_use": uses_tools(model), "embeddings": True}
    if file.embeds_only:
        kind, has = "embeddings", {"rerank" if file.ranker else "embeddings": True}
    found: Json = {
        "type": kind,
        "publisher": (entry.publisher if entry else None) or "",
        "arch": file.architecture,
        "quantization": file.quantisation,
        # Typed clients know no state between these.
        "state": "not-loaded" if model.state == "unloading" else model.state,
        "max_context_length": file.n_ctx_train,
        "capabilities": [name for name, is_had in has.items() if is_had],
    }
    return found | {"loaded_context_length": ready.loaded.n_ctx} if ready else found
