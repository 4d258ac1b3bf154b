"""Each call that can fail fails once: sockets, pipes, JSON, threads, the library."""

import ctypes
import gc
import http.client
import itertools
import json
import math
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from lmlite import frames
from lmlite.errors import KINDS
from lmlite.messages import (
    Chat,
    ChatMessage,
    ChatOptions,
    Complete,
    Delta,
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    Load,
    SamplingParams,
)
from lmlite.server.front import connection as connection_module
from lmlite.server.front import wire
from lmlite.server.front.connection import Connection
from lmlite.server.models import supervisor as supervisor_module
from lmlite.server.models.open_requests import OpenRequest
from lmlite.server.models.worker_process import WorkerProcess
from lmlite.worker.__main__ import Worker
from lmlite.worker.chat.renderer import TemplateError
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from tests.conftest import DEFAULT_MODEL, TIMES
from tests.support.house import House, opened, until
from tests.support.saboteur import Saboteur, chosen

N_MOST = None if TIMES > 1 else 60  # library calls to fail in `make test`
WAIT_S = 30.0


# ---- the server ------------------------------------------------------------------------------


class FailingSocket:
    """A connection whose operations may fail."""

    def __init__(self, sock: Any, saboteur: Saboteur) -> None:
        self._sock = sock
        gone, late = ConnectionResetError("gone"), TimeoutError("late")
        self.setsockopt = saboteur.wrap("setsockopt", sock.setsockopt, OSError("no"))
        self.sendall = saboteur.wrap("sendall", sock.sendall, late)
        self.shutdown = saboteur.wrap("shutdown", sock.shutdown, gone)
        self.recv = saboteur.wrap("recv", sock.recv, gone)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class FailingPipe:
    """The pipe to a worker."""

    def __init__(self, pipe: Any, saboteur: Saboteur) -> None:
        self.write = saboteur.wrap("pipe.write", pipe.write, BrokenPipeError("broken"))
        self.flush = saboteur.wrap("pipe.flush", pipe.flush, BrokenPipeError("broken"))
        self.close = pipe.close


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    """A saboteur for all calls of the server that can fail."""
    made = Saboteur()

    class FailingConnection(Connection):
        def __init__(self, sock: Any, *arguments: Any) -> None:
            super().__init__(FailingSocket(sock, made), *arguments)  # type: ignore[arg-type]

    class FailingProcess(WorkerProcess):
        def __init__(self, *arguments: Any) -> None:
            if made.strikes("spawn"):
                raise OSError("no processes left")
            super().__init__(*arguments)
            self.requests = FailingPipe(self.requests, made)  # type: ignore[assignment]

    def seam(owner: Any, name: str, error: BaseException) -> None:
        monkeypatch.setattr(owner, name, made.wrap(name, getattr(owner, name), error))

    monkeypatch.setattr("lmlite.server.front.handler.Connection", FailingConnection)
    monkeypatch.setattr(supervisor_module, "WorkerProcess", FailingProcess)
    monkeypatch.setattr("lmlite.server.models.restarts.BACKOFF_S", (0.0,))
    monkeypatch.setattr(connection_module, "LINGER_S", 0.05)
    seam(frames, "encode", MemoryError("no memory"))
    seam(frames, "read", frames.FrameError("a frame is malformed"))
    seam(wire, "parse_json", MemoryError("no memory"))
    seam(wire, "to_json", MemoryError("no memory"))
    start = threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        if made.strikes("start"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    return made


def outcome(house: House, stream: bool) -> str:
    """The outcome for a client: "answered", "refused" with a proper error, or "cut"."""
    connection = house.connect()
    try:
        reply = house.begin(connection, "echo one two", stream=stream)
        status, body = reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return "cut"
    finally:
        connection.close()
    if status != 200:
        assert 400 <= status <= 599
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
        return "refused"
    if not stream:
        assert json.loads(body)["choices"][0]["message"]["content"] == "one two"
        return "answered"
    events = [event[6:] for event in body.decode().split("\n\n") if event.startswith("data: ")]
    if events[-1] == "[DONE]":
        objects = map(json.loads, events[:-1])
        deltas = [choice["delta"] for each in objects for choice in each["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "one two"
        return "answered"
    assert "error" in json.loads(events[-1])
    return "refused"


def held(house: House) -> Counter[str]:
    """Counts of a server's open objects and descriptors."""
    gc.collect()
    kinds = (OpenRequest, Connection)
    objects = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
    return objects + Counter(
        requests=house.supervisor.n_open(),
        active=house.server.n_active,
        connections=house.server.n_connections(),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
    )


def until_at_rest(house: House, before: Counter[str], what: str = "") -> None:
    """Waits until the counts are as before. A failure shows the difference."""
    try:
        until(lambda: house.supervisor.ready is not None and held(house) == before)
    except AssertionError:
        assert held(house) == before, what


def every(names: Iterable[str], n_failed: Counter[str]) -> Iterator[tuple[str, int]]:
    """(name, k) for each call of each name, until no k-th call is left to fail."""
    for name in names:
        k = 1
        yield name, k
        while n_failed[name] == k:
            k += 1
            yield name, k


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_any_failing_call_of_the_server_is_an_error_to_the_client_and_leaves_nothing_behind(
    saboteur: Saboteur, stream: bool, figure: Callable[[str, str], None]
) -> None:
    with opened() as house:
        assert outcome(house, stream) == "answered"
        until(lambda: house.server.n_connections() == 0)
        before, outcomes, n_failed = held(house), Counter[str](), Counter[str]()
        saboteur.arm(None)
        assert outcome(house, stream) == "answered"
        until_at_rest(house, before)
        names = sorted(set(saboteur.calls))
        assert {"encode", "read", "recv", "sendall", "start", "parse_json"} <= set(names)
        for name, k in every(names, n_failed):
            saboteur.arm(k, name)
            found = outcome(house, stream)
            failed = saboteur.failed
            saboteur.arm(None)
            until_at_rest(house, before, f"after {name}, the {k}. call")
            if failed is None:
                assert found == "answered"
                continue
            n_failed[name] += 1
            outcomes[found] += 1
            assert outcome(house, stream) == "answered", f"after {name}, the {k}. call"
            until_at_rest(house, before)
        assert n_failed.keys() == set(names)
        assert outcomes["answered"] < n_failed.total() / 2
        told = f"{n_failed.total()} calls of the server ({'streamed' if stream else 'whole'})"
        print(f"{told}: {dict(outcomes)}")
        figure("F20", told)


@pytest.mark.long
def test_any_failing_call_while_a_worker_is_replaced_still_brings_a_worker(
    saboteur: Saboteur,
) -> None:
    with opened() as house:
        assert outcome(house, False) == "answered"
        until(lambda: house.server.n_connections() == 0)
        before, n_failed = held(house), Counter[str]()

        def replace_worker() -> None:
            n_started, pid = house.supervisor.n_started, house.supervisor.pid
            assert pid is not None
            os.kill(pid, 9)
            until(lambda: house.supervisor.n_started > n_started)
            until(lambda: house.supervisor.ready is not None)

        saboteur.arm(None)
        replace_worker()
        names = sorted(set(saboteur.calls))
        assert {"spawn", "start", "encode", "pipe.write", "pipe.flush", "read"} <= set(names)
        for name, k in every(names, n_failed):
            saboteur.arm(k, name)
            replace_worker()
            n_failed[name] += saboteur.failed is not None
            saboteur.arm(None)
            assert outcome(house, False) == "answered", f"after {name}, the {k}. call"
            until_at_rest(house, before, f"after {name}, the {k}. call")
        assert all(n_failed.values())


# ---- the worker ------------------------------------------------------------------------------

# Library function -> its possible results when it fails.
FAILURES: dict[str, tuple[Any, ...]] = {
    "lml_chat_render": (None, b'{"error": "no"}'),
    "lml_grammar_init": (None,),
    "lml_answer_init": (None,),
    "lml_answer_finish": (b'{"error": "no"}',),
    "lml_sample": (-1,),
    "lml_logprobs": (math.nan,),
    "llama_tokenize": (-1, -(2**31)),
    "llama_sampler_chain_init": (None,),
    "llama_sampler_init_penalties": (None,),
    "llama_sampler_init_logit_bias": (None,),
    "llama_sampler_init_greedy": (None,),
    "llama_decode": (-3, 1, 2),
    "llama_get_logits_ith": (None,),
    "llama_memory_seq_rm": (False,),
    "llama_state_seq_get_size": (0,),
    "llama_state_seq_get_data": (0,),
    "llama_state_seq_set_data": (0,),
    "llama_init_from_model": (None,),
    "llama_get_embeddings_seq": (None,),
}
LOAD_FAILURES: dict[str, tuple[Any, ...]] = {
    "llama_model_load_from_file": (None,),
    "llama_init_from_model": (None,),
    "lml_chat_init": (None,),
}
# Functions that allocate, and those that free.
OWNED = {
    "llama_model_load_from_file": "llama_model_free",
    "llama_init_from_model": "llama_free",
    "lml_chat_init": "lml_chat_free",
    "lml_answer_init": "lml_answer_free",
    "lml_chat_render": "lml_free",
    "lml_answer_push": "lml_free",
    "lml_answer_finish": "lml_free",
    "lml_grammar_init": "llama_sampler_free",
    "llama_sampler_chain_init": "llama_sampler_free",
    "llama_sampler_init_penalties": "llama_sampler_free",
    "llama_sampler_init_logit_bias": "llama_sampler_free",
    "llama_sampler_init_greedy": "llama_sampler_free",
}


class FailingLibrary:
    """The library with calls that may fail. Counts objects that were allocated but not freed."""

    def __init__(self, lib: Any, saboteur: Saboteur, failures: dict[str, tuple[Any, ...]]) -> None:
        self._lib, self._saboteur, self._failures = lib, saboteur, failures
        self._texts: dict[int, Any] = {}  # texts that were allocated here
        self.open: Counter[str] = Counter()
        self._kinds: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._lib, name)

        def call(*arguments: Any) -> Any:
            if name in OWNED.values():
                self._give_back(arguments[0])
            if name == "llama_sampler_chain_add":
                self._give_back(arguments[1])  # the chain owns it now, and frees it
            if name == "lml_free" and arguments[0] in self._texts:
                del self._texts[arguments[0]]
                return None
            results = self._failures.get(name)
            if name == "lml_answer_finish" and not arguments[1]:
                results = None  # a cut-off text may have any form
            if results is None or not self._saboteur.strikes(name):
                result = function(*arguments)
            else:
                result = self._failure(results[len(self._saboteur.calls) % len(results)])
            if name in OWNED and result:
                self._kinds[address_of(result)] = name
                self.open[name] += 1
            return result

        setattr(self, name, call)
        return call

    def _failure(self, result: Any) -> Any:
        if not isinstance(result, bytes):
            return result
        text = ctypes.create_string_buffer(result)
        self._texts[ctypes.addressof(text)] = text
        return ctypes.addressof(text)

    def _give_back(self, pointer: Any) -> None:
        kind = self._kinds.pop(address_of(pointer), None)
        if kind is not None:
            self.open[kind] -= 1
            self.open += Counter()


def address_of(pointer: Any) -> int:
    return int(getattr(pointer, "value", pointer) or 0)


class Desk:
    """Receives a worker's events."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def send(self, events: Iterable[Event]) -> None:
        for event in events:
            self._events.put(event)

    def until_end(self, request_id: int) -> tuple[str, str]:
        """The text of a request, and the kind of its end."""
        text = ""
        while True:
            event = self._events.get(timeout=WAIT_S)
            if getattr(event, "id", None) != request_id:
                continue
            match event:
                case Delta():
                    text += event.text
                case Finished():
                    return text, event.reason
                case Embedded():
                    return "a vector", "stop"
                case Failed():
                    assert event.kind in KINDS
                    assert event.message
                    return text, "failed"


def asks() -> list[Chat | Complete | Embed]:
    """Requests with many options; the second parks the first's memory, the third restores it."""
    story = "one two three four five. " * 12
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    params = SamplingParams(
        temperature=0, max_tokens=12, n_logprobs=2, repeat_penalty=1.1, presence_penalty=0.5,
        logit_bias=((5, -1.0),),
    )  # fmt: skip
    formed = Chat(0, (ChatMessage("user", story),), params, options=ChatOptions(json_schema=schema))
    other = Complete(0, ("red green blue " * 20,), SamplingParams(temperature=0, max_tokens=6))
    return [formed, other, formed, Embed(0, ("one two",))]


numbers = itertools.count(1)


def answers(worker: Worker, desk: Desk) -> list[tuple[str, str]]:
    found = []
    for request in asks():
        number = next(numbers)
        worker.handle(replace(request, id=number))
        found.append(desk.until_end(number))
    return found


@contextmanager
def working(desk: Desk) -> Iterator[Worker]:
    worker = Worker(LOAD, desk)  # type: ignore[arg-type]
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture
def library(lib: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FailingLibrary]:
    def make(saboteur: Saboteur, failures: dict[str, tuple[Any, ...]]) -> FailingLibrary:
        made = FailingLibrary(lib, saboteur, failures)
        monkeypatch.setattr(capi, "load", lambda *_given: made)
        return made

    return make


LOAD = Load(str(DEFAULT_MODEL), n_ctx=1024, n_parallel=1, n_threads=1)


@pytest.mark.long
def test_any_failing_library_call_ends_the_request_and_leaves_nothing_behind(
    library: Callable[..., FailingLibrary], figure: Callable[[str, str], None]
) -> None:
    saboteur, desk = Saboteur(), Desk()
    failing = library(saboteur, FAILURES)
    with working(desk) as worker:
        saboteur.arm(None)
        expected = answers(worker, desk)
        n_calls, names = len(saboteur.calls), set(saboteur.calls)
        at_rest = Counter(failing.open)
        assert answers(worker, desk) == expected
        assert failing.open == at_rest
    assert failing.open == Counter()
    assert {reason for _, reason in expected} <= {"stop", "length"}
    assert names >= {"lml_chat_render", "lml_grammar_init", "llama_decode", "lml_logprobs",
                     "llama_state_seq_get_data", "llama_state_seq_set_data"}  # fmt: skip
    ends = Counter[str]()
    for k in chosen(n_calls, N_MOST):
        with working(desk) as worker:
            saboteur.arm(k)
            found = answers(worker, desk)
            failed = f"after {saboteur.failed}, the {k}. call"
            saboteur.arm(None)
            for (text, reason), (whole, _) in zip(found, expected, strict=True):
                assert whole.startswith(text), failed
                ends[reason] += 1
            assert answers(worker, desk) == expected, failed
            assert failing.open == at_rest, failed
            generator = worker.model.generator
            assert generator is not None and not generator.running
            assert not any(lane.busy for lane in generator.memory.lanes)
        assert failing.open == Counter(), failed
    print(f"{n_calls} calls: {dict(ends)}")
    assert ends["failed"] > 0
    figure("F20", f"{min(n_calls, N_MOST or n_calls)} of {n_calls} calls of the library")


def test_any_failing_call_while_loading_gives_everything_back(
    library: Callable[..., FailingLibrary],
) -> None:
    saboteur = Saboteur()
    failing = library(saboteur, LOAD_FAILURES)
    Worker(LOAD, Desk()).close()  # type: ignore[arg-type]
    n_calls = len(saboteur.calls)
    assert n_calls >= 3
    for k in range(1, n_calls + 1):
        saboteur.arm(k)
        with pytest.raises((LlamaError, TemplateError, MemoryError)):
            Worker(LOAD, Desk())  # type: ignore[arg-type]
        assert failing.open == Counter(), f"after {saboteur.failed}"
        assert "engine" not in {thread.name for thread in threading.enumerate()}
