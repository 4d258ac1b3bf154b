"""`lmlite get`: fetches a model into the folder of models.

A server started with --allow-download runs this command with --json.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from lmlite.cli.flags import GET_FLAGS, CommandError, Commands
from lmlite.downloads.fetch import fetch_model
from lmlite.downloads.progress import DownloadError, Event, shown
from lmlite.server.models.catalog import models_folder
from lmlite.server.models.downloads import ENDPOINT

BAR_WIDTH = 24


def add_to(commands: Commands) -> None:
    """Declares the command."""
    get = commands.add_parser(
        "get",
        help="fetch a model",
        description="Fetch a model into the folder of models, and print its path. What is "
        "interrupted continues with the same command. HF_TOKEN opens models that need a token.",
    )
    get.add_argument(
        "model",
        metavar="MODEL",
        help="owner/repository or owner/repository:quantisation on Hugging Face, an https address "
        "of a .gguf file, or smollm2-135m",
    )
    get.set_defaults(run=run)
    for flag in GET_FLAGS:
        flag.add_to(get)


def run(given: argparse.Namespace) -> int:
    """Fetches the model. Raises CommandError."""
    tell = print_json if given.json else Display(given.quiet)
    endpoint = given.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT
    token = os.environ.get("HF_TOKEN", "").strip()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fetch_model(given.model, Path(given.folder or models_folder()), endpoint, token, tell)
        return 0
    except DownloadError as err:
        problem = str(err)
    except KeyboardInterrupt:
        problem = "stopped; the same command continues where it ended"
    finally:
        signal.signal(signal.SIGTERM, before)
    tell({"event": "error", "message": problem})
    raise CommandError(problem, 1)


def print_json(event: Event) -> None:
    """One line of JSON."""
    print(json.dumps(event), flush=True)


class Display:
    """Shows events on standard error, and on standard output the path of the model.

    A terminal shows a bar; otherwise each tenth is a line.
    """

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet, self._is_in_bar = is_quiet, False
        self._n_tenths = 0  # that a line was printed for

    def __call__(self, event: Event) -> None:
        """Shows one event of `lmlite.downloads.progress`."""
        kind = event["event"]
        if kind == "progress" and not self._is_quiet:
            n_tenths = 10 * event["downloaded_bytes"] // event["total_size_bytes"]
            if sys.stderr.isatty():
                # ESC [ K removes the rest of a longer line.
                print(f"\r{bar(event)}\x1b[K", end="", file=sys.stderr, flush=True)
                self._is_in_bar = True
            elif n_tenths > self._n_tenths:
                print(f"lmlite: {numbers(event)}", file=sys.stderr, flush=True)
            self._n_tenths = n_tenths
        elif self._is_in_bar:
            print(file=sys.stderr, flush=True)
            self._is_in_bar = False
        if kind == "note" and not self._is_quiet:
            print(f"lmlite: {event['message']}", file=sys.stderr, flush=True)
        if kind == "done":
            print(event["paths"][0], flush=True)


def bar(event: Event) -> str:
    """The progress as a bar with numbers."""
    n_filled = BAR_WIDTH * event["downloaded_bytes"] // event["total_size_bytes"]
    return f"[{'#' * n_filled:{BAR_WIDTH}}] {numbers(event)}"


def numbers(event: Event) -> str:
    """The progress as numbers.

    >>> numbers({"total_size_bytes": 98_362_432, "downloaded_bytes": 50_000_000,
    ...          "bytes_per_second": 1_200_000, "seconds_left": 40})
    '50 % of 98.4 MB, 1.2 MB/s, 0:40 left'
    """
    n_done, n_total = event["downloaded_bytes"], event["total_size_bytes"]
    text = f"{100 * n_done // n_total} % of {shown(n_total)}, {shown(event['bytes_per_second'])}/s"
    seconds = event["seconds_left"]
    return text if seconds is None else f"{text}, {seconds // 60}:{seconds % 60:02} left"
