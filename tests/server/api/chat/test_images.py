"""Images of a chat are read from their URLs, and refused for whatever would harm the decoder."""

import base64
import random
import tracemalloc
import urllib.parse
import zlib
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import BadRequest, Unsupported
from lmlite.messages import ChatMessage
from lmlite.server.api.chat.content_parts import ContentReader
from lmlite.server.api.chat.image_formats import ImageFault, checked_size, media_type
from lmlite.server.api.chat.images import ImageReader
from lmlite.server.api.fields import Field
from lmlite.server.api.openai.messages import parse_messages
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.image_files import (
    ALPHA_WEBP,
    BLUE,
    BLUE_JPEG,
    GREY_JPEG,
    LOSSLESS_WEBP,
    LOSSY_WEBP,
    MOVING_WEBP,
    PNG_BEGIN,
    RED,
    RED_JPEG,
    bmp_of,
    chunk,
    gif_of,
    growing_codes,
    jpeg_of,
    png,
    png_of,
    segment,
    vp8,
    vp8l,
    vp8x,
    webp,
)

DOT = png(1, 1, RED)
TEXT = base64.b64encode(DOT).decode()


def read(image_url: Any, takes_images: bool = True) -> bytes:
    part = {"type": "image_url", "image_url": image_url}
    return ImageReader(takes_images).read(Field(part, "here"))


def messages_of(turns: Any, limits: Limits = DEFAULT_LIMITS) -> tuple[ChatMessage, ...]:
    defaults = replace(NO_DEFAULTS, takes_images=True, limits=limits)
    return parse_messages(Field(turns, "messages"), ContentReader(defaults))


# ---- URLs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:Image/PNG;BASE64,{TEXT}",
        f"data:image/png,{TEXT}",
        f"data:,{TEXT}",
        f"data:image/jpeg;base64,{TEXT}",  # its label is not what counts
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        TEXT,
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        f"data:image/png;base64,{TEXT[:20]}\r\n{TEXT[20:40]}\n {TEXT[40:]}\n",
        f"data:image/png;base64,{base64.urlsafe_b64encode(DOT).decode()}",
        f"data:image/png;base64,{urllib.parse.quote(TEXT, safe='')}",
        f"  data:image/png;base64,{TEXT}",
    ],
)
def test_a_data_url_is_read_however_it_is_written(url: str) -> None:
    assert read({"url": url}) == DOT
    assert read(url) == DOT


_OTHER = "is not a PNG, JPEG, WebP, GIF or BMP"


@pytest.mark.parametrize(
    ("image_url", "param", "message"),
    [
        ({"url": "https://a.b/c.png"}, "here", "at a https URL, and this server fetches none"),
        ({"url": "file:///etc/passwd"}, "here", "at a file URL, and this server fetches none"),
        ({"url": "HTTP://a.b/c.png"}, "here", "at a http URL"),
        ({"url": "data:image/png;base64,%%%"}, "here", "is not valid base64"),
        ({"url": "data:image/png;base64,é"}, "here", "is not valid base64"),
        ({"url": "data:image/png;base64,AAAAA"}, "here", "is not valid base64"),
        ({"url": "data:image/png;base64,"}, "here", _OTHER),
        ({"url": ""}, "here", _OTHER),
        ({"url": 5}, "here.image_url.url", "url is a string"),
        ({}, "here.image_url.url", "is missing"),
        (5, "here.image_url", "image_url is an object with a url"),
        (None, "here.image_url", "is missing"),
        ({"url": TEXT, "detail": "huge"}, "here.image_url.detail", "one of auto, low, high"),
    ],
)
def test_any_other_is_refused_by_its_field(image_url: Any, param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(image_url)
    assert caught.value.param == param
    assert message in caught.value.message


def test_each_detail_is_taken() -> None:
    for detail in ("auto", "low", "high", None):
        assert read({"url": TEXT, "detail": detail}) == DOT


def test_a_model_without_a_projector_takes_none_and_says_what_is_missing() -> None:
    with pytest.raises(Unsupported) as caught:
        read({"url": TEXT}, takes_images=False)
    assert (caught.value.code, caught.value.param) == ("unsupported_image_url", "here.image_url")
    assert "--mmproj FILE" in caught.value.message


# ---- files ---------------------------------------------------------------------------------

GOOD: dict[str, tuple[bytes, tuple[int, int]]] = {
    "one pixel": (DOT, (1, 1)),
    "RGB": (png(3, 2, RED), (3, 2)),
    "grey of 1 bit": (png_of(9, 2, b"\0\xff\x80" * 2, n_bits=1, colour=0), (9, 2)),
    "grey with alpha": (png_of(2, 1, b"\0" + bytes(4), colour=4), (2, 1)),
    "RGBA": (png_of(2, 1, b"\0" + bytes(8), colour=6), (2, 1)),
    "a palette": (
        png_of(2, 1, b"\0\0\1", colour=3, more=(chunk(b"PLTE", bytes(6)),)), (2, 1)),
    # Seven passes over 5 x 5: 1x1, 1x1, 2x1, 1x2, 3x1, 2x3 and 5x2 pixels.
    "interlaced": (
        png_of(5, 5, b"".join(n * (b"\0" + bytes(3 * w)) for w, n in
                              ((1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2))),
               interlace=1), (5, 5)),
    # One column: the passes over the others have nothing. 2, 1, 2 and 4 rows.
    "interlaced, one column": (png_of(1, 9, (b"\0" + bytes(3)) * 9, interlace=1), (1, 9)),
    "other chunks": (
        png_of(1, 1, b"\0" + bytes(3), more=(chunk(b"tEXt", b"a\0b"), chunk(b"gAMA", bytes(4)))),
        (1, 1)),
    "baseline JPEG": (RED_JPEG, (48, 32)),
    "progressive JPEG": (BLUE_JPEG, (40, 40)),
    "grey JPEG": (GREY_JPEG, (17, 9)),
    "JPEG with something behind its end": (RED_JPEG + b"more", (48, 32)),
    "JPEG with a comment and filling": (
        RED_JPEG[:2] + segment(0xFE, b"words \xff\xda") + b"\xff\xff" + RED_JPEG[2:], (48, 32)),
    "as wide as allowed": (png(200, 1, BLUE), (200, 1)),
    "lossy WebP": (LOSSY_WEBP, (48, 32)),
    "lossless WebP": (LOSSLESS_WEBP, (40, 24)),
    "WebP with alpha": (ALPHA_WEBP, (30, 20)),
    "WebP with other chunks": (
        webp(vp8x(9, 5, flags=0x08), (b"ICCP", b"abc"), (b"VP8L", vp8l(9, 5)), (b"EXIF", b"")),
        (9, 5)),
    "WebP with something behind its end": (LOSSY_WEBP + b"more", (48, 32)),
    "GIF": (gif_of(9, 5, bytes(range(45))), (9, 5)),
    "GIF of 1987": (b"GIF87a" + gif_of(9, 5, bytes(45))[6:], (9, 5)),
    "GIF with extensions": (
        gif_of(9, 5, bytes(45), before=b"!\xf9\4\0\0\0\0\0!\xfe\1a\1b\0"), (9, 5)),
    "GIF whose first frame is smaller": (gif_of(9, 5, bytes(6), frame=(7, 2, 2, 3)), (9, 5)),
    "GIF with a palette of its frame": (
        gif_of(2, 1, bytes(2), flags=0, local=0x86), (2, 1)),
    "GIF whose codes grow": (gif_of(7, 3, b"", n_bits=2, packed=growing_codes(21)), (7, 3)),
    "GIF without a last code": (gif_of(5, 1, b"", packed=b"\x80\1\2\3\4\5"), (5, 1)),
    "BMP": (bmp_of(3, 2, bytes(24)), (3, 2)),
    "BMP from the top": (bmp_of(3, -2, bytes(24)), (3, 2)),
    "BMP of 32 bits, with masks": (
        bmp_of(3, 2, bytes(24), n_bits=32, packing=3, n_head=108), (3, 2)),
    "BMP of 16 bits": (bmp_of(3, 2, bytes(16), n_bits=16), (3, 2)),
    "BMP of 8 bits": (bmp_of(3, 2, b"\2\1\0\0" * 2, n_bits=8, palette=bytes(12)), (3, 2)),
    "BMP of 4 bits": (bmp_of(3, 2, b"\x21\x10\0\0" * 2, n_bits=4, palette=bytes(12)), (3, 2)),
    "BMP of 1 bit": (bmp_of(9, 1, b"\xff\x80\0\0", n_bits=1, palette=bytes(8)), (9, 1)),
    "BMP without the last filling": (bmp_of(3, 2, bytes(21)), (3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_whole_file_tells_its_size(name: str) -> None:
    data, size = GOOD[name]
    assert checked_size(data) == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one pixel", "image/png"),
        ("baseline JPEG", "image/jpeg"),
        ("lossy WebP", "image/webp"),
        ("GIF of 1987", "image/gif"),
        ("BMP", "image/bmp"),
    ],
)
def test_the_first_bytes_tell_the_media_type(name: str, expected: str) -> None:
    assert media_type(GOOD[name][0][:16]) == expected


_HEAD = png(4, 4, RED)[8 : 8 + 25]
_BOMB = zlib.compress(bytes(50 << 20), 9)

BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", _OTHER),
    "text": (b"hello", _OTHER),
    "a sound": (b"ID3\4" + bytes(60), _OTHER),
    "a video": (b"\0\0\0\x18ftypmp42" + bytes(40), _OTHER),
    "a PSD": (b"8BPS\0\1" + bytes(40), _OTHER),
    "a TGA": (bytes((0, 0, 2)) + bytes(40), _OTHER),
    "a picture as text": (b"P6 9999 9999 255 ", _OTHER),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", _OTHER),
    "a beginning of a PNG": (PNG_BEGIN, "is cut short"),
    "a PNG's head alone": (PNG_BEGIN + _HEAD, "is cut short"),
    "a PNG without its end": (png(4, 4, RED)[:-12], "is cut short"),
    "a PNG cut in its data": (png(4, 4, RED)[:50], "is cut short"),
    "a chunk of four gigabytes": (PNG_BEGIN + b"\xff\xff\xff\xffIHDR" + bytes(20), "is cut short"),
    "a wrong checksum": (PNG_BEGIN + chunk(b"IHDR", bytes(13), checksum=1), "a checksum is wrong"),
    "another chunk first": (
        PNG_BEGIN + chunk(b"CgBI", bytes(4)) + png(4, 4, RED)[8:], "is a PNG without a head"),
    "only an end": (PNG_BEGIN + chunk(b"IEND"), "is a PNG without a head"),
    "a short head": (
        PNG_BEGIN + chunk(b"IHDR", bytes(12)) + chunk(b"IEND"), "is a PNG without a head"),
    "no width": (png_of(0, 4, b""), "is 0x4 pixels; each side must be from 1 to 8,192"),
    "no height": (png_of(4, 0, b""), "is 4x0 pixels"),
    "a negative width": (png_of(2**32 - 1, 4, b""), "is 4294967295x4 pixels"),
    "a side too long": (png_of(8193, 8000, b""), "is 8193x8000 pixels; each side"),
    "too many pixels": (png_of(8192, 8192, b""), "is 8192x8192 pixels, more than 16,777,216"),
    "a line": (png_of(201, 1, b""), "over 200 times as long as wide"),
    "a column": (png_of(1, 8000, b""), "over 200 times as long as wide"),
    "16 bits": (png_of(1, 1, b"\0" + bytes(6), n_bits=16), "is a PNG of 16 bits a colour"),
    "3 bits": (png_of(1, 1, b"", n_bits=3), "is a PNG of a kind that does not exist"),
    "a colour type of 5": (png_of(1, 1, b"", colour=5), "is a PNG of a kind that does not exist"),
    "RGB of 1 bit": (png_of(1, 1, b"", n_bits=1), "is a PNG of a kind that does not exist"),
    "interlaced in a third way": (png_of(1, 1, b"", interlace=2), "a kind that does not exist"),
    "no palette": (png_of(1, 1, b"\0\0", colour=3), "is a PNG without its palette"),
    "no data": (png_of(4, 4, b""), "is not as much as its head says"),
    "a row too few": (png_of(4, 4, bytes(13 * 3)), "is not as much as its head says"),
    "a byte too many": (png_of(4, 4, bytes(13 * 4 + 1)), "is not as much as its head says"),
    "a bomb": (
        PNG_BEGIN + _HEAD + chunk(b"IDAT", _BOMB) + chunk(b"IEND"),
        "is not as much as its head says"),
    "data that is not packed": (
        PNG_BEGIN + _HEAD + chunk(b"IDAT", b"hello") + chunk(b"IEND"), "cannot be unpacked"),
    "packed data that is cut short": (
        PNG_BEGIN + _HEAD + chunk(b"IDAT", zlib.compress(bytes(52))[:-6]) + chunk(b"IEND"),
        "is not as much as its head says"),
    "a beginning of a JPEG": (b"\xff\xd8\xff", "is cut short or damaged"),
    "a JPEG without its end": (RED_JPEG[:-2], "is cut short or damaged"),
    "half a JPEG": (RED_JPEG[: len(RED_JPEG) // 2], "is cut short or damaged"),
    "a JPEG of nothing": (b"\xff\xd8\xff\xd9", "is a JPEG without a picture"),
    "a JPEG without data": (jpeg_of(4, 4, n_scans=0), "is a JPEG without a picture"),
    "a JPEG without a head": (jpeg_of(4, 4, marker=0xFE), "is a JPEG without a picture"),
    "a JPEG with two heads": (
        jpeg_of(4, 4)[:-2] + jpeg_of(4, 4)[2:], "is a JPEG with a wrong head"),
    "a JPEG with a short head": (
        b"\xff\xd8" + segment(0xC0, b"\x08\0\4") + b"\xff\xd9", "is a JPEG with a wrong head"),
    "a JPEG of gigapixels": (jpeg_of(65_500, 65_500), "is 65500x65500 pixels"),
    "a JPEG without height": (jpeg_of(4, 0), "is 4x0 pixels"),
    "a JPEG of 12 bits": (jpeg_of(4, 4, n_bits=12), "of 3 colours with 12 bits"),
    "a JPEG of two colours": (jpeg_of(4, 4, n_colours=2), "of 2 colours"),
    "a lossless JPEG": (jpeg_of(4, 4, marker=0xC3), "neither baseline nor progressive"),
    "an arithmetic JPEG": (jpeg_of(4, 4, marker=0xC9), "neither baseline nor progressive"),
    "a JPEG of a thousand scans": (jpeg_of(4, 4, n_scans=1000), "of more than 32 scans"),
    "a segment longer than the file": (
        b"\xff\xd8\xff\xe0\xff\xff" + bytes(40), "is cut short or damaged"),
    "a segment of no length": (b"\xff\xd8\xff\xe0\0\1" + bytes(40), "is cut short or damaged"),
    "bytes between segments": (
        RED_JPEG[:2] + segment(0xFE, b"x") + b"zz" + RED_JPEG[2:], "is cut short or damaged"),
    "a JPEG of segments": (
        b"\xff\xd8" + segment(0xFE, b"") * 50_001 + b"\xff\xd9", "is cut short or damaged"),
    "a PNG of chunks": (PNG_BEGIN + chunk(b"abcd") * 50_001, "of more than 50,000 chunks"),
    "a WebP that is cut": (LOSSY_WEBP[:-1], "is cut short"),
    "a WebP's beginning": (LOSSY_WEBP[:12], "is cut short"),
    "an empty WebP": (webp(), "is a WebP without a picture"),
    "a WebP of metadata": (webp((b"EXIF", b"abc")), "is a WebP without a picture"),
    "a WebP of chunks": (webp(*[(b"abcd", b"")] * 50_001), "is a WebP without a picture"),
    "a WebP that moves": (MOVING_WEBP, "is a WebP that moves; send one frame of it"),
    "a WebP's head alone": (webp(vp8x(4, 4)), "is a WebP without a picture"),
    "a WebP's head cut short": (webp((b"VP8X", b"\0")), "is cut short"),
    "a WebP of two sizes": (webp(vp8x(4, 4), (b"VP8L", vp8l(4, 5))), "not of the size that its"),
    "a chunk longer than the WebP": (
        LOSSY_WEBP[:16] + b"\xff\xff\xff\xff" + LOSSY_WEBP[20:], "longer than the file"),
    "a WebP of many pixels": (webp((b"VP8L", vp8l(8192, 8192))), "is 8192x8192 pixels, more than"),
    "a WebP of a long side": (webp((b"VP8 ", vp8(16_383, 9))), "is 16383x9 pixels; each side"),
    "a WebP of no height": (webp((b"VP8 ", vp8(4, 0))), "is 4x0 pixels"),
    "a WebP between key frames": (webp((b"VP8 ", vp8(4, 4, tag=0x11))), "with a wrong head"),
    "a WebP without its start code": (webp((b"VP8 ", vp8(4, 4, start=bytes(3)))), "a wrong head"),
    "a WebP of a part that is longer": (webp((b"VP8 ", vp8(4, 4, tag=0x210))), "a wrong head"),
    "a lossless WebP without its sign": (webp((b"VP8L", bytes(9))), "with a wrong head"),
    "a lossless WebP of a later version": (webp((b"VP8L", b"\x2f\0\0\0\x20")), "a wrong head"),
    "a GIF's beginning": (b"GIF89a", "is cut short"),
    "a GIF without a frame": (gif_of(4, 4, bytes(16))[:397] + b";", "is a GIF without a picture"),
    "a GIF of extensions": (
        gif_of(4, 4, bytes(16), before=b"!\xfe\0" * 50_001), "is a GIF without a picture"),
    "a GIF of empty blocks": (
        gif_of(4, 4, bytes(16), before=b"!\xfe" + b"\1a" * 50_001), "of more than 50,000 blocks"),
    "a GIF that is cut": (gif_of(4, 4, bytes(16))[:-2], "is cut short"),
    "a GIF of gigapixels": (gif_of(65_535, 65_535, b""), "is 65535x65535 pixels"),
    "a GIF without width": (gif_of(0, 4, b""), "is 0x4 pixels"),
    "a GIF whose frame is too wide": (gif_of(4, 4, bytes(4), frame=(3, 0, 2, 2)), "not within it"),
    "a GIF whose frame is too low": (gif_of(4, 4, bytes(4), frame=(0, 4, 2, 2)), "not within it"),
    "a GIF whose frame is nothing": (gif_of(4, 4, b"", frame=(0, 0, 4, 0)), "not within it"),
    "a GIF without a palette": (gif_of(4, 4, bytes(16), flags=0x76), "is a GIF without a palette"),
    "a GIF of a pixel too few": (gif_of(4, 4, bytes(15)), "is not as much as its head says"),
    "a GIF of a pixel too many": (gif_of(4, 4, bytes(17)), "is not as much as its head says"),
    "a GIF of no bits": (gif_of(4, 4, bytes(16), n_bits=0), "is not as much as its head says"),
    "a GIF of 12 bits": (gif_of(4, 4, bytes(16), n_bits=12), "is not as much as its head says"),
    "a GIF of a code that comes later": (
        gif_of(4, 4, b"", packed=b"\x80\0\x83"), "its data cannot be unpacked"),
    "a GIF that begins with no pixel": (
        gif_of(4, 4, b"", packed=b"\x80\x82"), "its data cannot be unpacked"),
    "a GIF of a bomb": (
        gif_of(4, 4, b"", n_bits=2, packed=growing_codes(1 << 20)), "not as much as its head says"),
    "a GIF of megabytes a frame": (
        gif_of(4, 4, b"", packed=bytes((2 << 20) + 1)), "of more than 2,097,152 bytes a frame"),
    "a BMP that is cut": (bmp_of(3, 2, bytes(20)), "is cut short"),
    "a BMP's beginning": (b"BM" + bytes(20), "is cut short"),
    "a BMP that asks for gigabytes": (bmp_of(20_000, 20_000, b""), "is 20000x20000 pixels"),
    "a BMP of a negative width": (bmp_of(-3, 2, bytes(24)), "is -3x2 pixels"),
    "a BMP of the most negative height": (bmp_of(3, -(1 << 31), bytes(24)), "is 3x2147483648"),
    "a BMP of run lengths": (bmp_of(3, 2, bytes(24), n_bits=8, packing=1), "of a rare kind"),
    "a BMP of a file within": (bmp_of(3, 2, bytes(24), packing=4), "of a rare kind"),
    "a BMP of 2 bits": (bmp_of(3, 2, bytes(24), n_bits=2), "of a rare kind; send it as PNG"),
    "a BMP of OS/2": (b"BM" + bytes(12) + b"\x0c" + bytes(60), "is a BMP of a rare kind"),
    "a BMP with its pixels in its head": (
        b"BM" + bytes(12) + bmp_of(3, 2, bytes(24))[14:], "is cut short"),
    "a BMP of a number beyond its palette": (
        bmp_of(3, 2, b"\2\3\0\0" * 2, n_bits=8, palette=bytes(12)), "palette that is too small"),
    "a BMP without a palette": (bmp_of(9, 1, bytes(4), n_bits=1), "palette that is too small"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_would_harm_the_decoder_is_refused_in_words(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(ImageFault, match=message.replace("(", "\\(")):
        checked_size(data)


def test_there_are_more_than_forty_bombs_and_edge_cases() -> None:
    assert len(BAD) >= 40


def test_no_beginning_of_a_file_passes_for_the_whole() -> None:
    for data in (png(4, 4, RED), RED_JPEG, BLUE_JPEG):
        for n in range(len(data)):
            with pytest.raises(ImageFault):
                checked_size(data[:n])


def test_changed_bytes_are_refused_or_leave_a_size_within_bounds() -> None:
    source = random.Random(7)
    for data in (png(5, 4, RED), RED_JPEG, BLUE_JPEG):
        for _ in range(500):
            mutant = bytearray(data)
            for _ in range(source.randint(1, 4)):
                mutant[source.randrange(len(mutant))] = source.randrange(256)
            try:
                width, height = checked_size(bytes(mutant))
            except ImageFault:
                continue
            assert 1 <= width * height <= DEFAULT_LIMITS.max_image_pixels


# ---- messages ------------------------------------------------------------------------------


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": base64.b64encode(data).decode()}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_an_image_keeps_its_place_among_the_texts() -> None:
    content = [words("one"), image(DOT), words(" two"), image(RED_JPEG), image(DOT)]
    (message,) = messages_of([{"role": "user", "content": content}])
    assert message.content == "one two"
    assert [(each.at, each.data) for each in message.images] == [
        (3, DOT), (7, RED_JPEG), (7, DOT)]  # fmt: skip
    assert [each.path for each in message.images] == [
        f"messages.[0].content.[{i}]" for i in (1, 3, 4)]  # fmt: skip


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_a_message_of_each_of_these_roles_may_have_images(role: str) -> None:
    (message,) = messages_of([{"role": role, "content": [image(DOT)]}])
    assert [each.data for each in message.images] == [DOT]


def test_the_part_that_is_wrong_is_named() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": [image(DOT), image(b"")]},
    ]
    with pytest.raises(BadRequest) as caught:
        messages_of(turns)
    assert caught.value.param == "messages.[1].content.[1]"


def test_the_number_of_images_and_of_their_pixels_is_bounded() -> None:
    turn = {"role": "user", "content": [image(DOT)] * 32}
    messages_of([turn])
    with pytest.raises(BadRequest, match="more than 32 images"):
        messages_of([turn, {"role": "user", "content": [image(DOT)]}])
    large = image(png_of(4096, 4096, (b"\0" + bytes(512)) * 4096, n_bits=1, colour=0))
    messages_of([{"role": "user", "content": [large] * 4}])
    with pytest.raises(BadRequest, match="67,108,864 pixels"):
        messages_of([{"role": "user", "content": [large] * 5}])


@pytest.mark.parametrize("piece", ["%41", "A%41", "%", "%4", " ", "é"])
def test_a_url_of_fifteen_megabytes_takes_no_more_than_five_times_as_much(piece: str) -> None:
    url = "data:image/png;base64," + piece * ((15 << 20) // len(piece))
    tracemalloc.start()
    with pytest.raises(BadRequest):
        read(url)
    _, n_most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_most < 5 * (15 << 20)


def test_a_file_over_ten_megabytes_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadRequest, match="over 10,485,760 bytes"):
        read("A" * (15 << 20))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_images=1), "more than 1 images, or more than 67,108,864 pixels"),
        (Limits(max_image_bytes=72), "the image is over 72 bytes"),
        (Limits(max_image_side=3), "is 4x2 pixels; each side must be from 1 to 3"),
        (Limits(max_image_pixels=7), "is 4x2 pixels, more than 7"),
    ],
)
def test_a_server_may_have_other_bounds(limits: Limits, message: str) -> None:
    turn = {"role": "user", "content": [image(png(4, 2, RED))] * 2}
    messages_of([turn])
    with pytest.raises(BadRequest, match=message):
        messages_of([turn], limits)
