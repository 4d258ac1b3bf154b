"""Draws what a picture shows, at any size, and writes it as a PNG or JPEG file.

A picture says "three red circles"; here it is decided which red, on what ground, how large and
where. Everything comes from one source of chance, so the same seed draws the same image.
"""

import colorsys
import io
import math
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple

from tests.support.image_files import png_of
from tests.tiny_model.conversation import Picture

Colour = tuple[int, int, int]
Point = tuple[float, float]
Range = tuple[float, float]
Spans = Callable[[float], tuple[float, float] | None]  # y -> from where to where a shape lies there


Place = tuple[float, float, float]  # (x, y) of a shape's middle, and half of its extent


class Image(NamedTuple):
    """Pixels, row by row, three bytes for each; and where in it shapes are."""

    width: int
    height: int
    rgb: bytes
    places: tuple[Place, ...] = ()


# Hue in degrees, saturation and brightness from 0 to 1. Between two colours lies a gap: whoever
# asks about it gets one of the two.
SHADES: dict[str, tuple[Range, Range, Range]] = {
    "red": ((-10, 8), (0.72, 1), (0.55, 1)),
    "orange": ((23, 40), (0.8, 1), (0.85, 1)),
    "yellow": ((50, 62), (0.65, 1), (0.85, 1)),
    "green": ((90, 150), (0.5, 1), (0.38, 1)),
    "blue": ((203, 246), (0.6, 1), (0.45, 1)),
    "purple": ((270, 305), (0.45, 1), (0.4, 0.95)),
    "black": ((0, 360), (0, 0.3), (0, 0.12)),
    "white": ((0, 360), (0, 0.03), (0.95, 1)),
}
PURE: dict[str, tuple[Colour, ...]] = {  # what people take when they need some image
    "red": ((255, 0, 0),),
    "orange": ((255, 165, 0), (255, 128, 0)),
    "yellow": ((255, 255, 0),),
    "green": ((0, 128, 0), (0, 255, 0)),
    "blue": ((0, 0, 255),),
    "purple": ((128, 0, 128),),
    "black": ((0, 0, 0),),
    "white": ((255, 255, 255),),
}
GREYS = ((0, 360), (0, 0.08), (0.2, 0.9))
PALE = ((0, 360), (0.08, 0.3), (0.8, 1))
CONTRAST = 120  # how far a shape's colour is from its ground, of 441 from black to white

SIDES = (64, 600)  # pixels
SMALLEST = 0.12  # half of a shape's extent, as a share of the longer side


def paint(picture: Picture, rng: Random) -> Image:
    """An image of the picture, of any size, with the shapes anywhere on some ground."""
    if not picture.shape:
        width, height = _sides(rng, 1, ratio=4)
        return Image(width, height, bytes(_shade(picture.colour, rng)) * (width * height))
    width, height = _sides(rng, SIDES[0], ratio=1.5)
    colour = _shade(picture.colour, rng)
    pixels = bytearray(bytes(_ground(colour, rng)) * (width * height))
    outlines = [_outline(picture.shape, rng) for _ in range(picture.n)]
    places = _places(outlines, width, height, rng)
    for spans, top, bottom in _shapes(outlines, places):
        _fill(pixels, width, spans, range(math.floor(top), math.ceil(bottom)), colour)
    return Image(width, height, bytes(pixels), tuple(places))


def _sides(rng: Random, low: int, ratio: float) -> tuple[int, int]:
    """Width and height; one in four times a square, and small ones as often as large ones."""
    long = round(math.exp(rng.uniform(math.log(low), math.log(SIDES[1]))))
    if rng.random() < 0.25:
        return long, long
    short = max(low, round(long / rng.uniform(1, ratio)))
    return (long, short) if rng.random() < 0.5 else (short, long)


# ---- colours -------------------------------------------------------------------------------


def _shade(name: str, rng: Random) -> Colour:
    """One of the many colours of that name."""
    return rng.choice(PURE[name]) if rng.random() < 0.2 else _within(SHADES[name], rng)


def _within(ranges: tuple[Range, Range, Range], rng: Random) -> Colour:
    hue, saturation, brightness = (rng.uniform(*each) for each in ranges)
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _ground(colour: Colour, rng: Random) -> Colour:
    """What lies behind shapes of this colour: white, black, grey, pale, or another colour."""
    while True:
        kind = rng.choice(("white", "black", "grey", "pale", *SHADES))
        if kind in SHADES:
            ground = _shade(kind, rng)
        else:
            ground = _within(GREYS if kind == "grey" else PALE, rng)
        if math.dist(ground, colour) >= CONTRAST:
            return ground


# ---- shapes --------------------------------------------------------------------------------


def _shapes(
    outlines: list[list[Point]], places: list[Place]
) -> Iterable[tuple[Spans, float, float]]:
    """Where the shapes lie on each line, and from where to where there are such lines."""
    for outline, (x, y, half) in zip(outlines, places, strict=True):
        if not outline:
            yield _circle(x, y, half), y - half, y + half
            continue
        scale = half / _extent(outline)
        corners = [(x + scale * dx, y + scale * dy) for dx, dy in outline]
        heights = [corner[1] for corner in corners]
        yield _polygon(corners), min(heights), max(heights)


def _outline(shape: str, rng: Random) -> list[Point]:
    """The corners on a circle of 1 around nothing, half the time a little turned; none: round."""
    if shape == "circle":
        return []
    if shape == "square":
        angles = [45.0, 135, 225, 315]
    else:
        wide = rng.uniform(110, 140)  # 120: all sides alike
        angles = [0, wide, 360 - wide]
    turn = rng.uniform(-25, 25) if rng.random() < 0.5 else 0
    turned = [math.radians(angle + turn) for angle in angles]
    return [(math.sin(angle), -math.cos(angle)) for angle in turned]


def _extent(outline: list[Point]) -> float:
    """How far it reaches from its middle, along either axis."""
    return max((abs(number) for corner in outline for number in corner), default=1.0)


def _places(outlines: list[list[Point]], width: int, height: int, rng: Random) -> list[Place]:
    """Of each shape: inside, apart from all others, and none too small to be seen."""
    n, low = len(outlines), SMALLEST * max(width, height)
    high = max(low, 0.46 * min(width, height) * n**-0.5)
    while True:
        alike = rng.uniform(low, high) if rng.random() < 0.5 else None
        halves = [alike or rng.uniform(low, high) for _ in range(n)]
        in_a_row = rng.random() < 0.2
        row_y = rng.uniform(max(halves), height - max(halves))
        found: list[Place] = []
        for i, half in enumerate(halves):
            x = width * (i + 0.5) / n if in_a_row else rng.uniform(half, width - half)
            y = row_y if in_a_row else rng.uniform(half, height - half)
            found.append((x, y, half))
        # The circle around a shape, which holds it however it is turned.
        around = [half / _extent(outline) for half, outline in zip(halves, outlines, strict=True)]
        if all(
            math.dist(found[i][:2], found[j][:2]) > 1.1 * (around[i] + around[j])
            for i in range(n)
            for j in range(i)
        ):
            return found
        high = max(low, 0.95 * high)


def _circle(x: float, y: float, radius: float) -> Spans:
    def spans(line: float) -> tuple[float, float] | None:
        square = radius * radius - (line - y) * (line - y)
        if square <= 0:
            return None
        half = math.sqrt(square)
        return x - half, x + half

    return spans


def _polygon(corners: list[Point]) -> Spans:
    """For corners that bulge outwards: a line meets two sides, or none."""
    sides = list(zip(corners, [*corners[1:], corners[0]], strict=True))

    def spans(line: float) -> tuple[float, float] | None:
        met = [
            x0 + (x1 - x0) * (line - y0) / (y1 - y0)
            for (x0, y0), (x1, y1) in sides
            if (y0 <= line) != (y1 <= line)
        ]
        return (min(met), max(met)) if met else None

    return spans


N_LINES = 4  # in each row of pixels: how finely an edge is rounded


def _fill(pixels: bytearray, width: int, spans: Spans, rows: range, colour: Colour) -> None:
    """Colours what lies inside, and pixels on the edge by their share of it."""
    full = bytes(colour)
    for row in rows:
        lines = [spans(row + (i + 0.5) / N_LINES) for i in range(N_LINES)]
        met = [line for line in lines if line]
        if not met:
            continue
        start, end = math.floor(min(met)[0]), math.ceil(max(right for _, right in met))
        inner, outer = end, end  # from where to where whole pixels lie inside
        if len(met) == N_LINES:
            inner = min(end, math.ceil(max(met)[0]))
            outer = max(inner, math.floor(min(right for _, right in met)))
            first = 3 * (row * width + inner)
            pixels[first : first + 3 * (outer - inner)] = full * (outer - inner)
        for x in (*range(start, inner), *range(outer, end)):
            inside = sum(max(0.0, min(right, x + 1) - max(left, x)) for left, right in met)
            share = inside / N_LINES
            for i in range(3 * (row * width + x), 3 * (row * width + x) + 3):
                pixels[i] = round(pixels[i] + share * (full[i % 3] - pixels[i]))


# ---- files ---------------------------------------------------------------------------------


def png(image: Image) -> bytes:
    """A PNG file: each row has its filter in front, and that is none."""
    n_row = 3 * image.width
    rows = (image.rgb[i : i + n_row] for i in range(0, len(image.rgb), n_row))
    return png_of(image.width, image.height, b"".join(b"\0" + row for row in rows))


def jpeg(image: Image, quality: int, *, progressive: bool = False) -> bytes:
    """A JPEG file. Pillow writes it: the one package that drawing may need."""
    from PIL import Image as Pillow

    file = Pillow.frombytes("RGB", (image.width, image.height), image.rgb)
    written = io.BytesIO()
    file.save(written, "JPEG", quality=quality, progressive=progressive)
    return written.getvalue()
