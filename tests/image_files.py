"""PNG and JPEG files for tests, put together from their parts, so that each part may be wrong.

Real JPEG files lie in `tests/pictures/`: their data takes more than a page to write.
"""

import struct
import zlib
from pathlib import Path

PICTURES = Path(__file__).with_name("pictures")
RED_JPEG = (PICTURES / "red.jpg").read_bytes()  # 48x32, baseline
BLUE_JPEG = (PICTURES / "blue-progressive.jpg").read_bytes()  # 40x40
GREY_JPEG = (PICTURES / "grey.jpg").read_bytes()  # 17x9, of one colour

PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A file of 8-bit RGB pixels of one colour."""
    return png_of(width, height, (b"\0" + bytes(colour) * width) * height)


def png_of(
    width: int,
    height: int,
    data: bytes,
    *,
    n_bits: int = 8,
    colour: int = 2,
    interlace: int = 0,
    more: tuple[bytes, ...] = (),
    level: int = -1,
) -> bytes:
    """A file of these rows, each with its filter in front, packed; `more` are chunks before."""
    head = struct.pack(">IIBBBBB", width, height, n_bits, colour, 0, 0, interlace)
    chunks = (
        chunk(b"IHDR", head),
        *more,
        chunk(b"IDAT", zlib.compress(data, level)),
        chunk(b"IEND"),
    )
    return PNG_BEGIN + b"".join(chunks)


def chunk(kind: bytes, body: bytes = b"", checksum: int | None = None) -> bytes:
    """A part of a PNG file, with its own checksum unless another is given."""
    if checksum is None:
        checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def jpeg_of(
    width: int, height: int, *, marker: int = 0xC0, n_bits: int = 8, n_colours: int = 3,
    n_scans: int = 1,
) -> bytes:  # fmt: skip
    """A file whose form is right, and whose data is none."""
    head = struct.pack(">BHHB", n_bits, height, width, n_colours) + b"\1\x11\0" * n_colours
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + b"\x12\xff\x00\x34"
    return b"\xff\xd8" + segment(marker, head) + scan * n_scans + b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    """A part of a JPEG file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body
