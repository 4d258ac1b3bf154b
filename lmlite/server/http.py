"""One connection's requests: checks, routes, and bytes to the client.

A request's way: `Handler.handle_one_request` reads a head, `_answer` checks it and finds its
route, the route reads the body and asks the worker, and `_stream` or `_fold` turns events
into bytes. One thread per connection; a thread that waits for a worker also watches whether
its client is still there. Every failure is an ApiError, and `_refuse` makes the bytes of it.
"""

import secrets
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from queue import Empty
from typing import Any

from lmlite.errors import (
    ApiError,
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
)
from lmlite.messages import Chat, Complete, Embed, Queued, Reading, ReplyEvent
from lmlite.server import error_bodies, metrics, openai_replies, wire
from lmlite.server.answers import Answer, StreamedAnswer
from lmlite.server.connection import Connection
from lmlite.server.dry_run import DryRun, planned
from lmlite.server.listener import Server
from lmlite.server.messages_replies import MessageReply, TokenCount
from lmlite.server.messages_requests import parse_count, parse_message
from lmlite.server.openai_replies import ChatReply, CompletionReply, EmbeddingReply
from lmlite.server.openai_requests import (
    Call,
    parse_chat,
    parse_completion,
    parse_embeddings,
)
from lmlite.server.registry import ServedModel
from lmlite.server.responses_replies import ResponseReply
from lmlite.server.responses_requests import own_names, parse_response
from lmlite.server.sampling import Defaults
from lmlite.server.supervisor import Reply
from lmlite.server.tally import Tally

MAX_BODY_BYTES = 4 << 20
MAX_REQUESTS_PER_CONNECTION = 1000
POLL_S = 0.1  # how often a waiting thread looks whether its client is gone
PING_S = 15.0  # between signs of life on a stream that has nothing to say
# The same for an answer in one piece. OpenAI's clients give up after 600 s without a byte, and
# ask again; leading spaces are valid JSON. Not sooner: it decides the status before the answer.
SPACE_S = 60.0

JSON_TYPE = ("Content-Type", "application/json")
AnswerKind = Callable[[Call, str, str, int], Answer]  # call, id, model's name, seconds since 1970
STREAM_HEADERS = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # asks proxies to pass events on at once
)


class Handler(BaseHTTPRequestHandler):
    """One connection. Reads heads strictly, in place of the parsing of its base class."""

    server: Server

    def setup(self) -> None:
        """Called by the base class, before the first request."""
        super().setup()
        self._connection = Connection(self.request)
        self._n_requests = 0

    def handle_one_request(self) -> None:
        """Called by the base class until `close_connection` is set."""
        self.close_connection = True  # until a request has been read to its end
        self._head: wire.Head | None = None
        self._is_begun = False  # the status line is out
        self._is_refused = False  # it was that of an error
        self._tally: Tally | None = None
        self._ignored: tuple[str, ...] = ()  # fields of the body
        self._status = 0
        self._token = secrets.token_hex(12)
        self._began_s = time.monotonic()
        try:
            data = self._connection.read_head(wire.MAX_HEAD_BYTES)
            if data is None:
                return
            self._began_s = time.monotonic()  # not before: an idle client may take its time
            self._n_requests += 1
            self._head = wire.parse_head(data)
            self._answer_counted(self._head)
        except ApiError as err:
            self._refuse(err)
        except TimeoutError:
            self._refuse(RequestTimeout("the request did not arrive in time"))
        except ConnectionError:
            self._status = self._status or 499  # nginx's number for a client that left
        except Exception as err:  # our mistake: the client gets a status, the log a name
            self.server.log.line("error", f"{type(err).__name__}: {err}")
            self._refuse(InternalError("the server made a mistake"))
        self._log_request()
        if self._is_refused and self.close_connection:
            self._connection.linger()

    def _answer_counted(self, head: wire.Head) -> None:
        self.server.begin_request()
        try:
            self._answer(head)
        finally:
            self.server.end_request()

    # ---- checks and routes -----------------------------------------------------------------

    def _answer(self, head: wire.Head) -> None:
        wire.check_host(head, self.server.allowed_hosts, self.server.is_open)
        wire.check_origin(head)
        methods = self._route(head.path)
        if head.method == "OPTIONS":
            self._send_allowed(methods)
            return
        method = "GET" if head.method == "HEAD" else head.method
        if method not in methods:
            raise MethodNotAllowed(f"{head.path} takes {' and '.join(methods)}")
        n_body = wire.body_length(head, MAX_BODY_BYTES)
        if method == "POST":
            wire.check_content_type(head)
        if n_body and "expect" in head.headers:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body = self._connection.read_body(n_body)
        is_last = self._n_requests >= MAX_REQUESTS_PER_CONNECTION
        self.close_connection = is_last or not head.keep_alive
        methods[method]()

    def _route(self, path: str) -> dict[str, Callable[[], None]]:
        """What each method does at a path. Raises NotFound."""
        routes: dict[str, dict[str, Callable[[], None]]] = {
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completions},
            "/v1/responses": {"POST": self._responses},
            "/v1/embeddings": {"POST": self._embeddings},
            "/v1/messages": {"POST": self._messages},
            "/v1/messages/count_tokens": {"POST": self._count_tokens},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/log/stream": {"GET": self._log_stream},
        }
        if path in routes:
            return routes[path]
        if path.startswith("/v1/models/"):
            return {"GET": self._model}
        raise NotFound(f"there is nothing at {path}")

    # ---- what the routes do ----------------------------------------------------------------

    def _models(self) -> None:
        rows = [model_object(model) for model in self.server.registry.models()]
        self._send_json(200, openai_replies.model_list(rows))

    def _model(self) -> None:
        assert self._head is not None
        name = self._head.path.removeprefix("/v1/models/")
        self._send_json(200, model_object(self.server.registry.find(name)))

    def _health(self) -> None:
        model = self.server.registry.models()[0]
        supervisor = model.supervisor
        if supervisor.ready:
            # It serves, but what ended its last worker may come again.
            status = "degraded" if supervisor.has_recovered_lately else "ready"
            memory = {"memory": model.memory()} if model.plan is not None else {}
            self._send_json(200, {"status": status, **memory})
        elif supervisor.fault:
            self._send_json(503, {"status": "failed", "reason": supervisor.fault})
        else:
            progress = round(supervisor.fraction_loaded, 3)
            self._send_json(503, {"status": "loading", "progress": progress})

    def _metrics(self) -> None:
        text = self.server.metrics.text(self.server.registry.models()[0].supervisor)
        self._send(200, text.encode(), [("Content-Type", metrics.CONTENT_TYPE)])

    def _chat(self) -> None:
        self._generate(parse_chat, f"chatcmpl-{self._token}", ChatReply)

    def _completions(self) -> None:
        self._generate(parse_completion, f"cmpl-{self._token}", CompletionReply)

    def _responses(self) -> None:
        stored = self.server.stored_responses
        parse, kind = partial(parse_response, stored), partial(ResponseReply, stored)
        with own_names():
            self._generate(parse, f"resp_{self._token}", kind)

    def _messages(self) -> None:
        self._generate(parse_message, f"msg_{self._token}", MessageReply)

    def _count_tokens(self) -> None:
        self._generate(parse_count, f"count_{self._token}", TokenCount)

    def _generate(
        self, parse: Callable[[Any, Defaults], Call], reply_id: str, kind: AnswerKind
    ) -> None:
        assert self._head is not None
        body, defaults = wire.parse_json(self._body), self.server.registry.models()[0].defaults
        call = parse(body, defaults)
        if self._head.headers.get("x-dry-run", "0") == "0":
            self._serve(call, reply_id, kind)
        else:
            self._serve(planned(call), reply_id, partial(DryRun, body, defaults))

    def _embeddings(self) -> None:
        call = parse_embeddings(wire.parse_json(self._body))
        self._serve(call, f"embd-{self._token}", EmbeddingReply)

    def _log_stream(self) -> None:
        assert self._head is not None
        query = urllib.parse.parse_qs(self._head.target.partition("?")[2])
        source = query.get("source", ["model"])[0]
        if source not in ("model", "server"):
            raise BadRequest("source is model or server", param="source")
        with self.server.log.subscription("model" if source == "model" else "server") as records:
            self._begin_stream()
            quiet_s = 0.0
            while not (self.server.is_draining or self._connection.is_gone()):
                try:
                    self._write_event(wire.sse_event(wire.to_json(records.get(timeout=POLL_S))))
                    quiet_s = 0.0
                except Empty:
                    quiet_s += POLL_S
                if quiet_s >= PING_S:
                    self._write_event(wire.sse_comment("ping"))
                    quiet_s = 0.0
            self._end_stream()

    # ---- events to bytes -------------------------------------------------------------------

    def _serve(self, call: Call, reply_id: str, kind: AnswerKind) -> None:
        if call.ignored and self.server.is_strict:
            names = ", ".join(call.ignored)
            raise BadRequest(f"this server does not know: {names}", param=call.ignored[0])
        self._ignored = call.ignored
        with self.server.registry.acquire(call.model) as model:
            tally = self._tally = Tally(self.server.log, model, reply_id)
            answer = kind(call, reply_id, model.name, int(time.time()))
            reply = model.supervisor.submit(traced(call.request, tally.is_traced))
            try:
                if call.stream and isinstance(answer, StreamedAnswer):
                    self._stream(reply, tally, answer)
                else:
                    self._fold(reply, tally, answer)
            finally:
                reply.close()

    def _stream(self, reply: Reply, tally: Tally, answer: StreamedAnswer) -> None:
        """Server-sent events. The status is chosen by the first event, or by a long silence."""
        last_write_s, progress = time.monotonic(), "waiting"
        try:
            for event in self._events(reply, tally):
                now = time.monotonic()
                progress = describe(event) or progress
                data = answer.sse(event) if event is not None else b""
                if not data and now - last_write_s >= PING_S:
                    data = wire.sse_comment(progress)
                if data:
                    self._begin_stream()
                    self._write_event(data)
                    last_write_s = now
        except ApiError as err:
            if not self._is_begun:
                raise
            self._status = err.status  # for the log; the client has had its 200
            self.close_connection = True
            self._write_event(answer.sse_error(err))
            self._end_stream()
            return
        self._write_event(answer.sse_tail())
        self._end_stream()

    def _fold(self, reply: Reply, tally: Tally, answer: Answer) -> None:
        """One JSON object: the same events, put together."""
        last_write_s = time.monotonic()
        try:
            for event in self._events(reply, tally):
                if event is not None:
                    answer.add(event)
                if time.monotonic() - last_write_s >= SPACE_S:
                    last_write_s = time.monotonic()
                    self._write_space()
            body = answer.whole()
        except ApiError as err:
            if not self._is_begun:
                raise
            # The client has had its 200.
            self._status, body = err.status, error_bodies.body_of(err, self._head, self._token)
        if not self._is_begun:
            self._send_json(200, body)
            return
        self._write_event(wire.to_json(body))
        self._end_stream()

    def _events(self, reply: Reply, tally: Tally) -> Iterator[ReplyEvent | None]:
        """The events of a reply; None now and then while there are none.

        Raises ConnectionAbortedError when the client is gone, ApiError when the request failed.
        """
        looked_s = time.monotonic()
        while not reply.is_complete:
            event = reply.next(POLL_S)
            now = time.monotonic()
            if now - looked_s >= POLL_S:
                looked_s = now
                if self._connection.is_gone():
                    raise ConnectionAbortedError
            if event is not None:
                tally.add(event)
            yield event

    # ---- bytes to the client ---------------------------------------------------------------

    def _send_json(self, status: int, body: Any) -> None:
        self._send(status, wire.to_json(body), [JSON_TYPE])

    def _send(self, status: int, data: bytes, headers: Iterable[tuple[str, str]]) -> None:
        """A whole reply, in one write."""
        has_body = self._head is None or self._head.method != "HEAD"
        length = [("Content-Length", str(len(data)))]
        self._write_head(status, [*headers, *length], data if has_body else b"")

    def _send_allowed(self, methods: Iterable[str]) -> None:
        allowed = ", ".join([*methods, "OPTIONS"])
        headers = [
            ("Allow", allowed),
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
        ]
        self._write_head(204, headers, b"")

    def _write_head(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self._is_begun, self._status = True, status
        if self._ignored:
            headers.append(("X-Ignored-Params", ", ".join(self._ignored)))
        headers.append(("X-Request-Id", f"req-{self._token}"))
        headers.append(("Connection", "close" if self.close_connection else "keep-alive"))
        self._connection.write(wire.reply_head(status, headers) + data)

    def _write_space(self) -> None:
        """A sign of life in front of an answer in one piece."""
        self._begin_stream([JSON_TYPE])
        self._write_event(b" ")

    def _begin_stream(self, kind: Iterable[tuple[str, str]] = STREAM_HEADERS) -> None:
        """The head of a reply in pieces, once. A client of HTTP/1.0 gets it without chunks."""
        if self._is_begun:
            return
        assert self._head is not None
        self._is_chunked = self._head.version >= (1, 1)
        headers = list(kind)
        if self._is_chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            self.close_connection = True
        self._write_head(200, headers, b"")

    def _write_event(self, data: bytes) -> None:
        self._connection.write(wire.http_chunk(data) if self._is_chunked else data)

    def _end_stream(self) -> None:
        if self._is_chunked:
            self._connection.write(wire.LAST_HTTP_CHUNK)

    def _refuse(self, error: ApiError) -> None:
        """An error as a whole reply. What the client still sends is not a next request."""
        if self._is_begun:
            self.close_connection = True
            return
        headers = [JSON_TYPE]
        if error.retry_after_s is not None:
            headers.append(("Retry-After", str(error.retry_after_s)))
        elif error.status >= 500:
            headers.append(("X-Should-Retry", "false"))  # OpenAI's clients heed it
        if isinstance(error, MethodNotAllowed) and self._head is not None:
            headers.append(("Allow", ", ".join(self._route(self._head.path))))
        self._is_refused = True
        try:
            body = error_bodies.body_of(error, self._head, self._token)
            self._send(error.status, wire.to_json(body), headers)
        except OSError:
            self.close_connection = True

    def _log_request(self) -> None:
        head = self._head
        what = f"{head.method} {head.path}" if head else "malformed request"
        elapsed_ms = (time.monotonic() - self._began_s) * 1000
        counts = self._tally.summary() if self._tally else ""
        self.server.metrics.count(self._path_label(), self._status, self._tally)
        self.server.log.line("info", f"{what} {self._status} {elapsed_ms:.0f} ms{counts}")

    def _path_label(self) -> str:
        """A known path, or one word for all others: a client must not choose label values."""
        try:
            known = self._head is not None and self._route(self._head.path)
        except NotFound:
            known = False
        if not known or self._head is None:
            return "other"
        return "/v1/models" if self._head.path.startswith("/v1/models/") else self._head.path


def model_object(model: ServedModel) -> dict[str, Any]:
    """A model as GET /v1/models shows it."""
    ready = model.supervisor.ready
    kind = "vlm" if model.sees else "llm"  # LM Studio's words
    if model.file.embeds_only:
        kind = "embeddings"
    return openai_replies.model_object(
        name=model.name,
        created=model.file.mtime,
        context_length=ready.n_ctx if ready else None,
        max_context_length=model.file.n_ctx_train,
        type=kind,
        arch=model.file.architecture,
        quantization=model.file.quantisation,
    )


def describe(event: ReplyEvent | None) -> str:
    """What to tell a client that has to wait; "" when the event is about something else."""
    match event:
        case Queued():
            return f"queued {event.n_ahead}"
        case Reading():
            return f"prompt {event.n_read}/{event.n_prompt}"
    return ""


def traced(request: Chat | Complete | Embed, is_traced: bool) -> Chat | Complete | Embed:
    """The request, asking for its prompt when somebody watches."""
    if isinstance(request, Embed) or not is_traced:
        return request
    return replace(request, trace=True)
