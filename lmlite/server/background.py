"""Answers that no connection waits for: each has a thread, and clients ask for it by its id.

They pass the checks of any request and wait in the same queue. The server counts them as requests,
so that it waits for them when it stops, as long as for any other.
"""

import contextlib
import threading
import time

from lmlite.errors import ApiError, InternalError, Unavailable
from lmlite.messages import Json
from lmlite.server.api.reply import BackgroundReply
from lmlite.server.models.served_model import ServedModel
from lmlite.server.server import Server
from lmlite.server.waiting import Waiting, counted
from lmlite.server.watch.request_count import RequestCount

LABEL = "background"  # of these answers in /metrics; the requests for them have their path's
CANCELLED = 499


def begin(server: Server, reply: BackgroundReply, model: ServedModel, ttl_s: float | None) -> Json:
    """Begins an answer; returns the object for the client. Raises an ApiError."""
    server.begin_request()
    try:
        found = reply.begin()
        threading.Thread(
            target=_run, args=(server, reply, model, ttl_s), name=LABEL, daemon=True
        ).start()
    except BaseException as err:
        server.end_request()
        if isinstance(err, RuntimeError | MemoryError):  # no more threads
            error = Unavailable("there is no thread for another background response")
            reply.fail(error)
            raise error from None
        raise
    return found


def _run(server: Server, reply: BackgroundReply, model: ServedModel, ttl_s: float | None) -> None:
    began_s, status = time.monotonic(), 200
    count: RequestCount | None = None
    try:
        with server.registry.lease(model, ttl_s) as lease:
            count = counted(server.log, reply.id, lease)
            waiting = Waiting(reply.is_unwanted, server.limits.queue_seconds)
            with contextlib.closing(waiting.events(lease, reply.call, count)) as events:
                for event in events:
                    if event is not None:
                        reply.add(event)
    except ApiError as err:
        status = err.status
        reply.fail(err)
    except ConnectionAbortedError:
        status = CANCELLED
    except Exception as err:  # a bug: the client gets a failed response, the log the error's name
        status = 500
        server.log.line("error", f"{type(err).__name__}: {err}")
        reply.fail(InternalError("the server made a mistake"))
    finally:
        server.metrics.count(LABEL, status, count, is_cut=False)
        elapsed_ms = (time.monotonic() - began_s) * 1000
        counts = count.summary() if count else ""
        details = {"id": reply.id, "method": "", "path": LABEL, "status": status,
                   "ms": round(elapsed_ms, 3), "cut_short": False}  # fmt: skip
        details |= count.details() if count else {}
        line = f"{LABEL} {reply.id} {status} {elapsed_ms:.0f} ms{counts}"
        server.log.line("info", line, details)
        server.end_request()
