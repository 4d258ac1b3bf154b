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
from dataclasses import replace
from functools import partial
from typing import Any

from lmlite.errors import ApiError, BadRequest, InternalError, NotFound, RequestTimeout, Unavailable
from lmlite.messages import Chat, Complete, Queued, Reading, ReplyEvent, Work
from lmlite.server.api import error_bodies
from lmlite.server.api import tokenizer as tokenizer_api
from lmlite.server.api.anthropic.replies import MessageReply, TokenCount
from lmlite.server.api.anthropic.requests import parse_count, parse_message
from lmlite.server.api.call import Call, headers_of, lines_of
from lmlite.server.api.dry_run import DryRun, planned
from lmlite.server.api.openai.models import model_list, model_object
from lmlite.server.api.openai.replies import ChatReply, CompletionReply, EmbeddingReply
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.api.reply import Answer, StreamedAnswer
from lmlite.server.api.responses.replies import ResponseReply
from lmlite.server.api.responses.requests import own_names, parse_response
from lmlite.server.front import wire
from lmlite.server.front.connection import Connection
from lmlite.server.front.gate import allowed_by, check_method
from lmlite.server.front.routes import endpoint
from lmlite.server.front.sender import JSON_TYPE, Sender
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.event_queue import Reply
from lmlite.server.server import Server
from lmlite.server.watch import metrics
from lmlite.server.watch.request_count import Tally

CLIENT_LEFT = 499  # nginx's status for it, which no client ever sees
MODEL_PATH = "/v1/models/"  # before a model's name
POLL_S = 0.1  # how often a waiting thread looks whether its client is gone
# Between signs of life of an answer in one piece. OpenAI's clients give up after 600 s without a
# byte, and ask again; leading spaces are valid JSON. Not sooner: it decides the status.
SPACE_S = 60.0

AnswerKind = Callable[[Call, str, str, int], Answer]  # call, id, model's name, seconds since 1970
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
        methods = self._route(head.path)
        check_method(head, allowed_by(methods), head.path)
        self._body = self._read_body(head)
        is_last = self._n_requests >= self._limits.max_requests_per_connection
        self._sender.is_last = is_last or not head.keep_alive
        if head.method == "OPTIONS":
            self._send_options(head, allowed_by(methods))
        else:
            methods["GET" if head.method == "HEAD" else head.method]()

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

    def _route(self, path: str) -> dict[str, Callable[[], None]]:
        """What each method does at a path, in whichever spelling. Raises NotFound."""
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
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/tokenizer_info": {"GET": self._tokenizer_info},
        }
        if path == "*":  # the server itself, of which OPTIONS may ask
            return {}
        found = endpoint(path)
        if found in routes:
            return routes[found]
        if found.startswith(MODEL_PATH):
            return {"GET": self._model}
        raise NotFound(f"there is nothing at {path}")

    # ---- what the routes do ----------------------------------------------------------------

    def _models(self) -> None:
        self._sender.send_json(200, model_list(self.server.registry.models()))

    def _model(self) -> None:
        assert self._head is not None
        name = endpoint(self._head.path).removeprefix(MODEL_PATH)
        self._sender.send_json(200, model_object(self.server.registry.find(name), name))

    def _health(self) -> None:
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

    def _metrics(self) -> None:
        supervisor = self.server.registry.models()[0].supervisor
        n_connections, n_dropped = self.server.n_connections(), self.server.log.n_dropped()
        text = self.server.metrics.text(supervisor, n_connections, n_dropped)
        self._sender.send(200, text.encode(), [("Content-Type", metrics.CONTENT_TYPE)])

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

    def _json(self) -> dict[str, Any]:
        return wire.parse_json(self._body, self._limits.max_values)

    def _generate(
        self, parse: Callable[[Any, Defaults], Call], reply_id: str, kind: AnswerKind
    ) -> None:
        assert self._head is not None
        body, defaults = self._json(), self.server.registry.models()[0].defaults
        call = parse(body, defaults)
        if self._head.headers.get("x-dry-run", "0") == "0":
            self._serve(call, reply_id, kind)
        else:
            self._serve(planned(call), reply_id, partial(DryRun, body, defaults))

    def _embeddings(self) -> None:
        call = parse_embeddings(self._json(), self._limits)
        self._serve(call, f"embd-{self._token}", EmbeddingReply)

    def _tokenize(self) -> None:
        model = self.server.registry.models()[0]
        call = tokenizer_api.parse_tokenize(self._json(), model.defaults)
        kind = partial(tokenizer_api.TokenReply, model.supervisor.loaded)
        self._serve(call, f"tokens-{self._token}", kind)

    def _detokenize(self) -> None:
        call = tokenizer_api.parse_detokenize(self._json())
        self._serve(call, f"text-{self._token}", tokenizer_api.TextReply)

    def _tokenizer_info(self) -> None:
        model = self.server.registry.models()[0]
        ready = model.supervisor.loaded()
        template = model.supervisor.load.chat_template or model.file.chat_template
        self._sender.send_json(200, tokenizer_api.tokenizer_info(ready, template))

    def _log_stream(self) -> None:
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

    def _serve(self, call: Call, reply_id: str, kind: AnswerKind) -> None:
        if call.ignored and self.server.is_strict:
            names = ", ".join(call.ignored)
            raise BadRequest(f"this server does not know: {names}", param=call.ignored[0])
        self._sender.headers += headers_of(call)
        for line in lines_of(call.unheld):
            self.server.log.line_once("info", line)
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
            self._sender.send_piece(answer.sse_error(err))
        else:
            self._sender.send_piece(answer.sse_tail())
        self._sender.end()

    def _fold(self, reply: Reply, tally: Tally, answer: Answer) -> None:
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
            body = error_bodies.body_of(err, self._head, self._token)
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
            body = error_bodies.body_of(error, self._head, self._token)
            self._sender.send_json(error.status, body, error_bodies.headers_of(error))
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

    def _path_label(self) -> str:
        """A known path, or one word for all others: a client must not choose label values."""
        try:
            known = self._head is not None and self._route(self._head.path)
        except NotFound:
            known = False
        if not known or self._head is None:
            return "other"
        found = endpoint(self._head.path)
        return "/v1/models" if found.startswith(MODEL_PATH) else found


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
