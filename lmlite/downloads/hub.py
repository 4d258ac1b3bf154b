"""The files that a name stands for, with their sizes and hashes. Nothing is fetched here.

Names of repositories are looked up in Hugging Face's API (https://huggingface.co/docs/hub/api). Its
answers are not trusted: a file's name must be plain. Any other address is that of a file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import punctuation
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urlsplit

from lmlite.downloads.progress import DownloadError
from lmlite.downloads.web import Web, origin
from lmlite.server.models import names

MAX_PAGES = 100  # of a repository's list of files
MAX_BYTES = 1 << 44  # of a file
MAX_NAME_BYTES = 230  # of a file's name; the name of the unfinished file is longer
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Files that help a model: statistics for quantising, draft models.
_HELPER = re.compile(r"imatrix|(?:^|[-_.])(?:mtp|eagle3|dflash|dspark)-", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model, and what tells whether it is still the same."""

    name: str  # on this machine
    url: str
    n_bytes: int
    sha256: str | None = None
    etag: str | None = None  # a strong one


def find(web: Web, name: str) -> tuple[str, list[RemoteFile]]:
    """(the folder below the folder of models, the model's files; the one to load is the first).

    Raises DownloadError.
    """
    wanted = parse(name, web.endpoint)
    if wanted is None:
        return _find_by_address(web, name)
    try:
        return _find_in_repository(web, *wanted)
    except (KeyError, TypeError, AttributeError):
        raise DownloadError(f"{web.endpoint} does not answer as Hugging Face does") from None


def parse(name: str, endpoint: str) -> tuple[str, str, str] | None:
    """(repository, revision or "", file or quantisation or ""); None for a file's address.

    >>> parse("ibm/granite-GGUF:Q8_0", "https://huggingface.co")
    ('ibm/granite-GGUF', '', 'Q8_0')
    >>> parse("https://huggingface.co/ibm/granite/resolve/main/a.gguf", "https://huggingface.co")
    ('ibm/granite', 'main', 'a.gguf')
    """
    revision, place = "", name
    if "://" in name:
        if origin(quote(name, punctuation)) != origin(endpoint):
            return None
        place = urlsplit(name).path.removeprefix(urlsplit(endpoint).path).strip("/")
    repository, _, choice = place.replace("@", ":").partition(":")
    owner, title, kind, *words = [*repository.split("/"), "", ""]
    if "://" in name and kind in ("resolve", "blob", "tree"):
        repository = f"{owner}/{title}"
        revision, choice = unquote(words[0]), unquote("/".join(words[1:]).strip("/"))
    if not _REPOSITORY.fullmatch(repository):
        raise DownloadError(
            f"{name!r} is not a model to fetch: give owner/repository, "
            "owner/repository:quantisation or an https address"
        )
    return repository, revision, choice


# ---- a file by its address -----------------------------------------------------------------


def _find_by_address(web: Web, address: str) -> tuple[str, list[RemoteFile]]:
    """The file, and the other parts if it is the first one of a split model."""
    url, fragment = urldefrag(quote(address, punctuation))
    scheme, host, _port = origin(url)
    if scheme != "https" and host not in _LOOPBACK:
        raise DownloadError(f"{address} is not an https address")
    name = _plain_name(unquote(urlsplit(url).path))
    sha256 = fragment.removeprefix("sha256=") or None
    files = [
        _ask(web, url.replace(quote(name), quote(part)), part, sha256 if part == name else None)
        for part in names.part_paths(name)
    ]
    return f"{host.replace(':', '_')}/{names.parsed(name).stem}", files


def _ask(web: Web, url: str, name: str, sha256: str | None) -> RemoteFile:
    """Asks for one byte of a file, to learn its size and its version."""

    def attempt() -> tuple[str, str]:
        with web.open(url, name, {"Range": "bytes=0-0"}) as response:
            whole = response.headers.get("Content-Range") or response.headers.get("Content-Length")
            return (whole or "").rpartition("/")[2], response.headers.get("ETag", "")

    size, etag = web.repeat(attempt)
    if not size.isdecimal() or not 0 < int(size) <= MAX_BYTES:
        raise DownloadError(f"{origin(url)[1]} does not say how large {name} is")
    return RemoteFile(name, url, int(size), sha256, etag if etag.startswith('"') else None)


# ---- a repository --------------------------------------------------------------------------


def _find_in_repository(
    web: Web, repository: str, revision: str, choice: str
) -> tuple[str, list[RemoteFile]]:
    api = f"{web.endpoint}/api/models/{repository}"
    about, _ = web.json(f"{api}/revision/{quote(revision, '')}" if revision else api, repository)
    # The commit names the files as they are now, even if others are uploaded meanwhile.
    if not re.fullmatch("[0-9a-f]{40}", commit := about["sha"]):
        raise KeyError(commit)
    entries: list[Any] = []
    page: str | None = f"{api}/tree/{commit}?recursive=true"
    for _ in range(MAX_PAGES):
        if page is not None and origin(page) == origin(web.endpoint):
            listed, page = web.json(page, repository)
            entries += listed
    files = {
        entry["path"]: _remote_file(f"{web.endpoint}/{repository}/resolve/{commit}", entry)
        for entry in entries
        if entry["type"] == "file" and entry["path"].endswith(".gguf")
    }
    paths = choose({path: files[path].n_bytes for path in files}, repository, choice)
    models = [names.parsed(path).model for path in files if not names.is_projector(path)]
    projectors = [path for path in files if names.is_projector(path)]
    projector = names.projector_for(names.parsed(paths[0]).model, models, projectors)
    return repository, [files[path] for path in [*paths, *filter(None, [projector])]]


def _remote_file(folder_url: str, entry: dict[str, Any]) -> RemoteFile:
    path, lfs = entry["path"], entry.get("lfs") or {}
    n_bytes, sha256 = lfs.get("size", entry["size"]), lfs.get("oid")
    if not 0 <= n_bytes <= MAX_BYTES or not re.fullmatch("[0-9a-f]{64}", sha256 or "0" * 64):
        raise KeyError(path)
    return RemoteFile(_plain_name(path), f"{folder_url}/{quote(path)}", n_bytes, sha256)


def _plain_name(path: str) -> str:
    """The last part of a path, if it is a harmless name of a model file. Raises DownloadError."""
    name = path.rpartition("/")[2]
    is_plain = name.isprintable() and "\\" not in name and not name.startswith((".", "-"))
    if is_plain and name.endswith(".gguf") and len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    raise DownloadError(f"{path[-300:]!a} is not a plain name of a .gguf file")


def choose(sizes: Mapping[str, int], repository: str, choice: str) -> list[str]:
    """The files of one model among a repository's, in order. Raises DownloadError.

    `sizes`: bytes by path. `choice`: a file, or a quantisation; if empty: Q4_K_M, else another one
    of 4 bits, else the smallest.
    """
    models = [
        path
        for path in sorted(sizes)
        if path == names.first_part(path)
        and not names.is_projector(path)
        and not _HELPER.search(os.path.basename(path))
    ]
    if not models:
        raise DownloadError(f"{repository} has no GGUF files; look for a repository that has them")
    quantisations = {path: names.parsed(path).quantisation for path in models}
    if choice in sizes:
        found = [names.first_part(choice)]
    elif choice:
        stem = re.escape(choice.removesuffix(names.ENDING))
        ending = re.compile(rf"(^|[-._/]){stem}(-\d{{5}}-of-\d{{5}})?\.gguf$", re.IGNORECASE)
        found = list(filter(ending.search, models))
    else:
        best = min(models, key=lambda path: names.preference(quantisations[path], sizes[path]))
        found = [path for path in models if quantisations[path] == quantisations[best]]
    if not found:
        has = sorted({quantisations[path] or path for path in models})
        raise DownloadError(f"{repository} has no {choice}; it has {', '.join(has[:40])}")
    if len(found) > 1:
        raise DownloadError(
            f"{repository} has several models{f' of {choice}' if choice else ''}; name one: "
            + ", ".join(f"{repository}:{path}" for path in found[:20])
        )
    parts = names.part_paths(found[0])
    if missing := [path for path in parts if path not in sizes]:
        raise DownloadError(f"{repository} lacks {missing[0]}, a part of the model")
    return parts
