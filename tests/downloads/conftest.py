"""Fixtures: a server that behaves as Hugging Face's does, and small models for it."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.downloads import transfer, web
from lmlite.downloads.fetch import fetch_model
from tests.gguf.test_file import write_parts
from tests.support.fake_hub import FakeHub, opened_hub
from tests.support.gguf_writer import tiny_llama
from tests.support.projectors import mlp

Fetch = Callable[..., list[Path]]


@functools.cache
def model(seed: int = 0) -> bytes:
    """A model file that may be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama(Path(folder) / "m.gguf", seed=seed)
        return (Path(folder) / "m.gguf").read_bytes()


@functools.cache
def projector() -> bytes:
    """A projector file."""
    with tempfile.TemporaryDirectory() as folder:
        mlp(Path(folder) / "mmproj.gguf", 64)
        return (Path(folder) / "mmproj.gguf").read_bytes()


@functools.cache
def parts() -> dict[str, bytes]:
    """The parts of a split model by their names: big-00001-of-00003.gguf, ..."""
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in write_parts(Path(folder))}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with opened_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, and read little at a time."""
    monkeypatch.setattr(web, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(transfer, "READ_BYTES", 1 << 12)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def notes() -> list[str]:
    """What a download said."""
    return []


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path, notes: list[str]) -> Fetch:
    """Fetches a model from the hub into `tmp_path`."""

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            notes.append(event["message"])

    def fetch(name: str, token: str | None = None, endpoint: str | None = None) -> list[Path]:
        return fetch_model(name, tmp_path, endpoint or hub.url, token, tell)

    return fetch


def names_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
