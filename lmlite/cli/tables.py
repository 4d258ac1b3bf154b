"""What commands print for people: aligned columns, and times in words."""

from collections.abc import Sequence

from lmlite.server.logs import printable


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns. A column that is empty in all rows is left out.

    >>> print(table(["MODEL", "TTL", "SIZE"], [["tiny", "", "3 MiB"], ["qwen-7b", "", "4.4 GiB"]]))
    MODEL    SIZE
    tiny     3 MiB
    qwen-7b  4.4 GiB
    """
    columns = [
        [title, *map(printable, cells)]
        for title, *cells in zip(head, *rows, strict=True)
        if any(cells)
    ]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def time_in_words(seconds: float) -> str:
    """A time, roughly.

    >>> time_in_words(59.6), time_in_words(61), time_in_words(5400)
    ('60 s', '1 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
