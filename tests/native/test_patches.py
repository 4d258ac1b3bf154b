"""The patches to llama.cpp: each can be removed, and one that does not fit ends the build."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.conftest import LLAMA_CPP

FOLDER = REPOSITORY / "native" / "patches"
PATCHES = sorted(FOLDER.glob("*.patch"))
PATCH = """\
--- a/poem.txt
+++ b/poem.txt
@@ -1,3 +1,3 @@
 roses
-are red
+are blue
 violets
"""


def apply(*arguments: str | Path) -> str:
    """Runs what `make` runs; returns its one sentence, or nothing where the patches fit."""
    command = [sys.executable, str(FOLDER / "apply.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that patches change, as upstream has them."""
    tree = tmp_path / "upstream"
    for patch in PATCHES:
        for line in patch.read_text().splitlines():
            if line.startswith("--- a/"):
                path = line.removeprefix("--- a/")
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(LLAMA_CPP / path, tree / path)
    apply("--revert", tree, *PATCHES)  # fails on the tree of LLAMA_CPP_DIR, which has no patches
    return tree


def contents(tree: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in tree.rglob("*") if path.is_file()}


def test_any_of_the_patches_in_any_order_fit_and_can_be_reverted(tree: Path) -> None:
    upstream = contents(tree)
    for n in range(1, len(PATCHES) + 1):
        for chosen in itertools.combinations(PATCHES, n):
            results = []
            for order in (chosen, chosen[::-1]):  # each two of them come in either order
                assert apply(tree, *order) == ""
                results.append(contents(tree))
                assert apply("--revert", tree, *order) == ""
                assert contents(tree) == upstream
            assert all(result == results[0] != upstream for result in results)


@pytest.mark.parametrize(
    ("before", "places"),
    [
        ("roses \nare red\nviolets\n", 0),  # of three lines, one differs
        ("roses\nare red\n", 0),
        ("roses\nare red\nviolets\nand\nroses\nare red\nviolets\n", 2),
        (None, 0),
    ],
)
def test_a_hunk_that_does_not_fit_exactly_in_one_place_changes_nothing(
    tmp_path: Path, before: str | None, places: int
) -> None:
    (tmp_path / "colour.patch").write_text(PATCH)
    poem = tmp_path / "poem.txt"
    if before is not None:
        poem.write_text(before)
    error = f"colour.patch: hunk 1 fits {places} places of poem.txt, not one\n"
    assert apply(tmp_path, tmp_path / "colour.patch") == error
    assert (poem.read_text() if poem.exists() else None) == before


def test_a_hunk_fits_wherever_its_lines_have_moved_to(tmp_path: Path) -> None:
    (tmp_path / "colour.patch").write_text(PATCH)
    (tmp_path / "poem.txt").write_text("a\nb\nc\nroses\nare red\nviolets\nd\n")
    assert apply(tmp_path, tmp_path / "colour.patch") == ""
    assert (tmp_path / "poem.txt").read_text() == "a\nb\nc\nroses\nare blue\nviolets\nd\n"
