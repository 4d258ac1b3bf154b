"""Models are loaded when asked for, leave when idle, and never exceed the memory there is."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lmlite.errors import BadRequest, MissingParameter, ModelFailed, ModelNotFound
from lmlite.messages import Load
from lmlite.server.front.limits import DEFAULT_LIMITS
from lmlite.server.front.sockets import listen
from lmlite.server.http import Handler
from lmlite.server.logs import Log
from lmlite.server.models.life import Failed
from lmlite.server.models.policy import Policy
from lmlite.server.models.registry import Registry
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.server import Server
from tests.support.house import WAIT_S, House, until
from tests.support.shelf import FakeShelf

GIB = 1 << 30


@dataclass
class Home(House):
    """A server of several models with workers without a model."""

    registry: Registry
    shelf: FakeShelf

    def names(self) -> set[str]:
        """The models that are loaded."""
        return {model.name for model in self.registry.loaded() if model.state == "loaded"}

    def text(self, name: str, content: str = "echo hi", **body: Any) -> tuple[int, str]:
        """The status, and the text of the answer or the message of the error."""
        status, data = self.ask(content, model=name, **body)
        reply = json.loads(data)
        if status != 200:
            return status, reply["error"]["message"]
        assert reply["model"] == name
        return status, reply["choices"][0]["message"]["content"]


@contextmanager
def home(sizes: dict[str, int], n_bytes: int = 3 * GIB, **options: Any) -> Iterator[Home]:
    lines = io.StringIO()
    log = Log("info", lines)
    shelf = FakeShelf(sizes, n_bytes, log)
    registry = Registry((), log, shelf, **{"ttl_s": 3600.0, **options})
    sockets = listen("127.0.0.1", 0, DEFAULT_LIMITS.backlog)
    server = Server(sockets, Handler, registry, log)
    registry.start()
    server.start()
    try:
        yield Home(server, None, lines, registry, shelf)  # type: ignore[arg-type]
    finally:
        server.drain(0.0)
        registry.close()


THREE = {"one": GIB, "two": GIB, "three": GIB}


def test_a_request_loads_its_model_and_the_next_one_finds_it_loaded() -> None:
    with home(THREE) as house:
        assert house.names() == set()
        assert house.text("two") == (200, "hi")
        assert house.text("two") == (200, "hi")
        assert house.names() == {"two"}
        assert house.shelf.loads() == ["two"]


def test_the_model_that_was_used_least_recently_leaves_for_the_next() -> None:
    with home(THREE, 2 * GIB) as house:
        for name in ("one", "two", "one", "three"):
            assert house.text(name) == (200, "hi")
        assert house.names() == {"one", "three"}
        assert house.shelf.loads() == ["one", "two", "three"]
        assert "unloaded two" in house.log_text()


def test_a_running_answer_is_not_cut_and_the_next_model_waits_for_its_end() -> None:
    with home(THREE, GIB) as house, ExitStack() as stack:
        stream = stack.enter_context(closing(house.connect()))
        reply = house.begin(stream, "tick 40 0.01", model="one", stream=True)
        assert reply.status == 200
        assert house.text("two") == (200, "hi")
        ticks = [line for line in reply.read().splitlines() if b'"content":"39:' in line]
        assert len(ticks) == 1, "the stream ended with its last tick"
        assert house.shelf.loads() == ["one", "two"]


def test_requests_at_once_load_a_model_once() -> None:
    with home(THREE) as house:
        replies: list[tuple[int, str]] = []
        threads = [
            threading.Thread(target=lambda: replies.append(house.text("one"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert replies == [(200, "hi")] * 8
        assert house.shelf.loads() == ["one"]


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    with home({"one": GIB, "huge": 9 * GIB}) as house:
        status, message = house.text("huge")
        assert status == 503
        assert message == f"huge needs {9 * GIB}, and the test allows {3 * GIB}"
        assert house.text("one") == (200, "hi")


def test_a_model_that_was_fitted_to_the_memory_is_fitted_again_if_that_shrinks() -> None:
    with home({"one": GIB}, GIB) as house:
        house.shelf.shrinks = True
        model = house.registry.find("one")
        bounds = iter([GIB - 1, GIB - 2, GIB - 2])  # as planned; as the keeper finds it
        real = house.shelf.bound
        house.shelf.bound = lambda loaded: real(loaded)._replace(  # type: ignore[method-assign]
            n_bytes=next(bounds, GIB - 2)
        )
        with house.registry.lease(model) as lease:
            until(lambda: lease.supervisor(0.05) is not None)
        assert model.plan is not None and model.plan.estimate.total == GIB - 2


def test_a_model_that_was_told_to_load_stays_and_the_rest_is_refused() -> None:
    with home(THREE, GIB) as house:
        house.registry.load("one")
        status, message = house.text("two")
        assert status == 503
        assert "two" in message and "0" in message
        assert house.names() == {"one"}
        house.registry.unload("one")
        assert house.text("two") == (200, "hi")


def test_a_request_may_say_how_long_its_model_stays() -> None:
    with home(THREE) as house:
        assert house.text("one", ttl=1) == (200, "hi")
        assert house.text("two") == (200, "hi")
        until(lambda: house.names() == {"two"})
        assert house.text("one") == (200, "hi")
        assert house.shelf.loads() == ["one", "two", "one"]


def test_a_time_to_live_is_a_whole_number_of_seconds() -> None:
    with home(THREE) as house:
        assert house.text("one", ttl="soon") == (400, "ttl is not a whole number")
        assert house.text("one", ttl=0)[0] == 400


def test_without_jit_a_request_is_told_how_to_load_its_model() -> None:
    with home(THREE, is_jit=False) as house:
        status, message = house.text("one")
        assert status == 404
        assert message.endswith("loads models only when told to: lmlite load one")
        assert house.get("/v1/models")[1]["data"] == []
        house.registry.load("one")
        assert house.text("one") == (200, "hi")
        assert [row["id"] for row in house.get("/v1/models")[1]["data"]] == ["one"]


def test_the_model_may_be_left_out_if_there_is_no_choice() -> None:
    with home(THREE) as house:
        with pytest.raises(MissingParameter, match="this server has: one, two, three"):
            house.registry.find(None)
        house.registry.load("two")
        assert house.registry.find(None).name == "two"
    with home({"one": 1}) as house:
        assert house.registry.find(None).name == "one"


def test_any_name_means_the_default_model_if_that_is_allowed() -> None:
    with home(THREE, takes_any_name=True) as house:
        assert house.registry.find("gpt-4o-mini").name == "one"
        house.registry.load("three")
        assert house.registry.find("gpt-4o-mini").name == "three"
        assert house.registry.find("two").name == "two"
    with home(THREE) as house, pytest.raises(ModelNotFound):
        house.registry.find("gpt-4o-mini")


def test_an_identifier_is_a_name_while_the_model_is_loaded() -> None:
    with home(THREE) as house:
        house.registry.load("one", identifier="mine")
        assert house.registry.find("mine").name == "one"
        with pytest.raises(BadRequest, match="'two' is another model's name"):
            house.registry.load("one", identifier="two")
        assert house.registry.unload("mine") == "one"
        with pytest.raises(ModelNotFound):
            house.registry.find("mine")


def test_a_model_has_a_bounded_number_of_identifiers() -> None:
    with home(THREE) as house:
        for n in range(17):
            model = house.registry.load("one", identifier=f"mine-{n}")
        assert model.names == ("one", *(f"mine-{n}" for n in range(1, 17)))


def test_a_model_is_unloaded_by_each_name_that_loads_it() -> None:
    with home(THREE, takes_any_name=True) as house:
        house.shelf.others = {"on": "one"}
        house.registry.load("on")
        with pytest.raises(ModelNotFound, match="there is no model 'gpt-4o-mini'"):
            house.registry.unload("gpt-4o-mini")
        assert house.registry.unload("on") == "one"
        with pytest.raises(ModelNotFound, match="'one' is not loaded"):
            house.registry.unload("on")


def test_a_loaded_model_is_not_loaded_again_with_other_values() -> None:
    with home(THREE) as house:
        house.registry.load("one", changes={"n_ctx": 256})
        model = house.registry.load("one", changes={"n_ctx": 256})
        assert model.load is not None and model.load.n_ctx == 256
        with pytest.raises(BadRequest, match="loaded with another n_ctx; unload it first"):
            house.registry.load("one", changes={"n_ctx": 512})


def test_a_model_that_cannot_be_loaded_says_why_and_makes_room() -> None:
    with home(THREE, GIB) as house:
        house.shelf.modes["one"] = "broken"
        why = (503, "the model is not available: llama.cpp cannot load /nowhere/one.gguf")
        assert house.text("one") == why
        assert house.text("two") == (200, "hi")
        assert house.text("one") == why
        assert house.shelf.loads() == ["one", "two"], "it is not tried again"


def test_a_load_that_fails_leaves_nothing_behind_and_is_tried_again() -> None:
    with home(THREE) as house:
        house.shelf.modes["one"] = "broken"
        for _ in range(2):
            with pytest.raises(ModelFailed, match=r"llama\.cpp cannot load /nowhere/one\.gguf"):
                house.registry.load("one")
            until(lambda: house.registry.loaded() == [])
        del house.shelf.modes["one"]
        assert house.text("one") == (200, "hi")


def test_a_load_whose_client_leaves_leaves_nothing_behind() -> None:
    with home(THREE) as house:
        house.shelf.modes["one"] = "stop"  # its worker never becomes ready

        def leave() -> None:
            if house.registry.loaded():
                raise ConnectionAbortedError

        with pytest.raises(ConnectionAbortedError):
            house.registry.load("one", poll=leave)
        until(lambda: house.registry.loaded() == [])


def test_what_has_failed_for_a_request_may_be_loaded_with_other_values() -> None:
    with home(THREE) as house:
        house.shelf.modes["one"] = "broken"
        assert house.text("one")[0] == 503
        until(lambda: house.registry.loaded() == [])
        del house.shelf.modes["one"]
        with pytest.raises(ModelFailed):
            house.registry.load("one")
        house.registry.load("one", changes={"n_parallel": 2})
        assert house.text("one") == (200, "hi")


def test_a_client_that_leaves_while_its_model_waits_lets_the_next_one_go_on() -> None:
    with home(THREE, GIB) as house, ExitStack() as stack:
        stream = stack.enter_context(closing(house.connect()))
        reply = house.begin(stream, "tick 100 0.02", model="one", stream=True)
        with closing(house.connect()) as waiting:
            house.send(waiting, "echo hi", model="two")
            until(lambda: house.server.n_active == 2)
        until(lambda: house.server.n_active == 1)
        assert house.text("one") == (200, "hi")
        assert house.shelf.loads() == ["one"]
        reply.close()


def test_nobody_waits_longer_than_the_limit_of_the_queue() -> None:
    with home(THREE, GIB) as house, ExitStack() as stack:
        object.__setattr__(house.server, "limits", DEFAULT_LIMITS.__class__(queue_seconds=0.2))
        stream = stack.enter_context(closing(house.connect()))
        house.begin(stream, "tick 200 0.05", model="one", stream=True)
        assert house.text("two") == (
            503,
            "no room for two within 0.2 seconds: it needs 1.0 GiB of memory, 0 MiB is free, and "
            "in use: one",
        )


def test_a_waiting_stream_hears_how_far_its_model_is_loaded(tmp_path: Any) -> None:
    del tmp_path
    with home(THREE, GIB) as house, ExitStack() as stack:
        limits = DEFAULT_LIMITS.__class__(ping_seconds=0.05)
        object.__setattr__(house.server, "limits", limits)
        stream = stack.enter_context(closing(house.connect()))
        house.begin(stream, "tick 40 0.01", model="one", stream=True)
        second = stack.enter_context(closing(house.connect()))
        text = house.begin(second, "echo hi", model="two", stream=True).read()
        assert b": model_load 0.00\n\n" in text
        assert text.endswith(b"data: [DONE]\n\n")


def test_a_worker_that_dies_comes_back_and_its_model_stays() -> None:
    with home(THREE) as house:
        assert house.text("two") == (200, "hi")
        assert house.text("one", "die SIGKILL")[0] == 503
        until(lambda: house.names() == {"one", "two"})
        assert house.text("one") == (200, "hi")
        assert house.shelf.loads() == ["two", "one"]


def test_health_and_metrics_tell_of_all_models() -> None:
    with home(THREE) as house:
        assert house.get("/health") == (200, {"status": "idle"})
        house.text("one")
        house.text("two")
        status, health = house.get("/health")
        assert (status, health["status"]) == (200, "ready")
        assert {name: row["status"] for name, row in health["models"].items()} == {
            "one": "ready", "two": "ready"
        }  # fmt: skip
        with closing(house.connect()) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        assert "lmlite_models_loaded 2\n" in text
        assert "lmlite_model_loads_total 2\n" in text
        assert 'lmlite_sequences_running{model="one"} 0\n' in text
        assert 'lmlite_memory_cells{model="two",state="used"} ' in text


def test_a_stopped_server_has_no_worker_left() -> None:
    with home(THREE) as house:
        house.text("one")
        ((_, supervisor),) = house.shelf.supervisors
    assert supervisor.pid is None
    assert not isinstance(supervisor.state, Failed)


def test_a_model_that_is_being_loaded_can_be_told_to_leave() -> None:
    with home(THREE) as house:
        model = house.registry.find("one")
        with house.registry.lease(model) as lease:
            while lease.supervisor(0.01) is None:
                pass
            done = threading.Thread(target=house.registry.unload, args=("one",))
            done.start()
            assert house.registry.loaded() == [model], "somebody holds it"
        done.join(WAIT_S)
        assert house.registry.loaded() == []


def test_after_the_end_no_model_is_loaded() -> None:
    with home(THREE) as house:
        house.registry.close()
        model = house.registry.find("one")
        with pytest.raises(Exception, match="the server is stopping"), house.registry.lease(model):
            pass
        with pytest.raises(ModelFailed):
            raise ModelFailed("")


def test_a_request_for_a_loaded_model_does_not_look_at_the_memory() -> None:
    with home(THREE) as house:
        house.text("one")
        house.text("one")
        n_looks = house.shelf.n_looks
        for _ in range(20):
            assert house.text("one") == (200, "hi")
        assert house.shelf.n_looks == n_looks
        house.text("two")
        assert house.shelf.n_looks > n_looks


def test_only_as_many_requests_wait_for_a_model_as_its_queue_takes() -> None:
    with home(THREE, GIB) as house, ExitStack() as stack:
        two = house.registry.find("two")
        two.wanted = replace(Load("/nowhere/two.gguf"), n_parallel=1, n_queue=1)
        with house.registry.lease(house.registry.find("one")):
            for _ in range(2):
                stack.enter_context(house.registry.lease(two))
            assert house.text("two") == (503, "2 requests are waiting already")


def test_what_is_about_to_be_loaded_counts_as_memory_in_use() -> None:
    with home({"one": 2 * GIB, "two": 2 * GIB}) as house:
        is_loading, go_on = threading.Event(), threading.Event()
        house.shelf.before = lambda _: (is_loading.set(), go_on.wait(WAIT_S))  # type: ignore
        with house.registry.lease(house.registry.find("one")):
            assert is_loading.wait(WAIT_S)
            has_room = house.registry.has_room_for(house.registry.find("two"))
            go_on.set()
        assert not has_room


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("can't start new thread")])
def test_what_goes_wrong_with_one_load_ends_no_other(error: Exception) -> None:
    def fail(name: str) -> None:
        if name == "one":
            raise error

    with home(THREE, GIB) as house:
        house.shelf.before = fail
        assert house.text("one") == (503, f"the model is not available: {error}")
        assert house.text("two") == (200, "hi")
        house.shelf.before = lambda _: None
        assert house.text("one") == (200, "hi"), "the file is not at fault, so it is tried again"


def test_a_mistake_does_not_end_the_loading_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with home(THREE, GIB) as house:
        decide, errors = Policy.decide, [MemoryError(), KeyError("one")]

        def fail(self: Policy, n_free: float, now_s: float) -> Any:
            if errors:
                raise errors.pop()
            return decide(self, n_free, now_s)

        monkeypatch.setattr(Policy, "decide", fail)
        assert house.text("one") == (200, "hi")
        assert "KeyError" in house.log_text()


def test_a_worker_whose_stop_fails_still_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with home(THREE, GIB) as house:
        assert house.text("one") == (200, "hi")
        stop = Supervisor.stop

        def fail(self: Supervisor) -> None:
            stop(self)
            raise RuntimeError("cannot join")

        monkeypatch.setattr(Supervisor, "stop", fail)
        assert house.text("two") == (200, "hi")
        monkeypatch.undo()


def test_who_waits_for_room_when_the_server_ends_is_told_so() -> None:
    with home(THREE, GIB) as house, ExitStack() as stack:
        stream = stack.enter_context(closing(house.connect()))
        house.begin(stream, "tick 200 0.05", model="one", stream=True)
        replies: list[tuple[int, str]] = []
        waiting = threading.Thread(target=lambda: replies.append(house.text("two")))
        waiting.start()
        until(lambda: house.server.n_active == 2)
        house.registry.close()
        waiting.join(WAIT_S)
        assert replies == [(503, "the server is stopping")]
