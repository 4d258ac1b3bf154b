"""Starts, watches, restarts and stops one worker, and carries requests to it.

One thread per supervisor spawns the process, reads its events, and notices its death by the
end of the pipe. The kernel ends a worker when the thread that spawned it ends, so that
thread lives as long as the supervisor. A second one kills a worker that shows no sign of life.
A request that was running when its worker died is failed and never tried again: it may be what
killed it. Knows no HTTP.
"""

import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Sequence

from lmlite import frames
from lmlite.errors import (
    KINDS,
    ApiError,
    BodyTooLarge,
    ModelFileError,
    PromptTooLong,
    Unavailable,
)
from lmlite.gguf import ModelFile, read_model_file
from lmlite.gguf_projector import Projector, read_projector_file
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
    Outdated,
    Planned,
    Queued,
    Ready,
    ReplyEvent,
    Request,
    Tokenize,
    Work,
)
from lmlite.server.logs import Log
from lmlite.server.model_check import checked_again, has_changed
from lmlite.server.suspects import Suspects
from lmlite.server.watchdog import Watchdog
from lmlite.server.worker_process import STOP_WAIT_S, WORKER_COMMAND, WorkerProcess, close

# Deaths of workers that had answered nothing: so many within so long, and the model has failed.
MAX_DEATHS, DEATHS_WINDOW_S = 5, 60.0
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 5.0)  # before the next start, by deaths in the window
LOAD_WAIT_S = 60.0  # how long a request waits for a model that is being loaded
SPAWN_FAULTS = (OSError, RuntimeError, MemoryError)  # no descriptors, no threads, no memory
END_EVENTS = (Finished, Embedded, Planned)  # of a choice or an input
WATCHDOG_S = 30.0  # how long a worker may owe an answer without a sign of life


class Reply:
    """The events of one request, for the one thread that waits for them."""

    def __init__(self, supervisor: "Supervisor", request: Work, process: WorkerProcess) -> None:
        self.request_id = request.id
        self.fingerprint = fingerprint(request)
        self.process = process  # that has the request; a later one knows nothing of it
        self._n_unfinished = n_results(request)  # choices or inputs of which no end has come
        self._was_queued = self._was_begun = False
        self._supervisor = supervisor
        self._events: queue.SimpleQueue[ReplyEvent] = queue.SimpleQueue()
        self._n_open = self._n_unfinished  # those whose end has not been taken yet

    @property
    def is_complete(self) -> bool:
        """Whether the last event has been taken."""
        return self._n_open == 0

    @property
    def may_be_running(self) -> bool:
        """Whether the worker may be at work on it: all of it has not ended, nor only waited."""
        return bool(self._n_unfinished) and (self._was_begun or not self._was_queued)

    def put(self, event: ReplyEvent) -> None:
        """Called by the supervisor's thread."""
        is_queued = isinstance(event, Queued)
        self._was_queued |= is_queued
        self._was_begun |= not is_queued
        self._n_unfinished -= isinstance(event, END_EVENTS)
        self._events.put(event)

    def next(self, timeout_s: float) -> ReplyEvent | None:
        """The next event, or None after timeout_s without one. Raises the ApiError of a Failed."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Failed):
            self._n_open = 0
            raise _error_of(event)
        self._n_open -= isinstance(event, END_EVENTS)
        return event

    def close(self) -> None:
        """Lets go; what is not complete is cancelled."""
        self._supervisor.forget(self)


class Supervisor:
    """One model's worker, whichever process that is at the moment."""

    def __init__(
        self,
        load: Load,
        log: Log,
        command: Sequence[str] = WORKER_COMMAND,
        watchdog_s: float = WATCHDOG_S,
        file: ModelFile | None = None,
        projector: Projector | None = None,
        waiting: WorkerProcess | None = None,
    ) -> None:
        """The files are what was checked; None for a command that loads none.

        `waiting` is a process of that command which was started ahead, and has no model yet.
        """
        self.load = load
        self._file, self._projector = file, projector
        self._command, self._waiting = command, waiting
        self._watchdog_s = watchdog_s
        self.ready: Ready | None = None  # of the worker that runs now
        self.state: EngineState | None = None  # its latest report
        self.fraction_loaded = 0.0
        self.fault: str | None = None  # why there will be no worker any more
        self.n_started = 0
        self._log = log
        self._ids = itertools.count(1)
        self._replies: dict[int, Reply] = {}
        self._process: WorkerProcess | None = None  # that of the worker that runs now
        self._n_events = 0  # of all workers
        self._has_answered = False  # the worker that runs now
        self._is_outdated = False  # the file that it has loaded
        self._died_s: float | None = None  # when the last one did
        self._deaths: list[float] = []  # of those that had answered nothing
        self._suspects = Suspects()
        self._changed = threading.Condition()  # guards all of the above
        self._writing = threading.Lock()  # a frame goes down a pipe as a whole
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # ---- from any thread -------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the model; returns at once."""
        self._thread.start()
        self._watcher.start()

    def wait_until_settled(self, timeout_s: float) -> None:
        """Returns when the worker is ready, or will never be, or after timeout_s."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self.fault, timeout_s)

    def wait_until_ready(self) -> Ready:
        """What the worker says of itself, once it has loaded. Raises Unavailable."""
        self.wait_until_settled(LOAD_WAIT_S)
        with self._changed:
            self._ready_process()
            assert self.ready is not None
            return self.ready

    def check_admission(self) -> None:
        """Raises Unavailable when a further request would be refused, whatever it asks."""
        with self._changed:
            if self.ready is not None or self.fault is not None:
                self._ready_process()
            if len(self._replies) >= self.load.n_parallel + self.load.n_queue:
                raise Unavailable(f"{len(self._replies)} requests are waiting already")

    def submit(self, request: Work) -> Reply:
        """Sends a request to the worker, waiting for it to load.

        Raises Unavailable when there is no worker, and when too many requests wait for it;
        HarmfulRequest for one that workers die of, BodyTooLarge for one that fits no frame.
        """
        self.wait_until_settled(LOAD_WAIT_S)
        request = dataclasses.replace(request, id=next(self._ids))
        with self._changed:
            process = self._ready_process()
            self.check_admission()
            reply = Reply(self, request, process)
            self._suspects.check(reply.fingerprint)
            self._replies[request.id] = reply
        try:
            # A worker that is gone by now has this reply failed by the supervisor's thread.
            self._send(process, request)
        except frames.FrameError as err:
            self._drop(reply)
            raise BodyTooLarge(f"the request is too large: {err}") from None
        except BaseException:
            self._drop(reply)
            raise
        return reply

    def forget(self, reply: Reply) -> None:
        """No more events for this reply; the worker stops working on it."""
        is_known = self._drop(reply)
        if is_known and not reply.is_complete:
            self._send(reply.process, Cancel(reply.request_id))

    def _drop(self, reply: Reply) -> bool:
        with self._changed:
            is_known = self._replies.pop(reply.request_id, None) is not None
            if is_known and reply.is_complete:
                self._suspects.clear(reply.fingerprint)
        return is_known

    def stop(self) -> None:
        """Ends the worker and fails what is still open."""
        self._stopping.set()
        with self._changed:
            self.fault = self.fault or "the server is stopping"
            self._changed.notify_all()
            process = self._process
        if process is not None and self._writing.acquire(timeout=STOP_WAIT_S):
            close(process.requests)
            self._writing.release()
        self._thread.join(STOP_WAIT_S)
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join(STOP_WAIT_S)

    @property
    def pid(self) -> int | None:
        """The worker that runs now."""
        process = self._process
        return process.pid if process else None

    @property
    def has_recovered_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return self._died_s is not None and time.monotonic() - self._died_s < DEATHS_WINDOW_S

    def n_open(self) -> int:
        """Requests that are being worked on."""
        with self._changed:
            return len(self._replies)

    def _ready_process(self) -> WorkerProcess:
        if self.fault is not None:
            error = Unavailable(f"the model is not available: {self.fault}")
            error.retry_after_s = None  # waiting does not help
            raise error
        if self.ready is None or self._process is None:
            raise Unavailable("the model is still being loaded")
        return self._process

    def _send(self, process: WorkerProcess, request: Request) -> None:
        """Writes one frame. A worker that takes none is dead, or as good as that."""
        data = frames.encode(request)
        with self._writing:
            try:
                process.requests.write(data)
                process.requests.flush()
            except (OSError, ValueError):  # the pipe is broken, or closed
                process.kill()

    # ---- the supervisor's thread -----------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set() and self.fault is None:
            try:
                self._check_file()
                process = self._spawn()
            except SPAWN_FAULTS as err:  # as if it had died at once
                self._count_death(f"could not be started: {err}")
                continue
            except ModelFileError as err:
                self._give_up(str(err))
                break
            try:
                self._read_events(process)
            finally:
                self._bury(process)
        self._fail_open("the server is stopping")

    def _check_file(self) -> None:
        """Checks again what is not what was checked. Raises ModelFileError."""
        wait = self._stopping.wait
        if self._projector is not None and has_changed(self._projector):
            self._projector = checked_again(self._projector, read_projector_file, wait)
        if self._file is None or not has_changed(self._file):
            return
        self._file = file = checked_again(self._file, read_model_file, wait)
        if file.embeds_only == self.load.generates:
            raise ModelFileError(f"{file.path} has become a model of another kind")
        self.load = dataclasses.replace(self.load, parts=file.parts)

    def _has_new_file(self) -> bool:
        files = self._file, self._projector
        return any(file is not None and has_changed(file) for file in files)

    def _spawn(self) -> WorkerProcess:
        process, self._waiting = self._waiting or WorkerProcess(self._command, self._log), None
        with self._changed:
            self._process = process
            self._has_answered = self._is_outdated = False
            self.n_started += 1
            self.fraction_loaded = 0.0
        if self._stopping.is_set():  # `stop` may have come too early to see this process
            close(process.requests)
        return process

    def _read_events(self, process: WorkerProcess) -> None:
        """Has the model loaded, and hands events to their replies until the worker ends."""
        try:
            self._send(process, self.load)
            while (event := frames.read(process.events, Event)) is not None:
                self._n_events += 1
                self._take(event)
        except Exception as err:  # it broke the format, or we have no memory for what it says
            process.kill(f"cannot be trusted any more: {err}")

    def _take(self, event: Event) -> None:
        match event:
            case Loading(fraction):
                self.fraction_loaded = fraction
            case EngineState():
                self.state = event
            case Note(level, text):
                self._log.line(level, text)
            case Outdated():
                self._is_outdated = True
            case LoadFailed() if self._has_new_file():
                self._is_outdated = True
            case Ready() | LoadFailed():
                with self._changed:
                    if isinstance(event, Ready):
                        self.ready, self.fraction_loaded = event, 1.0
                    else:
                        self.fault = event.message
                    self._changed.notify_all()
            case _:
                self._has_answered |= isinstance(event, END_EVENTS)
                reply = self._replies.get(event.id)
                if reply is not None:
                    reply.put(event)

    def _bury(self, process: WorkerProcess) -> None:
        """After the end of a worker: fail what it was doing, and decide about another one."""
        with self._changed:
            self.ready = self.state = self._process = None
        why = process.bury()
        if self._stopping.is_set() or self.fault is not None:
            return
        # Cut short, a mapped file ends the worker before it can say so.
        if self._is_outdated or self._has_new_file():
            self._log.line("warning", "the model's file was changed; it is loaded again")
            self._fail_open("the model's file was changed; it is being loaded again")
            return
        self._log.line("error", f"worker {process.pid} {why}")
        with self._changed:
            for reply in self._replies.values():
                if reply.may_be_running:
                    self._suspects.blame(reply.fingerprint)
        self._fail_open("the model's worker ended; the request may be sent again")
        self._count_death(why)

    def _count_death(self, why: str) -> None:
        """Waits before the next start, or gives up: who had answered does not count as hopeless."""
        self._died_s = now = time.monotonic()
        recent = [at for at in self._deaths if now - at < DEATHS_WINDOW_S]
        self._deaths = [] if self._has_answered else [*recent, now]
        if len(self._deaths) >= MAX_DEATHS:
            self._give_up(f"its worker ended {MAX_DEATHS} times within a minute (it {why})")
        elif self._deaths:
            self._stopping.wait(BACKOFF_S[min(len(self._deaths), len(BACKOFF_S)) - 1])

    def _give_up(self, fault: str) -> None:
        with self._changed:
            self.fault = fault
            self._changed.notify_all()
        self._log.line("error", f"giving up: {fault}")

    def _fail_open(self, message: str) -> None:
        with self._changed:
            replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.put(Failed(reply.request_id, Unavailable.__name__, message))

    # ---- the watchdog's thread -------------------------------------------------------------

    def _watch(self) -> None:
        """Kills a worker that owes something, be it to load, and shows no sign of life."""
        watchdog = Watchdog(self._watchdog_s)
        while not self._stopping.wait(watchdog.look_s):
            with self._changed:
                process, owes = self._process, bool(self._replies) or self.ready is None
            if process is None or not owes:
                watchdog.rest()
            elif watchdog.is_overdue(process.pid, self._n_events):
                process.kill(f"gave no sign of life for {self._watchdog_s:g} s")


def n_results(request: Work) -> int:
    """How many choices or vectors a request ends in."""
    match request:
        case Chat():
            return request.n
        case Complete():
            return request.n * len(request.prompts)
        case Embed():
            return len(request.inputs)
        case Tokenize():
            return 1


def fingerprint(request: Work) -> int:
    """The same for requests that ask for the same."""
    return hash(dataclasses.replace(request, id=0))


def _error_of(event: Failed) -> ApiError:
    if event.kind == PromptTooLong.__name__:
        assert event.tokens is not None
        return PromptTooLong(event.message, param=event.param or "", tokens=event.tokens)
    return KINDS.get(event.kind, ApiError)(event.message, param=event.param)
