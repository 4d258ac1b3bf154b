"""The models that `lmlite serve` would find on this machine, for commands that need no server."""

from collections.abc import Sequence

from lmlite.cli import serve
from lmlite.server.logs import Log
from lmlite.server.models.loading import Shelf


def shelf_of(arguments: Sequence[str]) -> Shelf:
    """The models of `lmlite serve` with these arguments. No process starts. Raises CommandError."""
    given = serve.parsed(list(arguments))
    log = Log("error")  # the caller tells of the files that cannot be served
    return Shelf(
        serve.catalog_of(given), serve.model_options(given, serve.limits_of(given), log), log
    )
