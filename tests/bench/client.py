"""The client that measures: it notes what a read brought and when, and understands it later.

While a reply comes, nothing happens here but `recv` and a look at the clock, because the client
shares its processors with the server that it measures. Taking apart HTTP chunks, server-sent
events and JSON is done by pure functions once the last byte is there.

All times are seconds of `time.perf_counter`.
"""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

WAIT_S = 300.0  # for any byte of a reply: a busy machine is slow, and slow is a result
CHARACTER = 4  # tokens that one may be spelled by: fewer may be a part of one, and no text yet
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"  # in a line of JSON it cannot stand, which knows \r and \n as escapes


class BadReply(Exception):
    """A server answered with something other than what was asked for; a sentence says what."""


class Piece(NamedTuple):
    """What one read brought."""

    at_s: float
    data: bytes


# ---- pure: bytes -> events -----------------------------------------------------------------


@dataclass
class Head:
    """What a reply says before its body."""

    status: int
    headers: dict[str, str]  # names in lower case

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def n_body(self) -> int | None:
        """Bytes of the body, where the head tells."""
        n = self.headers.get("content-length")
        return None if n is None else int(n)


def parse_head(data: bytes) -> Head:
    """The head from its bytes, without the empty line behind it."""
    first, *lines = data.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Head(int(first.split(" ")[1]), headers)


def split_head(pieces: Sequence[Piece]) -> tuple[Head, list[Piece]]:
    """The head, and the pieces of the body."""
    data = b""
    for i, (at_s, more) in enumerate(pieces):
        data += more
        head, found, rest = data.partition(HEAD_END)
        if found:
            body = [Piece(at_s, rest)] if rest else []
            return parse_head(head), body + list(pieces[i + 1 :])
    raise BadReply(f"the reply has no head: {data[:80]!r}")


def dechunked(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The content of HTTP chunks, each at the time at which it was whole."""
    data = b""
    for at_s, more in pieces:
        data += more
        while (found := data.find(b"\r\n")) >= 0:
            n = int(data[:found].partition(b";")[0], 16)
            begin, end = found + 2, found + 2 + n
            if n == 0 or len(data) < end + 2:
                break
            yield Piece(at_s, data[begin:end])
            data = data[end + 2 :]


def events(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The data of server-sent events, each at the time at which it was whole. Comments are none."""
    text = b""
    for at_s, more in pieces:
        text += more.replace(b"\r\n", b"\n")
        *blocks, text = text.split(b"\n\n")
        for block in blocks:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield Piece(at_s, b"\n".join(lines))


def body(head: Head, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of the body, without the framing."""
    return list(dechunked(pieces)) if head.is_chunked else list(pieces)


# ---- pure: events -> what is measured ------------------------------------------------------


@dataclass
class Completion:
    """One answer, and when its parts came."""

    sent_s: float
    text_s: list[float] = field(default_factory=list)  # of each event that brought text
    text: str = ""
    n_prompt: int = 0  # tokens, as the server counts them
    n_completion: int = 0

    @property
    def first_token_s(self) -> float:
        """From the request to the first text."""
        return self.text_s[0] - self.sent_s

    @property
    def rate(self) -> float:
        """Tokens per second after the first one."""
        return (self.n_completion - 1) / (self.text_s[-1] - self.text_s[0])

    @property
    def longest_silence_s(self) -> float:
        """The longest time between two events that brought text."""
        return max(b - a for a, b in zip(self.text_s, self.text_s[1:], strict=False))


def completion(sent_s: float, pieces: Sequence[Piece]) -> Completion:
    """What a streamed answer was. Raises BadReply when it was none."""
    head, rest = split_head(pieces)
    if head.status != 200:
        raise BadReply(f"{head.status}: {b''.join(data for _, data in body(head, rest))[:300]!r}")
    answer = Completion(sent_s)
    for at_s, data in events(body(head, rest)):
        if data != b"[DONE]":
            _take(answer, at_s, json.loads(data))
    if not (answer.text_s or answer.n_completion < CHARACTER) or answer.n_completion == 0:
        raise BadReply(f"no text or no usage in {answer}")
    return answer


def _take(answer: Completion, at_s: float, event: dict[str, Any]) -> None:
    """Adds one event of a stream, of chats or of completions."""
    if "error" in event:
        raise BadReply(f"an error within a stream: {event['error']}")
    if usage := event.get("usage"):
        answer.n_prompt = usage["prompt_tokens"]
        answer.n_completion = usage["completion_tokens"]
    for choice in event.get("choices", ()):
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        if text:
            answer.text += text
            answer.text_s.append(at_s)


# ---- sockets -------------------------------------------------------------------------------


class Connection:
    """One connection that is kept open, as the OpenAI clients keep it. One thread uses it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._host = parts.netloc
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, method: str, path: str, data: bytes = b"") -> list[Piece]:
        """Sends, and reads the whole reply; the first piece is empty, at the time of sending."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        if self._socket is not None:
            # A server may hang up between two requests: llama-server does so after each stream,
            # whatever its head says. Like every client, this one then tries again.
            try:
                pieces = self._exchange(head.encode() + data)
                if any(piece.data for piece in pieces):
                    return pieces
            except ConnectionError:
                pass
            self.close()
        return self._exchange(head.encode() + data)

    def _exchange(self, data: bytes) -> list[Piece]:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=WAIT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pieces = [Piece(time.perf_counter(), b"")]
        self._socket.sendall(data)
        self._read(self._socket, pieces)
        return pieces

    def _read(self, peer: socket.socket, pieces: list[Piece]) -> None:
        head: Head | None = None
        start = b""  # of the reply, until the head is whole
        tail = b""  # its last bytes
        n_body = 0
        while True:
            data = peer.recv(1 << 16)
            pieces.append(Piece(time.perf_counter(), data))
            if not data:
                self.close()
                return
            if head is None:
                start += data
                raw, found, rest = start.partition(HEAD_END)
                if not found:
                    continue
                head, data = parse_head(raw), rest
            n_body += len(data)
            tail = (tail + data)[-len(LAST_CHUNK) :]
            if (head.is_chunked and tail == LAST_CHUNK) or n_body == head.n_body:
                return

    def fetch(self, method: str, path: str, data: bytes = b"") -> bytes:
        """The body of an answer. Raises BadReply for another status than 200."""
        head, rest = split_head(self.request(method, path, data))
        content = b"".join(data for _, data in body(head, rest))
        if head.status != 200:
            raise BadReply(f"{head.status}: {content[:300]!r}")
        return content

    def post(self, path: str, **values: Any) -> Any:
        """The JSON that answers JSON."""
        return json.loads(self.fetch("POST", path, json.dumps(values).encode()))

    def stream(self, asked: "Asked") -> Completion:
        """Sends a request for a stream, and waits for its end."""
        pieces = self.request("POST", asked.path, asked.data)
        return completion(pieces[0].at_s, pieces)


class Asked(NamedTuple):
    """A request that is ready to be sent."""

    path: str
    data: bytes


GREEDY = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


def ask(model: str, prompt: str, n_tokens: int, **more: Any) -> Asked:
    """A completion of so many tokens."""
    values = {"model": model, "prompt": prompt, "max_tokens": n_tokens, **GREEDY, **more}
    return Asked("/v1/completions", json.dumps(values).encode())


def ask_chat(model: str, messages: list[dict[str, Any]], n_tokens: int) -> Asked:
    """The same for a conversation."""
    values = {"model": model, "messages": messages, "max_tokens": n_tokens, **GREEDY}
    return Asked("/v1/chat/completions", json.dumps(values).encode())


class Crowd(NamedTuple):
    """What many requests together took."""

    wall_s: float  # from the first request to the last byte
    answers: list[Completion]

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.n_completion for answer in self.answers) / self.wall_s

    @property
    def requests_per_s(self) -> float:
        return len(self.answers) / self.wall_s


def requests_at_once(url: str, requests: Sequence[Asked], n_clients: int) -> list[list[Piece]]:
    """The replies to all requests, one after the other on each of so many connections."""
    own = threading.local()
    opened: list[Connection] = []

    def send(asked: Asked) -> list[Piece]:
        if not hasattr(own, "connection"):
            own.connection = Connection(url)
            opened.append(own.connection)
        pieces: list[Piece] = own.connection.request("POST", asked.path, asked.data)
        return pieces

    with ThreadPoolExecutor(n_clients) as pool:
        replies = list(pool.map(send, requests))
    for connection in opened:
        connection.close()
    return replies


def at_once(url: str, requests: Sequence[Asked], n_clients: int) -> Crowd:
    """The same for streams; their bytes are taken apart when the last one has come."""
    began_s = time.perf_counter()
    replies = requests_at_once(url, requests, n_clients)
    wall_s = time.perf_counter() - began_s
    return Crowd(wall_s, [completion(pieces[0].at_s, pieces) for pieces in replies])
