"""One connection's requests: checks, routes, and bytes to the client.

A request's way: `Handler._handle_request` reads a head, `_answer` has the gate check it, finds
its route and reads the body, the route asks the worker, and `_stream` or `_fold` turns events
into bytes. One thread per connection; a thread that waits for a worker also watches whether
its client is still there. Every failure is an ApiError, and `_refuse` makes the bytes of it.
"""

import contextlib
import secrets
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lmlite.errors import ApiError, BadRequest, InternalError, NotFound, RequestTimeout, Unavailable
from lmlite.messages import Chat, Complete, Queued, Reading, ReplyEvent, Work
from lmlite.server.api import tokenizer
from lmlite.server.api.anthropic import routes as anthropic
from lmlite.server.api.call import Call, headers_of, lines_of
from lmlite.server.api.dry_run import DryRun, planned
from lmlite.server.api.error_bodies import headers_of as error_headers
from lmlite.server.api.error_bodies import openai_error
from lmlite.server.api.openai import routes as openai
from lmlite.server.api.reply import GeneratedReply
from lmlite.server.api.reply import Reply as ApiReply
from lmlite.server.api.responses import routes as responses
from lmlite.server.api.route import ErrorBody, MakeReply, PageRoute, WorkerRoute
from lmlite.server.front import wire
from lmlite.server.front.connection import Connection
from lmlite.server.front.gate import allowed_by, check_method
from lmlite.server.front.handler import JSON_TYPE, Sender
from lmlite.server.front.routes import RouteTable
from lmlite.server.models.event_queue import Reply
from lmlite.server.server import Server
from lmlite.server.watch.metrics import CONTENT_TYPE
from lmlite.server.watch.request_count import Tally

CLIENT_LEFT = 499  # nginx's status for it, which no client ever sees
POLL_S = 0.1  # how often a waiting thread looks whether its client is gone
# Between signs of life of an answer in one piece. OpenAI's clients give up after 600 s without a
# byte, and ask again; leading spaces are valid JSON. Not sooner: it decides the status.
SPACE_S = 60.0

PING = wire.sse_comment("ping")
STREAM_HEADERS = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # asks proxies to pass events on at once
)


class Handler:
    """One connection, from its first request to its last."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.server = server
        self._limits = server.limits
        self._connection = Connection(sock, self._limits)
        self._n_requests = 0

    def run(self) -> None:
        """Answers its requests; returns when it is to be closed."""
        while self._handle_request():
            pass

    def _handle_request(self) -> bool:
        """The next request. False: there is none, or it was the last."""
        self._head: wire.Head | None = None
        self._is_refused = False  # before an answer had begun
        self._outcome: int | None = None  # the status of a reply that did not come to its end
        self._tally: Tally | None = None
        self._token = secrets.token_hex(12)
        self._sender = Sender(self._connection, f"req-{self._token}")
        self._began_s = time.monotonic()
        try:
            data = self._connection.read_head()
            if data is None:
                return False
            self._began_s = time.monotonic()  # not before: an idle client may take its time
            self._n_requests += 1
            self._head = wire.parse_head(data, self._limits)
            self._sender.suit(self._head)
            self._sender.headers += self.server.gate.headers(self._head)
            self._answer_counted(self._head)
        except ApiError as err:
            self._refuse(err)
        except TimeoutError:
            self._refuse(RequestTimeout("the request did not arrive in time"))
        except ConnectionError:
            self._outcome = CLIENT_LEFT
        except Exception as err:  # our mistake: the client gets a status, the log a name
            self.server.log.line("error", f"{type(err).__name__}: {err}")
            self._refuse(InternalError("the server made a mistake"))
        self._log_request()
        if self._is_refused and self._sender.is_last:
            self._connection.linger()
        return not self._sender.is_last

    def _answer_counted(self, head: wire.Head) -> None:
        self.server.begin_request()
        try:
            self._answer(head)
        finally:
            self.server.end_request()

    # ---- checks and routes -----------------------------------------------------------------

    def _answer(self, head: wire.Head) -> None:
        self.server.gate.check(head)
        if head.method != "OPTIONS":  # by which a browser asks before a page shows its key
            self.server.gate.check_key(head)
        routes, self._name = ROUTES.find(head.path)
        check_method(head, allowed_by(routes), head.path)
        self._body = self._read_body(head)
        is_last = self._n_requests >= self._limits.max_requests_per_connection
        self._sender.is_last = is_last or not head.keep_alive
        if head.method == "OPTIONS":
            self._send_options(head, allowed_by(routes))
            return
        match routes["GET" if head.method == "HEAD" else head.method]:
            case WorkerRoute() as route:
                self._generate(route, head)
            case PageRoute() as route:
                self._sender.send_json(200, route.show(self.server.registry, self._name))
            case OwnRoute() as route:
                route.answer(self)

    def _read_body(self, head: wire.Head) -> bytes:
        # Only a POST has a use for a body; what comes with another method is read and dropped.
        most = self._limits.max_body if head.method == "POST" else self._limits.max_head
        n_bytes = wire.body_length(head, most)
        if head.method == "POST":  # it is for the worker: nothing is read that has no place there
            self.server.registry.models()[0].supervisor.check_admission()
        connection = self._connection
        if n_bytes != 0 and head.expects_continue:
            connection.write(wire.CONTINUE)
        return connection.read_chunks(most) if n_bytes is None else connection.read_body(n_bytes)

    # ---- what the routes do ----------------------------------------------------------------

    def health(self) -> None:
        """Whether the model is loaded."""
        model = self.server.registry.models()[0]
        supervisor = model.supervisor
        # What tells of the model is for those who have a key; others may ask this, too.
        has_key = self._head is not None and self.server.gate.has_key(self._head)
        if supervisor.ready:
            # It serves, but what ended its last worker may come again.
            status = "degraded" if supervisor.has_recovered_lately else "ready"
            memory = {"memory": model.memory()} if has_key and model.plan is not None else {}
            self._sender.send_json(200, {"status": status, **memory})
        elif supervisor.fault:
            reason = {"reason": supervisor.fault} if has_key else {}
            self._sender.send_json(503, {"status": "failed", **reason})
        else:
            progress = round(supervisor.fraction_loaded, 3)
            reason = {"reason": supervisor.lacks} if has_key and supervisor.lacks else {}
            self._sender.send_json(503, {"status": "loading", "progress": progress, **reason})

    def metrics(self) -> None:
        """Counts, for Prometheus."""
        supervisor = self.server.registry.models()[0].supervisor
        n_connections, n_dropped = self.server.n_connections(), self.server.log.n_dropped()
        text = self.server.metrics.text(supervisor, n_connections, n_dropped)
        self._sender.send(200, text.encode(), [("Content-Type", CONTENT_TYPE)])

    def _generate(self, route: WorkerRoute, head: wire.Head) -> None:
        body = wire.parse_json(self._body, self._limits.max_values)
        defaults = self.server.registry.models()[0].defaults
        call, reply = route.parse(body, defaults), route.reply
        if route.has_dry_run and head.headers.get("x-dry-run", "0") != "0":
            call, reply = planned(call), partial(DryRun, body, defaults)
        self._serve(call, f"{route.id_prefix}{self._token}", reply)

    def log_stream(self) -> None:
        """Records of the log, as they are made, until the client leaves."""
        assert self._head is not None
        query = urllib.parse.parse_qs(self._head.target.partition("?")[2])
        source = query.get("source", ["model"])[0]
        if source not in ("model", "server"):
            raise BadRequest("source is model or server", param="source")
        with (
            self.server.log.subscription("model" if source == "model" else "server") as records,
            contextlib.suppress(ConnectionError),  # a viewer that leaves is how it ends
        ):
            self._sender.begin(STREAM_HEADERS, PING)
            quiet_s = 0.0
            while self._sender.has_body and not self._is_over():
                record = records.get(POLL_S)
                if record is None:
                    quiet_s += POLL_S
                else:
                    self._sender.send_piece(wire.sse_event(wire.to_json(record)))
                    quiet_s = 0.0
                if quiet_s >= self._limits.ping_seconds:
                    self._sender.send_filler()
                    quiet_s = 0.0
            self._sender.end()

    def _is_over(self) -> bool:
        return self.server.is_draining or self._sender.is_client_gone()

    # ---- events to bytes -------------------------------------------------------------------

    def _serve(self, call: Call, reply_id: str, make_reply: MakeReply) -> None:
        if call.ignored and self.server.is_strict:
            names = ", ".join(call.ignored)
            raise BadRequest(f"this server does not know: {names}", param=call.ignored[0])
        self._sender.headers += headers_of(call)
        for line in lines_of(call.unheld):
            self.server.log.line_once("info", line)
        with self.server.registry.acquire(call.model) as model:
            tally = self._tally = Tally(self.server.log, model, reply_id)
            answer = make_reply(call, reply_id, model, int(time.time()))
            reply = model.supervisor.submit(traced(call.request, tally.is_traced))
            try:
                if call.stream and isinstance(answer, GeneratedReply):
                    self._stream(reply, tally, answer)
                else:
                    self._fold(reply, tally, answer)
            finally:
                reply.close()

    def _stream(self, reply: Reply, tally: Tally, answer: GeneratedReply) -> None:
        """Server-sent events. The status is chosen by the first event, or by a long silence."""
        last_write_s, progress = time.monotonic(), "waiting"
        try:
            for event in self._events(reply, tally):
                now = time.monotonic()
                progress = describe(event) or progress
                data = answer.add(event) if event is not None else b""
                if not data and now - last_write_s >= self._limits.ping_seconds:
                    data = wire.sse_comment(progress)
                if data:
                    self._sender.begin(STREAM_HEADERS, PING)
                    self._sender.send_piece(data)
                    last_write_s = now
        except ApiError as err:
            if not self._sender.is_begun:
                raise
            self._outcome = err.status
            self._sender.is_last = True
            self._sender.send_piece(answer.failure(err))
        else:
            self._sender.send_piece(answer.tail())
        self._sender.end()

    def _fold(self, reply: Reply, tally: Tally, answer: ApiReply) -> None:
        """One JSON object: the same events, put together."""
        last_write_s = time.monotonic()
        try:
            for event in self._events(reply, tally):
                if event is not None:
                    answer.add(event)
                if time.monotonic() - last_write_s >= SPACE_S:
                    last_write_s = time.monotonic()
                    self._sender.begin([JSON_TYPE], b" ")
                    self._sender.send_filler()
            body = answer.whole()
        except ApiError as err:
            if not self._sender.is_begun:
                raise
            self._outcome = err.status
            body = self._error_body(err)
        if not self._sender.is_begun:
            self._sender.send_json(200, body)
            return
        self._sender.send_piece(wire.to_json(body))
        self._sender.end()

    def _events(self, reply: Reply, tally: Tally) -> Iterator[ReplyEvent | None]:
        """The events of a reply; None now and then while there are none.

        Raises ConnectionAbortedError when the client is gone, ApiError when the request failed.
        """
        began_s = looked_s = time.monotonic()
        is_queued = False
        while not reply.is_complete:
            event = reply.next(POLL_S)
            now = time.monotonic()
            is_queued = isinstance(event, Queued) or (is_queued and event is None)
            is_queued = is_queued or reply.process is None
            if is_queued and not tally.n_prompt and now - began_s >= self._limits.queue_seconds:
                raise Unavailable(f"not its turn within {self._limits.queue_seconds:g} seconds")
            if now - looked_s >= POLL_S:
                looked_s = now
                if self._sender.is_client_gone():
                    raise ConnectionAbortedError
            if event is not None:
                tally.add(event)
            yield event

    # ---- other replies ---------------------------------------------------------------------

    def _send_options(self, head: wire.Head, allowed: Iterable[str]) -> None:
        headers = [("Allow", ", ".join(allowed)), *self.server.gate.preflight_headers(head)]
        self._sender.send_head(204, headers)

    def _refuse(self, error: ApiError) -> None:
        """An error as a whole reply. What the client still sends is not a next request."""
        if self._sender.is_begun:
            self._sender.is_last, self._outcome = True, error.status
            return
        self._is_refused = True
        try:
            body = self._error_body(error)
            self._sender.send_json(error.status, body, error_headers(error))
        except OSError:
            self._sender.is_last, self._outcome = True, CLIENT_LEFT

    def _log_request(self) -> None:
        head = self._head
        what = f"{head.method} {head.path}" if head else "malformed request"
        elapsed_ms = (time.monotonic() - self._began_s) * 1000
        counts = self._tally.summary() if self._tally else ""
        status = self._outcome or self._sender.status
        is_cut = self._outcome is not None and self._sender.is_begun
        self.server.metrics.count(self._path_label(), status, self._tally, is_cut=is_cut)
        end = ", cut short" if is_cut else ""
        self.server.log.line("info", f"{what} {status} {elapsed_ms:.0f} ms{end}{counts}")

    def _error_body(self, error: ApiError) -> dict[str, Any]:
        route = ROUTES.nearest(self._head.path) if self._head else None
        error_body = route.error_body if route else openai_error
        return error_body(error, f"req-{self._token}")

    def _path_label(self) -> str:
        """A known path, or one word for all others: a client must not choose label values."""
        with contextlib.suppress(NotFound):
            routes, _ = ROUTES.find(self._head.path if self._head else "*")
            for route in routes.values():
                return route.path.removesuffix("/")
        return "other"


@dataclass(frozen=True)
class OwnRoute:
    """A GET about the server itself, which no API has."""

    path: str
    answer: Callable[[Handler], None]
    error_body: ErrorBody = openai_error
    method = "GET"


ROUTES: RouteTable[WorkerRoute | PageRoute | OwnRoute] = RouteTable(
    (
        *openai.ROUTES,
        *responses.ROUTES,
        *anthropic.ROUTES,
        *tokenizer.ROUTES,
        OwnRoute("/health", Handler.health),
        OwnRoute("/metrics", Handler.metrics),
        OwnRoute("/log/stream", Handler.log_stream),
    )
)


def serve(sock: socket.socket, server: Server) -> None:
    """Serves one connection, to its end."""
    Handler(sock, server).run()


def describe(event: ReplyEvent | None) -> str:
    """What to tell a client that has to wait; "" when the event is about something else."""
    match event:
        case Queued():
            return f"queued {event.n_ahead}"
        case Reading():
            return f"prompt {event.n_read}/{event.n_prompt}"
    return ""


def traced(request: Work, is_traced: bool) -> Work:
    """The request, asking for its prompt when somebody watches."""
    if isinstance(request, Chat | Complete) and is_traced:
        return replace(request, trace=True)
    return request
