"""Where the native libraries lie, and what they can do, without loading them."""

import os
from pathlib import Path

_ON_EVERY_MACHINE = {"base", "cpu", "blas"}  # of ggml's parts; any other one drives a GPU


def library_folder(lib_path: str | None) -> Path:
    """`lib_path`, else $LMLITE_LIB, else beside the package."""
    chosen = lib_path or os.environ.get("LMLITE_LIB")
    return Path(chosen) if chosen else Path(__file__).resolve().parent / "lib"


def drives_a_gpu(lib_path: str | None) -> bool:
    """Whether weights may go to another memory than the machine's."""
    parts = library_folder(lib_path).glob("libggml-*.so")
    return any(path.stem.removeprefix("libggml-") not in _ON_EVERY_MACHINE for path in parts)
