"""A worker: loads a model, reads frames, runs the engine. `python -m lmlite.worker`

Frames come on standard input and leave on standard output; log lines go to standard error.
The first frame is a `Load`. The main thread reads frames and prepares requests; the engine thread
does the rest. The end of the input ends the process.
"""

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from typing import BinaryIO

from lmlite import frames
from lmlite.errors import ApiError, InternalError, Unsupported
from lmlite.messages import Cancel, Embed, Event, Load, LoadFailed, Outdated, Request, Tokenize
from lmlite.worker.engine import Engine
from lmlite.worker.failures import failed
from lmlite.worker.guard.model_files import FilesChanged
from lmlite.worker.loader import LOAD_FAULTS, LoadedModel

MAX_RECURSION = 5000  # Python frames: requests may nest as deep as the server accepts
NO_MEMORY_TO_EMBED = "this model's embeddings would need more memory than there is"


class Outbox:
    """Writes events to the server, whole frames at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, events: Iterable[Event]) -> None:
        """Sends all events in one write."""
        data = b"".join(map(frames.encode, events))
        try:
            with self._lock:
                self._stream.write(data)
                self._stream.flush()
        except OSError:
            os._exit(1)  # the server is gone, so nobody needs this process


class Worker:
    """One loaded model and its engine. Methods belong to the main thread, the reader's."""

    def __init__(self, load: Load, outbox: Outbox) -> None:
        """Loads the model and starts the engine. Raises as `LoadedModel` does."""
        self._load, self._outbox = load, outbox
        self.model = LoadedModel(load, outbox.send)
        self.engine = Engine(self.model.generator, self.model.embedder, self._send)
        self._thread = threading.Thread(target=self._run_engine, name="engine", daemon=True)
        self._thread.start()
        self.ready = self.model.ready

    def handle(self, request: Request) -> None:
        """Queues a request for the engine, or sends the error that prevents it."""
        assert not isinstance(request, Load)
        if isinstance(request, Cancel):
            self.engine.cancel(request.id)
            return
        self._check_files()
        try:
            if isinstance(request, Tokenize):
                self._send([self.model.preparer.tokenize(request)])
            elif isinstance(request, Embed) and not self._load.embeds:
                raise Unsupported(NO_MEMORY_TO_EMBED, param="model")
            elif isinstance(request, Embed) and request.dry_run:
                self._send(self.model.preparer.planned(request))
            else:
                self.engine.submit(self.model.preparer.prepare(request))
        except ApiError as err:
            self._outbox.send([failed(request.id, err)])
        except Exception as err:  # a bug, here or in the library: other requests go on
            traceback.print_exc()
            fault = InternalError(f"the request cannot be prepared: {err}")
            self._outbox.send([failed(request.id, fault)])

    def close(self) -> None:
        """Stops the engine, then frees contexts and model."""
        self.engine.stop()
        self._thread.join()
        self.model.close()

    def _send(self, events: Iterable[Event]) -> None:
        """Sends events of requests. May be called from any thread."""
        self._check_files()
        self._outbox.send(events)

    def _check_files(self) -> None:
        """Ends the process if the model's files have changed since they were loaded."""
        if self.model.files.have_changed():
            self._outbox.send([Outdated()])
            os._exit(0)

    def _run_engine(self) -> None:
        """Runs in the engine thread. If it fails, the process ends: a new worker can serve."""
        try:
            self.engine.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, for frames alone. All other output goes to standard error."""
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def join_parent() -> None:
    """Makes this process die with the server, ignore signals, and write no core files."""
    # A terminal and a service manager signal every process, but the server lets replies end first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    """Runs the worker. Returns 0 when the server hangs up, 1 if the model cannot be loaded."""
    sys.setrecursionlimit(MAX_RECURSION)
    source, sink = claim_pipes()
    join_parent()
    outbox = Outbox(sink)
    load: Load | None = frames.read(source, Load)
    if load is None:
        return 1
    try:
        worker = Worker(load, outbox)
    except FilesChanged:
        outbox.send([Outdated()])
        return 0
    except LOAD_FAULTS as err:
        outbox.send([LoadFailed(str(err))])
        return 1
    outbox.send([worker.ready()])
    while (request := frames.read(source, Request)) is not None:
        worker.handle(request)
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
