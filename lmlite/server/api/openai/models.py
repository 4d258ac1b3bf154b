"""GET /v1/models: the models that are served, under each of their names."""

from collections.abc import Iterable

from lmlite.messages import Json
from lmlite.server.models.served_model import ServedModel


def model_list(models: Iterable[ServedModel]) -> Json:
    """All models, each under all of its names: a client may look for any of them."""
    rows = [model_object(model, name) for model in models for name in model.names]
    return {"object": "list", "data": rows}


def model_object(model: ServedModel, name: str) -> Json:
    """A model under this name, or under its first one. Clients ignore fields they do not know."""
    ready = model.ready
    kind = "vlm" if model.sees else "llm"  # LM Studio's words
    if model.file.embeds_only:
        kind = "embeddings"
    return {
        "id": name if name in model.names else model.name,
        "object": "model",
        "created": model.file.mtime,
        "owned_by": "lmlite",
        "context_length": ready.loaded.n_ctx if ready else None,
        "max_context_length": model.file.n_ctx_train,
        "type": kind,
        "arch": model.file.architecture,
        "quantization": model.file.quantisation,
    }
