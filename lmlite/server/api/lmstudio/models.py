"""GET /api/v1/models: each model with its file, its abilities, and how it is loaded.

What LM Studio does not have is in the field `lmlite` of each object; `lmlite ls` and `ps` show it.
"""

import time
from pathlib import Path

import lmlite
from lmlite.messages import Json
from lmlite.server.api.abilities import reasoning_settings, uses_tools
from lmlite.server.logs import printable
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel

_UNITS = (("B", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0))


def model_list(registry: Registry) -> Json:
    """All models, loaded or not."""
    broken = registry.broken()  # first: this looks at the folders
    return {
        "models": [model_object(registry, model) for model in registry.models()],
        "lmlite": {
            "version": lmlite.__version__,
            "broken": [_broken_object(entry, fault) for entry, fault in broken],
        },
    }


def model_object(registry: Registry, model: ServedModel) -> Json:
    """A model. LM Studio leaves out the fields of chats for models that only embed."""
    file, entry = model.file, model.entry
    found: Json = {
        "type": kind_of(model),
        "publisher": (entry.publisher if entry else None) or "",
        "key": model.name,
        "display_name": file.name,
        "quantization": {"name": file.quantisation, "bits_per_weight": _bits_per_weight(model)},
        "size_bytes": sum(part.n_bytes for part in file.parts),
        "params_string": in_short(file.n_params) if file.n_params else None,
        "loaded_instances": _instances(registry, model),
        "max_context_length": file.n_ctx_train,
        "format": "gguf",
        "lmlite": {"path": _listed_path(file.path, entry), "architecture": file.architecture,
                   "state": model.state},
    }  # fmt: skip
    if not file.embeds_only:
        found |= {"architecture": file.architecture, "capabilities": _capabilities(model),
                  "description": None}  # fmt: skip
    return found


def _broken_object(entry: CatalogEntry, fault: str) -> Json:
    """A file that cannot be served."""
    return {"key": entry.name, "publisher": entry.publisher or "", "format": "gguf",
            "size_bytes": entry.n_bytes, "loaded_instances": [],
            "lmlite": {"path": _listed_path(entry.path, entry), "fault": fault}}  # fmt: skip


def _listed_path(path: str, entry: CatalogEntry | None) -> str:
    """publisher/repository/file where the file lies so, as LM Studio has it; else its name."""
    parts = Path(path).parts[-3:]
    return printable("/".join(parts) if entry and parts[0] == entry.publisher else parts[-1])


def kind_of(model: ServedModel) -> str:
    """The type of a model."""
    return "embedding" if model.file.embeds_only else "llm"


def instance_id(model: ServedModel) -> str:
    """The name of a loaded model: the one that its load gave it, else its own."""
    return model.identifiers[-1] if model.identifiers else model.name


def load_config(model: ServedModel) -> Json | None:
    """How a model is loaded; None: it is not, or no longer."""
    ready, load = model.ready, model.load
    if ready is None or load is None:
        return None
    config: Json = {"context_length": ready.loaded.n_ctx}
    if not model.file.embeds_only:
        config |= {
            "eval_batch_size": load.n_batch,
            "parallel": ready.loaded.n_parallel,
            "flash_attention": load.flash_attn != "off",
            "offload_kv_cache_to_gpu": ready.loaded.n_gpu_layers > 0,
        }
    return config


def _instances(registry: Registry, model: ServedModel) -> list[Json]:
    config, resident = load_config(model), registry.resident(model)
    if config is None or resident is None:
        return []
    about = {
        "n_users": resident.n_users,  # requests, also those that wait
        "ttl_seconds": resident.ttl_s,
        "idle_seconds": 0.0 if resident.n_users else time.monotonic() - resident.last_used_s,
        "memory": model.memory() if model.plan else None,
    }
    return [{"id": instance_id(model), "config": config, "lmlite": about}]


def _capabilities(model: ServedModel) -> Json:
    found: Json = {"vision": model.sees, "trained_for_tool_use": uses_tools(model)}
    if settings := reasoning_settings(model):
        own = model.defaults.effort or ("off" if model.defaults.thinks is False else None)
        default = next(each for each in (own, "on", "medium") if each in settings)
        found["reasoning"] = {"allowed_options": list(settings), "default": default}
    return found


def _bits_per_weight(model: ServedModel) -> float | None:
    file = model.file
    return round(8 * file.n_tensor_bytes / file.n_params, 2) if file.n_params else None


def in_short(n_params: int) -> str:
    """A number of parameters with three digits at most.

    >>> in_short(134_515_008), in_short(7_241_732_096), in_short(999_990_000)
    ('135M', '7.24B', '1B')
    """
    unit, size = next((unit, size) for unit, size in _UNITS if n_params >= 0.9995 * size)
    return f"{n_params / size:.3g}{unit}"
