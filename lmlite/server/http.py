"""Routes: one line each; the checks of a request, in order; events to bytes.

`Handler.handle_one_request` reads a head, checks it, reads the body and calls `do_GET`, `do_POST`
or another method. On most routes a worker answers: `_stream` or `_fold` turns its events into
bytes. Each connection has a thread, which also notices when its client leaves. Every failure is
an ApiError, and `_refuse` writes its reply.
"""

import contextlib
import io
import secrets
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lmlite.errors import ApiError, BadRequest, InternalError, NotFound, RequestTimeout
from lmlite.messages import Json
from lmlite.server import background
from lmlite.server.api.anthropic import routes as anthropic
from lmlite.server.api.call import (
    PREFIX_KEY,
    Call,
    headers_of,
    ignored_fields,
    lines_of,
    prefix_key,
    with_defaults,
)
from lmlite.server.api.dry_run import DryRun, planned
from lmlite.server.api.fields import Field
from lmlite.server.api.llamacpp import routes as llamacpp
from lmlite.server.api.llamacpp.adapters import requested_scales
from lmlite.server.api.lmstudio import routes as lmstudio
from lmlite.server.api.ollama import routes as ollama
from lmlite.server.api.openai import routes as openai
from lmlite.server.api.reply import BackgroundReply, GeneratedReply, Reply
from lmlite.server.api.responses import routes as responses
from lmlite.server.api.route import (
    ItemRoute,
    MakeReply,
    ManageRoute,
    OwnRoute,
    PageRoute,
    RouteTable,
    WorkerRoute,
)
from lmlite.server.api.sampling import MAX_INT
from lmlite.server.forms.schemas import UnheldPart
from lmlite.server.front import wire
from lmlite.server.front.gate import allowed_by, check_method
from lmlite.server.front.handler import JSON_TYPE, StrictRequestHandler
from lmlite.server.logs import Subscriber
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.settings import read_preset, with_settings
from lmlite.server.server import Server
from lmlite.server.waiting import POLL_S, Events, Waiting, counted, progress_of
from lmlite.server.watch import metrics
from lmlite.server.watch.health import health_of
from lmlite.server.watch.request_count import RequestCount

CLIENT_LEFT = 499  # nginx's status for a client that left; it is never sent
# A reply in one piece sends a space this often until it is complete. OpenAI's clients give up and
# retry after 600 s without a byte. Leading spaces are valid JSON. The first also sends the status.
SPACE_S = 60.0

PING = wire.sse_comment("ping")
STREAM_TYPE = "text/event-stream"
STREAM_HEADERS = (
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # asks proxies to pass events on at once
)


class Handler(StrictRequestHandler):
    """One connection, from its first request to its last."""

    server: Server

    def setup(self) -> None:
        """Runs before the first request."""
        super().setup()
        self._n_requests = 0

    def handle_one_request(self) -> None:
        """Replaces the base class's method, which lacks checks and limits and sends HTML errors."""
        self._token = secrets.token_hex(12)
        self._outcome: int | None = None  # the status of a reply that was not completed
        self._count: RequestCount | None = None
        self._path_label = "other"  # until the head is read
        self.reset(f"req-{self._token}")
        is_refused = False
        try:
            if not self.parse_request():
                return
            self._answer()
        except ApiError as err:
            is_refused = self._refuse(err)
        except TimeoutError:
            is_refused = self._refuse(RequestTimeout("the request did not arrive in time"))
        except ConnectionError:
            self._outcome = CLIENT_LEFT
        except Exception as err:  # a bug: the client gets a status, the log the error's name
            self.server.log.line("error", f"{type(err).__name__}: {err}")
            is_refused = self._refuse(InternalError("the server made a mistake"))
        self._log_request()
        if is_refused and self.close_connection:
            self.client.linger()

    def _refuse(self, error: ApiError) -> bool:
        """Sends an error as a whole reply. False if a reply has begun or the client is gone."""
        self._outcome = error.status
        if not self.status:
            try:
                self.send_json(error.status, self._error_body(error), error.headers())
                self._outcome = None
                return True
            except OSError:
                self._outcome = CLIENT_LEFT
        self.close_connection = True
        return False

    def _error_body(self, error: ApiError) -> dict[str, Any]:
        error_body = ROUTES.error_body(self.head.path if self.head else "")
        return error_body(error, f"req-{self._token}")

    def _log_request(self) -> None:
        what = f"{self.command} {self.head.path}" if self.head else "malformed request"
        elapsed_ms = (time.monotonic() - self.began_s) * 1000
        counts = self._count.summary() if self._count else ""
        status = self._outcome or self.status
        is_cut = self._outcome is not None and self.status > 0
        self.server.metrics.count(self._path_label, status, self._count, is_cut=is_cut)
        end = ", cut short" if is_cut else ""
        path = self.head.path if self.head else ""
        details = {"id": f"req-{self._token}", "method": self.command, "path": path,
                   "status": status, "ms": round(elapsed_ms, 3), "cut_short": is_cut}  # fmt: skip
        details |= self._count.details() if self._count else {}
        self.server.log.line("info", f"{what} {status} {elapsed_ms:.0f} ms{end}{counts}", details)

    # ---- checks and methods ----------------------------------------------------------------

    def _answer(self) -> None:
        """Checks the request, the cheapest check first; then reads the body and answers."""
        head, server = self.head, self.server
        assert head is not None
        self.reply_headers += server.gate.headers(head)
        self._routes, self._name, self._path_label = ROUTES.find(head.path)
        server.begin_request()
        try:
            server.gate.check(head)
            if head.method != "OPTIONS":  # browsers send OPTIONS without the page's key
                server.gate.check_key(head)
            if not self._routes and head.path != "*":  # OPTIONS may ask about the server itself
                raise NotFound(f"there is nothing at {head.path}")
            check_method(head, allowed_by(self._routes), head.path)
            self.rfile = io.BytesIO(self._read_body(head))
            self._n_requests += 1
            is_last = self._n_requests >= server.limits.max_requests_per_connection
            is_last = is_last or server.is_leaving
            self.close_connection = is_last or not head.keep_alive
            getattr(self, f"do_{self.command}")()
        finally:
            server.end_request()

    def _read_body(self, head: wire.Head) -> bytes:
        # Only POST uses its body; a body of any other method is read and dropped.
        limits, is_post = self.server.limits, self.command == "POST"
        most = limits.max_body if is_post else limits.max_head
        n_bytes = wire.body_length(head, most)
        route = self._routes.get(self.command)
        if isinstance(route, WorkerRoute):  # may refuse, before the body is read
            self.server.registry.check_admission()
        if n_bytes != 0 and head.expects_continue:
            self.handle_expect_100()
        return self.client.read_chunks(most) if n_bytes is None else self.client.read_body(n_bytes)

    def do_GET(self) -> None:
        """Replies without a worker."""
        match self._routes["GET"]:
            case PageRoute() as route:
                self.send_json(200, route.show(self.server.registry, self._name))
            case OwnRoute() as route:
                route.answer(self)
            case ItemRoute() as route:
                self._answer_item(route)

    do_HEAD = do_GET  # `send_head` omits the body

    def do_DELETE(self) -> None:
        """Removes a thing that the server keeps."""
        route = self._routes["DELETE"]
        assert isinstance(route, ItemRoute)
        self._answer_item(route)

    def _answer_item(self, route: ItemRoute) -> None:
        query = urllib.parse.parse_qs(self.path.partition("?")[2])
        last = {name: values[-1] for name, values in query.items()}
        self.send_json(200, route.answer(self._name, last))

    def do_OPTIONS(self) -> None:
        """Lists the methods of a path, and tells browsers what a page may send."""
        assert self.head is not None
        headers = [("Allow", ", ".join(allowed_by(self._routes)))]
        self.send_head(204, headers + self.server.gate.preflight_headers(self.head))

    def do_POST(self) -> None:
        """Passes the request to a worker, or to the registry, which may take its time."""
        route, registry = self._routes["POST"], self.server.registry
        if isinstance(route, ItemRoute):
            self._answer_item(route)
            return
        list_field = route.list_field if isinstance(route, ManageRoute) else None
        body = wire.parse_json(self.rfile.read(), self.server.limits.max_values, list_field)
        if isinstance(route, ManageRoute):
            self._name_ignored(ignored_fields(body, route.fields))
            self._send_whole(partial(route.manage, registry, body, self._keep_waiting))
            return
        assert isinstance(route, WorkerRoute)
        body = route.shared_form(body)
        if (manage := route.instead(body)) is not None:
            self._send_whole(partial(manage, registry, body, self._keep_waiting))
            return
        model = registry.find(Field(body)["model"].string())
        ttl_s, defaults = self._settings(Field(body), model)
        call, make_reply = with_defaults(route.parse(body, defaults), defaults), route.reply
        if route.has_dry_run and self.headers.get("x-dry-run", "0") != "0":
            call, make_reply = planned(call), partial(DryRun, body, defaults)
        self._serve(call, f"{route.id_prefix}{self._token}", make_reply, model, ttl_s)

    def _settings(self, body: Field, model: ServedModel) -> tuple[float | None, Defaults]:
        """How long the model stays after the reply if this loads it, and the request's defaults.

        They come from `ttl`, `preset` and `lora`, which mean the same in each API; so these are
        taken out.
        """
        registry, defaults = self.server.registry, model.defaults
        ttl_s = body["ttl"].integer(1, MAX_INT) or model.idle_s or registry.ttl_s
        preset = body.value.get("preset")
        if preset is not None:
            if registry.presets is None:
                raise BadRequest("this server has no presets: --presets names their folder",
                                 param="preset")  # fmt: skip
            defaults = with_settings(defaults, read_preset(registry.presets, preset), "preset")
        scales = requested_scales(body["lora"], defaults.scales)
        defaults = replace(defaults, scales=scales)
        for name in ("ttl", "preset", "lora"):
            body.value.pop(name, None)
        return ttl_s, defaults

    # ---- about the server itself -----------------------------------------------------------

    def send_health(self) -> None:
        """Sends whether new requests are welcome. Only clients with a key get details."""
        assert self.head is not None
        has_key = self.server.gate.has_key(self.head)
        status, public, details = health_of(self.server.registry)
        if self.server.is_leaving:
            status, public = 503, {"status": "stopping"}
        self.send_json(status, public | (details if has_key else {}))

    def send_metrics(self) -> None:
        """Sends counts for Prometheus."""
        server = self.server
        text = server.metrics.text(
            n_connections=server.n_connections(),
            n_dropped=server.log.n_dropped(),
            registry=server.registry,
        )
        self.send_body(200, text.encode(), [("Content-Type", metrics.CONTENT_TYPE)])

    def send_log(self) -> None:
        """Sends log records as they are made, until the client leaves or the server stops."""
        query = urllib.parse.parse_qs(self.path.partition("?")[2])
        source = query.get("source", ["model"])[0]
        if source not in ("model", "server"):
            raise BadRequest("source is model or server", param="source")
        with (
            self.server.log.subscription("model" if source == "model" else "server") as viewer,
            contextlib.suppress(ConnectionError),  # the usual end
        ):
            self._begin_stream()
            self._send_events(self._log_events(viewer))
            self.end_pieces()

    def _log_events(self, viewer: Subscriber) -> Iterator[tuple[bytes, bytes]]:
        while self.command != "HEAD" and not (self.server.is_draining or self.is_client_gone()):
            for record in viewer.records(POLL_S) or [{}]:
                yield wire.sse_event(wire.to_json(record)) if record else b"", PING

    # ---- events to bytes -------------------------------------------------------------------

    def _serve(
        self,
        call: Call,
        reply_id: str,
        make_reply: MakeReply,
        model: ServedModel,
        ttl_s: float | None,
    ) -> None:
        self._name_ignored(call.ignored, call.unheld)
        for line in lines_of(call.unheld):
            self.server.log.line_once("info", line)
        key = prefix_key(call.request, model.name, self.headers.get(PREFIX_KEY.lower()))
        self.reply_headers += [(PREFIX_KEY, key)] if key else []
        if call.is_background:
            waiting_reply = make_reply(call, reply_id, model, int(time.time()))
            assert isinstance(waiting_reply, BackgroundReply)
            self.send_json(200, background.begin(self.server, waiting_reply, model, ttl_s))
            return
        with self.server.registry.lease(model, ttl_s) as lease:
            model = lease.model
            count = self._count = counted(self.server.log, reply_id, lease)
            reply = make_reply(call, reply_id, model, int(time.time()))
            with contextlib.closing(self._waiting().events(lease, call, count)) as events:
                if call.stream and isinstance(reply, GeneratedReply):
                    self._stream(events, reply)
                else:
                    self._fold(events, reply)

    def _name_ignored(self, ignored: Sequence[str], unheld: Sequence[UnheldPart] = ()) -> None:
        if ignored and self.server.is_strict:
            names = ", ".join(ignored)
            raise BadRequest(f"this server does not know: {names}", param=ignored[0])
        self.reply_headers += headers_of(ignored, unheld)

    def _stream(self, events: Events, reply: GeneratedReply) -> None:
        """Sends server-sent events. The first event, or a long wait, decides the status."""
        try:
            pieces = self._reply_events(events, reply)
            self._send_events(pieces, reply.content_type, reply.ping("ping"))
        except ApiError as err:
            if not self.status:
                raise
            self._outcome, self.close_connection = err.status, True
            self.send_piece(reply.failure(err))
        else:
            self.send_piece(reply.tail())
        self.end_pieces()

    def _reply_events(self, events: Events, reply: GeneratedReply) -> Iterator[tuple[bytes, bytes]]:
        progress = "waiting"
        for event in events:
            progress = progress_of(event) or progress
            yield reply.add(event) if event is not None else b"", reply.ping(progress)

    def _begin_stream(self, kind: str = STREAM_TYPE, ping: bytes = PING) -> None:
        self.begin_pieces([("Content-Type", kind), *STREAM_HEADERS], ping)

    def _send_events(
        self, events: Iterable[tuple[bytes, bytes]], kind: str = STREAM_TYPE, ping: bytes = PING
    ) -> None:
        """Sends each event at once; after a long time without events, sends the comment instead."""
        last_write_s = time.monotonic()
        for data, comment in events:
            now = time.monotonic()
            if not data and now - last_write_s >= self.server.limits.ping_seconds:
                data = comment
            if data:
                self._begin_stream(kind, ping)
                self.send_piece(data)
                last_write_s = now

    def _fold(self, events: Events, reply: Reply) -> None:
        """Sends one JSON object, made from the same events."""

        def whole() -> Json:
            for event in events:
                if event is not None:
                    reply.add(event)
                self._send_space()
            return reply.whole()

        self._send_whole(whole)

    def _send_whole(self, whole: Callable[[], Json]) -> None:
        """Sends the JSON object that is returned, however long that takes."""
        self._last_write_s = time.monotonic()
        try:
            body = whole()
        except ApiError as err:
            if not self.status:
                raise
            self._outcome = err.status
            body = self._error_body(err)
        if not self.status:
            self.send_json(200, body)
        else:
            self.send_piece(wire.to_json(body))
            self.end_pieces()

    def _send_space(self) -> None:
        """Sends a space if the client has waited for long; call it now and then."""
        if time.monotonic() - self._last_write_s >= SPACE_S:
            self._last_write_s = time.monotonic()
            self.begin_pieces([JSON_TYPE], b" ")
            self.send_piece(b" ")

    def _waiting(self) -> Waiting:
        return Waiting(self.is_client_gone, self.server.limits.queue_seconds)

    def _keep_waiting(self) -> None:
        """Raises ConnectionAbortedError if the client is gone; else like `_send_space`."""
        self._waiting().check()
        self._send_space()


ROUTES = RouteTable(
    (
        *openai.ROUTES,
        *responses.ROUTES,
        *anthropic.ROUTES,
        *lmstudio.ROUTES,
        *llamacpp.ROUTES,
        *ollama.ROUTES,
        OwnRoute("/health", Handler.send_health),
        OwnRoute("/metrics", Handler.send_metrics),
        OwnRoute("/log/stream", Handler.send_log),
    )
)
