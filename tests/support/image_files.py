"""Image files for tests, built from their parts, so that each part can be wrong.

Real JPEG and lossy WebP files are in `pictures/`: an encoder for them takes more than a page.
"""

import struct
import zlib
from pathlib import Path

PICTURES = Path(__file__).with_name("pictures")
RED_JPEG = (PICTURES / "red.jpg").read_bytes()  # 48x32, baseline
BLUE_JPEG = (PICTURES / "blue-progressive.jpg").read_bytes()  # 40x40
GREY_JPEG = (PICTURES / "grey.jpg").read_bytes()  # 17x9, of one colour
LOSSY_WEBP = (PICTURES / "lossy.webp").read_bytes()  # 48x32, see `sunset`
LOSSLESS_WEBP = (PICTURES / "lossless.webp").read_bytes()  # 40x24
ALPHA_WEBP = (PICTURES / "alpha.webp").read_bytes()  # 30x20, lossy, with an alpha channel
MOVING_WEBP = (PICTURES / "moving.webp").read_bytes()  # 16x12, of two frames

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
    """A file of these rows, each after its filter byte; `more` are chunks before the data."""
    head = struct.pack(">IIBBBBB", width, height, n_bits, colour, 0, 0, interlace)
    chunks = (
        chunk(b"IHDR", head),
        *more,
        chunk(b"IDAT", zlib.compress(data, level)),
        chunk(b"IEND"),
    )
    return PNG_BEGIN + b"".join(chunks)


def chunk(kind: bytes, body: bytes = b"", checksum: int | None = None) -> bytes:
    """A chunk of a PNG file, with the right checksum unless one is given."""
    if checksum is None:
        checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def jpeg_of(
    width: int, height: int, *, marker: int = 0xC0, n_bits: int = 8, n_colours: int = 3,
    n_scans: int = 1,
) -> bytes:  # fmt: skip
    """A file with the right structure, but without valid image data."""
    head = struct.pack(">BHHB", n_bits, height, width, n_colours) + b"\1\x11\0" * n_colours
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + b"\x12\xff\x00\x34"
    return b"\xff\xd8" + segment(marker, head) + scan * n_scans + b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    """A part of a JPEG file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def sunset(width: int, height: int) -> bytes:
    """The RGB pixels of the WebP files: red above yellow at the left, blue at the right."""
    return b"".join(
        bytes((220 - 2 * x, 20 + y, 30) if x < width * 2 // 3 else (20, 40, 200))
        for y in range(height)
        for x in range(width)
    )


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks, each a kind and a body."""
    body = b"WEBP"
    for kind, part in chunks:
        body += kind + struct.pack("<I", len(part)) + part + bytes(len(part) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The head of an extended WebP file."""
    sides = (side.to_bytes(3, "little") for side in (width - 1, height - 1))
    return b"VP8X", struct.pack("<B3x", flags) + b"".join(sides)


def vp8(width: int, height: int, *, tag: int = 0x10, start: bytes = b"\x9d\x01\x2a") -> bytes:
    """The header of a lossy picture, without the picture."""
    return tag.to_bytes(3, "little") + start + struct.pack("<HH", width, height)


def vp8l(width: int, height: int, colour: tuple[int, int, int] = RED, n_codes: int = 1) -> bytes:
    """A lossless picture of one colour: each code has only one symbol, which takes no bits.

    With 65,536 for `n_codes`, each block of 4 x 4 pixels has its own codes, all equal.
    """
    bits = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 1), (0, 1)]
    red, green, blue = colour
    if n_codes > 1:
        bits += [(1, 1), (0, 3), (0, 1)]  # an image of code numbers, one for each block of 4 x 4
        for n_symbols in (280, 256):  # in green and red, with 8 bits per symbol
            bits += [(0, 1), (8, 4), *((n, 3) for n in (0, 0, 1, *[0] * 8, 1)), (0, 1)]
            bits += [(1, 1)] * 256 + [(0, 1)] * (n_symbols - 256)
        bits += [_one_symbol(0)] * 3
        bits += [(number, 16) for number in range(n_codes)]
    else:
        bits.append((0, 1))
    bits += [_one_symbol(n) for n in (green, red, blue, 255, 0)] * n_codes
    return _packed(bits)


def _one_symbol(symbol: int) -> tuple[int, int]:
    """A code with this symbol alone, and the code's length in bits."""
    return 0b101 | symbol << 3, 11


def _packed(numbers: list[tuple[int, int]]) -> bytes:
    """Packs (number, n_bits) pairs, lowest bit first."""
    text = "".join(f"{number:0{n_bits}b}"[::-1] for number, n_bits in numbers)
    return int(text[::-1], 2).to_bytes(-(-len(text) // 8), "little")


def gif_of(
    width: int, height: int, pixels: bytes, *, frame: tuple[int, int, int, int] | None = None,
    flags: int = 0xF6, local: int = 0, n_bits: int = 7, packed: bytes | None = None,
    before: bytes = b"",
) -> bytes:  # fmt: skip
    """A GIF of one frame. Its pixels are numbers below 128, indices of a palette of reds.

    Codes always have 8 bits: the table is cleared before they would become longer.
    """
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0)
    palette = b"".join(bytes((2 * i, 0, 0)) for i in range(128))
    head += palette if flags & 0x80 else b""
    descriptor = b"," + struct.pack("<HHHHB", *(frame or (0, 0, width, height)), local)
    descriptor += palette if local & 0x80 else b""
    if packed is None:
        groups = (pixels[i : i + 126] for i in range(0, len(pixels), 126))
        packed = b"".join(b"\x80" + group for group in groups) + b"\x81"
    blocks = (packed[i : i + 255] for i in range(0, len(packed), 255))
    data = b"".join(bytes((len(block),)) + block for block in blocks)
    return head + before + descriptor + bytes((n_bits,)) + data + b"\0;"


def growing_codes(n_pixels: int) -> bytes:
    """GIF data of 2 bits for at least n_pixels: each code adds one pixel more than the last."""
    codes, n_known, width, length, n = [(4, 3), (0, 3)], 6, 3, 1, 1
    while n < n_pixels:
        codes.append((min(n_known, 4095), width))
        length += n_known < 4096
        n_known += n_known < 4096
        n += length
        width += n_known == 1 << width and width < 12
    return _packed([*codes, (5, width)])


def bmp_of(
    width: int, height: int, data: bytes, *, n_bits: int = 24, packing: int = 0,
    n_head: int = 40, palette: bytes = b"",
) -> bytes:  # fmt: skip
    """A BMP of these rows, the lowest first, each a multiple of four bytes."""
    head = struct.pack("<IiiHHIIIIII", n_head, width, height, 1, n_bits, packing, 0, 0, 0, 0, 0)
    more = head + bytes(n_head - 40) + palette
    size = 14 + len(more) + len(data)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, 14 + len(more)) + more + data
