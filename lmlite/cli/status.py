"""`lmlite status`: whether a server runs, and what it has loaded.

The JSON begins with the fields of LM Studio's `lms server status --json`.
"""

import argparse
import json
import urllib.parse

from lmlite.cli.client import Client, NoServerError
from lmlite.cli.flags import STATUS_FLAGS, Commands
from lmlite.cli.ls import own
from lmlite.cli.ps import instances, n_bytes_of, table_of
from lmlite.gguf.memory_estimate import in_words


def add_to(commands: Commands) -> None:
    """Declares the command."""
    status = commands.add_parser(
        "status",
        help="show whether a server runs, and what it has loaded",
        description="Show whether a server runs at --url, its version, its models and their "
        "memory. The exit code is 1 if none runs.",
    )
    status.set_defaults(run=run)
    for flag in STATUS_FLAGS:
        flag.add_to(status)


def run(given: argparse.Namespace) -> int:
    """Prints the status. Raises CommandError."""
    client = Client.of(given)
    try:
        found = client.model_list()
    except NoServerError:
        if given.json:
            print(json.dumps({"running": False}), flush=True)
        raise
    models, version = found["models"], own(found).get("version")
    loaded = instances(models)
    n_held = sum(map(n_bytes_of, loaded))
    n_estimated = sum(n_bytes_of(model, estimated=True) for model in loaded)
    if given.json:
        names = [model["identifier"] for model in loaded]
        memory = {"held": n_held, "estimated": n_estimated}
        address = urllib.parse.urlsplit(client.url)
        port = None if address.scheme == "unix" else address.port or 80
        about = {"running": True, "port": port, "version": version}
        print(json.dumps(about | {"models": names, "memory": memory}))
        return 0
    print(f"server  {client.url}" + (f", lmlite {version}" if version else ""))
    print(f"models  {len(loaded)} of {len(models)} loaded")
    if loaded:
        print(f"memory  {in_words(n_held)}, at most {in_words(n_estimated)}")
    if rows := table_of(models):
        print(f"\n{rows}")
    return 0
