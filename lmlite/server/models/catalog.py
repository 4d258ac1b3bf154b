"""The model files that there are: named on the command line, and found in folders.

No file is opened before `read`. Any thread may call everything here.
"""

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from lmlite.errors import ModelFileError, ModelNotFound
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.projector import projector_beside
from lmlite.server.logs import printable
from lmlite.server.models import names
from lmlite.server.models.folders import Repository, Signature, Walk, have_changed
from lmlite.server.models.model_check import Identity, path_identity

LOOK_S = 0.5  # from one look at the folders to the next


@dataclass(frozen=True)
class CatalogEntry:
    """A model file. Names are printable; paths are as the system has them."""

    name: str  # for clients; unique
    quantisation: str  # from the file's name, in upper case; "" if the name has none
    publisher: str | None
    path: str  # absolute; of the first part
    n_bytes: int  # of all parts; 0 for a file that is missing
    projector_path: str | None
    settings_paths: tuple[str, ...]  # the folder's model.yaml, then NAME.json
    aliases: tuple[str, ...] = ()
    is_named: bool = False  # on the command line

    @property
    def model(self) -> str:
        """The name without the quantisation, which all quantisations of a model share."""
        return self._published(names.parsed(self.path).model)

    def spellings(self) -> set[str]:
        """What clients may call the model besides its name and aliases."""
        file_name = os.path.basename(self.path)
        stem, model, quantisation = names.parsed(self.path)
        spelt = {file_name, os.path.splitext(file_name)[0], stem, model}
        if quantisation:
            spelt.add(f"{model}@{quantisation.lower()}")
        return {printable(text) for text in spelt} | {self._published(text) for text in spelt}

    def _published(self, text: str) -> str:
        return printable(f"{self.publisher}/{text}" if self.publisher else text)


@dataclass(frozen=True)
class _Listing:
    """What one scan has found."""

    entries: tuple[CatalogEntry, ...]
    signatures: Mapping[str, Signature]
    notes: tuple[str, ...]
    # The entries of each spelling. The number is its rank: 0 an alias, 1 a name, 2 another
    # spelling, and three more for the same without regard to case.
    index: Mapping[tuple[int, str], Sequence[CatalogEntry]] = field(compare=False)


@dataclass
class _Reading:
    """The description of one file, or its fault, and what the file was then."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    identities: list[Identity | None] | None = None
    file: ModelFile | None = None
    fault: str = ""


class Catalog:
    """All model files, and what their names mean."""

    def __init__(
        self,
        files: Iterable[str] = (),
        folders: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`files` and the values of `aliases` are paths of model files; both are listed first."""
        self._aliases = {name: os.path.abspath(path) for name, path in (aliases or {}).items()}
        self._files = dict.fromkeys([*map(os.path.abspath, files), *self._aliases.values()])
        self._folders = [os.path.abspath(folder) for folder in folders]
        self._clock = clock
        self._lock = threading.Lock()
        self._listing: _Listing | None = None
        self._is_settled = False
        self._next_look_s = 0.0
        self._readings: dict[str, _Reading] = {}
        self._readings_lock = threading.Lock()

    def entries(self, at_once: bool = False) -> list[CatalogEntry]:
        """The models: those named on the command line, then those in folders, by path.

        `at_once` shows what has changed in the folders since the last look.
        """
        return [*self._look(at_once).entries]

    def notes(self) -> tuple[str, ...]:
        """A sentence for each folder that exists and is not listed in full."""
        return self._look().notes

    def find(self, name: str) -> CatalogEntry:
        """The model of this name; of several quantisations, the one that `preference` puts first.

        Names are compared with names, never with paths. Raises ModelNotFound.
        """
        # A file may have come since the last look: "import", then at once "load".
        found = _found(name, self._look()) or _found(name, self._look(at_once=True))
        if len({entry.model for entry in found}) == 1:
            return min(found, key=lambda entry: names.preference(entry.quantisation, entry.n_bytes))
        shown = printable(name[: names.MAX_TYPED])
        if found:
            listed = ", ".join(entry.name for entry in found[: names.N_CANDIDATES])
            message = f"the name '{shown}' fits {len(found)} models; name one of them: {listed}"
        else:
            message = f"there is no model '{shown}'; {self._advice(name)}"
        raise ModelNotFound(message, param="model")

    def read(self, entry: CatalogEntry) -> ModelFile:
        """What the file's header says. Reads it only if the file has changed since the last time.

        Raises ModelFileError.
        """
        with self._readings_lock:
            reading = self._readings.setdefault(entry.path, _Reading())
        with reading.lock:
            # They are taken first: if the file changes while it is read, the next ones differ.
            identities = [path_identity(path) for path in names.part_paths(entry.path)]
            if identities != reading.identities:
                reading.file, reading.fault = _read(entry.path)
                reading.identities = identities
            if reading.file is None:
                raise ModelFileError(reading.fault)
            return reading.file

    def _look(self, at_once: bool = False) -> _Listing:
        """The list of models, scanned again if a folder has changed.

        Looks at the folders each LOOK_S at most, unless `at_once`.
        """
        # While another thread looks, which may take long on a slow disk, the last list will do.
        if self._lock.acquire(blocking=at_once or self._listing is None):
            try:
                is_due = self._clock() >= self._next_look_s
                if self._listing is None or self._must_scan(self._listing, is_due, at_once):
                    self._scan()
                if is_due:
                    self._next_look_s = self._clock() + LOOK_S
            finally:
                self._lock.release()
        assert self._listing is not None
        return self._listing

    def _must_scan(self, listing: _Listing, is_due: bool, at_once: bool) -> bool:
        # A change right after a scan may leave a folder with the same times, and a file that is
        # being copied grows without changing its folder. So scans go on until two are equal.
        if is_due and not self._is_settled:
            return True
        return (is_due or at_once) and have_changed(listing.signatures)

    def _scan(self) -> None:
        walk = Walk()
        entries = _entries(walk, self._files, self._folders, self._aliases)
        last = self._listing
        index = last.index if last and last.entries == entries else _index(entries)
        self._listing = _Listing(entries, walk.signatures, tuple(walk.notes), index)
        self._is_settled = self._listing == last
        with self._readings_lock:
            paths = {entry.path for entry in entries}
            for path in self._readings.keys() - paths:
                del self._readings[path]

    def _advice(self, name: str) -> str:
        known = [text for entry in self.entries() for text in (*entry.aliases, entry.name)]
        if not known:
            return "this server has no models"
        if len(known) <= names.N_NEAREST:
            return "this server has: " + ", ".join(known)
        near = names.nearest(name, known)
        if not near:
            return f"none of the {len(known):,} names here is like it"
        return f"the nearest of {len(known):,} names here: {', '.join(near)}"


def models_folder() -> Path:
    """The folder for models: $LMLITE_MODELS, else ~/.local/share/lmlite/models."""
    folder = os.environ.get("LMLITE_MODELS")
    if folder:
        return Path(os.path.expanduser(folder))
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):  # as its specification says
        data = os.path.expanduser("~/.local/share")
    return Path(data, "lmlite", "models")


# ---- from files to entries -----------------------------------------------------------------


def _entries(
    walk: Walk, files: Iterable[str], folders: Iterable[str], aliases: Mapping[str, str]
) -> tuple[CatalogEntry, ...]:
    """All entries, each with a name of its own."""
    named = [_named_entry(walk.beside(path), path, aliases) for path in files]
    places = [_place(path, _status(path)) for path in files]
    for folder in folders:
        walk.folder(folder)
    found = [pair for repository in walk.repositories for pair in _entries_of(repository)]
    # A file that is named and also lies in one of the folders is one model.
    publishers = {place: entry.publisher for place, entry in found}
    named = [
        replace(entry, publisher=publishers.get(place))
        for place, entry in zip(places, named, strict=True)
    ]
    rest = [entry for place, entry in found if place not in places]
    return tuple(_distinct([*named, *_without_quantisation(rest)]))


def _named_entry(repository: Repository, path: str, aliases: Mapping[str, str]) -> CatalogEntry:
    (entry,) = [entry for _, entry in _entries_of(repository, path)]
    statuses = map(_status, names.part_paths(path))
    return replace(
        entry,
        name=printable(Path(path).stem),
        n_bytes=sum(status.st_size for status in statuses if status),
        projector_path=projector_beside(path) or entry.projector_path,
        aliases=tuple(alias for alias, aliased in aliases.items() if aliased == path),
        is_named=True,
    )


_Place = tuple[int, int] | str  # of a file: device and inode; its path if it is missing


def _place(path: str, status: os.stat_result | None) -> _Place:
    return (status.st_dev, status.st_ino) if status else path


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _entries_of(
    repository: Repository, only: str | None = None
) -> Iterator[tuple[_Place, CatalogEntry]]:
    """The models of a repository, or only the one at this path; their names are not final."""
    projectors, sizes = [], Counter({only: 0} if only else ())
    for path, status in repository.files.items():
        if names.is_projector(os.path.basename(path)):
            projectors.append(path)
        else:
            sizes[names.first_part(path)] += status.st_size if status else 0
    models = {names.parsed(path).model for path in sizes}
    for path in [only] if only else sizes:
        stem, model, quantisation = names.parsed(path)
        json_path = os.path.join(os.path.dirname(path), f"{stem}.json")
        settings = [yaml for yaml in repository.yaml_paths if path.startswith(_folder_of(yaml))]
        if json_path in repository.json_paths:
            settings.append(json_path)
        entry = CatalogEntry(
            name="",
            quantisation=quantisation,
            publisher=repository.publisher,
            path=path,
            n_bytes=sizes[path],
            projector_path=names.projector_for(model, models, projectors),
            settings_paths=tuple(settings),
        )
        yield _place(path, repository.files.get(path)), entry


def _folder_of(path: str) -> str:
    return os.path.join(os.path.dirname(path), "")


def _without_quantisation(entries: Sequence[CatalogEntry]) -> Iterator[CatalogEntry]:
    """Names the entries; only a model that is there in several quantisations needs "@"."""
    quantisations = defaultdict(set)
    for entry in entries:
        quantisations[entry.model].add(entry.quantisation)
    for entry in entries:
        needs_it = entry.quantisation and len(quantisations[entry.model]) > 1
        ending = f"@{entry.quantisation.lower()}" if needs_it else ""
        yield replace(entry, name=entry.model + ending)


def _distinct(entries: Iterable[CatalogEntry]) -> Iterator[CatalogEntry]:
    """Adds ":2" to the second of two equal names, as LM Studio does, ":3" to the third."""
    taken: set[str] = set()
    for entry in entries:
        tries = (f"{entry.name}:{n}" if n > 1 else entry.name for n in count(1))
        name = next(text for text in tries if text not in taken)
        taken.add(name)
        yield replace(entry, name=name)


def _index(entries: Iterable[CatalogEntry]) -> dict[tuple[int, str], list[CatalogEntry]]:
    index = defaultdict(list)
    for entry in entries:
        for rank, spelt in enumerate((entry.aliases, (entry.name,), entry.spellings())):
            for text in {*spelt}:
                index[rank, text].append(entry)
            for text in {text.casefold() for text in spelt}:
                index[rank + 3, text].append(entry)
    return dict(index)


def _found(name: str, listing: _Listing) -> Sequence[CatalogEntry]:
    """The entries that the name fits best."""
    for rank in range(6):
        found = listing.index.get((rank, name.casefold() if rank >= 3 else name))
        if found:
            return found
    return ()


def _read(path: str) -> tuple[ModelFile | None, str]:
    """(description, fault) of a file: one of both."""
    try:
        return read_model_file(path), ""
    except ModelFileError as err:
        return None, str(err)
