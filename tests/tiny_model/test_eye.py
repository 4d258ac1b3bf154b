"""The eye of the embedded model: the images that it learned from, and what it reads in files."""

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lmlite.gguf import header as gguf_header
from lmlite.worker import media
from lmlite.worker.llama.model import Model
from tests.conftest import DEFAULT_MODEL
from tests.support.image_files import PICTURES
from tests.tiny_model import corpus, pictures
from tests.tiny_model.conversation import Picture
from tests.tiny_model.drawing import PURE, SIDES, Image, paint, png
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

# Named by what they show; the others in this folder are for the reading of files.
FILES = sorted(path for path in PICTURES.iterdir() if path.suffix in (".png", ".jpeg"))


# ---- what was drawn ------------------------------------------------------------------------


def regions(image: Image) -> int:
    """How many connected parts differ from the ground, which the first pixel shows."""
    pixels = [image.rgb[i : i + 3] for i in range(0, len(image.rgb), 3)]
    left = {i for i, pixel in enumerate(pixels) if pixel != pixels[0]}
    n = 0
    while left:
        n += 1
        edge = [left.pop()]
        while edge:
            i = edge.pop()
            for near in (i - 1, i + 1, i - image.width, i + image.width):
                if near in left:
                    left.remove(near)
                    edge.append(near)
    return n


@pytest.mark.parametrize("shape", pictures.SHAPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_as_many_shapes_are_drawn_as_asked_and_none_touches_another(shape: str, n: int) -> None:
    for seed in range(3):
        assert regions(paint(Picture("blue", shape, n), Random(seed))) == n


def test_an_image_has_a_size_in_bounds_and_as_many_bytes() -> None:
    sides = set()
    for seed in range(60):
        image = paint(Picture("red", "circle", 2), Random(seed))
        assert len(image.rgb) == 3 * image.width * image.height
        sides |= {image.width, image.height}
    assert SIDES[0] <= min(sides) < 100 and 400 < max(sides) <= SIDES[1]


def test_an_image_of_one_colour_may_be_a_single_pixel() -> None:
    images = [paint(Picture("orange"), Random(seed)) for seed in range(200)]
    assert all(image.rgb == image.rgb[:3] * (image.width * image.height) for image in images)
    assert (1, 1) in {(image.width, image.height) for image in images}


def test_a_word_that_is_longer_than_its_places_is_refused() -> None:
    with pytest.raises(AssertionError, match="orange is cut into 7 pieces"):
        corpus.picture_tokens(Tokenizer([]), "one orange circle")  # no merges: letters alone


# ---- what it sees --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embeddings() -> list[tuple[float, ...]]:
    """The embedded model's vector for each token: whole numbers in blocks of 32 with a scale."""
    header = gguf_header.read_header(str(DEFAULT_MODEL))
    data = DEFAULT_MODEL.read_bytes()
    weights = len(data) - sum(each.n_bytes + -each.n_bytes % 32 for each in header.tensors)
    (table,) = (each for each in header.tensors if each.name == "token_embd.weight")
    start = weights + table.offset
    numbers: list[float] = []
    for scale, *whole in struct.iter_unpack("<e32b", data[start : start + table.n_bytes]):
        numbers += [scale * number for number in whole]
    n_embd = table.dims[0]
    return [tuple(numbers[i : i + n_embd]) for i in range(0, len(numbers), n_embd)]


@pytest.fixture(scope="module")
def eye(default_model: Model) -> Iterator[Any]:
    path = str(DEFAULT_MODEL.with_name("tiny-mmproj.gguf"))
    eye = media.MediaEncoder(default_model, path, n_threads=1, max_bytes=0)
    yield eye
    eye.close()


@pytest.fixture(scope="module")
def read(eye: Any, default_model: Model, embeddings: list[tuple[float, ...]]) -> Callable[..., str]:
    """A file -> the tokens whose embeddings lie next to its sixteen vectors, without full stops."""
    n_embd = len(embeddings[0])

    def words(data: bytes) -> str:
        picture = eye.read(data)
        ((_, chunk),) = picture.chunks
        numbers = list(eye._embeddings(chunk))
        assert len(numbers) == 16 * n_embd
        vectors = [numbers[i : i + n_embd] for i in range(0, len(numbers), n_embd)]
        tokens = [
            min(range(len(embeddings)), key=lambda t: math.dist(embeddings[t], vector))
            for vector in vectors
        ]
        pieces = b"".join(default_model.vocab.piece(token) for token in tokens)
        return pieces.decode(errors="replace").replace(".", "").strip()

    return words


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_file_is_read_as_the_words_for_what_it_shows(
    path: Path, read: Callable[..., str]
) -> None:
    assert read(path.read_bytes()) == path.name.split(".")[0].replace("-", " ")


@pytest.mark.parametrize("side", [1, 8, 64])
def test_nothing_but_a_colour_is_read_in_an_image_of_any_size(
    side: int, read: Callable[..., str]
) -> None:
    for colour, shades in PURE.items():
        for shade in shades:
            assert read(png(Image(side, side, bytes(shade) * side * side))) == f"only {colour}"


def test_nine_of_ten_pictures_are_read_right_at_all_their_places(read: Callable[..., str]) -> None:
    # Fewer mean most often that the model was trained again, and its eye not written again.
    source = Source(2026, held_out=True)
    drawn = [pictures.drawn(source) for _ in range(60)]
    right = [read(png(paint(each, source.rng))) == each.words for each in drawn]
    assert sum(right) >= 0.9 * len(right)
