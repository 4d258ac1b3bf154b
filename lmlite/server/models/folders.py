"""Finds the model files in folders, and notices when a folder has changed.

Three layouts are known: files in one folder, LM Studio's (`publisher/repository/file.gguf`) and the
cache of Hugging Face's hub (`models--publisher--repository/snapshots/REVISION/file.gguf`, whose
files are links: https://huggingface.co/docs/huggingface_hub/guides/manage-cache). A link to a file
is followed, a link to a folder is not, so that no walk is endless or leads elsewhere.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from lmlite.server.logs import printable
from lmlite.server.models.names import is_model_or_projector

MAX_DEPTH = 5  # folders below the given one
YAML_NAME = "model.yaml"
MAX_FOUND = 10_000  # folders, model files and settings files, of all walks together

_HUB_FOLDER = re.compile(r"models--(?:(?P<publisher>.+?)--)?.+", re.DOTALL)

# (device, inode, mtime_ns, ctime_ns); None: missing. It changes when a file in the folder appears
# or goes, and also when the folder becomes readable.
Signature = tuple[int, int, int, int] | None


@dataclass
class Repository:
    """What belongs together: all files of a repository, or else of one folder."""

    publisher: str | None = None
    files: dict[str, os.stat_result | None] = field(default_factory=dict)  # None: a dead link
    yaml_paths: list[str] = field(default_factory=list)  # each model.yaml, the outer one first
    json_paths: set[str] = field(default_factory=set)


class Walk:
    """Walks through folders. Afterwards the fields hold what was found."""

    def __init__(self) -> None:
        self.repositories: list[Repository] = []
        self.signatures: dict[str, Signature] = {}  # by path: what `have_changed` compares
        self.notes: list[str] = []  # a sentence for each folder that is not listed in full
        self._walked: set[Signature] = set()
        self._n_left = MAX_FOUND

    def folder(self, path: str) -> None:
        """Looks for models in a folder and below. One that cannot be read counts as empty."""
        self._walk(path, (), None)
        if self._n_left < 0:
            self.notes.append(
                f"only the first {MAX_FOUND:,} files and folders of {printable(path)} are listed"
            )

    def beside(self, path: str) -> Repository:
        """The files in the folder of one file. They are not added to the repositories."""
        repository = Repository()
        _add(repository, self._listed(os.path.dirname(path)))
        return repository

    def _walk(self, folder: str, below: tuple[str, ...], repository: Repository | None) -> None:
        """Looks at one folder, and at those in it.

        `below`: the folders that lead here. `repository`: what this folder is part of, if anything.
        """
        found = self._listed(folder)
        if self.signatures[folder] in self._walked:  # given twice, or part of another one
            return
        self._walked.add(self.signatures[folder])
        hub = _HUB_FOLDER.fullmatch(os.path.basename(folder))
        if hub is not None and any(item.name == "snapshots" for item in found):
            snapshot = self._snapshot(folder)
            if snapshot is not None:
                self._walk(snapshot, (*below, "snapshots", ""), self._new(hub["publisher"]))
            return
        is_part = repository is not None or len(below) == 2
        repository = repository or self._new(below[0] if is_part else None)
        _add(repository, found)
        for item in found if len(below) < MAX_DEPTH else ():
            if _is_folder(item):
                self._walk(item.path, (*below, item.name), repository if is_part else None)

    def _new(self, publisher: str | None) -> Repository:
        self.repositories.append(Repository(publisher))
        return self.repositories[-1]

    def _snapshot(self, folder: str) -> str | None:
        """The snapshot of a hub's folder to take: that of `refs/main`, else the newest."""
        paths = {
            item.name: item.path
            for item in self._listed(os.path.join(folder, "snapshots"))
            if _is_folder(item)
        }
        reference = os.path.join(folder, "refs", "main")
        self.signatures[reference] = signature(reference)  # it is overwritten in place
        main = _text(reference) if os.path.isfile(reference) else ""
        return paths.get(main) or max(paths.values(), key=_mtime_ns, default=None)

    def _listed(self, folder: str) -> list[os.DirEntry[str]]:
        """What is of interest in a folder, by name; [] if it cannot be read."""
        # The signature is taken first: if something changes now, the next one will differ.
        self.signatures[folder] = signature(folder)
        try:
            with os.scandir(folder) as items:
                found = [*islice(filter(_is_of_interest, items), max(0, self._n_left) + 1)]
        except FileNotFoundError:
            return []
        except OSError as err:
            self.notes.append(f"the folder {printable(folder)} cannot be read: {err.strerror}")
            return []
        n_found, self._n_left = len(found), self._n_left - len(found)
        found = found[: n_found + min(0, self._n_left)]
        return sorted(found, key=lambda item: item.name)


def signature(path: str) -> Signature:
    """The signature of a folder, or of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def have_changed(signatures: Mapping[str, Signature]) -> bool:
    """Whether a folder differs from what its signature was taken of."""
    return any(signature(path) != known for path, known in signatures.items())


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""


def _mtime_ns(path: str) -> int:
    return (signature(path) or (0, 0, 0, 0))[2]


def _is_folder(item: os.DirEntry[str]) -> bool:
    return item.is_dir(follow_symlinks=False)


def _is_of_interest(item: os.DirEntry[str]) -> bool:
    if item.name.startswith("."):
        return False
    return (
        _is_folder(item)
        or is_model_or_projector(item.name)
        or item.name == YAML_NAME
        or item.name.endswith(".json")
    )


def _add(repository: Repository, found: Iterable[os.DirEntry[str]]) -> None:
    for item in found:
        if _is_folder(item):
            continue
        if item.name == YAML_NAME:
            repository.yaml_paths.append(item.path)
            continue
        if item.name.endswith(".json"):
            repository.json_paths.add(item.path)
            continue
        try:
            status = os.stat(item.path)
        except OSError:
            repository.files[item.path] = None
            continue
        if not stat.S_ISDIR(status.st_mode):
            repository.files[item.path] = status
