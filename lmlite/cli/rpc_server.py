"""`lmlite rpc-server`: holds layers of a model that another host serves."""

import argparse
import ipaddress
import os
import sys

from lmlite.cli.flags import RPC_SERVER_FLAGS, CommandError, Commands
from lmlite.library import RPC_NAME, library_folder, reaches_hosts
from lmlite.server.models.worker_process import worker_environment

OPEN = (
    "the protocol has no keys: whoever reaches this port can read and change the model and its "
    "conversations, and may take over this process; let only a network of trusted machines reach it"
)


def add_to(commands: Commands) -> None:
    """Declares the command."""
    command = commands.add_parser(
        "rpc-server",
        help="hold layers of a model that another host serves",
        description="Hold layers of a model for `lmlite serve --rpc` on another host, with this "
        "host's GPUs or its processor. One client at a time is served, without any key.",
    )
    command.set_defaults(run=run)
    for flag in RPC_SERVER_FLAGS:
        flag.add_to(command)


def run(given: argparse.Namespace) -> int:
    """Becomes the process that serves. Raises CommandError."""
    if not reaches_hosts(given.lib):
        raise CommandError(f"this build has no {RPC_NAME}: run `make native` again", 1)
    try:
        address = ipaddress.IPv4Address(given.host)
    except ValueError:
        raise CommandError("--host must be an IPv4 address, such as 192.168.1.5", 2) from None
    if not address.is_loopback:
        print(f"lmlite: {OPEN}", file=sys.stderr, flush=True)
    folder = str(library_folder(given.lib).resolve())
    options = [folder, given.host, str(given.port), str(given.n_threads or 0)]
    command = [sys.executable, "-S", "-P", "-m", "lmlite.worker.rpc_server", *options]
    os.execve(sys.executable, command, worker_environment())  # noqa: S606
