"""One file over HTTP: continues where an earlier attempt or connection ended."""

import re
from http import HTTPStatus

from lmlite.downloads.hub import RemoteFile
from lmlite.downloads.part import Part
from lmlite.downloads.progress import DownloadError, Progress
from lmlite.downloads.web import CUT, Interrupted, Web, read

READ_BYTES = 1 << 17
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def fetch(web: Web, file: RemoteFile, part: Part, progress: Progress) -> None:
    """Fills a part and checks it. Raises DownloadError, or OSError if it cannot be written."""
    web.repeat(lambda: _attempt(web, file, part, progress), lambda: part.n_bytes)
    part.check(file.sha256)


def _attempt(web: Web, file: RemoteFile, part: Part, progress: Progress) -> None:
    """Asks for what is missing, once. Raises Interrupted too."""
    if part.n_bytes == file.n_bytes:
        return
    headers = {"Range": f"bytes={part.n_bytes}-"} if part.n_bytes else {}
    if headers and file.etag:
        headers["If-Range"] = file.etag
    with web.open(file.url, file.name, headers) as response:
        if file.etag not in (None, response.headers.get("ETag")):
            raise DownloadError(f"{file.name} has changed meanwhile; fetch it again")
        if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server sends all of it
            progress.add(-part.n_bytes)
            part.empty()
        else:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[2])) != (part.n_bytes, file.n_bytes):
                part.remove()
                raise DownloadError(f"{file.name} has another size than announced; fetch it again")
        # One byte more than is missing, so that a file that is too long is noticed.
        while data := read(response, min(READ_BYTES, file.n_bytes - part.n_bytes + 1)):
            part.write(data)
            progress.add(len(data))
    if part.n_bytes < file.n_bytes:
        raise Interrupted(CUT)
