"""Starts, watches, restarts and stops one worker, and carries requests to it.

One thread per supervisor spawns the process, reads its events, and notices its death by the
end of the pipe. The kernel ends a worker when the thread that spawned it ends, so that
thread lives as long as the supervisor. A request that was running when its worker died is
failed and never tried again: it may be what killed it. Knows no HTTP.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lmlite import frames
from lmlite.errors import KINDS, ApiError, Unavailable
from lmlite.messages import (
    Cancel,
    Chat,
    Complete,
    Embed,
    Embedded,
    EngineState,
    Event,
    Failed,
    Finished,
    Load,
    LoadFailed,
    Loading,
    Note,
    Planned,
    Ready,
    ReplyEvent,
    Request,
)
from lmlite.server.logs import Log

MAX_DEATHS, DEATHS_WINDOW_S = 5, 60.0  # more than this, and the model counts as failed
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 5.0)  # before the next start, by deaths in the window
LOAD_WAIT_S = 60.0  # how long a request waits for a model that is being loaded
STOP_WAIT_S = 2.0  # how long a worker may take to end once its input has ended
LAST_WORDS_S = 1.0  # and for its standard error to be read to the end after that

# -P: nothing is imported from the folder that the server was started in.
WORKER_COMMAND = (sys.executable, "-P", "-m", "lmlite.worker")

# What a worker may see of the environment: no keys, no secrets.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_", "TMPDIR", "LD_", "DYLD_", "PYTHON", "CUDA_", "HIP_",
              "ROCR_", "HSA_", "VK_", "GGML_", "OMP_", "GOMP_")  # fmt: skip
_WORKER_ENVIRONMENT = {
    # Threads of the library spin this often before they sleep. Its default starves a machine
    # that has anything else to do; never to spin halves the speed of an idle one.
    "GOMP_SPINCOUNT": "1000",
    # A crash is to end at once, not to start a debugger.
    "GGML_NO_BACKTRACE": "1",
}


class Reply:
    """The events of one request, for the one thread that waits for them."""

    def __init__(
        self, supervisor: "Supervisor", request_id: int, n_expected: int, pipe: BinaryIO
    ) -> None:
        self.request_id = request_id
        self.pipe = pipe  # of the worker that has the request; a later worker knows nothing of it
        self._supervisor = supervisor
        self._events: queue.SimpleQueue[ReplyEvent] = queue.SimpleQueue()
        self._n_open = n_expected  # choices or inputs that have not ended yet

    @property
    def is_complete(self) -> bool:
        """Whether the last event has been taken."""
        return self._n_open == 0

    def put(self, event: ReplyEvent) -> None:
        """Called by the supervisor's thread."""
        self._events.put(event)

    def next(self, timeout_s: float) -> ReplyEvent | None:
        """The next event, or None after timeout_s without one. Raises the ApiError of a Failed."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        match event:
            case Failed():
                self._n_open = 0
                kind = KINDS.get(event.kind, ApiError)
                raise kind(event.message, param=event.param)
            case Finished() | Embedded() | Planned():
                self._n_open -= 1
        return event

    def close(self) -> None:
        """Lets go; what is not complete is cancelled."""
        self._supervisor.forget(self)


class Supervisor:
    """One model's worker, whichever process that is at the moment."""

    def __init__(self, load: Load, log: Log, command: Sequence[str] = WORKER_COMMAND) -> None:
        self.load = load
        self._command = command
        self.ready: Ready | None = None  # of the worker that runs now
        self.state: EngineState | None = None  # its latest report
        self.fraction_loaded = 0.0
        self.fault: str | None = None  # why there will be no worker any more
        self.pid: int | None = None
        self.n_started = 0
        self._log = log
        self._ids = itertools.count(1)
        self._replies: dict[int, Reply] = {}
        self._pipe: BinaryIO | None = None  # to the worker that runs now
        self._deaths: collections.deque[float] = collections.deque(maxlen=MAX_DEATHS)
        self._last_words: collections.deque[str] = collections.deque(maxlen=50)
        self._changed = threading.Condition()  # guards all of the above
        self._writing = threading.Lock()  # a frame goes down a pipe as a whole
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # ---- from any thread -------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the model; returns at once."""
        self._thread.start()

    def wait_until_settled(self, timeout_s: float) -> None:
        """Returns when the worker is ready, or will never be, or after timeout_s."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self.fault, timeout_s)

    def submit(self, request: Chat | Complete | Embed) -> Reply:
        """Sends a request to the worker, waiting for it to load.

        Raises Unavailable when there is no worker, and when too many requests wait for it.
        """
        self.wait_until_settled(LOAD_WAIT_S)
        with self._changed:
            pipe = self._ready_pipe()
            if len(self._replies) >= self.load.n_parallel + self.load.n_queue:
                raise Unavailable(f"{len(self._replies)} requests are waiting already")
            reply = Reply(self, next(self._ids), n_results(request), pipe)
            self._replies[reply.request_id] = reply
        # A worker that is gone by now has this reply failed by the supervisor's thread.
        self._send(pipe, dataclasses.replace(request, id=reply.request_id))
        return reply

    def forget(self, reply: Reply) -> None:
        """No more events for this reply; the worker stops working on it."""
        with self._changed:
            known = self._replies.pop(reply.request_id, None)
        if known is not None and not reply.is_complete:
            self._send(reply.pipe, Cancel(reply.request_id))

    def stop(self) -> None:
        """Ends the worker and fails what is still open."""
        self._stopping.set()
        with self._changed:
            self.fault = self.fault or "the server is stopping"
            self._changed.notify_all()
            pipe, pid = self._pipe, self.pid
        if pipe is not None and self._writing.acquire(timeout=STOP_WAIT_S):
            _close(pipe)
            self._writing.release()
        self._thread.join(STOP_WAIT_S)
        if self._thread.is_alive() and pid is not None:
            os.kill(pid, signal.SIGKILL)

    @property
    def has_recovered_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return any(time.monotonic() - at < DEATHS_WINDOW_S for at in tuple(self._deaths))

    def n_open(self) -> int:
        """Requests that are being worked on."""
        with self._changed:
            return len(self._replies)

    def _ready_pipe(self) -> BinaryIO:
        if self.fault is not None:
            error = Unavailable(f"the model is not available: {self.fault}")
            error.retry_after_s = None  # waiting does not help
            raise error
        if self.ready is None or self._pipe is None:
            raise Unavailable("the model is still being loaded")
        return self._pipe

    def _send(self, pipe: BinaryIO, request: Request) -> None:
        """Writes one frame; nothing happens when the worker at the other end is gone."""
        data = frames.encode(request)
        with self._writing:
            try:
                pipe.write(data)
                pipe.flush()
            except (OSError, ValueError):
                pass  # broken or closed: the supervisor's thread deals with it

    # ---- the supervisor's thread -----------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set() and self.fault is None:
            try:
                process = self._spawn()
            except OSError as err:  # no memory, no descriptors: as if it had died at once
                self._count_death(f"could not be started: {err}")
                continue
            try:
                self._read_events(process)
            finally:
                self._bury(process)
        self._fail_open("the server is stopping")

    def _spawn(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(),
        )
        assert process.stdin is not None
        pipe: BinaryIO = process.stdin  # type: ignore[assignment]
        with self._changed:
            self._pipe = pipe
            self.pid = process.pid
            self.n_started += 1
            self.fraction_loaded = 0.0
            self._last_words.clear()
        self._listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self._listener.start()
        self._send(pipe, self.load)
        return process

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Reads the worker's standard error, to quote its last words when it dies."""
        assert process.stderr is not None
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._last_words.append(line)
                self._log.line("debug", f"worker {process.pid}: {line}")

    def _read_events(self, process: "subprocess.Popen[bytes]") -> None:
        """Hands events to their replies until the worker ends or breaks the format."""
        assert process.stdout is not None
        stream: BinaryIO = process.stdout  # type: ignore[assignment]
        try:
            while (event := frames.read(stream, Event)) is not None:
                self._take(event)
        except (frames.FrameError, OSError) as err:
            self._log.line("error", f"worker {process.pid}: {err}")
            process.kill()  # it can no longer be trusted

    def _take(self, event: Event) -> None:
        match event:
            case Loading(fraction):
                self.fraction_loaded = fraction
            case EngineState():
                self.state = event
            case Note(level, text):
                self._log.line(level, text)
            case Ready() | LoadFailed():
                with self._changed:
                    if isinstance(event, Ready):
                        self.ready, self.fraction_loaded = event, 1.0
                    else:
                        self.fault = event.message
                    self._changed.notify_all()
            case _:
                reply = self._replies.get(event.id)
                if reply is not None:
                    reply.put(event)

    def _bury(self, process: "subprocess.Popen[bytes]") -> None:
        """After the end of a worker: fail what it was doing, and decide about another one."""
        with self._changed:
            self.ready = self.state = None
            self.pid = None
            self._pipe = None
        code = _wait(process)
        self._listener.join(LAST_WORDS_S)
        for stream in (process.stdin, process.stdout):
            _close(stream)
        if self._stopping.is_set() or self.fault is not None:
            return
        why = self._cause_of_death(code)
        self._log.line("error", f"worker {process.pid} {why}")
        self._fail_open("the model's worker ended; the request was not finished")
        self._count_death(why)

    def _cause_of_death(self, code: int) -> str:
        cause = f"ended with code {code}"
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            cause = f"was ended by {known.get(-code, f'signal {-code}')}"
        asserts = [line for line in self._last_words if "GGML_ASSERT" in line or "error" in line]
        return f"{cause}: {asserts[-1]}" if asserts else cause

    def _count_death(self, why: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._deaths if now - at < DEATHS_WINDOW_S]
        self._deaths.append(now)
        if len(recent) + 1 >= MAX_DEATHS:
            with self._changed:
                self.fault = f"its worker ended {MAX_DEATHS} times within a minute (it {why})"
                self._changed.notify_all()
            self._log.line("error", f"giving up: {self.fault}")
            return
        self._stopping.wait(BACKOFF_S[min(len(recent), len(BACKOFF_S) - 1)])

    def _fail_open(self, message: str) -> None:
        with self._changed:
            replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.put(Failed(reply.request_id, Unavailable.__name__, message))


def n_results(request: Chat | Complete | Embed) -> int:
    """How many choices or vectors a request ends in."""
    match request:
        case Chat():
            return request.n
        case Complete():
            return request.n * len(request.prompts)
        case Embed():
            return len(request.inputs)


def worker_environment() -> dict[str, str]:
    """What the worker's process sees; the user's own settings of the library win."""
    passed_on = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    # Also right inside a zip file, whose path is an entry of the module search path.
    package_parent = str(Path(__file__).parents[2])
    search_path = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return _WORKER_ENVIRONMENT | passed_on | {"PYTHONPATH": os.pathsep.join(search_path)}


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # the other end is gone, and what was buffered with it
        stream.close()


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a worker whose pipe has ended; one that lingers is killed."""
    try:
        return process.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
