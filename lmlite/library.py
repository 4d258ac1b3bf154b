"""Finds the native libraries, and what they support, without loading them."""

import os
from pathlib import Path

RPC_NAME = "libggml-rpc.so"  # speaks to hosts that hold layers of a model
_WITHOUT_GPU = ("cpu", "blas", "rpc")  # ggml's other backends are for GPUs


def library_folder(lib_path: str | None) -> Path:
    """`lib_path`, else $LMLITE_LIB, else the package's own folder."""
    chosen = lib_path or os.environ.get("LMLITE_LIB")
    return Path(chosen) if chosen else Path(__file__).resolve().parent / "lib"


def drives_a_gpu(lib_path: str | None) -> bool:
    """Whether the libraries can keep weights in a GPU's memory."""
    parts = library_folder(lib_path).glob("libggml-*.so")
    return any(not path.stem.removeprefix("libggml-").startswith(_WITHOUT_GPU) for path in parts)


def reaches_hosts(lib_path: str | None) -> bool:
    """Whether the libraries can place layers of a model on other hosts."""
    return (library_folder(lib_path) / RPC_NAME).is_file()
