"""Makes one-file archives for tests, and runs them."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from native import pack
from tests import REPOSITORY

LIBRARIES = REPOSITORY / "lmlite" / "lib"


def make(path: Path, package: Mapping[str, bytes], libraries: Mapping[str, bytes]) -> Path:
    """Packs contents by path, with little effort on their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "PRESET", 0)
        path.write_bytes(pack.packed(package, libraries, {}, "x86_64"))
    path.chmod(0o755)
    return path


def make_whole(path: Path) -> Path:
    """Packs the package, its models, and the libraries that the tests use."""
    libraries = {f"lmlite/lib/{lib.name}": lib.read_bytes() for lib in LIBRARIES.glob("*.so")}
    return make(path, dict(pack.package_files(with_models=True)), libraries)


def run(
    *command: str | Path, folder: Path | None = None, **environment: str | Path
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with nothing but these environment variables."""
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )
