"""Starts, watches, restarts and stops one worker, and carries requests to it.

Three threads. The first starts the process, reads its events, and notices its death by the end
of the pipe. It lives as long as the supervisor, because the kernel ends a worker when the thread
that started it ends. The second writes requests to the worker once it is ready. The third kills
a worker that shows no sign of life.

When a worker dies, its requests fail and are never repeated: one of them may have killed it.
Does not depend on HTTP.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from lmlite import frames, messages
from lmlite.errors import (
    CHAT_NAMES,
    BodyTooLarge,
    FieldNames,
    ModelFileError,
    ModelFileMissing,
    Unavailable,
)
from lmlite.gguf.adapter import AdapterFile
from lmlite.gguf.file import ModelFile
from lmlite.gguf.projector import Projector
from lmlite.messages import EngineState, Event, Load, LoadFailed, Note, Outdated, Work
from lmlite.server.logs import Log, printable
from lmlite.server.models.hosts import ABORT, Hosts, HostUnavailable
from lmlite.server.models.life import Failed, Loading, Ready, State, Unloaded, Unloading, refusal
from lmlite.server.models.model_check import CheckedFiles, Identity
from lmlite.server.models.open_requests import END_EVENTS, OpenRequest, OpenRequests
from lmlite.server.models.restarts import MAX_DEATHS, Restarts
from lmlite.server.models.watchdog import Watchdog
from lmlite.server.models.worker_process import STOP_WAIT_S, WORKER_COMMAND, WorkerProcess, close

LOOK_S = 1.0  # after a failure: pause between two checks whether a file was replaced
SPAWN_FAULTS = (OSError, RuntimeError, MemoryError)  # out of descriptors, threads or memory
WATCHDOG_S = 30.0  # how long a worker may be silent while requests wait


class Supervisor:
    """Keeps one model's worker running: after a worker dies, it starts a new process."""

    def __init__(
        self,
        load: Load,
        log: Log,
        command: Sequence[str] = WORKER_COMMAND,
        watchdog_s: float = WATCHDOG_S,
        file: ModelFile | None = None,
        projector: Projector | None = None,
        prestarted: WorkerProcess | None = None,
        hosts: Hosts | None = None,
        draft: ModelFile | None = None,
        adapters: Sequence[AdapterFile] = (),
    ) -> None:
        """`file`, `projector`, `draft` and `adapters` have passed their checks.

        None if `command` loads no such file.

        `prestarted` is a running process of `command` that has not been given a model yet.
        `hosts`: those that hold layers of the model, if there are any.
        """
        self.load = load
        self.state: State = Unloaded()
        self.n_started = 0
        self.hosts = hosts
        self._log = log
        self._command, self._prestarted = command, prestarted
        self._watchdog_s = watchdog_s
        self._files = CheckedFiles(file, projector, draft, adapters)
        self._given_up: list[Identity | None] = []  # identities of the files when loading failed
        self._ids = itertools.count(1)
        self._open = OpenRequests(load.n_parallel + load.n_queue)
        self._process: WorkerProcess | None = None  # the current worker
        self._n_events = 0  # from all workers so far
        self._is_outdated = False  # whether a file that the worker has loaded was written to
        self._loaded: Load | None = None  # the last Load with which a worker became ready
        self._restarts = Restarts()
        self._changed = threading.Condition()  # guards all of the above
        self._writing = threading.Lock()  # frames must not interleave in the pipe
        self._stopping = threading.Event()
        self._pause: Callable[[float], bool] = self._stopping.wait
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._writer = threading.Thread(target=self._hand_over, name="writer", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # ---- from any thread -------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the model; returns at once. Raises RuntimeError if there is no thread."""
        self._enter(Loading())
        try:
            for thread in (self._writer, self._watcher, self._thread):
                thread.start()
        except BaseException:
            self._stopping.set()
            self._enter(Unloading())  # wakes the threads that were started, so that they end
            if self._prestarted is not None:
                self._prestarted.kill()
                self._prestarted.reap()
            raise

    def wait_until_settled(self, timeout_s: float) -> None:
        """Waits until the worker is ready or has failed, at most timeout_s."""
        with self._changed:
            self._changed.wait_for(lambda: isinstance(self.state, Ready | Failed), timeout_s)

    def loaded(self) -> messages.Ready:
        """The worker's description of its model. Raises Unavailable if no worker is ready."""
        state = self.state
        if not isinstance(state, Ready):
            raise refusal(state) or Unavailable("the model is still being loaded")
        return state.loaded

    def check_admission(self) -> None:
        """Raises Unavailable when any further request would be refused.

        The limit on open requests is the same while a model loads and while it is ready.
        """
        with self._changed:
            error = refusal(self.state)
            if error is not None:
                raise error
            self._open.check_room()

    def submit(self, request: Work, names: FieldNames = CHAT_NAMES) -> OpenRequest:
        """Accepts a request, for the current worker or for the next one that becomes ready.

        Raises Unavailable if there will be no worker or too many requests are open, HarmfulRequest
        for a request that has killed workers, BodyTooLarge for one that does not fit in a frame.
        """
        request = replace(request, id=next(self._ids))
        opened = OpenRequest(request, self._forget, names)
        try:
            frame = frames.encode(request)
        except frames.FrameError as err:
            raise BodyTooLarge(f"the request is too large: {err}") from None
        with self._changed:
            self.check_admission()
            self._open.add(opened, frame)
            self._changed.notify_all()
        return opened

    def _forget(self, opened: OpenRequest) -> None:
        with self._changed:
            self._open.forget(opened)
            if self._open.has_frames:
                self._changed.notify_all()

    def stop(self) -> None:
        """Ends the worker and fails all open requests."""
        with self._changed:
            self._enter(Unloading())
            self._stopping.set()
            process = self._process
        if process is not None and self._writing.acquire(timeout=STOP_WAIT_S):
            close(process.requests)
            self._writing.release()
        self._thread.join(STOP_WAIT_S)
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join(STOP_WAIT_S)

    def _enter(self, state: State) -> None:
        """Changes the state, unless the supervisor is stopping. Some states fail open requests."""
        with self._changed:
            if not self._stopping.is_set():
                self.state = state
                error = refusal(state)
                if error is not None:
                    self._open.fail(error)
            self._changed.notify_all()

    @property
    def ready(self) -> Ready | None:
        """The state while the worker takes requests, else None."""
        state = self.state
        return state if isinstance(state, Ready) else None

    @property
    def pid(self) -> int | None:
        """The process id of the current worker."""
        process = self._process
        return process.pid if process else None

    @property
    def has_recovered_lately(self) -> bool:
        """Whether a worker died within the last minute."""
        return self._restarts.were_lately

    def n_open(self) -> int:
        """The number of requests that are running or waiting."""
        with self._changed:
            return len(self._open)

    # ---- the writer's thread ---------------------------------------------------------------

    def _hand_over(self) -> None:
        """Writes requests to the worker, in their order of arrival, whenever it is ready."""
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._stopping.is_set() or self._may_send)
                process = self._process
                frame = self._open.next_frame(process) if process and self._may_send else None
            if process is not None and frame is not None:
                self._send(process, frame)

    @property
    def _may_send(self) -> bool:
        return self.ready is not None and self._open.has_frames

    def _send(self, process: WorkerProcess, frame: bytes) -> None:
        """Writes one frame. Kills the worker if that fails: it is dead or cannot be used."""
        with self._writing:
            try:
                process.requests.write(frame)
                process.requests.flush()
            except (OSError, ValueError, MemoryError):  # the pipe is broken, or closed
                process.kill()

    # ---- the supervisor's thread -----------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._restarts.begin()
            try:
                self._files.check(self._pause)
                if self.hosts is not None:
                    self.hosts.check()
                process = self._spawn()
            except (ModelFileMissing, HostUnavailable) as err:
                self._lack(str(err))
            except ModelFileError as err:
                self._give_up(str(err))
            except SPAWN_FAULTS as err:
                self._miss_start(err)
            else:
                try:
                    self._read_events(process)
                finally:
                    self._reap(process)
            if isinstance(self.state, Failed):
                self._wait_for_another_file()
            else:
                self._pause(self._restarts.pause_s)
        self.state = Unloaded()

    def _wait_for_another_file(self) -> None:
        """After a failure, waits until a file of the model is replaced: only then may it load."""
        while not self._pause(LOOK_S):
            if self._files.identities() != self._given_up:
                self._restarts.reset()
                self._enter(Loading())
                return

    def _spawn(self) -> WorkerProcess:
        if self._files.model is not None:
            self.load = replace(self.load, parts=self._files.model.parts)
        if self._files.draft is not None:
            self.load = replace(self.load, draft_parts=self._files.draft.parts)
        adapters = tuple(adapter.parts[0] for adapter in self._files.adapters)
        self.load = replace(self.load, adapters=adapters)
        process = self._prestarted or WorkerProcess(self._command, self._log)
        self._prestarted = None
        with self._changed:
            self._process = process
            self._is_outdated = False
            self.n_started += 1
            self._enter(Loading())
        if self._stopping.is_set():  # `stop` may have run before self._process was set
            close(process.requests)
        return process

    def _read_events(self, process: WorkerProcess) -> None:
        """Sends the Load, then passes events to their requests until the worker ends."""
        try:
            self._send(process, frames.encode(self.load))
            while (event := frames.read(process.events, Event)) is not None:
                self._n_events += 1
                self._take(event)
        except Exception as err:  # a malformed frame, or not enough memory for its content
            process.kill(f"cannot be trusted any more: {err}")

    def _take(self, event: Event) -> None:
        match event:
            case messages.Loading(fraction):
                self._enter(Loading(fraction))
            case messages.Ready():
                self._loaded = self.load
                self._restarts.ready()
                self._enter(Ready(event))
            case EngineState():
                if self.ready is not None:
                    self._enter(replace(self.ready, engine=event))
            case Note(level, text):
                self._log.line(level, text)
            case Outdated():
                self._is_outdated = True
            case LoadFailed(message):
                self._take_failure(message)
            case _:
                if isinstance(event, END_EVENTS):
                    self._restarts.reset()
                opened = self._open.find(event.id)
                if opened is not None:
                    opened.put(event)

    def _take_failure(self, message: str) -> None:
        """The model could not be loaded."""
        if self._files.are_replaced():
            self._is_outdated = True
        elif self._loaded == self.load or self.hosts:  # memory may be short for now
            self._lack(message)
        else:
            self._give_up(message)

    def _reap(self, process: WorkerProcess) -> None:
        """After a worker has ended: fails its requests, and counts or explains its death."""
        with self._changed:
            is_explained = isinstance(self.state, Failed) or self._lacks is not None
            if not is_explained:
                self._enter(Loading())
            self._process = None
        self._restarts.end()
        why = process.reap()
        if is_explained or self._stopping.is_set():
            return
        # When a mapped file is cut short, the worker dies before it can send Outdated.
        if self._is_outdated or self._files.are_replaced():
            error = Unavailable("the model's file was changed; it is being loaded again")
            self._log.line("warning", error.message)
            with self._changed:
                self._open.fail(error, process)
            return
        error = Unavailable("the model's worker ended; the request may be sent again")
        self._log.line("error", f"worker {process.pid} {why}")
        fault = self._fault_of_hosts(why)
        with self._changed:
            if fault is None:
                self._open.blame(process)
            self._open.fail(error, process)
        if fault is None:
            self._count_death(why)
        else:
            self._lack(fault)

    def _fault_of_hosts(self, why: str) -> str | None:
        """What a host has done to the worker; None: nothing that is known."""
        if self.hosts is None:
            return None
        names = " or ".join(self.hosts.names)
        broken = f"host {names} broke off the connection" if ABORT in why else None
        return self.hosts.fault() or broken

    def _count_death(self, why: str) -> None:
        self._restarts.die()
        if self._restarts.are_hopeless and self.hosts is None:  # a host may have sent nonsense
            self._give_up(f"its worker ended {MAX_DEATHS} times in a row (it {why})")

    def _miss_start(self, err: BaseException) -> None:
        """No process could be started. If a worker ran before, this may be temporary."""
        if self._loaded is None:
            self._count_death(f"could not be started: {err}")
        else:
            self._lack(f"another worker could not be started: {err}")

    @property
    def _lacks(self) -> str | None:
        return self.state.reason if isinstance(self.state, Loading) else None

    def _lack(self, reason: str) -> None:
        """A file or memory is missing, maybe for long. Fails open requests and keeps trying."""
        reason = printable(reason)
        if self._lacks != reason and not self._stopping.is_set():
            self._log.line("warning", f"waiting, and trying again: {reason}")
        self._enter(Loading(reason=reason))

    def _give_up(self, reason: str) -> None:
        self._given_up = self._files.identities()  # before the new state can be seen
        reason = printable(reason)
        self._enter(Failed(reason))
        if self._loaded is not None:  # at the first start, `lmlite serve` reports the failure
            self._log.line("error", f"giving up: {reason}")

    # ---- the watchdog's thread -------------------------------------------------------------

    def _watch(self) -> None:
        """Kills a worker that shows no sign of life while it loads or while requests wait."""
        watchdog = Watchdog(self._watchdog_s)
        while not self._stopping.wait(watchdog.look_s):
            with self._changed:
                process = self._process
                owes = bool(self._open) or self.ready is None
            if process is None or not owes:
                watchdog.rest()
            elif watchdog.is_overdue(process.pid, self._n_events):
                process.kill(f"gave no sign of life for {self._watchdog_s:g} s")
