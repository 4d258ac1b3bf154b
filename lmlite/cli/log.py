"""The viewer's side of the log stream: records from a running server, as text or JSON lines.

Text and JSON have the shape of LM Studio's `lms log stream`, with `requestId` added, so that
its viewers keep working and an output can be told to belong to its input.
"""

import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]


def attach(url: str, source: str, key: bytes | None = None) -> Iterator[Record]:
    """Connects to a running server: its records, as they happen, until it ends the stream.

    Raises OSError when there is no server, ValueError when it is not one of ours.
    """
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
    return _records(connection, response)


def _records(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse
) -> Iterator[Record]:
    try:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[len(b"data: ") :])
    except http.client.HTTPException:
        return  # the server ended in the middle of a line
    finally:
        connection.close()


def is_wanted(record: Record, kinds: tuple[str, ...]) -> bool:
    """Whether the record passes --filter; lines of the server always do."""
    kind = str(record["data"]["type"])
    return not kind.startswith("llm.prediction.") or kind.rpartition(".")[2] in kinds


def json_lines(record: Record, with_stats: bool) -> str:
    """One line of JSON."""
    return json.dumps(_without_stats(record, with_stats), ensure_ascii=False)


def text_lines(record: Record, with_stats: bool) -> str:
    """A block of `key: value` lines, the long text under its key, and an empty line."""
    clock = time.strftime("%x, %X", time.localtime(record["timestamp"] / 1000))
    lines = [f"timestamp: {clock}"]
    for key, value in _without_stats(record, with_stats)["data"].items():
        if key in ("input", "output"):
            lines.append(f"{key}:\n{value}")
        elif key == "stats":
            lines += [f"stats.{name}: {number}" for name, number in value.items()]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n"


def _without_stats(record: Record, with_stats: bool) -> Record:
    if with_stats:
        return record
    data = {key: value for key, value in record["data"].items() if key != "stats"}
    return {**record, "data": data}
