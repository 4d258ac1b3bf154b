"""Text leaves in whole characters, and never with a part of a stop string."""

import random

import pytest

from lmlite.messages import TokenLogprob
from lmlite.worker.text import TextStream

SAMPLES = [
    "plain",
    "café naïve",
    "日本語テスト",
    "🙂🙃 mixed ok",
    "e\u0301 combining",
    "\u0000\ufffd",
]


def pushed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    return [stream.push(piece) for piece in pieces]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_split_at_every_byte_comes_out_whole(text: str) -> None:
    data = text.encode()
    for cut in range(len(data) + 1):
        stream = TextStream()
        parts = [*pushed(stream, [data[:cut], data[cut:]]), stream.finish()]
        assert "".join(parts) == text
        assert "\ufffd" not in "".join(parts).replace(text, "")


def test_two_thousand_texts_come_out_whole_however_their_bytes_are_split_in_two() -> None:
    rng = random.Random(1)
    # Of one to four bytes, the first and the last of each length among them.
    points = (0, 0x61, 0x7F, 0x80, 0xE9, 0x301, 0x7FF, 0x800, 0x65E5, 0xD7FF, 0xE000, 0xFEFF,
              0xFFFF, 0x10000, 0x1F600, 0x10FFFF)  # fmt: skip
    for _ in range(2000):
        text = "".join(map(chr, rng.choices(points, k=rng.randrange(1, 10))))
        data = text.encode()
        for cut in range(len(data) + 1):
            stream = TextStream()
            parts = [*pushed(stream, [data[:cut], data[cut:]]), stream.finish()]
            assert "".join(parts) == text
        stream = TextStream()
        parts = [*pushed(stream, [bytes([byte]) for byte in data]), stream.finish()]
        assert parts[-1] == ""
        assert [part for part in parts if part] == list(text)


def test_a_character_over_four_tokens_waits_for_its_last_byte() -> None:
    pieces = [bytes([byte]) for byte in "🙂".encode()]
    assert pushed(TextStream(), pieces) == ["", "", "", "🙂"]


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream()
    assert pushed(stream, [b"ok", "é".encode()[:1]]) == ["ok", ""]
    assert stream.finish() == ""


def test_bytes_that_are_no_text_become_the_replacement_character() -> None:
    assert TextStream().push(b"a\xffb") == "a\ufffdb"


def test_a_stop_string_split_over_two_tokens_is_not_emitted() -> None:
    stream = TextStream(stops=("END",))
    assert pushed(stream, [b"abcE", b"NDx"]) == ["abc", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_before_the_first_character_that_is_no_space_nothing_stops() -> None:
    stream = TextStream(stops=("\n\n", "\nH"))
    pieces = (b"\n", b"\n", b" \n\nHello")
    assert [stream.push(piece, skips_space=True) for piece in pieces] == [
        "\n", "\n", " \n\nHello"]  # fmt: skip
    assert [stream.push(piece) for piece in (b"\n", b"\n.")] == ["", ""]
    assert stream.stop_string == "\n\n"


def test_an_end_is_text_where_nothing_may_end() -> None:
    stream = TextStream(stops=("END",), ends=("</s>",))
    assert stream.push(b"END</s>", may_stop=False, may_end=False) == "END</s>"
    assert stream.push(b"</s>") == ""
    assert stream.stop_string == "</s>"


def test_a_stop_string_is_text_where_it_may_not_stop_and_an_end_never_is() -> None:
    stream = TextStream(stops=("END",), ends=("</s>",))
    assert [stream.push(b"END</", may_stop=False), stream.push(b"x", may_stop=False)] == [
        "END", "</x"]  # fmt: skip
    assert [stream.push(b"EN"), stream.push(b"D.", may_stop=False)] == ["", "END."]
    assert stream.push(b"ok</s>", may_stop=False) == "ok"
    assert stream.stop_string == "</s>"


def test_what_only_looked_like_a_stop_string_is_released() -> None:
    stream = TextStream(stops=("END",))
    assert pushed(stream, [b"aE", b"N", b"x"]) == ["a", "", "ENx"]
    assert (stream.stopped, stream.stop_string) == (False, None)


def test_what_is_held_back_is_released_at_the_end() -> None:
    stream = TextStream(stops=("END",))
    assert stream.push(b"the EN") == "the "
    assert stream.finish() == "EN"


def test_the_earliest_of_several_stop_strings_cuts() -> None:
    stream = TextStream(stops=("world", "lo w"))
    assert stream.push(b"hello world") == "hel"
    assert (stream.stopped, stream.stop_string) == (True, "lo w")


def test_of_two_stop_strings_at_one_place_the_shorter_is_told() -> None:
    stream = TextStream(stops=("END.", "END"))
    assert stream.push(b"the END.") == "the "
    assert stream.stop_string == "END"


def test_a_stop_string_inside_one_piece_cuts_there() -> None:
    stream = TextStream(stops=("\n",))
    assert stream.push(b"one\ntwo") == "one"


def test_no_split_of_a_text_ever_leaks_a_stop_string() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choice("abé🙂") for _ in range(rng.randrange(1, 12)))
        stops = tuple(
            "".join(rng.choice("abé🙂") for _ in range(rng.randrange(1, 4))) for _ in "xy"
        )
        data, stream, got = text.encode(), TextStream(stops), ""
        while data and not stream.stopped:
            n = rng.randrange(1, 4)
            got += stream.push(data[:n])
            data = data[n:]
        got += stream.finish()
        first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        assert got == text[:first], (text, stops)


def entry(name: str) -> TokenLogprob:
    return TokenLogprob(name.encode(), -1.0, ())


def test_logprobs_leave_with_the_text_of_their_token() -> None:
    stream = TextStream(stops=("dX",))
    stream.push(b"ab", entry("ab"))
    assert stream.take_logprobs() == (entry("ab"),)
    assert stream.push(b"cd", entry("cd")) == "c"
    assert stream.take_logprobs() == ()
    stream.push(b"e", entry("e"))
    assert stream.take_logprobs() == (entry("cd"), entry("e"))


def test_logprobs_of_half_a_character_leave_with_the_other_half() -> None:
    stream = TextStream()
    stream.push(b"a\xc3", entry("first"))
    assert stream.take_logprobs() == ()
    assert stream.push(b"\xa9", entry("second")) == "é"
    assert stream.take_logprobs() == (entry("first"), entry("second"))


def test_logprobs_of_tokens_behind_a_stop_string_are_dropped() -> None:
    stream = TextStream(stops=("E",))
    for piece in (b"ab", b"cE", b"z"):
        stream.push(piece, entry(piece.decode()))
    stream.finish()
    assert [e.piece for e in stream.take_logprobs()] == [b"ab", b"cE"]
