"""Whether the files of a loaded model still have the content that was checked.

The weights are mapped, not copied. If a file is deleted or replaced, the mapping keeps the old
content. If a file is overwritten in place, the model computes wrong results.
"""

import os
from collections.abc import Sequence

from lmlite.gguf.header import identity
from lmlite.messages import ModelPart


class FilesChanged(Exception):
    """A file of the model differs from the one that was checked."""


class ModelFiles:
    """The open files of a model; renaming does not affect them. Any thread may use this."""

    def __init__(self, parts: Sequence[ModelPart]) -> None:
        """Opens the files. Raises FilesChanged."""
        self._known = [(part.dev, part.ino, part.n_bytes, part.mtime_ns) for part in parts]
        self._paths = [part.path for part in parts]
        self._fds: list[int] = []
        try:
            for path in self._paths:
                self._fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as err:
            self.close()
            raise FilesChanged(str(err)) from None

    def have_changed(self) -> bool:
        """Whether a file was written to."""
        return [identity(os.fstat(fd)) for fd in self._fds] != self._known

    def check_names(self) -> None:
        """Checks, after loading, that the paths still lead to these files. Raises FilesChanged."""
        try:
            named = [identity(os.stat(path)) for path in self._paths]
        except OSError as err:
            raise FilesChanged(str(err)) from None
        if named != self._known or self.have_changed():
            raise FilesChanged("written to while it was loaded")

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
