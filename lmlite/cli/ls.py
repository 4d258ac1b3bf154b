"""`lmlite ls`: the models that can be served.

The JSON has the fields of LM Studio's `lms ls --json`. A file that cannot be served is listed, too,
with its fault.
"""

import argparse
import json
import re
import sys

from lmlite.cli.client import Client, Json, NoServerError
from lmlite.cli.flags import LS_FLAGS, CommandError, Commands
from lmlite.cli.local import shelf_of
from lmlite.cli.tables import table
from lmlite.gguf.memory_estimate import in_words
from lmlite.server.api.lmstudio.models import model_list
from lmlite.server.models.registry import Registry


def add_to(commands: Commands) -> None:
    """Declares the command."""
    ls = commands.add_parser(
        "ls",
        help="list the models that can be served",
        description="List the models of the server at --url, or of this machine's folder if none "
        "runs here.",
    )
    ls.add_argument("model", nargs="?", metavar="MODEL", help="only those with this in their name")
    ls.set_defaults(run=run)
    for flag in LS_FLAGS:
        flag.add_to(ls)


def run(given: argparse.Namespace) -> int:
    """Prints the models. Raises CommandError."""
    found = _model_list(given)
    listed = [*found["models"], *own(found).get("broken", [])]
    models = [model for model in listed if _is_wanted(model, given)]
    if given.json:
        print(json.dumps([described(model) for model in models], ensure_ascii=False))
        return 0
    if not models and (given.model or given.llm or given.embedding):
        raise CommandError("no model is like that; lmlite ls lists all", 1)
    if models:
        head = ["MODEL", "TYPE", "PARAMS", "ARCH", "QUANT", "SIZE", "CONTEXT", "STATE"]
        print(table(head, [_row(model) for model in models]))
    else:
        print("there are no models yet", file=sys.stderr)
    return 0


def _model_list(given: argparse.Namespace) -> Json:
    """The list of the server, or the one that a server here would have. Raises CommandError."""
    if given.folder:
        return model_list(Registry(supply=shelf_of(["--models", given.folder])))
    client = Client.of(given)
    try:
        return client.model_list()
    except NoServerError:
        if not client.is_local:
            raise
    return model_list(Registry(supply=shelf_of([])))


def _is_wanted(model: Json, given: argparse.Namespace) -> bool:
    kinds = {kind for kind in ("llm", "embedding") if getattr(given, kind)}
    is_named = (given.model or "").lower() in model["key"].lower()
    return is_named and (not kinds or model.get("type") in kinds)


def _row(model: Json) -> list[str]:
    found = described(model)
    n_ctx = found.get("maxContextLength")
    return [
        found["modelKey"],
        found["type"] or "",
        found.get("paramsString", ""),
        found.get("architecture", ""),
        found.get("quantization", {}).get("name", ""),
        in_words(found["sizeBytes"]),
        f"{n_ctx:,}" if n_ctx else "",
        found.get("fault") or state(model),
    ]


def state(model: Json) -> str:
    """The state of a model; empty if it is not loaded."""
    default = "loaded" if model["loaded_instances"] else ""
    return str(own(model).get("state", default)).replace("not-loaded", "")


def own(found: Json) -> Json:
    """What lmlite adds to an object of LM Studio's API."""
    return found.get("lmlite") or {}


def described(model: Json) -> Json:
    """A model of `GET /api/v1/models` with the names of LM Studio's command line."""
    path = own(model).get("path", model["key"])
    abilities = model.get("capabilities") or {}
    name = (model.get("quantization") or {}).get("name")
    bits = re.search(r"\d+", name or "")
    found = {
        "type": model.get("type"),
        "modelKey": model["key"],
        "format": model.get("format"),
        "displayName": model.get("display_name"),
        "publisher": model.get("publisher"),
        "path": path,
        "sizeBytes": model.get("size_bytes", 0),
        "indexedModelIdentifier": path,
        "deviceIdentifier": None,
    }
    known = {
        "paramsString": model.get("params_string"),
        "architecture": model.get("architecture") or own(model).get("architecture"),
        "quantization": {"name": name, "bits": int(bits[0])} if bits else None,
        "vision": abilities.get("vision"),
        "trainedForToolUse": abilities.get("trained_for_tool_use"),
        "maxContextLength": model.get("max_context_length"),
        "fault": own(model).get("fault"),
    }
    return found | {key: value for key, value in known.items() if value is not None}
