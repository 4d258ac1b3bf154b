"""`lmlite load` and `lmlite unload`: which models a running server holds in memory."""

import argparse
import sys
from dataclasses import asdict

from lmlite.cli.client import Client, Json
from lmlite.cli.flags import LOAD_FLAGS, UNLOAD_FLAGS, CommandError, Commands
from lmlite.cli.local import shelf_of
from lmlite.cli.ps import instances
from lmlite.cli.tables import table
from lmlite.errors import ModelFileError, ModelNotFound
from lmlite.gguf.memory_estimate import DoesNotFit, in_words
from lmlite.server.logs import printable

# The flags of `load` that are fields of a request, with LM Studio's names and lmlite's own.
FIELDS = {"n_ctx": "context_length", "n_parallel": "parallel", "n_gpu_layers": "gpu_layers",
          "ttl": "ttl", "identifier": "identifier"}  # fmt: skip


def add_to(commands: Commands) -> None:
    """Declares both commands."""
    load = commands.add_parser(
        "load",
        help="load a model",
        description="Load a model of the server at --url, and wait until it is ready.",
    )
    load.add_argument(
        "model",
        metavar="MODEL",
        help="its name, as lmlite ls shows it; with --estimate-only it may be a .gguf file",
    )
    load.set_defaults(run=run_load)
    for flag in LOAD_FLAGS:
        flag.add_to(load)
    unload = commands.add_parser(
        "unload",
        help="unload a model",
        description="Unload a model of the server at --url. Answers that it is giving end first.",
    )
    which = unload.add_mutually_exclusive_group()
    which.add_argument(
        "identifier", nargs="?", metavar="ID", help="which one (default: the only one)"
    )
    UNLOAD_FLAGS[0].add_to(which)
    unload.set_defaults(run=run_unload)
    for flag in UNLOAD_FLAGS[1:]:
        flag.add_to(unload)


def run_load(given: argparse.Namespace) -> int:
    """Loads the model, or tells how much memory it would take. Raises CommandError."""
    if given.estimate_only:
        print(_estimate(given))
        return 0
    fields = {name: getattr(given, flag) for flag, name in FIELDS.items()}
    body = {name: value for name, value in fields.items() if value is not None}
    body |= {"model": given.model, "echo_load_config": True}
    if sys.stderr.isatty():
        print(f"loading {given.model} ...", file=sys.stderr, flush=True)
    print(_loaded(Client.of(given).ask("POST", "/api/v1/models/load", body, timeout_s=None)))
    return 0


def _estimate(given: argparse.Namespace) -> str:
    """A line for each part of the memory, and whether there is that much. Raises CommandError."""
    wanted = {name: getattr(given, name) for name in ("n_ctx", "n_parallel", "n_gpu_layers")}
    changes = {name: value for name, value in wanted.items() if value is not None}
    is_file = given.model.endswith(".gguf")
    folder = ["--models", given.folder] if given.folder else []
    try:
        shelf = shelf_of([given.model] if is_file else folder)
        model = shelf.named()[0] if is_file else shelf.find(given.model)
        bound = shelf.bound([])
        plan = shelf.plan(model, bound, changes)
    except (ModelFileError, ModelNotFound, DoesNotFit) as err:
        raise CommandError(str(err), 1) from None
    parts = [
        (name, in_words(n_bytes)) for name, n_bytes in asdict(plan.estimate).items() if n_bytes
    ]
    limit = f"it fits: {bound.because} {in_words(bound.n_bytes)}" if bound else "no limit is known"
    total = ("total", in_words(plan.estimate.total))
    return "\n".join([table(["PART", "MEMORY"], [*parts, total]), *plan.notes, limit])


def _loaded(answer: Json) -> str:
    n_ctx = (answer.get("load_config") or {}).get("context_length", 0)
    name = printable(str(answer.get("instance_id")))
    return f"{name} is loaded: {answer.get('load_time_seconds', 0):.2f} s, {n_ctx:,} tokens"


def run_unload(given: argparse.Namespace) -> int:
    """Unloads one model, or all. Raises CommandError."""
    client = Client.of(given)
    names = [given.identifier]
    if given.identifier is None:
        names = [model["identifier"] for model in instances(client.model_list()["models"])]
        if not names and not given.all:
            raise CommandError("no model is loaded", 1)
        if len(names) > 1 and not given.all:
            known = printable(", ".join(names))
            raise CommandError(f"several models are loaded: name one of {known}, or use --all", 2)
    for name in names:
        client.ask("POST", "/api/v1/models/unload", {"instance_id": name}, timeout_s=None)
        print(f"{printable(name)} is unloaded", flush=True)
    return 0
