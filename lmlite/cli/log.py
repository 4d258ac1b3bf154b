"""`lmlite log stream`: what a running server's models receive and return, as it happens.

Text and JSON have the format of LM Studio's `lms log stream`, so that its viewers keep working.
The added field `requestId` shows which input an output belongs to.
"""

import argparse
import contextlib
import json
import sys
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from lmlite.cli.flags import LOG_STREAM_FLAGS, CommandError, Commands, keys_of

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
    keys = keys_of(given)
    try:
        records = attach(given.url, given.source, keys[0] if keys else None)
        print(f"watching {given.url}", file=sys.stderr, flush=True)
        for record in records:
            if is_wanted(record, given.filter):
                shown = record if given.stats else without_stats(record)
                print(json_line(shown) if given.json else text_block(shown), flush=True)
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as err:
        raise CommandError(f"no log stream at {given.url}: {err}", 1) from None
    return 0


def attach(url: str, source: str, key: bytes | None = None) -> Iterator[Record]:
    """Connects to a running server and yields its records until the server ends the stream.

    Raises OSError if no server listens there, ValueError if its answer is not a log stream.
    """
    import http.client  # imported here because it imports email and ssl, which takes time

    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the address must look like http://127.0.0.1:1234")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80)
    try:
        headers = {} if key is None else {"Authorization": b"Bearer " + key}
        connection.request("GET", f"/log/stream?source={source}", headers=headers)
        response = connection.getresponse()
    except http.client.HTTPException as err:
        raise ValueError(f"it does not speak HTTP: {err!r}") from None
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        raise ValueError("it asks for another key" if key else "it asks for a key")
    if response.status != http.HTTPStatus.OK:
        raise ValueError(f"it answers {response.status}")

    def records() -> Iterator[Record]:
        # A server that is killed may cut the stream in the middle of a line.
        with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException):
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    return records()


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
