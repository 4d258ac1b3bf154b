"""A model's files are loaded as they were checked, and checked again once nobody writes to them."""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmlite.errors import ModelFileError, ModelFileMissing
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.projector import read_projector_file
from lmlite.messages import Load
from lmlite.server.logs import Log
from lmlite.server.models.life import Failed, State
from lmlite.server.models.model_check import (
    LOOK_S,
    N_LOOKS,
    CheckedFiles,
    checked_again,
    has_changed,
)
from lmlite.server.models.supervisor import Supervisor
from lmlite.worker.guard.model_files import FilesChanged, ModelFiles
from tests.support import projectors
from tests.support.gguf_writer import tiny_llama, tiny_llama_parts, write_gguf

WAIT_S = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.fixture
def file(path: Path) -> ModelFile:
    return read_model_file(path)


def rename_over(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def settled(supervisor: Supervisor) -> State:
    """The state after an attempt to load the model."""
    supervisor.start()
    supervisor.wait_until_settled(WAIT_S)
    state = supervisor.state
    supervisor.stop()
    return state


def no_wait(_seconds: float) -> None:
    pass


# ---- by their names, in the server -----------------------------------------------------------


def test_a_file_that_nobody_touched_has_not_changed(file: ModelFile) -> None:
    assert not has_changed(file)


@pytest.mark.parametrize("change", [Path.unlink, rename_over, append, touch])
def test_any_other_file_of_that_name_is_a_change(
    path: Path, file: ModelFile, change: Callable[[Path], object]
) -> None:
    files = CheckedFiles(file, None)
    assert not files.are_replaced()
    change(path)
    assert has_changed(file)
    assert files.are_replaced() == (change is not Path.unlink)


def test_a_file_is_checked_again_once_it_stays_unchanged(path: Path, file: ModelFile) -> None:
    rename_over(path)
    assert checked_again(file, read_model_file, no_wait) == read_model_file(path)


def test_a_file_that_is_still_being_written_is_waited_for(path: Path, file: ModelFile) -> None:
    whole = path.read_bytes()
    n_pieces = 5 * N_LOOKS
    sizes = [len(whole) * i // n_pieces for i in range(n_pieces, 0, -1)]

    def write_on(_seconds: float) -> None:
        if sizes:
            path.write_bytes(whole[: sizes.pop()])

    path.write_bytes(b"")
    assert checked_again(file, read_model_file, write_on).parts[0].n_bytes == len(whole)


def test_a_fault_that_persists_is_raised(path: Path, file: ModelFile) -> None:
    waits: list[float] = []
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"^model.gguf cannot be loaded: it "):
        checked_again(file, read_model_file, waits.append)
    assert len(waits) == N_LOOKS


def test_an_absent_file_is_missing_and_not_at_fault(path: Path, file: ModelFile) -> None:
    waits: list[float] = []
    path.unlink()
    with pytest.raises(ModelFileMissing, match=r"^model.gguf cannot be loaded: it does not exist$"):
        checked_again(file, read_model_file, waits.append)
    assert waits == [LOOK_S]


def test_a_file_that_comes_back_while_it_is_looked_for_is_taken(
    path: Path, file: ModelFile
) -> None:
    def come_back(_seconds: float) -> None:
        if not path.exists():
            path.with_suffix(".away").rename(path)

    path.rename(path.with_suffix(".away"))
    assert checked_again(file, read_model_file, come_back).parts == file.parts


def test_a_model_that_becomes_one_of_another_kind_is_not_loaded(
    path: Path, file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmlite.server.models.model_check.LOOK_S", 0)
    metadata, tensors = tiny_llama_parts()
    write_gguf(path, metadata | {"llama.attention.causal": False}, tensors)
    supervisor = Supervisor(Load(str(path)), Log("error", io.StringIO()), ("false",), file=file)
    assert settled(supervisor) == Failed(f"{path} has become a model of another kind")
    assert supervisor.n_started == 0


def test_a_projector_is_checked_again_when_it_has_changed_and_only_then(
    path: Path, file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmlite.server.models.model_check.LOOK_S", 0)
    mmproj = path.with_name("mmproj.gguf")
    projectors.mlp(mmproj, 64)
    projector = read_projector_file(str(mmproj))
    files = CheckedFiles(file, projector)
    files.check(no_wait)
    assert files.projector is projector
    projectors.gemma3(mmproj, 64)
    files.check(no_wait)
    assert files.projector == read_projector_file(str(mmproj)) != projector
    mmproj.write_bytes(b"GGUF")
    load, log = Load(str(path), mmproj_path=str(mmproj)), Log("error", io.StringIO())
    supervisor = Supervisor(load, log, ("false",), file=file, projector=projector)
    state = settled(supervisor)
    assert isinstance(state, Failed)
    assert state.reason.startswith("mmproj.gguf cannot be loaded: it ")
    assert supervisor.n_started == 0


# ---- the files themselves, in the worker -----------------------------------------------------


@pytest.mark.parametrize("change", [Path.unlink, rename_over])
def test_a_loaded_file_that_loses_its_name_is_still_the_same(
    path: Path, file: ModelFile, change: Callable[[Path], object]
) -> None:
    files = ModelFiles(file.parts)
    files.check_names()
    change(path)
    assert not files.have_changed()
    with pytest.raises(FilesChanged):
        files.check_names()
    files.close()


@pytest.mark.parametrize("change", [append, touch, lambda path: os.truncate(path, 100)])
def test_a_loaded_file_that_is_written_to_has_changed(
    path: Path, file: ModelFile, change: Callable[[Path], object]
) -> None:
    files = ModelFiles(file.parts)
    change(path)
    assert files.have_changed()
    files.close()


def test_a_part_that_is_gone_before_it_is_loaded_leaves_the_others_closed(
    path: Path, file: ModelFile
) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    missing = replace(file.parts[0], path=str(path) + ".none")
    with pytest.raises(FilesChanged, match="No such file"):
        ModelFiles([*file.parts, missing])
    assert len(os.listdir("/proc/self/fd")) == n_open
