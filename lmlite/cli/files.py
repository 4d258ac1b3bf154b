"""`lmlite import` and `lmlite rm`: model files come into the folder of models, and leave it.

A running server notices both by itself.
"""

import argparse
import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from lmlite.cli.client import Client, NoServerError
from lmlite.cli.flags import IMPORT_FLAGS, RM_FLAGS, CommandError, Commands
from lmlite.cli.ls import own, state
from lmlite.errors import ModelFileError, ModelNotFound
from lmlite.gguf.file import read_model_file
from lmlite.gguf.memory_estimate import in_words
from lmlite.gguf.projector import read_projector_file
from lmlite.server.logs import printable
from lmlite.server.models import names
from lmlite.server.models.catalog import Catalog, CatalogEntry, models_folder

# How a file comes in, and what is said of it then. The first one is the default.
WAYS = {"copy": "copied", "move": "moved", "link": "linked", "symlink": "linked"}


def add_to(commands: Commands) -> None:
    """Declares both commands."""
    bring = commands.add_parser(
        "import",
        help="copy a model file into the folder of models",
        description="Copy a model file into the folder of models, or move it, or link to it. Its "
        "header is checked first. Of a split model, name the first part.",
    )
    bring.add_argument("file", metavar="FILE", help="GGUF file of a model or of its projector")
    ways = bring.add_mutually_exclusive_group()
    for flag in IMPORT_FLAGS:
        flag.add_to(ways if flag.name.strip("-") in WAYS else bring)
    bring.set_defaults(run=run_import)
    remove = commands.add_parser(
        "rm",
        help="remove a model's files",
        description="Remove a model's files from the folder of models: all its parts, and its "
        "projector and settings unless other models use them.",
    )
    remove.add_argument("model", metavar="MODEL", help="its name, as lmlite ls shows it")
    for flag in RM_FLAGS:
        flag.add_to(remove)
    remove.set_defaults(run=run_rm)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turns what fails on a disk, and models that are not there, into a CommandError."""
    try:
        yield
    except OSError as err:
        where = printable(str(err.filename2 or err.filename or ""))
        raise CommandError(f"{where}: {err.strerror}", 1) from None
    except (ModelFileError, ModelNotFound) as err:
        raise CommandError(str(err), 1) from None


# ---- import --------------------------------------------------------------------------------


def run_import(given: argparse.Namespace) -> int:
    """Brings a model into the folder. Raises CommandError."""
    folder = os.path.join(given.folder or models_folder(), given.user_repo or "")
    way = next((way for way in WAYS if getattr(given, way)), "copy")
    with _failures():
        sources = _checked(given.file)
        targets = [os.path.join(folder, os.path.basename(path)) for path in sources]
        for target in filter(os.path.lexists, targets):
            raise CommandError(f"{printable(target)} is there already", 1)
        if not given.dry_run:
            os.makedirs(folder, exist_ok=True)
            _bring(sources, targets, way)
    done = f"would be {WAYS[way]}" if given.dry_run else f"is {WAYS[way]}"
    for source, target in zip(sources, targets, strict=True):
        print(printable(f"{source} {done} to {target}"))
    return 0


def _checked(path: str) -> list[str]:
    """The paths of all parts of a model, or of a projector. Raises ModelFileError."""
    if names.is_projector(os.path.basename(path)):
        return [read_projector_file(path).path]
    return [part.path for part in read_model_file(path).parts]


def _bring(sources: list[str], targets: list[str], way: str) -> None:
    """Makes all targets appear whole, or none. Links that are copied or moved are followed.

    Raises OSError.
    """
    sources, made = [*map(os.path.realpath, sources)], []
    try:
        for source, target in zip(sources, targets, strict=True):
            # Scans pass over names that begin with a dot.
            aside = os.path.join(
                os.path.dirname(target), f".{os.path.basename(target)}.{os.getpid()}"
            )
            made.append(aside)
            if way == "symlink":
                os.symlink(source, aside)
            elif way == "copy" or not _linked(source, aside, needed=way == "link"):
                shutil.copyfile(source, aside)
                with open(aside, "rb") as file:
                    os.fsync(file.fileno())  # before the name appears: the power may fail
        for aside, target in zip([*made], targets, strict=True):
            os.rename(aside, target)
            made.append(target)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    if way == "move":
        for source in sources:
            os.unlink(source)


def _linked(source: str, aside: str, *, needed: bool) -> bool:
    """Makes a hard link, if the file system can. Raises OSError if one is needed."""
    try:
        os.link(source, aside)
    except OSError as err:
        if not needed and err.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            return False
        raise
    return True


# ---- rm ------------------------------------------------------------------------------------


def run_rm(given: argparse.Namespace) -> int:
    """Removes a model's files. Raises CommandError."""
    folder = given.folder or str(models_folder())
    catalog = Catalog(folders=[folder])
    with _failures():
        entry = _chosen(catalog, given.model)
        _check_not_loaded(entry, folder, given)
        paths = _files_of(entry, catalog.entries(), folder)
        sizes = [os.lstat(path).st_size for path in paths]
        for path, n_bytes in zip(paths, sizes, strict=True):
            print(f"{printable(path)}  {in_words(n_bytes)}")
        if not given.yes:
            _ask()
        for path in paths:
            os.unlink(path)
        with contextlib.suppress(OSError):  # the first folder that is not empty
            for empty in Path(entry.path).parents:
                if empty == Path(folder):
                    break
                empty.rmdir()
    print(f"{entry.name} is removed, {in_words(sum(sizes))}")
    return 0


def _chosen(catalog: Catalog, name: str) -> CatalogEntry:
    """The model of this name, which must not fit several quantisations.

    Raises ModelNotFound, CommandError.
    """
    entry, typed = catalog.find(name), name.casefold()
    fitting = [
        other.name
        for other in catalog.entries()
        if other.model == entry.model
        and typed in {text.casefold() for text in (other.name, *other.spellings())}
    ]
    if len(fitting) > 1 and name != entry.name:
        raise CommandError(f"'{printable(name)}' may be any of {', '.join(fitting)}", 1)
    return entry


def _check_not_loaded(entry: CatalogEntry, folder: str, given: argparse.Namespace) -> None:
    """Raises CommandError if a running server uses the model."""
    with contextlib.suppress(NoServerError):
        for model in Client.of(given).model_list()["models"]:
            path = os.path.join(folder, own(model).get("path", ""))
            if state(model) and (model["key"] == entry.name or path == entry.path):
                raise CommandError(
                    f"{entry.name} is loaded: lmlite unload {entry.name} unloads it", 1
                )


def _files_of(entry: CatalogEntry, entries: list[CatalogEntry], folder: str) -> list[str]:
    """The model's parts, and what else belongs to it alone. Raises CommandError."""
    parts = [path for path in names.part_paths(entry.path) if os.path.lexists(path)]
    others = [other for other in entries if other is not entry]
    used = {path for other in others for path in (other.projector_path, *other.settings_paths)}
    extras = [path for path in (entry.projector_path, *entry.settings_paths) if path]
    found = [*parts, *(path for path in extras if path not in used)]
    top = os.path.realpath(folder)
    for path in found:
        if os.path.islink(path) and Path(os.path.realpath(path)).is_relative_to(top):
            raise CommandError(
                f"{printable(path)} is a link to a file in this folder, as Hugging Face's cache "
                "has them: remove it with the program that put it there",
                1,
            )
    return found


def _ask() -> None:
    """Raises CommandError unless the user agrees."""
    if not sys.stdin.isatty():
        raise CommandError("nobody can be asked here: -y removes without asking", 2)
    answer = ""
    with contextlib.suppress(EOFError):
        answer = input("remove these files? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("nothing is removed", 1)
