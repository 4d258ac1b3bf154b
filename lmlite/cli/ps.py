"""`lmlite ps`: the models that are loaded.

The JSON has the fields of LM Studio's `lms ps --json`, and `memory`, in bytes.
"""

import argparse
import json
import sys
import time

from lmlite.cli.client import Client, Json
from lmlite.cli.flags import PS_FLAGS, Commands
from lmlite.cli.ls import described, own, state
from lmlite.cli.tables import table, time_in_words
from lmlite.gguf.memory_estimate import in_words


def add_to(commands: Commands) -> None:
    """Declares the command."""
    ps = commands.add_parser(
        "ps",
        help="list the models that are loaded",
        description="List the models that the server at --url has loaded.",
    )
    ps.set_defaults(run=run)
    for flag in PS_FLAGS:
        flag.add_to(ps)


def run(given: argparse.Namespace) -> int:
    """Prints the loaded models. Raises CommandError."""
    models = Client.of(given).model_list()["models"]
    if given.json:
        print(json.dumps(instances(models), ensure_ascii=False))
    elif rows := table_of(models):
        print(rows)
    else:
        print("no model is loaded", file=sys.stderr)
    return 0


def instances(models: list[Json]) -> list[Json]:
    """Each loaded model with the names of LM Studio's command line."""
    return [_instance(model, found) for model in models for found in model["loaded_instances"]]


def _instance(model: Json, instance: Json) -> Json:
    about = own(instance)
    n_users, idle_s, ttl_s = (about.get(key) for key in ("n_users", "idle_seconds", "ttl_seconds"))
    works = "computingEmbedding" if model.get("type") == "embedding" else "generating"
    config = instance.get("config") or {}
    return described(model) | {
        "identifier": instance["id"],
        "ttlMs": None if ttl_s is None else round(1000 * ttl_s),
        "lastUsedTime": None if idle_s is None else round(1000 * (time.time() - idle_s)),
        "contextLength": config.get("context_length"),
        "status": works if n_users else "idle",
        "queued": n_users or 0,  # LM Studio counts those that are being answered, too
        "parallel": config.get("parallel", 1),
        "memory": about.get("memory"),
    }


def table_of(models: list[Json]) -> str:
    """The loaded models, and those that are being loaded or unloaded; empty if there are none."""
    rows = []
    for model in models:
        for found, instance in zip(instances([model]), model["loaded_instances"], strict=True):
            rows.append(_row(found, own(instance)))
        if not model["loaded_instances"] and state(model):
            rows.append(["", model["key"], state(model), *[""] * 6])
    head = ["ID", "MODEL", "STATUS", "REQUESTS", "SIZE", "MEMORY", "CONTEXT", "PARALLEL", "TTL"]
    return table(head, rows) if rows else ""


def _row(found: Json, about: Json) -> list[str]:
    ttl_s, idle_s = about.get("ttl_seconds") or 0, about.get("idle_seconds") or 0
    left = f"{time_in_words(max(0, ttl_s - idle_s))} of {time_in_words(ttl_s)}"
    n_bytes = n_bytes_of(found)
    return [
        found["identifier"],
        found["modelKey"],
        found["status"],
        str(found["queued"]),
        in_words(found["sizeBytes"]),
        in_words(n_bytes) if n_bytes else "",
        f"{found['contextLength'] or 0:,}",
        str(found["parallel"]),
        left if ttl_s else "",
    ]


def n_bytes_of(found: Json, *, estimated: bool = False) -> int:
    """The memory that a loaded model holds, or will take at most; 0: unknown."""
    memory = found["memory"] or {}
    if estimated:
        return int((memory.get("estimated") or {}).get("total", 0))
    return int(sum((memory.get("held") or {}).values()))
