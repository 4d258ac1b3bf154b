"""Finds the native libraries, and whether they support a GPU, without loading them."""

import os
from pathlib import Path

_WITHOUT_GPU = {"base", "cpu", "blas"}  # ggml's CPU libraries; all others are GPU backends


def library_folder(lib_path: str | None) -> Path:
    """`lib_path`, else $LMLITE_LIB, else the package's own folder."""
    chosen = lib_path or os.environ.get("LMLITE_LIB")
    return Path(chosen) if chosen else Path(__file__).resolve().parent / "lib"


def drives_a_gpu(lib_path: str | None) -> bool:
    """Whether the libraries can keep weights in a GPU's memory."""
    parts = library_folder(lib_path).glob("libggml-*.so")
    return any(path.stem.removeprefix("libggml-") not in _WITHOUT_GPU for path in parts)
