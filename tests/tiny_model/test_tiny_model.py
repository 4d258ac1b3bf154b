"""The embedded model: what it is, what it was taught, and that it answers so over HTTP."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.gguf import file as gguf
from lmlite.gguf import projector as gguf_projector
from lmlite.server.api.chat.image_formats import checked_size
from lmlite.worker.llama.model import Model
from tests import REPOSITORY
from tests.support.gguf_writer import (
    Shape,
    Tensor,
    layer_shapes,
    llama_metadata,
    tensor,
    write_gguf,
)
from tests.support.server_process import RunningServer
from tests.tiny_model import drawing, pictures, skills, tools
from tests.tiny_model.check import ROWS, Client, Row, says
from tests.tiny_model.conversation import Case, Picture, Turn, exchange, messages
from tests.tiny_model.tokenizer import Tokenizer, learn, tokenizer_metadata
from tests.tiny_model.words import Source, is_held_out

EMBEDDED = REPOSITORY / "lmlite" / "models" / "tiny.gguf"
PROJECTOR = EMBEDDED.with_name("tiny-mmproj.gguf")
README = (REPOSITORY / "README.md").read_text()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with RunningServer("--ctx", "8192") as server:
        yield Client(server.url)


# ---- what it is ----------------------------------------------------------------------------


def test_the_embedded_model_is_small_and_says_what_it_is() -> None:
    file = gguf.read_model_file(str(EMBEDDED))
    assert EMBEDDED.stat().st_size <= 8_000_000
    assert (file.name, file.architecture, file.n_ctx_train) == ("tiny", "llama", 2048)
    header = EMBEDDED.read_bytes()[:1000]
    assert b"general.license\x08\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00mit" in header
    assert b"A small chat model for trying and testing lmlite" in header


# ---- what it was taught --------------------------------------------------------------------


def test_its_eye_is_smaller_than_two_megabytes_and_says_what_it_is() -> None:
    assert PROJECTOR.stat().st_size <= 2_000_000
    gguf_projector.read_projector_file(str(PROJECTOR))
    assert b"Trained from nothing on drawings." in PROJECTOR.read_bytes()[:1000]


def test_the_same_seed_draws_the_same_image() -> None:
    picture = Picture("red", "square", 3)
    first, again = (drawing.paint(picture, random.Random(4)) for _ in range(2))
    assert first == again
    assert len(first.rgb) == 3 * first.width * first.height
    assert len(first.places) == 3
    assert checked_size(drawing.png(first)) == (first.width, first.height)


def test_a_shape_has_its_own_colour_and_lies_on_a_background_of_another() -> None:
    image = drawing.paint(Picture("blue", "circle", 1), random.Random(2))
    ((x, y, half),) = image.places

    def pixel(column: float, row: float) -> tuple[int, ...]:
        begin = 3 * (round(row) * image.width + round(column))
        return tuple(image.rgb[begin : begin + 3])

    red, green, blue = pixel(x, y)
    assert blue > max(red, green)
    assert pixel(x, y) == pixel(x + 0.6 * half, y) == pixel(x, y - 0.6 * half)
    assert pixel(0, 0) == pixel(image.width - 1, image.height - 1) != pixel(x, y)


def test_training_never_draws_a_word_that_was_held_out() -> None:
    training, checking = Source(5, held_out=False), Source(5, held_out=True)
    for draw in (Source.name, Source.city, Source.noun, Source.known_word, Source.invented):
        for _ in range(300):
            assert not is_held_out(draw(training))
            assert is_held_out(draw(checking))
        # Names and cities are drawn as they are written, and held out whatever their case.
    assert is_held_out("Grace") == is_held_out("grace")


def test_a_pair_of_numbers_is_held_out_in_both_orders() -> None:
    source = Source(5, held_out=True)
    for _ in range(100):
        a, b = source.pair(0, 20)
        assert is_held_out(f"{min(a, b)} and {max(a, b)}")


def test_the_same_seed_draws_the_same_conversations() -> None:
    for skill in (
        skills.recall,
        skills.json_object,
        tools.two_results,
        tools.no_call,
        pictures.looking,
    ):
        first, again = Source(7, held_out=False), Source(7, held_out=False)
        assert [skill(first) for _ in range(20)] == [skill(again) for _ in range(20)]


def test_messages_of_a_case_are_those_of_the_api() -> None:
    case = Case(
        [Turn("user", "Weather in Oslo?"), Turn("assistant", calls=[("weather", {"city": "Oslo"})]),
         Turn("tool", "rain"), Turn("assistant", "The result is rain.")],
        system="Be brief.",
    )  # fmt: skip
    call = {"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    assert messages(case) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "The result is rain."},
    ]


# ---- its tokenizer -------------------------------------------------------------------------


def vocabulary_model(path: Path, vocabulary: Tokenizer) -> None:
    """A model of nothing but this vocabulary."""
    shape = Shape(n_layer=1, n_embd=32, n_head=2, n_head_kv=1, n_ff=32)
    shapes = {"token_embd.weight": (32, len(vocabulary.tokens)), "output_norm.weight": (32,)}
    tensors: list[Tensor] = []
    for name, dims in (shapes | layer_shapes(shape, 0)).items():
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        tensors.append(tensor(name, dims, [0.01] * n, 0))
    write_gguf(path, llama_metadata(shape, "words", 0) | tokenizer_metadata(vocabulary), tensors)


def test_llama_cpp_cuts_text_as_training_did(lib: object, tmp_path: Path) -> None:
    source = Source(3, held_out=False)
    drawn = [turn.content for _ in range(200) for skill in (skills.short_case, skills.json_object)
             for turn in skill(source).turns]  # fmt: skip
    vocabulary = learn(drawn[:400], n_letter_merges=120, n_sign_merges=12)
    vocabulary_model(tmp_path / "words.gguf", vocabulary)
    model = Model(lib, str(tmp_path / "words.gguf"))
    texts = [*drawn[400:], '{"a": "b", "n": 12.5}', "it's  two   spaces\n\n and\tmore \n", "",
             "Zürich 東京 🙂 café", "<think>\nHm.\n</think>\n\n<tool_call>", "a_b-c/d.e",
             "  x"]  # fmt: skip
    for text in texts:
        found = model.vocab.tokenize(text, add_special=False, parse_special=True)
        assert found == vocabulary.encode(text), text
    model.close()


# ---- what it answers -----------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_it_can_do_what_it_was_taught_with_new_words(row: Row, client: Client) -> None:
    cases = row.cases(20)
    right = sum(row.is_right(case, client.ask(case)) for case in cases)
    # One more than the goal allows may be wrong: twenty questions are few.
    assert right >= int(row.goal * len(cases)) - 1


@pytest.mark.long
def test_stories_differ_with_the_seed_and_are_the_same_with_the_same() -> None:
    case = Case(exchange("Tell me a story.", ""))
    told = []
    for _ in range(2):  # new servers: what memory holds decides how the last digits are rounded
        with RunningServer() as server:
            client = Client(server.url)
            told.append([client.ask(case, temperature=1, seed=n)["content"] for n in (1, 2, 3)])
    assert told[0] == told[1]
    assert len(set(told[0])) == 3
    assert all(text.startswith("Once upon a time") for text in told[0])


def test_it_answers_as_the_readme_shows(client: Client) -> None:
    transcript = re.search(r"<!-- transcript -->\n```\n(.*?)```", README, re.DOTALL)
    assert transcript is not None
    case = Case([])
    lines = transcript[1].splitlines()
    for asked, answered in zip(lines[::2], lines[1::2], strict=True):
        case.turns += exchange(asked.removeprefix("> "), answered)
        assert says(case, client.ask(case)), asked
    assert len(lines) >= 10
