"""Applies patches to a source tree: `apply.py [--revert] TREE PATCH...`.

The patches are unified diffs of files that exist. patch(1) would let a hunk land where its lines
fit nearly, or in one of several places. Here each hunk fits exactly, and in one place of its file;
else nothing is written, and one sentence says which hunk does not.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path


def hunks(patch: str) -> Iterator[tuple[str, str, str]]:
    """The hunks of a patch: the path of the file, the lines before and the lines after."""
    for part in re.split(r"^--- a/", patch, flags=re.MULTILINE)[1:]:
        path = part.partition("\n")[0]
        for hunk in re.split(r"^@@ .*\n", part, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(x[1:] for x in lines if x[0] in kind) for kind in (" -", " +"))
            yield path, old, new


def apply(tree: Path, patches: list[Path], *, revert: bool = False) -> None:
    """Writes the files that the patches change; exits with a sentence where a hunk does not fit."""
    texts: dict[Path, str] = {}
    for patch in reversed(patches) if revert else patches:
        for number, (path, old, new) in enumerate(hunks(patch.read_text()), 1):
            if revert:
                old, new = new, old
            file = tree / path
            if file not in texts:
                texts[file] = "\n" + (file.read_text() if file.is_file() else "")
            places = texts[file].count("\n" + old)
            if places != 1:
                sys.exit(f"{patch.name}: hunk {number} fits {places} places of {path}, not one")
            texts[file] = texts[file].replace("\n" + old, "\n" + new)
    for file, text in texts.items():
        file.write_text(text[1:])


if __name__ == "__main__":
    revert = sys.argv[1] == "--revert"
    tree, *patches = map(Path, sys.argv[1 + revert :])
    apply(tree, patches, revert=revert)
