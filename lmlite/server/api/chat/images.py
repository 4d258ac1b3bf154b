"""Images of a chat: data URLs -> image files that are complete and within limits. Pure.

Nothing is fetched, and no path is opened. `image_formats.py` checks the files.
"""

import base64
import binascii
import re

from lmlite.server.api.chat.image_formats import ImageFault, checked_size
from lmlite.server.api.fields import Field
from lmlite.server.front.limits import DEFAULT_LIMITS, Limits

PIXELS_FACTOR = 4  # all images of a request may have so many times the pixels of one
DETAILS = ("auto", "low", "high")

_URL = re.compile(r"\s*([a-z][a-z0-9+.\-]{0,31}):", re.IGNORECASE)
_PLAIN = bytes.maketrans(b"-_", b"+/")  # base64 may use the URL-safe alphabet
_SPACES = b" \t\r\n"
_NO_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")


class ImageReader:
    """Reads the images of one request."""

    def __init__(self, takes_images: bool, limits: Limits = DEFAULT_LIMITS) -> None:
        self._takes_images, self._limits = takes_images, limits
        self._n_images = self._n_pixels = 0

    def read(self, part: Field, url: str | None = None) -> bytes:
        """The image file of a content part, from a data URL; None: the URL in its `image_url`.

        Raises BadRequest.
        """
        if not self._takes_images:
            part["image_url"].unsupported(
                "this model sees no images: serve it with its projector, --mmproj FILE"
            )
        limits = self._limits
        data = _decoded(_url_of(part) if url is None else url, part, limits.max_image_bytes)
        try:
            width, height = checked_size(data, limits)
        except ImageFault as fault:
            part.refuse(f"the image {fault}")
        self._n_images += 1
        self._n_pixels += width * height
        most_pixels = PIXELS_FACTOR * limits.max_image_pixels
        if self._n_images > limits.max_images or self._n_pixels > most_pixels:
            part.refuse(
                f"the messages have more than {limits.max_images:,} images, or more than "
                f"{most_pixels:,} pixels in them"
            )
        return data


def _url_of(part: Field) -> str:
    """The URL of a part: in an object, or as a bare string, which some clients send."""
    image = part["image_url"].required()
    if type(image.value) is str:
        return image.value
    if type(image.value) is not dict:
        image.refuse("image_url is an object with a url")
    if image["detail"].string() not in (None, *DETAILS):
        image["detail"].refuse(f"detail is one of {', '.join(DETAILS)}")
    url = image["url"].required()
    if type(url.value) is not str:
        url.refuse("url is a string")
    return str(url.value)


def _decoded(url: str, part: Field, most_bytes: int) -> bytes:
    """The bytes in a data URL, or in bare base64; line breaks are skipped."""
    scheme, payload = _URL.match(url), url
    if scheme is not None:
        if scheme[1].lower() != "data":
            part.refuse(
                f"the image is at a {scheme[1].lower()} URL, and this server fetches none: send "
                "the file itself as data:image/png;base64,..."
            )
        payload = url.partition(",")[2]
    try:
        symbols = _unescaped(payload.encode("ascii")).translate(_PLAIN, _SPACES).rstrip(b"=")
        if len(symbols) * 3 // 4 > most_bytes:
            part.refuse(f"the image is over {most_bytes:,} bytes")
        return base64.b64decode(symbols + b"=" * (-len(symbols) % 4), validate=True)
    except ValueError:  # includes binascii.Error and UnicodeEncodeError
        part.refuse("the image is not valid base64")


def _unescaped(payload: bytes) -> bytes:
    """The payload without the escapes of a URL. Raises ValueError.

    Each %41 is rewritten as =41 and decoded as quoted-printable text, in one pass.
    `urllib.parse.unquote` would take 1.3 GiB for 15 MiB.
    """
    if b"%" not in payload:
        return payload
    if _NO_ESCAPE.search(payload):
        raise ValueError("a percent sign without two digits")
    return binascii.a2b_qp(payload.rstrip(b"=").replace(b"%", b"="))
