"""API keys: reads them, and compares a client's key with them.

Keys are bytes: `hmac.compare_digest` refuses non-ASCII text, which a client may send.
"""

import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "LMLITE_API_KEY"

_KEY = re.compile("[!-~]{16,}")  # too long to guess, and valid in a header


def read_keys(path: str | None) -> tuple[bytes, ...]:
    """The keys of a file and of the environment variable, which is deleted.

    Raises ValueError with a message that never shows a key.
    """
    texts = {}
    if path is not None:
        try:
            texts[path] = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(f"the keys in {path} cannot be read: {err}") from None
    if VARIABLE in os.environ:
        texts[VARIABLE] = os.environ.pop(VARIABLE)
    return tuple(key.encode() for name, text in texts.items() for key in _keys_in(text, name))


def _keys_in(text: str, name: str) -> list[str]:
    keys = [key.strip() for key in re.split(r"[,\n]", text) if key.strip()]
    if not keys:
        raise ValueError(f"{name} holds no key")
    if not all(map(_KEY.fullmatch, keys)):
        raise ValueError(f"a key in {name} is not of 16 or more letters, digits and signs")
    return keys


def is_known(offered: bytes, keys: Iterable[bytes]) -> bool:
    """Whether a key is in the list. The time does not reveal which key matches, or how much."""
    return any([hmac.compare_digest(offered, key) for key in keys])  # noqa: C419 - compares all
