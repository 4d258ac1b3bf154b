"""Checks a model's files again before each start of a worker, if they have changed.

A worker may load only files that passed the checks of `lmlite/gguf`. While a model is served, its
file may be replaced. Copying may take minutes, and only a complete file can be checked.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from lmlite.errors import ModelFileError, ModelFileMissing
from lmlite.gguf.adapter import AdapterFile, read_adapter_file
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.header import identity
from lmlite.gguf.projector import Projector, read_projector_file

File = TypeVar("File", ModelFile, Projector, AdapterFile)
Identity = tuple[int, int, int, int]
Wait = Callable[[float], object]  # takes seconds

LOOK_S = 0.5  # pause between two looks at a file that may still be written to
N_LOOKS = 6  # looks at an unchanged file before an error in it counts as final


class CheckedFiles:
    """The files of one model, as they were last checked."""

    def __init__(
        self,
        model: ModelFile | None,
        projector: Projector | None,
        draft: ModelFile | None = None,
        adapters: Sequence[AdapterFile] = (),
    ) -> None:
        """An argument is None if there is no such file."""
        self.adapters = list(adapters)
        self.model, self.projector, self.draft = model, projector, draft

    @property
    def _all(self) -> list[ModelFile | Projector | AdapterFile]:
        files = self.model, self.projector, self.draft, *self.adapters
        return [file for file in files if file is not None]

    def check(self, wait: Wait) -> None:
        """Checks changed files again. Raises ModelFileError."""
        if self.projector is not None and has_changed(self.projector):
            self.projector = checked_again(self.projector, read_projector_file, wait)
        if self.draft is not None and has_changed(self.draft):
            self.draft = checked_again(self.draft, read_model_file, wait)
        if self.model is not None and has_changed(self.model):
            model = checked_again(self.model, read_model_file, wait)
            kinds = [(file.embeds_only, file.ranker) for file in (model, self.model)]
            if kinds[0] != kinds[1]:
                raise ModelFileError(f"{model.path} has become a model of another kind")
            self.model = model
        for i, adapter in enumerate(self.adapters):
            if self.model is not None and has_changed(adapter):
                read = partial(read_adapter_file, model=self.model)
                self.adapters[i] = checked_again(adapter, read, wait)

    def are_replaced(self) -> bool:
        """Whether a file has changed and exists. A worker can keep using a deleted file."""
        return any(has_changed(file) and None not in identities(file) for file in self._all)

    def identities(self) -> list[Identity | None]:
        """The identity of each part of each file: equal only if the part has not changed."""
        return [found for file in self._all for found in identities(file)]


def has_changed(file: ModelFile | Projector | AdapterFile) -> bool:
    """Whether a part was replaced, rewritten or deleted since the file was checked."""
    known = [(part.dev, part.ino, part.n_bytes, part.mtime_ns) for part in file.parts]
    return identities(file) != known


def checked_again(file: File, read: Callable[[str], File], wait: Wait) -> File:
    """Waits until the file stops changing, then reads it again with `read`.

    Raises ModelFileMissing if a part is missing, else the ModelFileError of `read`.
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


def identities(file: ModelFile | Projector | AdapterFile) -> list[Identity | None]:
    """The identity of each part, which changes when the part does; None for a missing part."""
    return [path_identity(part.path) for part in file.parts]


def path_identity(path: str) -> Identity | None:
    """The identity of the file at a path; None if there is none."""
    try:
        return identity(os.stat(path))
    except OSError:
        return None
