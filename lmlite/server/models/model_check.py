"""The files of a model between two of its workers: whether they are still what was checked.

A worker may load only files that `lmlite/gguf` has passed. A model may be replaced while it is
served: its file then grows for minutes, and can only be judged once nobody writes to it.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from lmlite.errors import ModelFileError, ModelFileMissing
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.header import identity
from lmlite.gguf.projector import Projector, read_projector_file

File = TypeVar("File", ModelFile, Projector)
Identity = tuple[int, int, int, int]
Wait = Callable[[float], object]  # takes seconds

LOOK_S = 0.5  # between two looks at a file that may still be written to
N_LOOKS = 6  # at an unchanged file, before a fault in it is believed


class CheckedFiles:
    """The files of one model, as they were last checked."""

    def __init__(self, model: ModelFile | None, projector: Projector | None) -> None:
        """None: there is no such file."""
        self.model, self.projector = model, projector

    @property
    def _all(self) -> list[ModelFile | Projector]:
        return [file for file in (self.model, self.projector) if file is not None]

    def check(self, wait: Wait) -> None:
        """Checks again what has changed. Raises ModelFileError."""
        if self.projector is not None and has_changed(self.projector):
            self.projector = checked_again(self.projector, read_projector_file, wait)
        if self.model is not None and has_changed(self.model):
            model = checked_again(self.model, read_model_file, wait)
            if model.embeds_only != self.model.embeds_only:
                raise ModelFileError(f"{model.path} has become a model of another kind")
            self.model = model

    def are_replaced(self) -> bool:
        """Whether one has changed and is there: a missing file leaves the worker what it has."""
        return any(has_changed(file) and None not in identities(file) for file in self._all)

    def identities(self) -> list[Identity | None]:
        """For each part of each file, what changes when the part does."""
        return [found for file in self._all for found in identities(file)]


def has_changed(file: ModelFile | Projector) -> bool:
    """Whether the name of a part stands for another file, for other contents, or for none."""
    known = [(part.dev, part.ino, part.n_bytes, part.mtime_ns) for part in file.parts]
    return identities(file) != known


def checked_again(file: File, read: Callable[[str], File], wait: Wait) -> File:
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


def identities(file: ModelFile | Projector) -> list[Identity | None]:
    """For each part, what changes when the part does; None for one that cannot be found."""
    return [_identity(part.path) for part in file.parts]


def _identity(path: str) -> Identity | None:
    try:
        return identity(os.stat(path))
    except OSError:
        return None
