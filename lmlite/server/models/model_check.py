"""The files of a model between two of its workers: whether they are those that were checked.

A worker may only load what `gguf.py` and `gguf_projector.py` have passed. Who replaces a model
does so while it is served: the file grows for minutes, and only once nobody writes to it can it
be judged.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from lmlite.errors import ModelFileError, ModelFileMissing
from lmlite.gguf.file import ModelFile
from lmlite.gguf.header import identity
from lmlite.gguf.projector import Projector

File = TypeVar("File", ModelFile, Projector)
Identity = tuple[int, int, int, int]

LOOK_S = 0.5  # between two looks at a file that somebody may be writing to
N_LOOKS = 6  # at a file that stays as it is, until a fault of it is believed


def has_changed(file: ModelFile | Projector) -> bool:
    """Whether a name of its parts stands for another file, or for other contents, or for none."""
    known = [(part.dev, part.ino, part.n_bytes, part.mtime_ns) for part in file.parts]
    return identities(file) != known


def is_replaced(file: ModelFile | Projector) -> bool:
    """Whether it has changed, and is there: a file that is away leaves a worker what it has."""
    return None not in identities(file) and has_changed(file)


def checked_again(file: File, read: Callable[[str], File], wait: Callable[[float], object]) -> File:
    """What `read` makes of the file as it is now, once it stays so.

    Raises ModelFileMissing when a part is not there, else the ModelFileError of `read`.
    """
    seen, n_looks = identities(file), 0
    while True:
        wait(LOOK_S)
        now = identities(file)
        n_looks = n_looks + 1 if now == seen else 0
        seen = now
        if n_looks == 0:
            continue
        try:
            return read(file.path)
        except ModelFileError as err:
            if None in now:
                raise ModelFileMissing(str(err)) from None
            if n_looks >= N_LOOKS:
                raise


def identities(*files: ModelFile | Projector) -> list[Identity | None]:
    """What changes when a part of the files does, of each; None for one that cannot be found."""
    return [_identity(part.path) for file in files for part in file.parts]


def _identity(path: str) -> Identity | None:
    try:
        return identity(os.stat(path))
    except OSError:
        return None
