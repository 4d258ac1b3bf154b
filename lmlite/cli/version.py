"""`lmlite version`: what runs here, for a report of a fault."""

import argparse
import json
import os
import subprocess
import sys
import sysconfig

import lmlite
from lmlite.cli.flags import VERSION_FLAGS, CommandError, Commands
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
    for flag in VERSION_FLAGS:
        flag.add_to(version)


def run(given: argparse.Namespace) -> int:
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
    parts = {
        "lmlite": lmlite.__version__,
        "llama.cpp": llama_cpp,
        "processor": f"{cpu} ({os.uname().machine})",
        "Python": f"{sys.version.split()[0]} ({sys.executable})",
        "libc": _libc(),
        "libraries": folder,
    }
    if given.json:  # LM Studio's `lms version --json` has the first field
        print(json.dumps({"version": lmlite.__version__, **parts}), flush=True)
    else:
        print(*(f"{name:11}{text}" for name, text in parts.items()), sep="\n", flush=True)
    if asked.returncode != 0:
        lines = asked.stderr.splitlines()
        raise CommandError(lines[-1] if lines else "the library ended its process", 1)
    return 0


def _libc() -> str:
    """Such as "glibc 2.36"."""
    try:
        named = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):  # as musl's Python answers
        named = None
    return named or ("musl" if "musl" in str(sysconfig.get_config_var("SOABI")) else "unknown")
