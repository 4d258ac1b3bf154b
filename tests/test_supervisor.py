"""A worker is started, watched, replaced when it dies, and given up when it cannot live."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import BadRequest, Unavailable
from lmlite.messages import Chat, ChatMessage, Delta, Finished, Load, SamplingParams, Started
from lmlite.server import supervisor as module
from lmlite.server.logs import Log
from lmlite.server.supervisor import Reply, Supervisor

FAKE = (sys.executable, "-m", "tests.fake_worker")
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _worker_finds_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


@pytest.fixture
def log() -> Log:
    return Log("debug", io.StringIO())


@pytest.fixture
def supervise(log: Log, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts supervisors of fake workers, and stops them after the test."""
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    made: list[Supervisor] = []

    def start(mode: str = "") -> Supervisor:
        made.append(Supervisor(Load("model.gguf"), log, (*FAKE, mode)))
        made[-1].start()
        made[-1].wait_until_settled(WAIT_S)
        return made[-1]

    yield start
    for each in made:
        each.stop()


def lines(log: Log) -> str:
    stream: Any = log._stream
    return str(stream.getvalue())


def chat(content: str) -> Chat:
    return Chat(0, (ChatMessage("user", content),), SamplingParams())


def events(reply: Reply) -> list[Any]:
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


def test_a_refused_request_raises_its_error(supervise: Any) -> None:
    reply = supervise().submit(chat("refuse"))
    with pytest.raises(BadRequest) as caught:
        events(reply)
    assert (caught.value.message, caught.value.param) == ("refused", "messages")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_worker_that_dies_fails_its_requests_and_is_replaced(
    supervise: Any, log: Log, name: str
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
    assert f"was ended by {name}" in lines(log)


def test_a_worker_that_breaks_the_format_is_replaced(supervise: Any, log: Log) -> None:
    supervisor = supervise()
    with pytest.raises(Unavailable):
        events(supervisor.submit(chat("garbage")))
    assert events(supervisor.submit(chat("echo back")))[1] == Delta(2, 0, "back")
    assert "a frame is malformed" in lines(log)


def test_a_worker_that_dies_five_times_within_a_minute_is_given_up(supervise: Any) -> None:
    supervisor = supervise("crash")
    assert supervisor.n_started == 5
    assert supervisor.fault == (
        "its worker ended 5 times within a minute "
        "(it was ended by SIGABRT: GGML_ASSERT(nothing works) failed)"
    )
    with pytest.raises(Unavailable, match="ended 5 times") as caught:
        supervisor.submit(chat("echo x"))
    assert caught.value.retry_after_s is None


def test_a_worker_that_cannot_be_started_is_given_up_too(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    supervisor = Supervisor(Load("model.gguf"), log, ("/no/such/program",))
    supervisor.start()
    supervisor.wait_until_settled(WAIT_S)
    assert "could not be started" in (supervisor.fault or "")
    supervisor.stop()


@pytest.mark.parametrize(("code", "cause"), [(3, "ended with code 3"), (-9, "was ended by SIGKILL"),
                                             (-40, "was ended by signal 40")])  # fmt: skip
def test_the_cause_of_a_death_is_named(log: Log, code: int, cause: str) -> None:
    assert Supervisor(Load("model.gguf"), log)._cause_of_death(code) == cause


def test_a_model_that_cannot_be_loaded_is_not_tried_again(supervise: Any) -> None:
    supervisor = supervise("broken")
    assert supervisor.n_started == 1
    assert supervisor.fault == "llama.cpp cannot load model.gguf"


def test_letting_go_of_a_reply_cancels_it_in_the_worker(supervise: Any, log: Log) -> None:
    supervisor = supervise()
    reply = supervisor.submit(chat("hang"))
    reply.close()
    reply.close()
    events(supervisor.submit(chat("echo synchronised")))
    supervisor.stop()
    assert lines(log).count("cancelled 1") == 1


def test_a_complete_reply_is_not_cancelled(supervise: Any, log: Log) -> None:
    supervisor = supervise()
    reply = supervisor.submit(chat("echo x"))
    events(reply)
    reply.close()
    supervisor.stop()
    assert "cancelled" not in lines(log)


def test_stopping_fails_what_is_open_and_ends_the_worker(supervise: Any) -> None:
    supervisor = supervise()
    pid = supervisor.pid
    reply = supervisor.submit(chat("hang"))
    supervisor.stop()
    with pytest.raises(Unavailable, match="stopping"):
        events(reply)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    environment = module.worker_environment()
    assert "OPENAI_API_KEY" not in environment
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert environment["GGML_NO_BACKTRACE"] == "1"
