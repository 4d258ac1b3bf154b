"""`lmlite log stream`: what a running server's models receive and return, as it happens.

Text and JSON have the format of LM Studio's `lms log stream`, so that its viewers keep working.
The added field `requestId` shows which input an output belongs to.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from lmlite.cli.client import Client
from lmlite.cli.flags import LOG_STREAM_FLAGS, Commands

Record = dict[str, Any]


def add_to(commands: Commands) -> None:
    """Declares the command."""
    log = commands.add_parser("log", help="watch a running server", description="Logs.")
    kinds = log.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stream = kinds.add_parser(
        "stream",
        help="show what models receive and return, as it happens",
        description="Show the exact text that models receive and return, as it happens.",
    )
    stream.set_defaults(run=run)
    for flag in LOG_STREAM_FLAGS:
        flag.add_to(stream)


def run(given: argparse.Namespace) -> int:
    """Prints records until the server ends or the user interrupts. Raises CommandError."""
    with contextlib.suppress(KeyboardInterrupt):
        lines = Client.of(given).lines("GET", f"/log/stream?source={given.source}")
        print(f"watching {given.url}", file=sys.stderr, flush=True)
        for record in records(lines):
            if is_wanted(record, given.filter):
                shown = record if given.stats else without_stats(record)
                print(json_line(shown) if given.json else text_block(shown), flush=True)
    return 0


def records(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records of a stream; a last one that was cut is left out."""
    for line in lines:
        if line.startswith(b"data: ") and line.endswith(b"\n"):
            yield json.loads(line.removeprefix(b"data: "))


def is_wanted(record: Record, kinds: tuple[str, ...]) -> bool:
    """Whether the record passes --filter; lines of the server's own log always do."""
    kind = str(record["data"]["type"])
    return not kind.startswith("llm.prediction.") or kind.rpartition(".")[2] in kinds


def without_stats(record: Record) -> Record:
    """The record without its `stats`: token counts, speed and stop reason."""
    return record | {"data": {k: v for k, v in record["data"].items() if k != "stats"}}


def json_line(record: Record) -> str:
    """One line of JSON."""
    return json.dumps(record, ensure_ascii=False)


def text_block(record: Record) -> str:
    """A block of `key: value` lines and an empty line. Long text starts on its own line."""
    clock = time.strftime("%x, %X", time.localtime(record["timestamp"] / 1000))
    lines = [f"timestamp: {clock}"]
    for key, value in record["data"].items():
        if key in ("input", "output"):
            lines.append(f"{key}:\n{value}")
        elif key == "stats":
            lines += [f"stats.{name}: {number}" for name, number in value.items()]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n"
