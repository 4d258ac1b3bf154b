"""A worker is started, watched, replaced when it dies, and given up when it cannot live."""

import io
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import BadRequest, BodyTooLarge, HarmfulRequest, Unavailable
from lmlite.messages import (
    Chat,
    ChatMessage,
    Delta,
    Finished,
    Load,
    Queued,
    SamplingParams,
    Started,
)
from lmlite.server.logs import Log
from lmlite.server.models import restarts, worker_process
from lmlite.server.models import supervisor as module
from lmlite.server.models.life import Failed, Loading, Ready, Unloaded
from lmlite.server.models.open_requests import OpenRequest
from lmlite.server.models.restarts import MAX_DEATHS
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.models.watchdog import LOOKS, Watchdog
from lmlite.server.models.worker_process import WorkerProcess
from tests import REPOSITORY
from tests.support.house import until

FAKE = (sys.executable, "-m", "tests.support.fake_worker")
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _worker_finds_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


class KeptLog(Log):
    """A log whose lines are kept."""

    def __init__(self) -> None:
        self._kept = io.StringIO()
        super().__init__("debug", self._kept)

    def text(self) -> str:
        """All lines so far."""
        self.flush(WAIT_S)
        return self._kept.getvalue()


@pytest.fixture
def log() -> KeptLog:
    return KeptLog()


@pytest.fixture
def supervise(log: KeptLog, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts supervisors of fake workers, and stops them after the test."""
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    made: list[Supervisor] = []

    def start(mode: str = "", watchdog_s: float = WAIT_S) -> Supervisor:
        made.append(Supervisor(Load("model.gguf"), log, (*FAKE, mode), watchdog_s))
        made[-1].start()
        made[-1].wait_until_settled(WAIT_S)
        return made[-1]

    yield start
    for each in made:
        each.stop()


def chat(content: str) -> Chat:
    return Chat(0, (ChatMessage("user", content),), SamplingParams())


def events(reply: OpenRequest) -> list[Any]:
    found = []
    while not reply.is_complete:
        event = reply.next(WAIT_S)
        assert event is not None, "no event in time"
        found.append(event)
    return found


def test_a_request_comes_back_as_its_events(supervise: Any) -> None:
    reply = supervise().submit(chat("echo one two"))
    assert events(reply) == [
        Started(1, 0, 3, 1), Delta(1, 0, "one"), Delta(1, 0, " two"), Finished(1, 0, "stop", 3),
    ]  # fmt: skip


def test_a_prestarted_worker_is_the_first_and_is_used_once(
    log: KeptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    command = (*FAKE, "")
    prestarted = WorkerProcess(command, log)
    supervisor = Supervisor(Load("model.gguf"), log, command, prestarted=prestarted)
    supervisor.start()
    try:
        supervisor.wait_until_settled(WAIT_S)
        assert (supervisor.pid, supervisor.n_started) == (prestarted.pid, 1)
        with pytest.raises(Unavailable):
            events(supervisor.submit(chat("die 9")))
        supervisor.wait_until_settled(WAIT_S)
        assert supervisor.ready and supervisor.pid != prestarted.pid
    finally:
        supervisor.stop()


def test_if_there_are_too_few_threads_nothing_stays_behind(
    log: KeptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, start = (*FAKE, ""), threading.Thread.start
    prestarted = WorkerProcess(command, log)
    supervisor = Supervisor(Load("model.gguf"), log, command, prestarted=prestarted)

    def fail(self: threading.Thread) -> None:
        if self.name == "supervisor":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError):
        supervisor.start()
    for thread in (supervisor._writer, supervisor._watcher):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(prestarted.pid, 0)


def test_requests_of_many_threads_get_their_own_answers(supervise: Any) -> None:
    supervisor = supervise()
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        reply = supervisor.submit(chat(f"echo answer {number}"))
        answers[number] = "".join(e.text for e in events(reply) if isinstance(e, Delta))
        reply.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"answer {number}" for number in range(50)}
    assert supervisor.n_open() == 0


def test_a_request_that_is_too_large_for_the_pipe_leaves_no_place_taken(
    supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise()
    with monkeypatch.context() as patch, pytest.raises(BodyTooLarge, match="is too large: a Chat"):
        patch.setattr("lmlite.frames.MAX_FRAME_BYTES", 1000)
        supervisor.submit(chat("echo " + "x" * 1000))
    assert supervisor.n_open() == 0
    assert events(supervisor.submit(chat("echo x")))[1] == Delta(2, 0, "x")


def test_a_refused_request_raises_its_error(supervise: Any) -> None:
    reply = supervise().submit(chat("refuse"))
    with pytest.raises(BadRequest) as caught:
        events(reply)
    assert (caught.value.message, caught.value.param) == ("refused", "messages")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_worker_that_dies_fails_its_requests_and_is_replaced(
    supervise: Any, log: KeptLog, name: str
) -> None:
    supervisor = supervise()
    first_pid = supervisor.pid
    waiting = supervisor.submit(chat("hang"))
    dying = supervisor.submit(chat(f"die {name}"))
    for reply in (dying, waiting):
        with pytest.raises(Unavailable) as caught:
            events(reply)
        assert caught.value.retry_after_s == 1
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(3, 0, "back")
    assert supervisor.pid != first_pid
    assert f"was ended by {name}" in log.text()


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("00000005" + b"hello".hex(), "a frame is malformed: Expecting value"),
        ("00000000", "a frame is malformed: Expecting value"),
        ("00000002" + b"[]".hex(), "a frame is malformed: 'str' object"),
        ("00000002" + b"\xff\xfe".hex(), "a frame is malformed: "),
        (b"Traceback (most recent call last)".hex(), "length is cut short or too large"),
        ("ffffffff", "length is cut short or too large"),
    ],
    ids=["no JSON", "nothing", "no object", "no text", "a line", "too long"],
)
def test_a_worker_that_breaks_the_format_is_replaced(
    supervise: Any, log: KeptLog, written: str, why: str
) -> None:
    supervisor = supervise()
    with pytest.raises(Unavailable):
        events(supervisor.submit(chat(f"bytes {written}")))
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(2, 0, "back")
    assert "cannot be trusted any more: " in log.text()
    assert why in log.text()


def test_half_a_frame_and_then_silence_is_the_end_of_the_worker(
    supervise: Any, log: KeptLog
) -> None:
    supervisor = supervise(watchdog_s=0.2)
    with pytest.raises(Unavailable):
        events(supervisor.submit(chat("bytes 00000040" + b'{"type":"Delta"'.hex())))
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(2, 0, "back")
    assert "gave no sign of life for 0.2 s" in log.text()


def test_a_frame_that_claims_32_mib_costs_the_server_no_memory(
    supervise: Any, figure: Callable[[str, str], None]
) -> None:
    supervisor = supervise(watchdog_s=0.2)
    before = peak_rss_bytes()
    with pytest.raises(Unavailable):
        events(supervisor.submit(chat("bytes 02000000" + "00" * 1024)))
    grown = peak_rss_bytes() - before
    assert grown < 2 << 20
    figure("F3", f"a frame that claims 32 MiB: {grown >> 10:+,} KiB")


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# ---- one that shows no sign of life ----------------------------------------------------------


@pytest.mark.parametrize("content", ["hang", "die SIGSTOP", "queue"])
def test_a_worker_that_goes_silent_over_a_request_is_replaced(
    supervise: Any, log: KeptLog, content: str
) -> None:
    supervisor = supervise(watchdog_s=0.2)
    first_pid = supervisor.pid
    with pytest.raises(Unavailable) as caught:
        events(supervisor.submit(chat(content)))
    assert caught.value.retry_after_s == 1
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(2, 0, "back")
    assert supervisor.pid != first_pid
    assert f"worker {first_pid} gave no sign of life for 0.2 s" in log.text()


def test_a_worker_that_goes_silent_while_it_loads_is_given_up(supervise: Any) -> None:
    supervisor = supervise("stop", watchdog_s=0.1)
    assert supervisor.n_started == 5
    assert supervisor.state == Failed(
        "its worker ended 5 times in a row (it gave no sign of life for 0.1 s)"
    )


def test_a_silent_worker_without_requests_is_left_alone(
    supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_rests, rest = threading.Semaphore(0), Watchdog.rest

    def counted(watchdog: Any) -> None:
        rest(watchdog)
        n_rests.release()

    monkeypatch.setattr(Watchdog, "rest", counted)
    supervisor = supervise(watchdog_s=0.2)
    first_pid = supervisor.pid
    for _ in range(3 * LOOKS):
        assert n_rests.acquire(timeout=WAIT_S)
    assert events(supervisor.submit(chat("echo here")))[1] == Delta(1, 0, "here")
    assert supervisor.pid == first_pid


# ---- a request that workers die of -----------------------------------------------------------


def fails(supervisor: Supervisor, content: str) -> None:
    with pytest.raises(Unavailable):
        events(supervisor.submit(chat(content)))


def test_a_request_that_ended_two_workers_is_refused(supervise: Any) -> None:
    supervisor = supervise()
    fails(supervisor, "die SIGSEGV")
    fails(supervisor, "die SIGSEGV")
    with pytest.raises(HarmfulRequest, match="died 2 times while it ran this request"):
        supervisor.submit(chat("die SIGSEGV"))
    assert supervisor.n_open() == 0
    fails(supervisor, "die SIGABRT")
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(5, 0, "back")


def test_one_death_counts_once_for_requests_that_ask_for_the_same(supervise: Any) -> None:
    supervisor = supervise()
    same = [supervisor.submit(chat("hang")) for _ in range(3)]
    watched = replace(chat("hang"), trace=True)
    same.append(supervisor.submit(watched))
    until(lambda: all(reply.process is not None for reply in same))
    fails(supervisor, "die SIGSEGV")
    same.append(supervisor.submit(chat("hang")))
    until(lambda: same[-1].process is not None)
    fails(supervisor, "die SIGABRT")
    for again in (chat("hang"), watched):
        with pytest.raises(HarmfulRequest, match="died 2 times while it ran this request"):
            supervisor.submit(again)


def test_a_request_that_only_waited_when_workers_died_is_not_refused(supervise: Any) -> None:
    supervisor = supervise()
    for name in ("SIGSEGV", "SIGABRT"):
        waiting = supervisor.submit(chat("queue"))
        assert isinstance(waiting.next(WAIT_S), Queued)
        fails(supervisor, f"die {name}")
    assert isinstance(supervisor.submit(chat("queue")).next(WAIT_S), Queued)


def test_a_request_that_had_failed_already_is_not_blamed(supervise: Any) -> None:
    supervisor = supervise()
    for name in ("SIGSEGV", "SIGABRT"):
        failed = supervisor.submit(chat("refuse"))
        with pytest.raises(BadRequest):
            events(failed)
        fails(supervisor, f"die {name}")
    with pytest.raises(BadRequest):
        events(supervisor.submit(chat("refuse")))


def test_a_worker_that_has_answered_does_not_count_as_hopeless(supervise: Any) -> None:
    supervisor = supervise()
    for number in range(2 * MAX_DEATHS):
        assert len(events(supervisor.submit(chat("echo x")))) == 3
        fails(supervisor, f"die SIGKILL {number}")
    assert isinstance(supervisor.state, Ready | Loading)
    assert supervisor.has_recovered_lately


def test_workers_that_die_of_every_request_are_given_up(supervise: Any) -> None:
    supervisor = supervise()
    for number in range(MAX_DEATHS):
        fails(supervisor, f"die SIGKILL {number}")
    supervisor.wait_until_settled(WAIT_S)
    assert supervisor.state == Failed("its worker ended 5 times in a row (it was ended by SIGKILL)")


# ---- one that cannot live --------------------------------------------------------------------


def test_a_worker_that_dies_five_times_in_a_row_is_given_up(supervise: Any) -> None:
    supervisor = supervise("crash")
    assert supervisor.n_started == 5
    assert supervisor.state == Failed(
        "its worker ended 5 times in a row "
        "(it was ended by SIGABRT: GGML_ASSERT(nothing works) failed)"
    )
    with pytest.raises(Unavailable, match="ended 5 times") as caught:
        supervisor.submit(chat("echo x"))
    assert caught.value.retry_after_s is None


def test_it_is_started_again_after_ever_longer_pauses(
    log: KeptLog, figure: Callable[[str, str], None]
) -> None:
    pauses: list[float] = []
    supervisor = Supervisor(Load("model.gguf"), log, (*FAKE, "crash"))

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        if isinstance(supervisor.state, Failed):
            supervisor._stopping.set()
        return supervisor._stopping.is_set()

    supervisor._pause = pause
    supervisor._run()
    assert pauses == [0.0, 0.1, 0.5, 1.0, module.LOOK_S]
    assert supervisor.n_started == 5
    figure("F4", "given up after 5 starts")


def test_a_worker_that_cannot_be_started_is_given_up_too(
    log: KeptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    supervisor = Supervisor(Load("model.gguf"), log, ("/no/such/program",))
    supervisor.start()
    supervisor.wait_until_settled(WAIT_S)
    assert isinstance(supervisor.state, Failed)
    assert "could not be started" in supervisor.state.reason
    supervisor.stop()


@pytest.mark.parametrize(("code", "cause"), [(3, "ended with code 3"), (-9, "was ended by SIGKILL"),
                                             (-40, "was ended by signal 40")])  # fmt: skip
def test_the_cause_of_an_exit_is_named(code: int, cause: str) -> None:
    assert worker_process.exit_cause(code, ["all is well"]) == cause


@pytest.mark.parametrize(
    ("stderr_lines", "reason"),
    [
        (["ggml.c:1: GGML_ASSERT(buffer) failed", "Fatal Python error: Aborted", "  File errors"],
         "ggml.c:1: GGML_ASSERT(buffer) failed"),
        (["Traceback (most recent call last):", "    raise error", "MemoryError"], "MemoryError"),
        (["all is well", "", "libgomp: Thread creation failed: no"],
         "libgomp: Thread creation failed: no"),
        (["terminate called", "  what():  std::bad_alloc", "std::bad_alloc"], "std::bad_alloc"),
    ],
)  # fmt: skip
def test_the_cause_of_an_exit_quotes_the_last_error(stderr_lines: list[str], reason: str) -> None:
    cause = worker_process.exit_cause(-6, stderr_lines)
    assert cause == f"was ended by SIGABRT: {reason}"


def test_a_model_that_cannot_be_loaded_is_not_tried_again(supervise: Any) -> None:
    supervisor = supervise("broken")
    assert supervisor.n_started == 1
    assert supervisor.state == Failed("llama.cpp cannot load model.gguf")


def test_closing_an_open_request_cancels_it_in_the_worker(supervise: Any, log: KeptLog) -> None:
    supervisor = supervise()
    reply = supervisor.submit(chat("hang"))
    until(lambda: reply.process is not None)
    reply.close()
    reply.close()
    events(supervisor.submit(chat("echo synchronised")))
    supervisor.stop()
    assert log.text().count("cancelled 1") == 1


def test_a_complete_request_is_not_cancelled(supervise: Any, log: KeptLog) -> None:
    supervisor = supervise()
    reply = supervisor.submit(chat("echo x"))
    events(reply)
    reply.close()
    supervisor.stop()
    assert "cancelled" not in log.text()


def test_stopping_fails_what_is_open_and_ends_the_worker(supervise: Any) -> None:
    supervisor = supervise()
    pid = supervisor.pid
    reply = supervisor.submit(chat("hang"))
    supervisor.stop()
    assert supervisor.state == Unloaded()
    for ask in (lambda: events(reply), supervisor.check_admission):
        with pytest.raises(Unavailable, match="stopping"):
            ask()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stopping_while_another_worker_is_started_ends_that_one_too(
    supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, started, go_on = supervise(), threading.Event(), threading.Event()
    made: list[WorkerProcess] = []

    def slowly(*arguments: Any) -> WorkerProcess:
        made.append(WorkerProcess(*arguments))
        started.set()
        go_on.wait(WAIT_S)
        return made[-1]

    monkeypatch.setattr(module, "WorkerProcess", slowly)
    fails(supervisor, "die SIGKILL")
    started.wait(WAIT_S)
    stopping = threading.Thread(target=supervisor.stop)
    stopping.start()
    supervisor._stopping.wait(WAIT_S)
    go_on.set()
    stopping.join()
    supervisor._thread.join(WAIT_S)
    assert not supervisor._thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(made[0].pid, 0)


def test_a_worker_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    environment = worker_process.worker_environment()
    assert "OPENAI_API_KEY" not in environment
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert environment["GGML_NO_BACKTRACE"] == "1"
    monkeypatch.setenv("GGML_NO_BACKTRACE", "0")
    assert worker_process.worker_environment()["GGML_NO_BACKTRACE"] == "0"
