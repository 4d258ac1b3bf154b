"""Which files of a folder are models, in each layout, and where a walk ends."""

import os
import time
from pathlib import Path

import pytest

from lmlite.server.models import folders
from lmlite.server.models.folders import MAX_DEPTH, Walk, have_changed

REVISION, OTHER = "1f" * 20, "2e" * 20


def put(path: Path) -> Path:
    """An empty file, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def walked(*roots: Path) -> Walk:
    walk = Walk()
    for root in roots:
        walk.folder(str(root))
    return walk


def found(*roots: Path) -> list[tuple[str | None, str]]:
    """(publisher, path below the first root) of each model file."""
    return [
        (repository.publisher, os.path.relpath(path, roots[0]))
        for repository in walked(*roots).repositories
        for path in repository.files
    ]


def hub_file(cache: Path, revision: str = REVISION, name: str = "a.gguf") -> Path:
    """A model in the cache of Hugging Face's hub: a link to a file without a name."""
    repository = cache / "models--owner--re--po"
    blob = put(repository / "blobs" / f"{revision}{name.replace('/', '-')}")
    path = repository / "snapshots" / revision / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(blob, path.parent))
    return path


# ---- layouts -------------------------------------------------------------------------------


def test_a_flat_folder_has_no_publishers(tmp_path: Path) -> None:
    put(tmp_path / "b.gguf")
    put(tmp_path / "a.GGUF")
    assert found(tmp_path) == [(None, "a.GGUF"), (None, "b.gguf")]


def test_lm_studios_layout_has_publishers(tmp_path: Path) -> None:
    put(tmp_path / "owner/repository/a.gguf")
    put(tmp_path / "owner/repository/Q8_0/b.gguf")
    put(tmp_path / "folder/c.gguf")
    assert found(tmp_path) == [
        (None, "folder/c.gguf"),
        ("owner", "owner/repository/a.gguf"),
        ("owner", "owner/repository/Q8_0/b.gguf"),
    ]


def test_a_repository_is_one_with_its_subfolders(tmp_path: Path) -> None:
    put(tmp_path / "owner/repository/mmproj.gguf")
    put(tmp_path / "owner/repository/model.yaml")
    put(tmp_path / "owner/repository/Q8_0/b.gguf")
    (repository,) = [one for one in walked(tmp_path).repositories if one.publisher]
    assert len(repository.files) == 2
    assert repository.yaml_paths == [str(tmp_path / "owner/repository/model.yaml")]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_the_hubs_cache_is_found_above_and_below_its_own_folder(tmp_path: Path, depth: int) -> None:
    hub_file(tmp_path / "huggingface" / "hub")
    root = [tmp_path, tmp_path / "huggingface", tmp_path / "huggingface/hub",
            tmp_path / "huggingface/hub/models--owner--re--po"][depth]  # fmt: skip
    ((publisher, path),) = found(root)
    assert (publisher, path.endswith(f"snapshots/{REVISION}/a.gguf")) == ("owner", True)


def test_a_hubs_model_without_owner_has_no_publisher(tmp_path: Path) -> None:
    put(tmp_path / f"models--gpt2/snapshots/{REVISION}/a.gguf")
    assert found(tmp_path) == [(None, f"models--gpt2/snapshots/{REVISION}/a.gguf")]


def test_the_hubs_main_snapshot_is_taken_else_the_newest(tmp_path: Path) -> None:
    old = hub_file(tmp_path, OTHER)
    hub_file(tmp_path, REVISION)
    os.utime(old.parent, ns=(1, 1))
    assert found(tmp_path)[0][1].endswith(f"{REVISION}/a.gguf")
    reference = put(old.parents[2] / "refs" / "main")
    reference.write_text(f"{OTHER}\n")
    assert found(tmp_path)[0][1].endswith(f"{OTHER}/a.gguf")
    for useless in (b"../../..", b"\xff", b"f" * 5000):
        reference.write_bytes(useless)
        assert found(tmp_path)[0][1].endswith(f"{REVISION}/a.gguf")


def test_a_new_main_snapshot_is_noticed(tmp_path: Path) -> None:
    path = hub_file(tmp_path)
    reference = put(path.parents[2] / "refs" / "main")
    walk = walked(tmp_path)
    reference.write_text(REVISION)  # overwrites the file, which changes no folder
    os.utime(reference, ns=(1, 1))
    assert have_changed(walk.signatures)


# ---- what is not a model -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".a.gguf",
        ".cache/a.gguf",
        "a.gguf.part",
        "a.gguf.incomplete",
        "a.safetensors",
        "a/.b/c.gguf",
    ],
)
def test_hidden_files_and_unfinished_downloads_are_left_out(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert found(tmp_path) == []


def test_a_folder_named_like_a_model_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf" / "b.gguf")
    (tmp_path / "c.gguf").symlink_to("a.gguf")
    assert found(tmp_path) == [(None, "a.gguf/b.gguf")]


# ---- where a walk ends ---------------------------------------------------------------------


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "models/a/b.gguf")
    put(tmp_path / "elsewhere/c.gguf")
    (tmp_path / "models/a/loop").symlink_to(tmp_path / "models")
    (tmp_path / "models/out").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "models") == [(None, "a/b.gguf")]


def test_links_to_files_and_the_given_folder_itself_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/c")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/c.gguf").symlink_to(tmp_path / "elsewhere/c")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    assert found(tmp_path / "link") == [(None, "c.gguf")]


def test_dead_links_and_loops_of_links_are_listed_without_a_size(tmp_path: Path) -> None:
    (tmp_path / "dead.gguf").symlink_to("nowhere")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (repository,) = walked(tmp_path).repositories
    assert [*repository.files.values()] == [None, None]


def test_folders_are_walked_five_deep(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefgh"[:MAX_DEPTH])
    put(deep / "in.gguf")
    put(deep / "f" / "out.gguf")
    assert found(tmp_path) == [("a", "a/b/c/d/e/in.gguf")]


def test_a_walk_ends_after_many_files_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_FOUND", 6)
    for name in "abcd":
        put(tmp_path / name / f"{name}.gguf")
    walk = walked(tmp_path)
    assert sum(len(repository.files) for repository in walk.repositories) == 2
    assert walk.notes == [f"only the first 6 files and folders of {tmp_path} are listed"]
    monkeypatch.setattr(folders, "MAX_FOUND", 8)
    assert walked(tmp_path).notes == []
    assert len(found(tmp_path)) == 4


def test_a_folder_given_twice_or_inside_another_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path / "owner/repository/a.gguf")
    (tmp_path / "link").symlink_to("owner")
    expected = [("owner", "owner/repository/a.gguf")]
    assert found(tmp_path, tmp_path, tmp_path / "owner", tmp_path / "link") == expected


def test_a_missing_folder_is_empty_and_one_that_cannot_be_read_is_noted(tmp_path: Path) -> None:
    walk = walked(tmp_path / "missing", put(tmp_path / "file"))
    assert [repository.files for repository in walk.repositories] == [{}, {}]
    assert walk.notes == [f"the folder {tmp_path / 'file'} cannot be read: Not a directory"]


# ---- changes -------------------------------------------------------------------------------


def test_changes_of_a_folder_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    missing = walked(folder)
    put(folder / "owner/repository/a.gguf")
    assert have_changed(missing.signatures)
    before = walked(folder)
    assert not have_changed(before.signatures)
    os.utime(folder / "owner/repository", ns=(1, 1))  # as a new file does
    assert have_changed(before.signatures)
    before = walked(folder)
    deadline_s = time.monotonic() + 20  # the clock of ctime ticks each 10 ms at worst
    while not have_changed(before.signatures) and time.monotonic() < deadline_s:
        (folder / "owner/repository").chmod(0o711)  # this leaves its mtime as it is
    assert have_changed(before.signatures)
