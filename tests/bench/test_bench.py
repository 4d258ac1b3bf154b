"""The benchmark's own arithmetic: from bytes to times, from values to a table. Nothing is timed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import model
from tests.bench.client import (
    BadReply,
    Completion,
    Crowd,
    Piece,
    ask,
    ask_chat,
    completion,
    dechunked,
    events,
    parse_head,
    split_head,
)
from tests.bench.peers import NotMeasured, Server, Setup, busy_s
from tests.bench.report import Row, Section, heading, number, ratio, section_lines, summary
from tests.bench.scenarios import SCENARIOS, Figure, Scenario, less, more
from tests.bench.work import Values, Work
from tests.support.gguf_writer import F32, I32, Typed, Value, write_gguf

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: a:b\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**values: object) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


# ---- from bytes to times -------------------------------------------------------------------


def test_a_head_is_a_status_and_headers() -> None:
    head = parse_head(b"HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\nX: a:b")
    assert (head.status, head.n_body, head.is_chunked) == (404, 12, False)
    assert head.headers["x"] == "a:b"


def test_a_head_may_come_in_pieces_and_with_some_body() -> None:
    head, body = split_head([Piece(1, b""), Piece(2, HEAD[:30]), Piece(3, HEAD[30:] + b"5"),
                             Piece(4, b"\r\n")])  # fmt: skip
    assert head.is_chunked
    assert body == [(3, b"5"), (4, b"\r\n")]


def test_a_reply_that_ends_within_its_head_is_none() -> None:
    with pytest.raises(BadReply, match=r"no head: b'HTTP"):
        split_head([Piece(1, b""), Piece(2, b"HTTP/1.1 200")])


def test_a_chunk_counts_when_it_is_whole() -> None:
    data = chunk(b"first") + chunk(b"second") + b"0\r\n\r\n"
    pieces = [Piece(1, data[:3]), Piece(2, data[3:12]), Piece(3, data[12:])]
    assert list(dechunked(pieces)) == [(2, b"first"), (3, b"second")]


def test_an_event_counts_when_it_is_whole_and_a_comment_never() -> None:
    pieces = [Piece(1, b": queued 2\n\ndata: {"), Piece(2, b'"a":1}\n'), Piece(3, b"\nda"),
              Piece(4, b"ta:x\r\ndata:y\r\n\r\n")]  # fmt: skip
    assert list(events(pieces)) == [(3, b'{"a":1}'), (4, b"x\ny")]


def stream(*timed: tuple[float, bytes]) -> list[Piece]:
    pieces = [Piece(at_s, chunk(data)) for at_s, data in timed]
    return [Piece(10.0, b""), Piece(10.1, HEAD), *pieces, Piece(99.0, b"0\r\n\r\n")]


def test_a_stream_of_completions_is_timed_by_its_texts() -> None:
    answer = completion(10.0, stream(
        (10.5, event(choices=[{"text": " one"}])),
        (10.7, event(choices=[{"text": " two"}])),
        (11.5, event(choices=[{"text": " three"}]) + event(choices=[{"text": ""}])),
        (11.9, event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5})),
        (12.0, b"data: [DONE]\n\n"),
    ))  # fmt: skip
    assert answer.text == " one two three"
    assert (answer.n_prompt, answer.n_completion) == (7, 5)
    assert answer.first_token_s == 0.5
    assert answer.rate == 4.0  # four tokens after the first, in one second
    assert round(answer.longest_silence_s, 6) == 0.8


def test_a_streamed_chat_is_timed_from_its_first_content() -> None:
    answer = completion(10.0, stream(
        (10.2, event(choices=[{"delta": {"role": "assistant", "content": None}}])),
        (10.4, event(choices=[{"delta": {"content": "Hi"}}])),
        (10.6, event(choices=[{"delta": {}, "finish_reason": "stop"}],
                     usage={"prompt_tokens": 1, "completion_tokens": 1})),
    ))  # fmt: skip
    assert (answer.text, answer.text_s) == ("Hi", [10.4])


def spelled(n_tokens: int) -> list[Piece]:
    """An answer of so many tokens, of which none was text yet."""
    usage = {"prompt_tokens": 1, "completion_tokens": n_tokens}
    return stream((10.2, event(choices=[{"text": ""}], usage=usage)))


def test_two_tokens_may_be_half_a_character() -> None:
    assert completion(10.0, spelled(2)).text_s == []


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (stream((10.5, event(error={"message": "no room"}))), "within a stream: .*no room"),
        (stream((10.5, b"data: [DONE]\n\n")), "no text or no usage"),
        (spelled(4), "no text or no usage"),
        (
            [Piece(1, b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nlater")],
            "503: b'later'",
        ),
    ],
)
def test_a_failed_stream_is_not_a_measurement(pieces: list[Piece], words: str) -> None:
    with pytest.raises(BadReply, match=words):
        completion(10.0, pieces)


def test_many_users_are_counted_by_the_tokens_that_the_server_reports() -> None:
    crowd = Crowd(2.0, [Completion(0, [1.0], "a", 3, 10), Completion(0, [1.5], "b", 3, 20)])
    assert (crowd.tokens_per_s, crowd.requests_per_s) == (15.0, 1.0)


def test_requests_are_greedy_streams_with_usage() -> None:
    path, data = ask("m", " a b", 8, logit_bias={"3": -100})
    assert path == "/v1/completions"
    assert json.loads(data) == {
        "model": "m", "prompt": " a b", "max_tokens": 8, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, "logit_bias": {"3": -100},
    }  # fmt: skip
    chat = ask_chat("m", [{"role": "user", "content": "a"}], 8)
    assert chat.path == "/v1/chat/completions"
    assert json.loads(chat.data)["messages"] == [{"role": "user", "content": "a"}]


# ---- from values to a table ----------------------------------------------------------------


def row(figure: Figure, ours: list[float], theirs: list[float]) -> Row:
    return Row(figure, ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(51.0, 50.0, 1.02), (None, 1.0, None), (1.0, None, None), (1.0, 0.0, None)],
)
def test_a_ratio_needs_both_sides(
    ours: float | None, theirs: float | None, expected: float | None
) -> None:
    assert ratio(ours, theirs) == expected


def test_the_ratio_of_a_row_is_that_of_the_medians() -> None:
    assert row(more("r", "rate", 1.0), [9.0, 1.0, 3.0], [2.0, 4.0]).ratio == 1.0


@pytest.mark.parametrize(
    ("figure", "ours", "theirs", "verdict"),
    [
        (more("r", "rate", 0.98), 97.9, 100, "MISSED"),
        (more("r", "rate", 0.98), 98.0, 100, "behind"),
        (more("r", "rate", 0.98), 99.6, 100, ""),
        (more("r", "rate", 0.98), 150, 100, ""),
        (more("r", "rate", 1.3), 120, 100, "MISSED"),
        (less("s", "first", 1.05), 1.06, 1, "MISSED"),
        (less("s", "first", 1.05), 1.04, 1, "behind"),
        (less("s", "first", None), 1.5, 1, "behind"),
        (less("s", "first", 1.05), 0.5, 1, ""),
        (Figure("k", "silence", False, 0.35, of_ratio=False), 0.36, 9.0, "MISSED"),
        (Figure("k", "silence", False, 0.35, of_ratio=False), 0.34, 0.1, "behind"),
        (Figure("k", "silence", False, 0.35, of_ratio=False), 0.34, 9.0, ""),
    ],
)
def test_the_verdict_says_where_lmlite_is_behind(
    figure: Figure, ours: float, theirs: float, verdict: str
) -> None:
    assert row(figure, [ours], [theirs]).verdict == verdict


def test_there_is_no_verdict_without_values() -> None:
    assert row(more("r", "rate", 1.0), [], [1.0]).verdict == ""
    assert row(more("r", "rate", 1.0), [1.0], []).verdict == ""
    assert row(Figure("k", "s", False, 0.35, of_ratio=False), [0.5], []).verdict == "MISSED"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (1676.4, "1676"), (99.96, "100"), (51.24, "51.2"), (9.996, "10.0"),
     (2.054, "2.05"), (0.9996, "1.00"), (0.1514, "0.151"), (0.0, "0.000"), (-3.21, "-3.21")],
)  # fmt: skip
def test_figures_have_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def sections() -> list[Section]:
    speed = Section("one stream", [Row(more("rate", "generate, tokens/s", 0.98)),
                                   Row(less("first", "first token, s", 1.05))])  # fmt: skip
    speed.add(True, {"rate": 60.0, "first": 2.0})
    speed.add(False, {"rate": 50.0, "first": 1.0})
    start = Section("start", [Row(Figure("s", "silence, s", False, 0.35, of_ratio=False)),
                              Row(more("x", "other", None))])  # fmt: skip
    start.add(True, {"s": 0.25})
    start.remark("far left out: it needs to start the server")
    start.remark("far left out: it needs to start the server")
    return [speed, start]


def test_the_table() -> None:
    lines = [heading("lmlite", "llama-server")]
    lines += [line for section in sections() for line in section_lines(section)]
    assert "\n".join(lines) == (
        "                                             lmlite   llama-server   ratio  target\n"
        "one stream\n"
        "  generate, tokens/s                           60.0           50.0    1.20  >= 0.98x\n"
        "  first token, s                               2.00           1.00    2.00  <= 1.05x   MISSED\n"  # noqa: E501
        "start\n"
        "  silence, s                                  0.250              -       -  <= 0.35\n"
        "  other                                           -              -       -\n"
        "  far left out: it needs to start the server"
    )


def test_the_report_says_when_the_machine_was_not_quiet() -> None:
    section = Section("start", [], others=[0.02, 0.731, 0.0])
    assert list(section_lines(section)) == [
        "start", "  not quiet: other processes took up to 0.73 cores"
    ]  # fmt: skip
    assert list(section_lines(Section("start", [], others=[0.02, 0.09]))) == ["start"]


def test_work_of_all_processors_is_all_but_idling_and_waiting() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = [n * ticks for n in (1, 2, 4, 8000, 16000, 32, 64, 128, 256, 512)]
    assert busy_s(f"cpu  {' '.join(map(str, line))}\ncpu0 1 2 3\n") == 231


def test_the_summary_counts_targets_and_names_the_missed() -> None:
    assert summary(sections()) == (
        "2 of 3 targets reached\n"
        "  MISSED  one stream: first token, s"
    )  # fmt: skip


def test_the_json_has_every_value() -> None:
    found = json.loads(json.dumps(sections()[0].json()))
    assert found["scenario"] == "one stream"
    assert found["rows"][0] == {
        "figure": "generate, tokens/s", "more_is_better": True, "ours": [60.0], "theirs": [50.0],
        "median_ours": 60.0, "median_theirs": 50.0, "ratio": 1.2, "target": 0.98,
        "target_is_of": "ratio", "verdict": "",
    }  # fmt: skip


# ---- rounds --------------------------------------------------------------------------------


class FakeSide:
    """Serves nothing, and notes when it was asked to."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    @contextmanager
    def serve(self, _setup: Setup) -> Iterator[Server]:
        self.calls.append(self.name)
        yield Server("http://nowhere", self.name)


def a_scenario(only_once: bool = False) -> Scenario:
    def run(side: object, work: Work) -> Values:
        assert isinstance(side, FakeSide)
        with side.serve(Setup(Path("x"))):
            work.n_prompt += len(work.prompt(3).split())
            return {"rate": 2.0 if side.name == "A" else 1.0}

    return Scenario("fake", run, (more("rate", "rate", 1.0),), only_once)


def test_the_servers_take_turns() -> None:
    calls: list[str] = []
    sides = [FakeSide("A", calls), FakeSide("B", calls)]
    options = bench.parser().parse_args(["--rounds", "3"])
    section = bench.measured(a_scenario(), sides, options, "id")
    assert "".join(calls) == "ABABAB"
    assert (section.rows[0].ours, section.rows[0].theirs) == ([2.0] * 3, [1.0] * 3)
    assert section.remarks == []
    assert len(section.others) == 6


def test_long_scenarios_run_in_one_round_only() -> None:
    calls: list[str] = []
    sides = [FakeSide("A", calls), FakeSide("B", calls)]
    bench.measured(a_scenario(only_once=True), sides, bench.parser().parse_args([]), "id")
    assert "".join(calls) == "AB"


def test_the_table_says_what_cannot_be_measured() -> None:
    def run(side: object, work: Work) -> Values:
        assert isinstance(side, FakeSide)
        work.n_prompt = 5 if side.name == "A" else 6
        if side.name == "B":
            raise NotMeasured("it needs another model")
        return {"rate": 1.0}

    sides = [FakeSide("A", []), FakeSide("B", [])]
    options = bench.parser().parse_args(["--rounds", "2"])
    section = bench.measured(Scenario("s", run, (more("rate", "r", 1),)), sides, options, "id")
    assert section.remarks == ["B left out: it needs another model"]
    assert section.rows[0].ours == [1.0, 1.0]


def test_scenarios_that_lmlite_cannot_run_are_not_run_on_the_peer() -> None:
    def run(side: object, _work: Work) -> Values:
        assert isinstance(side, FakeSide)
        side.calls.append(side.name)
        raise NotMeasured("there is no model")

    calls: list[str] = []
    sides = [FakeSide("A", calls), FakeSide("B", calls)]
    options = bench.parser().parse_args([])
    section = bench.measured(Scenario("s", run, (more("rate", "r", 1),)), sides, options, "id")
    assert (section.remarks, calls) == (["left out: there is no model"], ["A"])


def test_a_server_that_fails_does_not_end_the_benchmark() -> None:
    def run(side: object, _work: Work) -> Values:
        assert isinstance(side, FakeSide)
        if side.name == "A":
            raise BadReply("503: b'later'")
        return {"rate": 1.0}

    sides = [FakeSide("A", []), FakeSide("B", [])]
    options = bench.parser().parse_args(["--rounds", "1"])
    section = bench.measured(Scenario("s", run, (more("rate", "r", 1),)), sides, options, "id")
    assert section.remarks == ["A FAILED: 503: b'later'"]
    assert (section.rows[0].ours, section.rows[0].theirs) == ([], [1.0])


def test_the_report_says_when_the_work_was_unequal() -> None:
    def run(side: object, work: Work) -> Values:
        assert isinstance(side, FakeSide)
        work.n_prompt, work.n_completion = 5, (4 if side.name == "A" else 3)
        return {"rate": 1.0}

    sides = [FakeSide("A", []), FakeSide("B", [])]
    options = bench.parser().parse_args(["--rounds", "1"])
    section = bench.measured(Scenario("s", run, (more("rate", "r", 1),)), sides, options, "id")
    assert section.remarks == [
        "not the same work, (prompt, completion) tokens: [(5, 4), (5, 3)]"
    ]  # fmt: skip


def test_both_sides_get_the_same_prompts_and_each_round_others() -> None:
    first, same, other = Work("id/s/0"), Work("id/s/0"), Work("id/s/1")
    prompts = [first.prompt(50), first.prompt(50)]
    assert prompts == [same.prompt(50), same.prompt(50)]
    assert len({*prompts, other.prompt(50)}) == 3
    assert len(prompts[0].split(" ")) == 51  # each word has a space before it


def test_a_quick_run_does_less() -> None:
    assert (Work("").n(100, 40), Work("", quick=True).n(100, 40)) == (100, 40)


# ---- the command line ----------------------------------------------------------------------


def test_scenarios_are_chosen_by_a_part_of_their_name() -> None:
    assert [s.name for s in bench.chosen("one stream|start")] == [
        "one stream", "start", "restart, same 1,000 tokens", "tiny model, one stream"
    ]  # fmt: skip
    assert bench.chosen("") == list(SCENARIOS)


def test_an_unknown_scenario_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--only", "nothing like that"])
    assert "no scenario has 'nothing like that' in its name" in capsys.readouterr().err


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [s.name for s in SCENARIOS]


def test_every_scenario_says_what_it_measures() -> None:
    assert all(scenario.run.__doc__ for scenario in SCENARIOS)
    assert all(scenario.figures for scenario in SCENARIOS)


# ---- the model -----------------------------------------------------------------------------


def test_keys_that_are_read_can_be_written_again(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {
        "a": "text", "b": 7, "c": [b"x", b"yz"], "d": Typed(F32, 1.5), "e": [1, 2, 3]
    }  # fmt: skip
    write_gguf(tmp_path / "one.gguf", metadata)
    keys = model.read_keys(tmp_path / "one.gguf")
    assert keys["a"] == b"text"
    assert keys["c"] == [b"x", b"yz"]
    assert keys["d"] == Typed(F32, 1.5)
    assert keys["e"] == Typed(I32, (1, 2, 3))
    write_gguf(tmp_path / "two.gguf", keys)
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_the_model_has_the_shape_of_a_half_billion() -> None:
    wanted = list(model.matrices(151_936))
    n_weights = sum(m.n_bytes // (2 if len(m.dims) == 2 else 4) for m in wanted)
    assert (len(wanted), n_weights) == (290, 494_032_768)


def test_the_benchmark_weights_repeat_and_only_words_have_an_embedding() -> None:
    pool = model.Pool(1)
    once = b"".join(pool.take(2 * model.N_POOL))
    assert b"".join(pool.take(10)) == once[:10]
    matrix = model.Matrix("token_embd.weight", (4, 3))
    tokens = ["\u0120word".encode(), b"<|im_end|>", "\u0120two".encode()]
    assert b"".join(model.weights(matrix, model.Pool(1), tokens)) == (
        once[:8] + bytes(8) + once[8:16]
    )
