"""`lmlite version`: what runs here, for a report of a fault."""

import argparse
import os
import subprocess
import sys

import lmlite
from lmlite.cli.flags import CommandError, Commands
from lmlite.library import library_folder
from lmlite.server.models.worker_process import worker_environment


def add_to(commands: Commands) -> None:
    """Declares the command."""
    version = commands.add_parser(
        "version",
        help="print the versions of lmlite and of what it runs on",
        description="Print the versions of lmlite and of what it runs on, the kind of processor "
        "that the library chose to run on, and the library's folder.",
    )
    version.set_defaults(run=run)


def run(_given: argparse.Namespace) -> int:
    """Prints a line for each part. Raises CommandError if the library cannot be used."""
    folder = str(library_folder(None).resolve())
    # In a process of its own, as always: no fault of the library can end this one.
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "lmlite.worker.llama", folder],
        env=worker_environment(),
        capture_output=True,
        text=True,
    )
    llama_cpp, cpu = asked.stdout.split() if asked.returncode == 0 else ("unknown", "unknown")
    print(f"lmlite     {lmlite.__version__}")
    print(f"llama.cpp  {llama_cpp}")
    print(f"processor  {cpu} ({os.uname().machine})")
    print(f"Python     {sys.version.split()[0]} ({sys.executable})")
    print(f"libc       {_libc()}")
    print(f"libraries  {folder}", flush=True)
    if asked.returncode != 0:
        lines = asked.stderr.splitlines()
        raise CommandError(lines[-1] if lines else "the library ended its process", 1)
    return 0


def _libc() -> str:
    """Such as "glibc 2.36"."""
    import sysconfig  # other commands need not wait for it

    try:
        named = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):  # as musl's Python answers
        named = None
    return named or ("musl" if "musl" in str(sysconfig.get_config_var("SOABI")) else "unknown")
