"""Asks a running server, for the commands that need one."""

import argparse
import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from lmlite.cli.flags import CommandError, keys_of
from lmlite.server.logs import printable

ANSWER_S = 10.0  # for a connection, and for what the server knows without a model
MAX_ERROR_BYTES = 64 << 10

Json = dict[str, Any]


class NoServerError(CommandError):
    """Nobody listens at the address."""


@dataclass(frozen=True)
class Client:
    """The address of a server, such as http://127.0.0.1:1234, and the key to send."""

    url: str
    key: bytes | None = None

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Client":
        """From --url and --api-key-file. Raises CommandError."""
        keys = keys_of(given)
        return cls(given.url, keys[0] if keys else None)

    @property
    def is_local(self) -> bool:
        """Whether the address is that of this machine."""
        parts = urllib.parse.urlsplit(self.url)
        return parts.scheme == "unix" or parts.hostname in ("localhost", "127.0.0.1", "::1")

    def ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        timeout_s: float | None = ANSWER_S,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
    ) -> Json:
        """The JSON object that the server answers. Raises CommandError.

        `timeout_s` is the longest silence; None: no limit, for what may take long. `connected`
        gets the connection before the request is sent, so that another thread can end it.
        """
        data = b"".join(self.lines(method, path, body, timeout_s, connected))
        # A server that has kept a client waiting can only tell of an error under the status 200.
        if message := _message(data):
            raise CommandError(message, 1)
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(data), dict):
                return found
        raise CommandError(f"{self.url} does not answer as lmlite does", 1)

    def lines(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        timeout_s: float | None = None,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
    ) -> Generator[bytes]:
        """Returns once the server has accepted the request, with the lines of its answer.

        Raises CommandError; so does the iterator. Closing the iterator closes the connection.
        """
        with self._failures():
            connection = self._connection()
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connected(connection.sock)
            response = self._response(connection, method, path, body)
        return self._read(response)

    def model_list(self) -> Json:
        """The answer to `GET /api/v1/models`. Raises CommandError."""
        found = self.ask("GET", "/api/v1/models")
        with contextlib.suppress(LookupError, TypeError):
            if all(type(model["loaded_instances"]) is list for model in found["models"]):
                return found
        raise CommandError(f"{self.url} has no list of models", 1)

    def _response(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Json | None
    ) -> http.client.HTTPResponse:
        """Raises OSError, ValueError, HTTPException, CommandError."""
        headers: dict[str, str | bytes] = {"Content-Type": "application/json"} if body else {}
        if self.key is not None:
            headers["Authorization"] = b"Bearer " + self.key
        connection.request(method, path, json.dumps(body).encode() if body else None, headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            with contextlib.closing(connection):
                raise self._refusal(response.status, response.read(MAX_ERROR_BYTES))
        return response

    def _connection(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme == "unix" and parts.path:
            return _FileConnection(parts.path)
        if parts.scheme != "http" or not parts.hostname:
            raise CommandError("the address must look like http://127.0.0.1:1234, or unix:/PATH", 2)
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=ANSWER_S)

    def _refusal(self, status: int, data: bytes) -> CommandError:
        if status == 401:
            return CommandError(
                f"{self.url} asks for {'another' if self.key else 'a'} key: name a file that has "
                "one with --api-key-file",
                1,
            )
        return CommandError(_message(data) or f"{self.url} answers {status}", 1)

    def _read(self, response: http.client.HTTPResponse) -> Generator[bytes]:
        with contextlib.closing(response), self._failures():
            yield from response

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what fails on a connection into a CommandError."""
        try:
            yield
        except (ConnectionRefusedError, FileNotFoundError):
            raise NoServerError(
                f"no server listens at {self.url}; start one with lmlite serve", 1
            ) from None
        except TimeoutError:
            raise CommandError(f"{self.url} does not answer", 1) from None
        except (OSError, ValueError, http.client.HTTPException) as err:
            why = printable(str(err) or type(err).__name__)
            raise CommandError(f"the connection to {self.url} failed: {why}", 1) from None


class _FileConnection(http.client.HTTPConnection):
    """A connection to a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)


def _message(data: bytes) -> str | None:
    """The message of an error object; None if this is none."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return printable(str(json.loads(data)["error"]["message"]))
    return None
