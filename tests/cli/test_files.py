"""`lmlite import` and `lmlite rm`, in a folder of models of the test's own."""

import errno
import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import command
from tests.conftest import DEFAULT_MODEL
from tests.gguf.test_file import write_parts
from tests.support.gguf_writer import tiny_llama
from tests.support.scripted_server import ScriptedServer

PROJECTOR = DEFAULT_MODEL.with_name("tiny-mmproj.gguf")

Lmlite = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models, which does not exist yet."""
    folder = tmp_path / "models"
    monkeypatch.setenv("LMLITE_MODELS", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small-F32.gguf"
    tiny_llama(path)
    return path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.answers["GET /api/v1/models"] = (200, {"models": []})
        yield server


@pytest.fixture
def lmlite(folder: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> Lmlite:
    """Runs a command; returns its standard output, or error if it fails."""
    assert folder.is_absolute()

    def run(name: str, *arguments: str, code: int = 0) -> str:
        url = ["--url", server.url] if name == "rm" else []
        assert command.main([name, *arguments, *url]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


def present(folder: Path) -> list[str]:
    """All files of a folder, those with a dot at the start, too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- import ----------------------------------------------------------------------------------


def test_import_copies_and_keeps_the_file(source: Path, folder: Path, lmlite: Lmlite) -> None:
    target = folder / "small-F32.gguf"
    assert lmlite("import", str(source)) == f"{source} is copied to {target}\n"
    assert present(folder) == ["small-F32.gguf"]
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_ino != source.stat().st_ino


def test_import_moves_or_links_when_told_to(source: Path, folder: Path, lmlite: Lmlite) -> None:
    inode = source.stat().st_ino
    lmlite("import", str(source), "--link", "--user-repo", "a/hard")
    lmlite("import", str(source), "--symlink", "--user-repo", "a/soft")
    assert (folder / "a/hard/small-F32.gguf").stat().st_ino == inode
    assert (folder / "a/soft/small-F32.gguf").readlink() == source
    lmlite("import", str(source), "--move", "--user-repo", "a/moved")
    assert (folder / "a/moved/small-F32.gguf").stat().st_ino == inode
    assert not source.exists()


def test_a_link_is_followed(source: Path, tmp_path: Path, folder: Path, lmlite: Lmlite) -> None:
    link = tmp_path / "named.gguf"
    link.symlink_to(source.name)
    lmlite("import", str(link), "--link")
    assert (folder / "named.gguf").stat().st_ino == source.stat().st_ino


def test_a_split_model_comes_with_all_its_parts(
    tmp_path: Path, folder: Path, lmlite: Lmlite
) -> None:
    paths = write_parts(tmp_path)
    lmlite("import", str(paths[0]))
    assert present(folder) == [path.name for path in paths]


def test_a_projector_can_be_imported(folder: Path, lmlite: Lmlite) -> None:
    lmlite("import", str(PROJECTOR), "--link", "--user-repo", "lmlite/tiny")
    assert present(folder) == ["lmlite/tiny/tiny-mmproj.gguf"]


def test_a_dry_run_changes_nothing(source: Path, folder: Path, lmlite: Lmlite) -> None:
    printed = lmlite("import", str(source), "--move", "--dry-run", "--models", str(folder))
    assert printed == f"{source} would be moved to {folder / 'small-F32.gguf'}\n"
    assert source.exists() and not folder.exists()


def test_a_file_of_that_name_is_never_overwritten(
    source: Path, folder: Path, lmlite: Lmlite
) -> None:
    folder.mkdir()
    target = folder / "small-F32.gguf"
    target.write_bytes(b"mine")
    assert lmlite("import", str(source), code=1) == f"lmlite: {target} is there already\n"
    assert target.read_bytes() == b"mine"


def test_a_broken_file_is_refused(tmp_path: Path, folder: Path, lmlite: Lmlite) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(DEFAULT_MODEL.read_bytes()[:100_000])
    assert "half.gguf" in lmlite("import", str(path), code=1)
    assert not folder.exists()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path, lmlite: Lmlite) -> None:
    assert lmlite("import", str(tmp_path / "none.gguf"), code=1).count("\n") == 1


def test_a_copy_that_fails_leaves_nothing(
    tmp_path: Path, folder: Path, lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile
    paths = write_parts(tmp_path)

    def copies_one(source: str, target: str) -> None:
        copy(source, target)
        if source == str(paths[1]):
            raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(shutil, "copyfile", copies_one)
    assert lmlite("import", str(paths[0]), code=1).endswith(": No space left on device\n")
    assert present(folder) == []


def fails_to_link(*_: Any) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")


def test_a_move_to_another_disk_is_a_copy(
    source: Path, folder: Path, lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source.read_bytes()
    monkeypatch.setattr(os, "link", fails_to_link)
    lmlite("import", str(source), "--move")
    assert (folder / "small-F32.gguf").read_bytes() == data
    assert not source.exists()


def test_a_hard_link_to_another_disk_fails(
    source: Path, folder: Path, lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fails_to_link)
    assert "Invalid cross-device link" in lmlite("import", str(source), "--link", code=1)
    assert present(folder) == [] and source.exists()


@pytest.mark.parametrize("text", ["a", "a/b/c", "../b", "a/..", "/a", "a/", "-a/b", "a/\nb"])
def test_a_repository_is_two_names(
    text: str, source: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["import", str(source), f"--user-repo={text}"])
    assert ended.value.code == 2 and not folder.exists()
    assert "must be two names with a slash between them" in capsys.readouterr().err


# ---- rm --------------------------------------------------------------------------------------


@pytest.fixture
def repository(folder: Path) -> Path:
    """A model in two quantisations, which share a projector."""
    repository = folder / "lmlite" / "tiny"
    repository.mkdir(parents=True)
    for name in ("tiny-Q8_0.gguf", "tiny-F16.gguf"):
        shutil.copy(DEFAULT_MODEL, repository / name)
    shutil.copy(PROJECTOR, repository / "mmproj-tiny-F16.gguf")
    (repository / "tiny-F16.json").write_text("{}")
    return repository


def test_rm_removes_what_belongs_to_the_model_alone(
    repository: Path, folder: Path, lmlite: Lmlite
) -> None:
    n_mib = round(DEFAULT_MODEL.stat().st_size / (1 << 20))
    assert lmlite("rm", "tiny@f16", "-y") == (
        f"{repository / 'tiny-F16.gguf'}  {n_mib} MiB\n"
        f"{repository / 'tiny-F16.json'}  0 MiB\n"
        f"lmlite/tiny@f16 is removed, {n_mib} MiB\n"
    )
    assert present(repository) == ["mmproj-tiny-F16.gguf", "tiny-Q8_0.gguf"]
    lmlite("rm", "tiny", "--yes")
    assert list(folder.iterdir()) == []


def test_rm_does_not_choose_a_quantisation(repository: Path, lmlite: Lmlite) -> None:
    assert lmlite("rm", "tiny", "-y", code=1) == (
        "lmlite: 'tiny' may be any of lmlite/tiny@f16, lmlite/tiny@q8_0\n"
    )
    assert len(present(repository)) == 4


def test_rm_removes_all_parts(folder: Path, lmlite: Lmlite) -> None:
    folder.mkdir()
    write_parts(folder)
    lmlite("rm", "big", "-y")
    assert present(folder) == []


def test_rm_removes_a_broken_file(folder: Path, lmlite: Lmlite) -> None:
    folder.mkdir()
    (folder / "half.gguf").write_bytes(b"GGUF")
    lmlite("rm", "half", "-y")
    assert present(folder) == []


def test_rm_of_an_unknown_model_says_so(repository: Path, lmlite: Lmlite) -> None:
    assert lmlite("rm", "qwen", "-y", code=1).startswith("lmlite: there is no model 'qwen'; ")
    assert len(present(repository)) == 4


def test_rm_removes_only_a_link_and_not_what_it_leads_to(
    source: Path, folder: Path, lmlite: Lmlite
) -> None:
    folder.mkdir()
    (folder / "linked.gguf").symlink_to(source)
    lmlite("rm", "linked", "-y")
    assert present(folder) == [] and source.exists()


def test_rm_leaves_hugging_faces_cache_alone(source: Path, folder: Path, lmlite: Lmlite) -> None:
    blob = folder / "models--a--b/blobs/0123"
    link = folder / "models--a--b/snapshots/4567/small.gguf"
    blob.parent.mkdir(parents=True)
    link.parent.mkdir(parents=True)
    shutil.copy(source, blob)
    link.symlink_to("../../blobs/0123")
    message = lmlite("rm", "a/small", "-y", code=1)
    assert message.startswith(f"lmlite: {link} is a link to a file in this folder")
    assert link.exists()


@pytest.mark.parametrize(
    "loaded",
    [
        {"key": "lmlite/tiny@f16"},
        {"key": "another-name", "lmlite": {"path": "lmlite/tiny/tiny-F16.gguf"}},
    ],
)
def test_a_loaded_model_is_not_removed(
    loaded: dict[str, Any], repository: Path, server: ScriptedServer, lmlite: Lmlite
) -> None:
    model = loaded | {"loaded_instances": [{"id": "x"}]}
    server.answers["GET /api/v1/models"] = (200, {"models": [model]})
    assert lmlite("rm", "tiny@f16", "-y", code=1) == (
        "lmlite: lmlite/tiny@f16 is loaded: lmlite unload lmlite/tiny@f16 unloads it\n"
    )
    assert len(present(repository)) == 4
    model["loaded_instances"] = []
    lmlite("rm", "tiny@f16", "-y")
    assert len(present(repository)) == 2


def test_rm_needs_no_server(repository: Path) -> None:
    with socket.socket() as taken:  # bound, so that no other process listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert command.main(["rm", "tiny@f16", "-y", "--url", url]) == 0
    assert len(present(repository)) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rm_asks_on_a_terminal(
    repository: Path, lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed in ("\n", "no\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert lmlite("rm", "tiny@f16", code=1) == "lmlite: nothing is removed\n"
    assert len(present(repository)) == 4
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    lmlite("rm", "tiny@f16")
    assert len(present(repository)) == 2


def test_rm_does_nothing_if_it_cannot_ask(
    repository: Path, lmlite: Lmlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert lmlite("rm", "tiny@f16", code=2) == (
        "lmlite: nobody can be asked here: -y removes without asking\n"
    )
    assert len(present(repository)) == 4
