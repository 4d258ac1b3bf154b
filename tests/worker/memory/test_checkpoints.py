"""Checkpoints: what was read once comes back, from memory or a file, and gives the same answer."""

import os
import random
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.messages import Delta, Finished, ReplyEvent, SamplingParams, Started
from lmlite.worker.generator import Generator
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from lmlite.worker.memory import checkpoint_files
from lmlite.worker.memory.checkpoint_files import CheckpointFiles, identity_of
from lmlite.worker.memory.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.sequence import Sequence
from tests import REPOSITORY
from tests.support import architectures
from tests.support.house import until
from tests.support.server_process import RunningServer

IDENTITY = bytes(64)
SYSTEM = "You answer in one word. " * 20
N_OUT = 12
WAIT_S = 20.0


def in_files(folder: Path, max_bytes: int = 1 << 20, identity: bytes = IDENTITY) -> CheckpointFiles:
    said.clear()
    return CheckpointFiles(folder, max_bytes, identity, said.append)


said: list[str] = []


# ---- the store -----------------------------------------------------------------------------


def test_the_longest_beginning_is_found_and_one_token_is_left_to_read() -> None:
    store = Checkpoints(100)
    store.add([1, 2], b"two")
    store.add([1, 2, 3, 4], b"four")
    n_tokens, found = store.best([1, 2, 3, 4], can_cut=True)
    assert found is not None
    assert (n_tokens, store.load(found)) == (3, b"four")
    n_tokens, found = store.best([1, 2, 3, 4], can_cut=False)
    assert found is not None
    assert (n_tokens, store.load(found)) == (2, b"two")
    assert store.best([7, 8], can_cut=True) == (0, None)
    assert store.holds([1, 2]) and not store.holds([1])


def test_the_least_recently_used_checkpoint_makes_room() -> None:
    store = Checkpoints(10)
    store.add([1, 1], b"12345")
    store.add([2, 2], b"12345")
    _, first = store.best([1, 1, 1], can_cut=True)
    assert first is not None and store.load(first) == b"12345"
    store.add([3, 3], b"123")
    assert [store.holds([n, n]) for n in (1, 2, 3)] == [True, False, True]
    store.add([4, 4], bytes(11))  # larger than all there is
    assert [store.holds([n, n]) for n in (1, 2, 3, 4)] == [True, False, True, False]


def test_a_parked_lane_takes_the_place_of_those_that_it_goes_on_from() -> None:
    store = ParkedLanes(10)
    store.add([1, 2], b"12345")
    store.add([1, 3], b"123")
    store.add([1, 2, 4], b"12345")
    assert [store.holds(tokens) for tokens in ([1, 2], [1, 3], [1, 2, 4])] == [False, True, True]
    assert (store.n_bytes, store.has_room(2), store.has_room(3)) == (8, True, False)
    assert store.closest([1, 2, 5]) == [1, 2, 4]
    assert ParkedLanes(10).closest([1, 2, 5]) == []


def test_a_file_is_found_again_by_the_next_process(tmp_path: Path) -> None:
    store = in_files(tmp_path / "new" / "folder")
    store.add([5, 6, 7], b"state")
    store.close()
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    again = in_files(tmp_path / "new" / "folder")
    n_tokens, found = again.best([5, 6, 7, 8], can_cut=False)
    assert found is not None
    assert (n_tokens, again.load(found), said) == (3, b"state", [])
    again.close()


def test_another_models_file_matches_nothing_and_is_left_alone(tmp_path: Path) -> None:
    store = in_files(tmp_path)
    store.add([5, 6, 7], b"state")
    store.close()
    other = in_files(tmp_path, identity=bytes([1]) * 64)
    assert other.best([5, 6, 7, 8], can_cut=True) == (0, None)
    other.close()
    assert said == []
    assert len(list(tmp_path.iterdir())) == 1


def spoilt(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({
        "cut": data[:-1],
        "cut in the head": data[:30],
        "empty": b"",
        "longer": data + b"x",
        "foreign": b"something else" + data,
        "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "tokens changed": data.replace(array("q", [5, 6]).tobytes(), array("q", [5, 5]).tobytes()),
    }[how])  # fmt: skip


@pytest.mark.parametrize(
    "how, reason",
    [
        ("cut", "ignored: it has 196 of 197 bytes"),
        ("cut in the head", "ignored: it is not a checkpoint"),
        ("empty", "ignored: it is not a checkpoint"),
        ("longer", "ignored: it has 198 of 197 bytes"),
        ("foreign", "ignored: it is not a checkpoint"),
        ("flipped", "ignored: it is damaged"),
        ("tokens changed", "ignored: it is damaged"),
    ],
)
def test_a_file_that_was_spoilt_is_ignored_with_one_line(
    tmp_path: Path, how: str, reason: str
) -> None:
    store = in_files(tmp_path)
    store.add([5, 6, 7, 8], b"state")
    store.close()
    (path,) = tmp_path.iterdir()
    spoilt(path, how)
    again = in_files(tmp_path)
    _, found = again.best([5, 5, 7, 8, 9] if how == "tokens changed" else [5, 6, 7, 8, 9], True)
    assert found is None or again.load(found) is None
    assert said == [f"{path.name} is {reason}"]
    assert again.best([5, 6, 7, 8, 9], can_cut=True) == (0, None)
    again.close()


def test_the_least_recently_used_files_are_removed(tmp_path: Path) -> None:
    store = in_files(tmp_path)
    for token in (1, 2):
        store.add([token] * 4, bytes(1000))
        store.close()
        store = in_files(tmp_path, max_bytes=2500)
    for path, seconds in zip(sorted(tmp_path.iterdir()), (100, 200), strict=True):
        os.utime(path, (seconds, seconds))
    store.close()
    oldest, newer = sorted(tmp_path.iterdir())
    store = in_files(tmp_path, max_bytes=2500)
    store.add([3] * 4, bytes(1000))
    store.close()
    assert not oldest.exists() and newer.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_began_to_write_is_removed(tmp_path: Path) -> None:
    ours, theirs = f"a.checkpoint.{os.getpid()}.tmp", "a.checkpoint.99999999.tmp"
    (tmp_path / ours).touch()
    (tmp_path / theirs).touch()
    in_files(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [ours]


def test_a_full_disk_costs_a_line_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    store = in_files(tmp_path)
    store.add([5, 6, 7], b"state")
    store.close()
    assert said == [f"cannot write a checkpoint to {tmp_path}: No space left on device"]
    assert store.best([5, 6, 7, 8], can_cut=True) == (0, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["before it is written", "before it is in its place"])
def test_one_that_is_dropped_while_it_is_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    begun, dropped = threading.Event(), threading.Event()

    def held_up(call: Any) -> Any:
        def wait_and_call(*arguments: Any) -> Any:
            begun.set()
            assert dropped.wait(WAIT_S)
            return call(*arguments)

        return wait_and_call

    if moment == "before it is written":
        monkeypatch.setattr(checkpoint_files, "_digest_of", held_up(checkpoint_files._digest_of))
    else:
        monkeypatch.setattr(Path, "replace", held_up(Path.replace))
    store = in_files(tmp_path, max_bytes=2000)
    store.add([1] * 4, bytes(1000))
    assert begun.wait(WAIT_S)
    store.add([2] * 4, bytes(1500))  # for which the first one has to leave
    dropped.set()
    store.close()
    (kept,) = store.kept
    assert [kept.path] == list(tmp_path.iterdir())
    assert kept.tokens == [2] * 4


def test_one_that_could_not_be_written_takes_no_later_one_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = in_files(tmp_path, max_bytes=2500)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        store.add([1] * 4, bytes(1000))
        until(lambda: store.kept[0].state is None)
    store.add([1] * 4, bytes(1000))
    until(lambda: store.kept[1].state is None)
    store.add([2] * 4, bytes(1000))  # for which the one that failed has to leave
    store.close()
    assert [store.holds([n] * 4) for n in (1, 2)] == [True, True]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_identity_changes_with_the_files_and_the_parameters(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(bytes(3 << 20))
    first = identity_of([str(path)], 4096, "f16")
    assert identity_of([str(path)], 4096, "f16") == first
    assert identity_of([str(path)], 4096, "q8_0") != first
    path.write_bytes(bytes((3 << 20) - 1) + b"x")
    assert identity_of([str(path)], 4096, "f16") != first


# ---- in the engine -------------------------------------------------------------------------


class Bench:
    """A generator that is driven step by step."""

    def __init__(
        self,
        lib: Any,
        path: Path,
        n_lanes: int,
        *stores: Checkpoints,
        n_ctx: int = 1024,
        parked: ParkedLanes | None = None,
    ) -> None:
        self.model = Model(lib, str(path))
        self.context = Context(self.model, n_ctx=n_ctx, n_batch=64, n_seq_max=n_lanes, n_threads=1)
        self.events: list[Any] = []
        self.n_running_most = 0  # at the same time
        self.generator = Generator(
            self.model, self.context, n_parallel=n_lanes, prefill_budget_s=0.15,
            checkpoints=stores, parked=parked,
        )  # fmt: skip

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
        self.model.close()

    def tokens(self, prompt: str) -> list[int]:
        return self.model.vocab.tokenize(prompt, add_special=True, parse_special=True)

    def answers(self, *prompts: str | list[int]) -> list[tuple[int, str]]:
        """For each prompt: how many tokens were cached, and the greedy text."""
        params = SamplingParams(temperature=0, max_tokens=N_OUT)
        self.events.clear()
        for number, prompt in enumerate(prompts):
            tokens = self.tokens(prompt) if isinstance(prompt, str) else prompt
            self.generator.submit(Sequence(number, 0, tokens, params, 0, ()))
        while self.generator.has_work:
            self.events += self.generator.step()
            self.n_running_most = max(self.n_running_most, len(self.generator.running))
        return [answer(self.events, number) for number in range(len(prompts))]


def answer(events: list[ReplyEvent], number: int) -> tuple[int, str]:
    mine = [event for event in events if event.id == number]
    assert isinstance(mine[-1], Finished)
    (started,) = (event for event in mine if isinstance(event, Started))
    return started.n_cached, "".join(event.text for event in mine if isinstance(event, Delta))


KINDS = [architectures.mamba, architectures.lfm2, architectures.gemma3]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "model.gguf"
    request.param(file)
    yield file


def alone(lib: Any, path: Path, prompt: str | list[int]) -> str:
    with Bench(lib, path, 1) as bench:
        ((n_cached, text),) = bench.answers(prompt)
        assert n_cached == 0
        return text


QUESTIONS = [f"{SYSTEM} Question {letter}: what is it?" for letter in "abc"]


def test_a_conversation_that_goes_on_is_not_read_again(lib: Any, path: Path) -> None:
    with Bench(lib, path, 2) as bench:
        bench.answers(QUESTIONS[0])
        (held,) = (lane.tokens for lane in bench.generator.memory.lanes if lane.tokens)
        prompt = held + bench.tokens(" And then?")
        ((n_cached, text),) = bench.answers(prompt)
    assert n_cached == len(held) > 300
    assert text == alone(lib, path, prompt)


@pytest.mark.parametrize("n_lanes", [1, 3])
def test_without_checkpoints_branches_and_repeats_answer_as_fresh_ones(
    lib: Any, path: Path, n_lanes: int
) -> None:
    with Bench(lib, path, n_lanes) as bench:
        for prompt in (*QUESTIONS, QUESTIONS[0], QUESTIONS[0]):
            ((_, text),) = bench.answers(prompt)
            assert text == alone(lib, path, prompt)
        prompts = [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1], "Hello"]
        texts = [text for _, text in bench.answers(*prompts)]
    assert texts == [alone(lib, path, prompt) for prompt in prompts]


def test_in_a_memory_that_is_always_full_every_branch_answers_as_a_fresh_one(
    lib: Any, path: Path
) -> None:
    source = random.Random(5)
    prompts = [[source.randrange(200) for _ in range(150)]]
    with Bench(lib, path, 4, Checkpoints(1 << 20), n_ctx=512) as bench:
        for _ in range(12):
            begin = source.choice(prompts)[: source.randrange(160)]
            end = [source.randrange(200) for _ in range(source.randrange(1, 100))]
            prompts.append(begin + end)
            ((_, text),) = bench.answers(prompts[-1])
            assert text == alone(lib, path, prompts[-1])


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_checkpoint_serves_the_same_prompt_and_one_that_begins_alike(
    lib: Any, tmp_path: Path, kind: Any
) -> None:
    path = tmp_path / "model.gguf"
    kind(path)
    with Bench(lib, path, 1, Checkpoints(1 << 20)) as bench:
        n_prompt = len(bench.tokens(QUESTIONS[0]))
        first, second, third, again = (bench.answers(p)[0] for p in (*QUESTIONS, QUESTIONS[0]))
    # The second shows where prompts part, the third begins there, the first is there as a whole.
    assert [first[0], second[0], again[0]] == [0, 0, n_prompt - 1]
    assert 300 < third[0] < n_prompt - 5
    texts = [first[1], second[1], third[1], again[1]]
    assert texts == [alone(lib, path, prompt) for prompt in (*QUESTIONS, QUESTIONS[0])]


@pytest.mark.parametrize(
    "kind, together", [(architectures.mamba, 3), (architectures.lfm2, 1), (architectures.gemma3, 1)]
)
def test_prompts_run_together_where_no_token_takes_a_cell(
    lib: Any, tmp_path: Path, kind: Any, together: int
) -> None:
    path = tmp_path / "model.gguf"
    kind(path)
    source = random.Random(6)
    prompts: list[str | list[int]] = [[source.randrange(200) for _ in range(300)] for _ in "abc"]
    with Bench(lib, path, 3, n_ctx=512) as bench:
        found = bench.answers(*prompts)
    assert bench.n_running_most == together
    assert [text for _, text in found] == [alone(lib, path, prompt) for prompt in prompts]


def test_a_memory_of_states_tells_of_them(lib: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    architectures.mamba(path)
    with Bench(lib, path, 3, n_ctx=512) as bench:
        bench.answers("One", "Another", "Another one")
        bench.answers("Other")
        state = bench.generator.state()
    assert (state.n_cells, state.n_cells_used, state.n_cells_idle) == (3, 0, 3)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_choices_of_one_prompt_wait_for_its_checkpoint(lib: Any, tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "model.gguf"
    kind(path)
    with Bench(lib, path, 3, Checkpoints(1 << 20)) as bench:
        found = bench.answers(*[QUESTIONS[0]] * 3)
    assert [n_cached > 300 for n_cached, _ in found] == [False, True, True]
    assert {text for _, text in found} == {alone(lib, path, QUESTIONS[0])}


def test_a_prompt_from_a_file_answers_as_a_fresh_one(lib: Any, path: Path, tmp_path: Path) -> None:
    expected = alone(lib, path, QUESTIONS[0])
    for n_expected in (0, 300):
        files = in_files(tmp_path / "cache")
        with Bench(lib, path, 2, files) as bench:
            ((n_cached, text),) = bench.answers(QUESTIONS[0])
            files.close()
        assert n_cached >= n_expected
        assert (text, said) == (expected, [])


def test_a_checkpoint_finds_room_where_idle_prefixes_leave(lib: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    architectures.gemma3(path)
    files = in_files(tmp_path / "cache")
    with Bench(lib, path, 2, files) as bench:
        bench.answers(QUESTIONS[0])
        files.close()
    files = in_files(tmp_path / "cache")
    with Bench(lib, path, 2, files) as bench:
        bench.answers("Something else. " * 50)
        ((n_cached, text),) = bench.answers(QUESTIONS[0])
        files.close()
    assert n_cached > 300
    assert text == alone(lib, path, QUESTIONS[0])


# ---- over HTTP -----------------------------------------------------------------------------


def test_a_system_prompt_survives_a_restart(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": SYSTEM * 3}, {"role": "user", "content": "Say: red"}]
    found = []
    for _ in range(2):
        with RunningServer("--cache-dir", str(tmp_path / "cache")) as server:
            answer = server.post("/v1/chat/completions", messages=messages, temperature=0).json
            found.append(answer["choices"][0]["message"]["content"])
            usage = answer["usage"]
    assert found[0] == found[1]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_a_folder_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = RunningServer("--cache-dir", str(tmp_path / "file"))
    with pytest.raises(AssertionError, match="cannot keep checkpoints"), server:
        pass


# ---- parked lanes --------------------------------------------------------------------------

TINY = REPOSITORY / "lmlite" / "models" / "tiny.gguf"
HISTORY = "A very long history. " * 12
OTHER = "Something else altogether, which shares no beginning. " * 3


def n_idle(bench: Bench) -> int:
    """Cells of idle lanes."""
    return bench.generator.memory.n_cells()[1]


def test_an_idle_lane_leaves_its_cells_and_comes_back(lib: Any) -> None:
    with Bench(lib, TINY, 4, parked=ParkedLanes(8 << 20)) as bench:
        begun, history = bench.tokens(HISTORY), HISTORY + " And then?"
        bench.answers(HISTORY)
        bench.answers(OTHER)
        assert n_idle(bench) < len(bench.tokens(OTHER)) + N_OUT
        ((n_cached, text),) = bench.answers(history)
        assert n_cached >= len(begun) - 1
        assert n_idle(bench) < len(bench.tokens(history)) + N_OUT  # now the other one is parked
    assert text == alone(lib, TINY, history)


def test_a_lane_that_shares_most_of_its_cells_is_not_parked(lib: Any) -> None:
    prompts = [HISTORY + end for end in (" Say a", " Say b", " Say c")]
    parked = ParkedLanes(8 << 20)
    with Bench(lib, TINY, 4, parked=parked) as bench:
        n_shared = len(bench.tokens(HISTORY)) - 1
        found = [*bench.answers(*prompts[:2]), *bench.answers(prompts[2])]
        assert sum(bool(lane.tokens) for lane in bench.generator.memory.lanes) == 2
    assert parked.n_bytes == 0
    assert found[2][0] >= n_shared
    assert [text for _, text in found] == [alone(lib, TINY, prompt) for prompt in prompts]


def test_a_lane_that_finds_no_room_stays_in_its_cells(lib: Any) -> None:
    with Bench(lib, TINY, 4, parked=ParkedLanes(1000)) as bench:
        bench.answers(HISTORY)
        held = n_idle(bench)
        bench.answers(OTHER)
        assert n_idle(bench) > held > 0
        ((n_cached, _),) = bench.answers(HISTORY)
        assert n_cached == len(bench.tokens(HISTORY)) - 1
