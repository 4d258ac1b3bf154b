"""Images of a chat: data URLs -> JPEG and PNG files that are whole and within bounds. Pure.

What decodes them in the worker believes every number in a file's head: 64 bytes can ask for
gigabytes. So the head is read here first, a PNG's data is unpacked once to see that it is neither
more nor less than its head says, and a JPEG must have an end. Nothing is fetched, and no path is
opened. The formats: https://www.w3.org/TR/png-3/, ITU-T T.81 (JPEG).
"""

import base64
import binascii
import re
import struct
import urllib.parse
import zlib
from collections.abc import Iterator

from lmlite.errors import BadRequest
from lmlite.server.fields import Body, required, string, unsupported
from lmlite.server.limits import DEFAULT_LIMITS, Limits

MAX_RATIO = 200  # of the longer side to the shorter one
PIXELS_FACTOR = 4  # of all images of a request, to those of one
MAX_SCANS = 32  # of a progressive JPEG, each of which passes over all pixels
DETAILS = ("auto", "low", "high")

_URL = re.compile(r"([a-z][a-z0-9+.\-]*):", re.IGNORECASE)
_SPACES = str.maketrans("-_", "+/", " \t\r\n")  # and the alphabet that is made for URLs
_CHUNK_BYTES = 64 << 10

Size = tuple[int, int]  # width and height in pixels


class ImageFault(Exception):
    """What is wrong with a file, as the end of a sentence that begins with "the image"."""


class ImageReader:
    """Reads the images of one request."""

    def __init__(self, takes_images: bool, limits: Limits = DEFAULT_LIMITS) -> None:
        """`takes_images` says whether the model sees."""
        self._takes_images, self._limits = takes_images, limits
        self._n_images = self._n_pixels = 0

    def read(self, part: Body, path: str) -> bytes:
        """The file in a content part of type image_url. Raises BadRequest."""
        if not self._takes_images:
            unsupported(
                f"{path}.image_url",
                "this model sees no images: serve it with its projector, --mmproj FILE",
            )
        limits = self._limits
        data = _decoded(_url_of(part, path), path, limits.max_image_bytes)
        try:
            width, height = checked_size(data, limits)
        except ImageFault as fault:
            raise BadRequest(f"the image {fault}", param=path) from None
        self._n_images += 1
        self._n_pixels += width * height
        most_pixels = PIXELS_FACTOR * limits.max_image_pixels
        if self._n_images > limits.max_images or self._n_pixels > most_pixels:
            raise BadRequest(
                f"the messages have more than {limits.max_images:,} images, or more than "
                f"{most_pixels:,} pixels in them",
                param=path,
            )
        return data


def _url_of(part: Body, path: str) -> str:
    """The URL; clients send it bare, too."""
    image = required(part, "image_url", f"{path}.image_url")
    if type(image) is str:
        return image
    if type(image) is not dict:
        raise BadRequest("image_url is an object with a url", param=f"{path}.image_url")
    detail = string(image, "detail", f"{path}.image_url.detail")
    if detail is not None and detail not in DETAILS:
        raise BadRequest(f"detail is one of {', '.join(DETAILS)}", param=f"{path}.image_url.detail")
    url = required(image, "url", f"{path}.image_url.url")
    if type(url) is not str:
        raise BadRequest("url is a string", param=f"{path}.image_url.url")
    return url


def _decoded(url: str, path: str, most_bytes: int) -> bytes:
    """The bytes in a data URL, or in bare base64, however it is broken into lines."""
    scheme, payload = _URL.match(url.lstrip()), url
    if scheme is not None:
        if scheme[1].lower() != "data":
            raise BadRequest(
                f"the image is at a {scheme[1].lower()} URL, and this server fetches none: send "
                "the file itself as data:image/png;base64,...",
                param=path,
            )
        payload = urllib.parse.unquote(url.partition(",")[2])
    payload = payload.translate(_SPACES).rstrip("=")
    if len(payload) * 3 // 4 > most_bytes:
        raise BadRequest(f"the image is over {most_bytes:,} bytes", param=path)
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("the image is not valid base64", param=path) from None


# ---- what a file says of itself ------------------------------------------------------------


def checked_size(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Size:
    """The size of a PNG or JPEG that is whole and within bounds. Raises ImageFault."""
    if data.startswith(_PNG_BEGIN):
        return _checked_png(data, limits)
    if data.startswith(b"\xff\xd8\xff"):
        return _checked_jpeg(data, limits)
    raise ImageFault("is neither PNG nor JPEG, by its first bytes")


def _check_size(width: int, height: int, limits: Limits) -> Size:
    most = limits.max_image_side
    if not (1 <= width <= most and 1 <= height <= most):
        raise ImageFault(f"is {width}x{height} pixels; each side must be from 1 to {most:,}")
    if width * height > limits.max_image_pixels:
        raise ImageFault(f"is {width}x{height} pixels, more than {limits.max_image_pixels:,}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageFault(f"is {width}x{height} pixels: over {MAX_RATIO} times as long as wide")
    return width, height


_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
# Colour type -> numbers of a pixel, and the bits that each may have.
_PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)),
                4: (2, (8, 16)), 6: (4, (8, 16))}  # fmt: skip
# An interlaced image comes in seven smaller ones: first column and row, and steps between them.
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
               (0, 1, 1, 2))  # fmt: skip


def _checked_png(data: bytes, limits: Limits) -> Size:
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
    """Kind and body of each chunk. Raises ImageFault unless they are whole, up to the last."""
    place = len(_PNG_BEGIN)
    while place + 12 <= len(data):
        (n_bytes,) = struct.unpack_from(">I", data, place)
        end = place + 8 + n_bytes
        if end + 4 > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, end)
        if checksum != zlib.crc32(data[place + 4 : end]):
            raise ImageFault("is damaged: a checksum is wrong")
        yield data[place + 4 : place + 8], data[place + 8 : end]
        if data[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    raise ImageFault("is cut short")


def _check_unpacked(packed: list[bytes], n_expected: int) -> None:
    """Raises ImageFault unless the data unpacks to exactly so many bytes; none of them are kept."""
    unpacker = zlib.decompressobj()
    n_bytes = 0
    try:
        for piece in packed:
            rest = piece
            while rest and not unpacker.eof and n_bytes <= n_expected:
                n_bytes += len(unpacker.decompress(rest, _CHUNK_BYTES))
                rest = unpacker.unconsumed_tail
    except zlib.error:
        raise ImageFault("is damaged: its data cannot be unpacked") from None
    if n_bytes != n_expected or not unpacker.eof:
        raise ImageFault("is damaged: its data is not as much as its head says")


# A marker of a JPEG within its data: no stuffed byte, no restart, no filling.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SOF0, _SOF1, _SOF2, _DHT, _JPG, _DAC = 0xC0, 0xC1, 0xC2, 0xC4, 0xC8, 0xCC
_EOI, _SOS = 0xD9, 0xDA


def _checked_jpeg(data: bytes, limits: Limits) -> Size:
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
    """Each marker between begin and end, and its segment. Raises ImageFault without an end.

    What follows a scan's segment is its data, which has markers of no meaning to us.
    """
    found = _JPEG_MARKER.match(data, 2)
    while found is not None:
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
