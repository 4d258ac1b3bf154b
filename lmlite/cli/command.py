"""The `lmlite` command: its parser and its exit codes.

Exit codes: 0 after a normal stop (SIGINT or SIGTERM), 1 when the model or the library cannot
be used, 2 for a wrong command line or an address that cannot be bound, 130 for a command that
SIGINT ended early. Importing this module or running `lmlite --help` loads no native library and
starts no process.
"""

import argparse
import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence

import lmlite
from lmlite.cli.flags import CommandError

# The commands, each with the file that declares and runs it. Only this file is imported, so that
# no command waits for the imports of the others.
FILES = {"serve": "serve", "chat": "chat", "get": "get", "ls": "ls", "ps": "ps", "load": "load",
         "unload": "load", "import": "files", "rm": "files", "status": "status", "log": "log",
         "rpc-server": "rpc_server", "mcp": "mcp", "unit": "unit", "version": "version",
         "help": "manual"}  # fmt: skip


def main(
    arguments: Sequence[str] | None = None, worker: subprocess.Popen[bytes] | None = None
) -> int:
    """Runs a command; returns its exit code. `worker` is for `serve`: a process without a model."""
    arguments = sys.argv[1:] if arguments is None else arguments
    before = argparse.Namespace(worker=worker, words=list(arguments[1:]))
    given = parser(*arguments[:1]).parse_args(arguments, before)
    try:
        return int(given.run(given))
    except BrokenPipeError:  # the reader of standard output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
        return 1
    except KeyboardInterrupt:
        return 130  # as shells show it
    except CommandError as err:
        with contextlib.suppress(OSError):  # standard error may have no reader
            print(f"lmlite: {err}", file=sys.stderr)
        return err.code


def parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of a command, or of all. Each command sets `run` to its own function."""
    top = argparse.ArgumentParser(
        prog="lmlite", description="Serve a GGUF model behind the OpenAI API."
    )
    top.add_argument("--version", action="version", version=f"lmlite {lmlite.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for file in [FILES[command]] if command in FILES else dict.fromkeys(FILES.values()):
        importlib.import_module(f"lmlite.cli.{file}").add_to(commands)
    return top
