"""Checks image files: complete, as large as the header says, and within limits. Pure.

The worker's decoder trusts the header, so a file of 64 bytes can ask for gigabytes. The header is
therefore checked here first. The packed data of a PNG or GIF must have exactly as many pixels as
the header says, and each file must have its end. The formats:
https://www.w3.org/TR/png-3/, ITU-T T.81 (JPEG), RFC 9649 (WebP), RFC 6386 (VP8),
https://www.w3.org/Graphics/GIF/spec-gif89a.txt, BITMAPINFOHEADER (BMP).
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from lmlite.server.front.limits import DEFAULT_LIMITS, Limits

MAX_RATIO = 200  # of the longer side to the shorter one
MAX_SCANS = 32  # of a progressive JPEG; each scan passes over all pixels
MAX_PARTS = 50_000  # chunks, segments or blocks
MAX_GIF_BYTES = 2 << 20  # of a frame's data; measured speed: 2 MB a second

_PACKED_BYTES, _UNPACKED_BYTES = 16 << 10, 64 << 10  # of a PNG's data, at a time

Size = tuple[int, int]  # width and height in pixels


class ImageFault(Exception):
    """A fault of a file, as the end of a sentence that begins with "the image"."""


def checked_size(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Size:
    """The size of an image file. Raises ImageFault unless it is complete and within limits.

    Only the first frame of an animated GIF is checked. An animated WebP is refused.
    """
    return _kind(data)[2](data, limits)


def media_type(data: bytes) -> str:
    """Such as "image/png", by the first bytes. Raises ImageFault."""
    return _kind(data)[0]


def _kind(data: bytes) -> tuple[str, re.Pattern[bytes], Callable[[bytes, Limits], Size]]:
    for kind in _KINDS:
        if kind[1].match(data):
            return kind
    raise ImageFault("is not a PNG, JPEG, WebP, GIF or BMP, by its first bytes")


def _check_size(width: int, height: int, limits: Limits) -> Size:
    most = limits.max_image_side
    if not (1 <= width <= most and 1 <= height <= most):
        raise ImageFault(f"is {width}x{height} pixels; each side must be from 1 to {most:,}")
    if width * height > limits.max_image_pixels:
        raise ImageFault(f"is {width}x{height} pixels, more than {limits.max_image_pixels:,}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageFault(f"is {width}x{height} pixels: over {MAX_RATIO} times as long as wide")
    return width, height


def _unpack(layout: str, data: bytes, place: int) -> tuple[Any, ...]:
    """Numbers from a file. Raises ImageFault if it ends before them."""
    try:
        return struct.unpack_from(layout, data, place)
    except struct.error:
        raise ImageFault("is cut short") from None


# ---- PNG -----------------------------------------------------------------------------------

_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
# Colour type -> channels of a pixel, and the allowed bits per channel.
_PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)),
                4: (2, (8, 16)), 6: (4, (8, 16))}  # fmt: skip
# An interlaced image is seven smaller ones: first column, first row, column step, row step.
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
               (0, 1, 1, 2))  # fmt: skip


def _check_png(data: bytes, limits: Limits) -> Size:
    chunks = list(_png_chunks(data))
    kind, head = chunks[0] if chunks else (b"", b"")
    if kind != b"IHDR" or len(head) != 13:
        raise ImageFault("is a PNG without a head")
    width, height, n_bits, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", head
    )
    size = _check_size(width, height, limits)
    n_numbers, depths = _PNG_COLOURS.get(colour, (0, ()))
    if n_bits not in depths or compression or filtering or interlace > 1:
        raise ImageFault("is a PNG of a kind that does not exist")
    if n_bits == 16:
        raise ImageFault("is a PNG of 16 bits a colour; send 8")
    if colour == 3 and not any(kind == b"PLTE" for kind, _ in chunks):
        raise ImageFault("is a PNG without its palette")
    passes = _PNG_PASSES if interlace else ((0, 0, 1, 1),)
    n_bytes = 0
    for x, y, step_x, step_y in passes:
        n_columns, n_rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if n_columns > 0:
            n_bytes += n_rows * (1 + -(-n_columns * n_numbers * n_bits // 8))
    _check_unpacked([body for kind, body in chunks if kind == b"IDAT"], n_bytes)
    return size


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk. Raises ImageFault unless all are whole."""
    place = len(_PNG_BEGIN)
    for _ in range(MAX_PARTS):
        n_bytes, kind = _unpack(">I4s", data, place)
        end = place + 8 + n_bytes
        (checksum,) = _unpack(">I", data, end)
        if checksum != zlib.crc32(data[place + 4 : end]):
            raise ImageFault("is damaged: a checksum is wrong")
        yield kind, data[place + 8 : end]
        if kind == b"IEND":
            return
        place = end + 4
    raise ImageFault(f"is a PNG of more than {MAX_PARTS:,} chunks")


def _check_unpacked(packed: list[bytes], n_expected: int) -> None:
    """Raises ImageFault unless the data unpacks to this many bytes, which are not kept."""
    unpacker = zlib.decompressobj()
    n_bytes = 0
    # Each turn copies the rest of a piece, so pieces are small.
    pieces = (each[i : i + _PACKED_BYTES] for each in packed
              for i in range(0, len(each), _PACKED_BYTES))  # fmt: skip
    try:
        for rest in pieces:
            while rest and not unpacker.eof and n_bytes <= n_expected:
                n_bytes += len(unpacker.decompress(rest, _UNPACKED_BYTES))
                rest = unpacker.unconsumed_tail
    except zlib.error:
        raise ImageFault("is damaged: its data cannot be unpacked") from None
    if n_bytes != n_expected or not unpacker.eof:
        raise ImageFault("is damaged: its data is not as much as its head says")


# ---- JPEG ----------------------------------------------------------------------------------

# A marker within JPEG data, other than a stuffed byte, a restart or fill bytes.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SOF0, _SOF1, _SOF2, _DHT, _JPG, _DAC = 0xC0, 0xC1, 0xC2, 0xC4, 0xC8, 0xCC
_EOI, _SOS = 0xD9, 0xDA


def _check_jpeg(data: bytes, limits: Limits) -> Size:
    size: Size | None = None
    n_scans = 0
    for marker, body in _jpeg_segments(data):
        if marker in (_SOF0, _SOF1, _SOF2):
            if size is not None or len(body) < 6:
                raise ImageFault("is a JPEG with a wrong head")
            n_bits, height, width, n_colours = struct.unpack_from(">BHHB", body)
            if n_bits != 8 or n_colours not in (1, 3, 4):
                raise ImageFault(f"is a JPEG of {n_colours} colours with {n_bits} bits; send 8")
            size = _check_size(width, height, limits)
        elif 0xC0 <= marker <= 0xCF and marker not in (_DHT, _JPG, _DAC):
            raise ImageFault("is a JPEG that is neither baseline nor progressive")
        n_scans += marker == _SOS
        if n_scans > MAX_SCANS:
            raise ImageFault(f"is a JPEG of more than {MAX_SCANS} scans")
    if size is None or n_scans == 0:
        raise ImageFault("is a JPEG without a picture")
    return size


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker between start and end, and its segment. Raises ImageFault without an end.

    The data after a scan's segment is skipped, with the markers in it.
    """
    found = _JPEG_MARKER.match(data, 2)
    for _ in range(MAX_PARTS):
        if found is None:
            break
        marker, place = found[1][0], found.end()
        if marker == _EOI:
            return
        n_bytes = int.from_bytes(data[place : place + 2], "big")
        end = place + n_bytes
        if n_bytes < 2 or end > len(data):
            break
        yield marker, data[place + 2 : end]
        found = (_JPEG_MARKER.search if marker == _SOS else _JPEG_MARKER.match)(data, end)
    raise ImageFault("is cut short or damaged")


# ---- WebP ----------------------------------------------------------------------------------

_MOVES = 0x02  # the animation flag of an extended file


def _check_webp(data: bytes, limits: Limits) -> Size:
    """The size of the only frame. If the file has a canvas, it must have the same size."""
    canvas: Size | None = None
    for kind, body in _webp_chunks(data):
        if kind in (b"VP8 ", b"VP8L"):
            width, height = (_vp8_size if kind == b"VP8 " else _vp8l_size)(body)
            if canvas not in (None, (width, height)):
                raise ImageFault("is a WebP whose picture is not of the size that its head says")
            return _check_size(width, height, limits)
        if kind == b"VP8X":
            flags, *sides = _unpack("<B3xHBHB", body, 0)
            if flags & _MOVES:
                raise ImageFault("is a WebP that moves; send one frame of it")
            canvas = 1 + sides[0] + (sides[1] << 16), 1 + sides[2] + (sides[3] << 16)
    raise ImageFault("is a WebP without a picture")


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk. Raises ImageFault unless all are whole."""
    end = 8 + _unpack("<I", data, 4)[0]
    if end > len(data):
        raise ImageFault("is cut short")
    place = 12
    for _ in range(MAX_PARTS):
        if place + 8 > end:
            return
        kind, n_bytes = _unpack("<4sI", data, place)
        if place + 8 + n_bytes > end:
            raise ImageFault("is damaged: a chunk is longer than the file")
        yield kind, data[place + 8 : place + 8 + n_bytes]
        place += 8 + n_bytes + n_bytes % 2


def _vp8_size(body: bytes) -> Size:
    """The size of a lossy picture. Format: key frame tag, start code, 14 bits per side."""
    tag, high, start, width, height = _unpack("<BH3sHH", body, 0)
    if tag & 1 or start != b"\x9d\x01\x2a" or (tag | high << 8) >> 5 > len(body):
        raise ImageFault("is a WebP with a wrong head")
    return width & 0x3FFF, height & 0x3FFF


def _vp8l_size(body: bytes) -> Size:
    """The size of a lossless picture. Format: signature, 14 bits per side, alpha, version 0."""
    signature, bits = _unpack("<BI", body, 0)
    if signature != 0x2F or bits >> 29:
        raise ImageFault("is a WebP with a wrong head")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


# ---- GIF -----------------------------------------------------------------------------------

_MAX_LZW_BITS = 12


def _check_gif(data: bytes, limits: Limits) -> Size:
    """The size of the canvas; only the first frame is checked."""
    width, height, flags = _unpack("<HHB", data, 6)
    size = _check_size(width, height, limits)
    place = _behind_extensions(data, 13 + _palette_bytes(flags))
    x, y, columns, rows, local = _unpack("<xHHHHB", data, place)
    if not (0 < columns <= width - x and 0 < rows <= height - y):
        raise ImageFault("is a GIF whose first frame is not within it")
    if not (flags | local) & 0x80:
        raise ImageFault("is a GIF without a palette")
    place += 10 + _palette_bytes(local)
    (n_bits,) = _unpack("<B", data, place)
    _, packed = _gif_blocks(data, place + 1)
    if len(packed) > MAX_GIF_BYTES:
        raise ImageFault(f"is a GIF of more than {MAX_GIF_BYTES:,} bytes a frame; send it as PNG")
    if not 2 <= n_bits <= 8 or _lzw_length(packed, n_bits, columns * rows) != columns * rows:
        raise ImageFault("is damaged: its data is not as much as its head says")
    return size


def _behind_extensions(data: bytes, place: int) -> int:
    """The offset of the first frame. Raises ImageFault if the file has no frame."""
    for _ in range(MAX_PARTS):
        (sign,) = _unpack("<c", data, place)
        if sign == b",":
            return place
        if sign != b"!":
            break
        place, _ = _gif_blocks(data, place + 2)
    raise ImageFault("is a GIF without a picture")


def _palette_bytes(flags: int) -> int:
    """The length of the palette that follows a GIF's header or a frame's."""
    return 3 << 1 + (flags & 7) if flags & 0x80 else 0


def _gif_blocks(data: bytes, place: int) -> tuple[int, bytes]:
    """Blocks up to an empty one: the offset after it, and the blocks' data. Raises ImageFault."""
    held = []
    for _ in range(MAX_PARTS):
        (n_bytes,) = _unpack("<B", data, place)
        held.append(data[place + 1 : place + 1 + n_bytes])
        place += 1 + n_bytes
        if n_bytes == 0:
            return place, b"".join(held)
    raise ImageFault(f"is a GIF of more than {MAX_PARTS:,} blocks")


def _lzw_length(packed: bytes, n_bits: int, most: int) -> int:
    """How many pixels a frame's data unpacks to; counting stops above `most`.

    The decoder does not stop when the picture is full: a megabyte would take it seconds.
    Raises ImageFault for data that cannot be unpacked.
    """
    clear = 1 << n_bits
    lengths = [1] * clear + [0, 0]  # pixels of each code; the last two are clear and end
    width, last = n_bits + 1, 0
    n_pixels = bits = n_held = 0
    for byte in packed:
        bits |= byte << n_held
        n_held += 8
        while n_held >= width:
            code = bits & (1 << width) - 1
            bits >>= width
            n_held -= width
            if code == clear:
                del lengths[clear + 2 :]
                width, last = n_bits + 1, 0
                continue
            if last and len(lengths) < 1 << _MAX_LZW_BITS:
                lengths.append(last + 1)
            if code == clear + 1 or n_pixels > most:
                return n_pixels
            if code >= len(lengths):
                raise ImageFault("is damaged: its data cannot be unpacked")
            last = lengths[code]
            n_pixels += last
            if len(lengths) == 1 << width and width < _MAX_LZW_BITS:
                width += 1
    return n_pixels


# ---- BMP -----------------------------------------------------------------------------------

_BMP_HEADS = (40, 56, 108, 124)
# Bits of a pixel, and its compression: 0 is plain, 3 has masks. The others are refused: run
# lengths, and embedded files for printers.
_BMP_KINDS = {(1, 0), (4, 0), (8, 0), (16, 0), (24, 0), (32, 0), (16, 3), (32, 3)}
# Bits of a pixel -> for each value of a data byte, the highest palette index in it.
_BMP_NUMBERS = {
    1: bytes(i > 0 for i in range(256)),
    4: bytes(max(i >> 4, i & 15) for i in range(256)),
    8: bytes(range(256)),
}


def _check_bmp(data: bytes, limits: Limits) -> Size:
    place, n_head, width, height, _, n_bits, packing = _unpack("<IIiiHHI", data, 10)
    if n_head not in _BMP_HEADS or (n_bits, packing) not in _BMP_KINDS:
        raise ImageFault("is a BMP of a rare kind; send it as PNG")
    size = _check_size(width, abs(height), limits)
    n_row = -(-width * n_bits // 8)
    n_bytes = -(-n_row // 4) * 4 * (size[1] - 1) + n_row
    if place < 14 + n_head or place + n_bytes > len(data):
        raise ImageFault("is cut short")
    if n_bits in _BMP_NUMBERS:
        n_colours = (place - 14 - n_head) // 4
        pixels = data[place : place + n_bytes]
        if max(pixels.translate(_BMP_NUMBERS[n_bits])) >= n_colours:
            raise ImageFault("is a BMP with a palette that is too small")
    return size


# Media type, first bytes, check.
_KINDS = (
    ("image/png", re.compile(re.escape(_PNG_BEGIN)), _check_png),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff"), _check_jpeg),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL), _check_webp),
    ("image/gif", re.compile(rb"GIF8[79]a"), _check_gif),
    ("image/bmp", re.compile(rb"BM"), _check_bmp),
)
